import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mtlsi import kernels
from mtlsi.errors import MistakeError
from mtlsi.model.fusion import CONTEXTS, LEAST_SHARE, MultiQueryLinearFusion, SharedQueries
from mtlsi.nn.layout import to_map
from random_weights import draw_weights

OUTPUTS = {"semseg": 5, "depth": 1, "normals": 3}
TASKS, CHANNELS, HEADS, POOL = len(OUTPUTS), 8, 2, 2
KINDS = ("dense", "separable", "shared")
SIZE = (5, 7)  # odd: the pooled squares at the edges are cut


def block(scales=(1, 3, 5), *, queries="separable", **options):
    """The block in evaluation, with every weight and statistic drawn again."""
    torch.manual_seed(0)
    sizes = {"num_heads": HEADS, "scales": scales, "pool": POOL, "queries": queries}
    module = draw_weights(MultiQueryLinearFusion(CHANNELS, OUTPUTS, **sizes, **options), std=0.3)
    for name, weight in module.named_parameters():
        if name.endswith("log_scale"):
            weight.data += 1
    return module


def inputs(size_hw=SIZE, batch=2):
    torch.manual_seed(1)
    features = torch.randn(batch, TASKS, CHANNELS, *size_hw)
    return features, {task: torch.randn(batch, channels, *size_hw) for task, channels in OUTPUTS.items()}


def together(coarse):
    """All tasks' predictions side by side."""
    return torch.cat(list(coarse.values()), 1)


def naive_linear(layer, task, x):
    """One task's linear map of the last axis."""
    return x @ layer.weight[task] + layer.bias[task, 0]


def naive_pooled(joined):
    """Means over squares, cut at the edges: (c h w) -> (m c)."""
    h, w = joined.shape[1:]
    squares = [joined[:, y : y + POOL, x : x + POOL] for y in range(0, h, POOL) for x in range(0, w, POOL)]
    return torch.stack([square.mean((1, 2)) for square in squares])


def convolved(layer, x):
    kernel = layer.weight
    return F.conv2d(x, kernel, layer.bias, padding=kernel.shape[-1] // 2, groups=x.shape[1] // kernel.shape[1])


def naive_queries(module, x):
    """The queries of every scale ((t c) h w)."""
    if isinstance(module, SharedQueries):
        mixed = convolved(module.across, x)
        return [mixed[0] if isinstance(layer, nn.Identity) else convolved(layer, mixed)[0] for layer in module.spatial]
    around = [x if layer.spatial is None else convolved(layer.spatial, x) for layer in module]
    return [convolved(layer.across, seen)[0] for layer, seen in zip(module, around, strict=True)]


def naive_shares(layer, head, x):
    """What each position (n d) gives to each channel of a head."""
    directions = [row - x.mean(0) for row in x]
    return torch.stack([torch.softmax(row / row.norm() * layer.log_scale[head].exp(), 0) for row in directions])


def naive_centroids(shares, values):
    """The mean value of each share less that of all positions, normalised, and the shares' sizes."""
    sizes, means = shares.mean(0), []
    for i in range(shares.shape[1]):
        beyond = sum(share[i] * (value - values.mean(0)) for share, value in zip(shares, values, strict=True)) / len(
            values
        )
        means.append(beyond / (sizes[i] + LEAST_SHARE))
    return torch.stack([(x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() for x in means]), sizes


def naive_fusion(module, features, coarse):
    """One image, float64, task by task and head by head, with the attention matrices written out: (t n c)."""
    h, w = features.shape[-2:]
    d = CHANNELS // HEADS
    joined, keys, values, normed = [], [], [], []
    for t, task in enumerate(OUTPUTS):
        positions = features[t].flatten(1).T
        joined.append(naive_linear(module.project, t, positions))
        if module.embed is not None:
            joined[t] = joined[t] + coarse[task].flatten(1).T @ module.embed[task].weight[:, :, 0, 0].T
        on_map = joined[t].T.reshape(CHANNELS, h, w)
        pooled = F.layer_norm(
            naive_pooled(on_map), (CHANNELS,), module.context_norm.weight[t, 0], module.context_norm.bias[t, 0]
        )
        key_value = naive_linear(module.key_value, t, pooled)
        keys.append(key_value[:, :CHANNELS])
        values.append(key_value[:, CHANNELS:])
        norm, own = module.query_norm.norm, slice(t * CHANNELS, (t + 1) * CHANNELS)
        centred = on_map - norm.running_mean[own, None, None]
        scaled = centred / (norm.running_var[own, None, None] + norm.eps).sqrt()
        normed.append(scaled * norm.weight[own, None, None] + norm.bias[own, None, None])
    all_keys, all_values, side_by_side = torch.cat(keys), torch.cat(values), torch.cat(normed)

    fused = []
    queries = naive_queries(module.queries, side_by_side[None])
    for t in range(TASKS):
        per_scale = []
        for scale, query in enumerate(queries):
            own = query[t * CHANNELS : (t + 1) * CHANNELS].flatten(1).T  # n c
            for head in range(HEADS):
                part = slice(head * d, (head + 1) * d)
                if module.key_shares is not None:
                    shared = torch.cat([naive_shares(module.key_shares, head, k[:, part]) for k in keys])
                    means, sizes = naive_centroids(shared, all_values[:, part])
                    taken = naive_shares(module.query_shares[scale], head, own[:, part]) * sizes
                    per_scale.append(taken / taken.sum(1, keepdim=True) @ means)
                    continue
                matrix = (F.elu(own[:, part]) + 1) @ (F.elu(all_keys[:, part]) + 1).T  # n (t m)
                per_scale.append(matrix / matrix.sum(1, keepdim=True) @ all_values[:, part])
        hidden = F.gelu(naive_linear(module.merge.expand, t, torch.cat(per_scale, 1)))
        own = features[t].flatten(1).T if module.onto == "features" else joined[t]
        fused.append(own + naive_linear(module.merge.reduce, t, hidden))
    return torch.stack(fused)


@pytest.mark.parametrize(
    "options",
    [*({"context": context} for context in CONTEXTS), {"fuse_coarse": False}, {"onto": "features"}],
    ids=lambda options: str(options),
)
@pytest.mark.parametrize("queries", KINDS)
@pytest.mark.parametrize("scales", [(1, 3, 5), (3,), (1, 7)])
def test_block_equals_loops_over_tasks_heads_and_scales_with_explicit_attention(scales, queries, options):
    module, (features, coarse) = block(scales, queries=queries, **options), inputs()
    with torch.no_grad():
        out = module(features, together(coarse))
        exact = block(scales, queries=queries, **options).double()
        expected = [
            naive_fusion(exact, features[b].double(), {task: x[b].double() for task, x in coarse.items()})
            for b in range(len(features))
        ]
    assert out.shape == (2, TASKS, math.prod(SIZE), CHANNELS)
    torch.testing.assert_close(out.double(), torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_without_its_gradient_what_is_read_learns_only_past_the_fusion():
    """The output, its weights' gradients, and that of the features, which is then of what the fusion adds to alone."""
    gradients = {}
    for gradient in (True, False):
        module, (features, coarse) = block((1, 3), onto="features", gradient=gradient), inputs()
        features, coarse = features.requires_grad_(), together(coarse).requires_grad_()
        out = module(features, coarse)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3))
        (out * weight).sum().backward()
        own = {name: parameter.grad for name, parameter in module.named_parameters()}
        gradients[gradient] = out.detach(), own, features.grad, coarse.grad, to_map(weight, SIZE)
    with_it, without = gradients[True], gradients[False]
    assert torch.equal(with_it[0], without[0])
    for name, expected in with_it[1].items():
        torch.testing.assert_close(without[1][name], expected)
    assert torch.equal(without[2], without[4])
    assert without[3] is None
    assert not torch.allclose(with_it[2], without[2])
    assert bool(with_it[3].any())


def test_positions_attend_to_different_things_from_the_start_where_the_context_is_of_centroids(monkeypatch):
    """What they attend to, as a share of its square, beyond its mean over the positions: with sums next to nothing."""

    def beyond_mean(context):
        torch.manual_seed(0)
        module = MultiQueryLinearFusion(
            32, OUTPUTS, num_heads=1, scales=(1,), pool=1, queries="dense", context=context
        ).eval()
        kept = []
        attend = kernels.attend_and_expand
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(kernels, "attend_and_expand", lambda *given: (kept.append(given[:3]), attend(*given))[1])
            features = torch.randn(1, TASKS, 32, 12, 16) + torch.randn(1, TASKS, 32, 1, 1)
            module(features, together({task: torch.randn(1, n, 12, 16) for task, n in OUTPUTS.items()}))
        (queries,), c, z = kept[0]
        taken = F.elu(queries) + 1
        attended = taken @ c[0, 0] / (taken @ z[0, 0, :, None])
        return float(1 - attended.mean(2).square().sum() / attended.square().sum(-1).mean(2).sum())

    assert beyond_mean("sums") < 0.1
    assert beyond_mean("centroids") > 0.5


def test_one_context_is_computed_and_it_has_no_axis_for_tasks_or_scales(monkeypatch):
    calls = []

    def counted(keys, values, num_heads):
        calls.append((*keys.shape, num_heads))
        return global_context(keys, values, num_heads)

    global_context = kernels.global_context
    monkeypatch.setattr(kernels, "global_context", counted)
    module, (features, coarse) = block(), inputs()
    module(features, together(coarse))
    squares = math.ceil(SIZE[0] / POOL) * math.ceil(SIZE[1] / POOL)
    assert calls == [(2, TASKS, squares, CHANNELS, HEADS)]
    context, normaliser = module.context(features)
    assert context.shape == (2, HEADS, CHANNELS // HEADS, CHANNELS // HEADS)
    assert normaliser.shape == (2, HEADS, CHANNELS // HEADS)


@pytest.mark.parametrize("changed", range(TASKS))
def test_a_change_in_one_task_reaches_every_task_through_the_context_alone(changed):
    """The queries' convolutions are made blind to other tasks first, so that nothing but the context can carry it."""
    module, (features, coarse) = block(), inputs()
    with torch.no_grad():
        for query in module.queries:
            same_task = torch.block_diag(*[torch.ones(CHANNELS, CHANNELS)] * TASKS)
            query.across.weight.mul_(same_task[:, :, None, None])
        before = module(features, together(coarse))
        features[:, changed] += torch.randn_like(features[:, changed])
        moved = (module(features, together(coarse)) - before).abs().amax((0, 2, 3))
    assert (moved > 1e-3).all()


@pytest.mark.parametrize("queries", KINDS)
def test_queries_see_every_task(queries):
    """With the context held still, a change in one task still moves the queries of all."""
    module, (features, _) = block(queries=queries), inputs()
    changed = features.clone()
    changed[:, 0] += 1
    with torch.no_grad():
        for after, before in zip(
            module.queries(changed.flatten(1, 2)), module.queries(features.flatten(1, 2)), strict=True
        ):
            difference = after - before
            assert (difference.unflatten(1, (TASKS, CHANNELS)).abs().amax((0, 2, 3, 4)) > 1e-3).all()


@pytest.mark.parametrize("queries", KINDS)
def test_reach_of_a_query_is_its_scale(queries):
    """A single changed position moves a square of that many positions and nothing else."""
    module = block((1, 3, 5), queries=queries)
    still = torch.zeros(1, TASKS * CHANNELS, 9, 9)
    touched = still.clone()
    touched[..., 4, 4] = 1
    with torch.no_grad():
        moved = zip(module.queries(touched), module.queries(still), strict=True)
        reach = [int(((after - before).abs().amax((0, 1)) > 0).sum()) for after, before in moved]
    assert reach == [1, 9, 25]


def test_coarse_predictions_take_part():
    module, (features, coarse) = block(), inputs()
    with torch.no_grad():
        before = module(features, together(coarse))
        after = module(features, together(coarse | {"depth": coarse["depth"] + 1}))
    assert ((after - before).abs().amax((0, 2, 3)) > 1e-4).all()


@pytest.mark.parametrize("scales", [(), (2,), (1, 4), (0,), (-1,)])
def test_scales_that_are_not_odd_sizes_are_refused(scales):
    with pytest.raises(MistakeError, match="expected one or more odd kernel sizes") as error:
        block(scales)
    assert "\n" not in str(error.value)


def test_an_unknown_kind_of_queries_is_refused():
    with pytest.raises(MistakeError, match="queries 'sparse'; expected dense, separable or shared"):
        block(queries="sparse")
