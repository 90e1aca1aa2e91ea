"""Every form of every operation against the reference in float64: results and gradients, on the types it may meet."""

import math

import pytest
import torch
import torch.nn.functional as F

from mtlsi import kernels
from mtlsi.kernels import choice, cpu_attention
from mtlsi.kernels.choice import OPERATIONS

B, T, N, C, D, K, M, H = 2, 3, 37, 8, 6, 5, 11, 2


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positions(n=N, c=C, seed=0):
    """(b t n c), as positions lie in memory."""
    return draw(B, n, T, c, seed=seed).transpose(1, 2)


def a_map(channels, h=5, w=7, seed=0):
    """(b t c h w), as maps lie in memory."""
    return draw(B, h, w, T, channels, seed=seed).permute(0, 3, 4, 1, 2)


MASK = torch.ones(B, 1, 1, K, dtype=torch.bool)
MASK[0, ..., 2:] = False
AFFINE = (draw(T, D, seed=8), draw(T, D, seed=9))
ARGUMENTS = {
    "task_linear": lambda: (positions(), draw(T, C, D, seed=1), draw(T, 1, D, seed=2)),
    "task_linear_chunks": lambda: (positions(), draw(T, C, D, seed=1), draw(T, 1, D, seed=2), 2),
    "task_linear_concat": lambda: ((positions(c=3), positions(c=5, seed=3)), draw(T, C, D, seed=1), draw(T, 1, D)),
    "attention": lambda: (positions(), positions(K, seed=1), positions(K, seed=2), H, None),
    "attention, masked": lambda: (positions(), positions(K, seed=1), positions(K, seed=2), H, MASK),
    "attention, many keys and wide heads": lambda: (
        positions(c=64),
        positions(129, c=64, seed=1),
        positions(129, c=64, seed=2),
        H,
        None,
    ),
    "global_context": lambda: (positions(M), positions(M, seed=1), H),
    "attend_and_expand": lambda: (
        tuple(positions(seed=seed) for seed in range(3)),
        draw(B, H, C // H, C // H, seed=4),
        draw(B, H, C // H, seed=5).abs() + 0.1,
        draw(T, 3 * C, D, seed=6),
        draw(T, 1, D, seed=7),
    ),
    "assign_tokens": lambda: (positions(), positions(c=D, seed=1), draw(T, C, K, seed=2), draw(T, 1, K, seed=3)),
    "separable_conv": lambda: (a_map(C), draw(T, C, 1, 3, 3), draw(T, C, D, seed=1), draw(T, 1, D, seed=2), None),
    "separable_conv, norm": lambda: (a_map(C), draw(T, C, 1, 3, 3), draw(T, C, D), draw(T, 1, D), AFFINE),
    "dense_conv": lambda: (a_map(C), draw(T, D, C, 3, 3, seed=1), None),
    "dense_conv, norm": lambda: (a_map(C), draw(T, D, C, 3, 3, seed=1), AFFINE),
    "project": lambda: (draw(B, C, 5, 7), draw(T, D, C, 1, 1, seed=1), None),
    "project, norm": lambda: (draw(B, C, 5, 7), draw(T, D, C, 1, 1, seed=1), AFFINE),
    "block_conv": lambda: (draw(B, 7, 5, 4), [draw(2, 3), draw(5, 4, seed=1)], [draw(2), draw(5, seed=1)]),
    "block_conv, no bias": lambda: (draw(B, 7, 5, 4), [draw(2, 3), draw(5, 4, seed=1)], None),
}


@pytest.fixture(autouse=True)
def _small_maps_are_large_enough(monkeypatch):
    """Forms that loop over the images leave batches of small ones to the default form; here they are to run on them."""
    monkeypatch.setattr(choice, "MANY_POSITIONS", 1)


def cases():
    for case in ARGUMENTS:
        operation = OPERATIONS[case.split(",")[0]]
        for form in ("default", "graph", *(form.name for form in operation.cpu)):
            yield case, form


def converted(value, dtype, leaves=None):
    """The arguments in another type, tensors of floats as leaves."""
    if isinstance(value, (tuple, list)):
        return type(value)(converted(x, dtype, leaves) for x in value)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    leaf = value.to(dtype).detach().clone(memory_format=torch.preserve_format)
    if leaves is not None:
        leaves.append(leaf.requires_grad_())
    return leaf


def results(value):
    return list(value) if isinstance(value, (tuple, list)) else [value]


def close(ours, exact, tolerance):
    return (ours.double() - exact).norm() <= tolerance * exact.norm() + 1e-12


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(("case", "form"), cases())
def test_a_form_is_the_reference_in_float64(case, form, gradients, dtype, tolerance):
    """bf16 means autocast on float32 tensors, as networks run in it."""
    name, autocast = case.split(",")[0], dtype is torch.bfloat16
    own, exact = [], []
    arguments = converted(ARGUMENTS[case](), torch.float32 if autocast else dtype, own if gradients else None)
    with torch.set_grad_enabled(gradients), kernels.use(form), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = results(getattr(kernels, name)(*arguments))
    reference = converted(ARGUMENTS[case](), torch.float64, exact if gradients else None)
    with torch.set_grad_enabled(gradients), kernels.use("reference"):
        expected = results(getattr(kernels, name)(*reference))
    assert [x.shape for x in ours] == [x.shape for x in expected]
    assert all(close(x, y, tolerance) for x, y in zip(ours, expected, strict=True))
    if not gradients:
        return
    targets = [draw(*y.shape, seed=11) for y in expected]
    sum((x.double() * t).sum() for x, t in zip(ours, targets, strict=True)).backward()
    sum((y * t).sum() for y, t in zip(expected, targets, strict=True)).backward()
    largest = max(y.grad.norm() for y in exact)
    for x, y in zip(own, exact, strict=True):
        assert (x.grad.double() - y.grad).norm() <= tolerance * y.grad.norm() + 1e-3 * tolerance * largest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["default", "cpu", "graph"])
def test_tensors_of_half_precision_are_taken_as_they_are(form, dtype):
    """A network whose weights are bf16 or float16, without autocast."""
    for case, make in ARGUMENTS.items():
        with torch.no_grad(), kernels.use(form):
            ours = results(getattr(kernels, case.split(",")[0])(*converted(make(), dtype)))
        with torch.no_grad(), kernels.use("reference"):
            expected = results(getattr(kernels, case.split(",")[0])(*make()))
        assert all(close(x, y, 0.06) for x, y in zip(ours, expected, strict=True)), case


@pytest.mark.parametrize("mask", [None, MASK])
def test_attention_to_train_in_bf16_is_the_reference(mask):
    """Queries are bf16 where a linear map came before; gradients reach what they were made of."""
    ours, exact = (
        [x.to(dtype).requires_grad_() for x in ARGUMENTS["attention"]()[:3]] for dtype in (torch.float32, torch.float64)
    )
    with kernels.use("cpu_written_out_to_train"):
        low = [x.bfloat16() for x in ours]
        assert choice.choose("attention", *low, H, mask) is cpu_attention.written_out
        out = kernels.attention(*low, H, mask)
    with kernels.use("reference"):
        expected = kernels.attention(*exact, H, mask)
    assert close(out, expected, 0.03)
    target = draw(*expected.shape, seed=11)
    (out.double() * target).sum().backward()
    (expected * target).sum().backward()
    assert all(close(x.grad, y.grad, 0.03) for x, y in zip(ours, exact, strict=True))


def test_every_operation_has_its_cases():
    assert {case.split(",")[0] for case in ARGUMENTS} == set(OPERATIONS)


@pytest.mark.parametrize("form", ["reference", "default", "cpu", "graph"])
def test_linear_attention_is_attention_with_its_matrix_of_kernels(form):
    """phi(q_n) . phi(k_m), divided by its row sums, times the values: against the n x m matrix, and loops over heads."""
    queries, keys, values = positions(), positions(M, seed=1), positions(M, seed=2)
    weight, bias = torch.eye(C, dtype=torch.float64).expand(T, C, C), torch.zeros(T, 1, C, dtype=torch.float64)
    with kernels.use(form):
        context, normaliser = kernels.global_context(keys, values, H)
        out = kernels.attend_and_expand([queries], context, normaliser, weight, bias)
    all_keys, all_values = keys.flatten(1, 2), values.flatten(1, 2)  # b (t m) c
    for head in range(H):
        part = slice(head * C // H, (head + 1) * C // H)
        matrix = (F.elu(queries[..., part]) + 1) @ (F.elu(all_keys[..., part]) + 1).mT.unsqueeze(1)
        expected = matrix / matrix.sum(-1, keepdim=True) @ all_values[..., part].unsqueeze(1)
        torch.testing.assert_close(out[..., part], expected)


@pytest.mark.parametrize("form", ["reference", "default", "cpu", "graph"])
def test_attention_equals_loops_over_queries_and_keys(form):
    queries, keys, values = positions(6), positions(K, seed=1), positions(K, seed=2)
    with torch.no_grad(), kernels.use(form):
        out = kernels.attention(queries.float(), keys.float(), values.float(), H, MASK)
    for b, t, head, i in [(0, 0, 0, 0), (0, 2, 1, 5), (1, 1, 0, 3)]:
        part = slice(head * C // H, (head + 1) * C // H)
        kept = [j for j in range(K) if MASK[b, 0, 0, j]]
        scores = [math.exp(float(queries[b, t, i, part] @ keys[b, t, j, part]) / (C // H) ** 0.5) for j in kept]
        expected = sum(s / sum(scores) * values[b, t, j, part] for s, j in zip(scores, kept, strict=True))
        torch.testing.assert_close(out[b, t, i, part].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["reference", "default", "cpu", "graph"])
def test_a_context_is_a_mean_and_stays_float32_under_autocast(form):
    keys, values = positions(M).float(), positions(M, seed=1).float()
    with kernels.use(form):
        few = kernels.global_context(keys, values, H)
        many = kernels.global_context(keys.repeat(1, 1, 50, 1), values.repeat(1, 1, 50, 1), H)
    for a, b in zip(few, many, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    with kernels.use("default"), torch.autocast("cpu", torch.bfloat16):
        assert {x.dtype for x in kernels.global_context(keys.bfloat16(), values.bfloat16(), H)} == {torch.float32}


def test_queries_and_keys_that_phi_maps_to_zero_give_no_nan():
    low = torch.full((1, T, 4, C), -200.0)
    with torch.no_grad(), kernels.use("cpu"):
        context, normaliser = kernels.global_context(low, torch.ones_like(low), H)
        out = kernels.attend_and_expand([low], context, normaliser, torch.ones(T, C, D), torch.zeros(T, 1, D))
    assert out.isfinite().all()


def test_chunks_of_positions_change_nothing(monkeypatch):
    """Whatever the size of a chunk, one position a chunk included."""
    from mtlsi.kernels import cpu_attention, cpu_tokens

    attention = converted(ARGUMENTS["attention, many keys and wide heads"](), torch.float32)
    tokens = converted(ARGUMENTS["assign_tokens"](), torch.float32)
    with torch.no_grad(), kernels.use("cpu"):
        whole = kernels.attention(*attention), kernels.assign_tokens(*tokens)
        monkeypatch.setattr(cpu_attention, "SCORES_PER_CHUNK", 1)
        monkeypatch.setattr(cpu_tokens, "POSITIONS_PER_CHUNK", 10)
        chunked = kernels.attention(*attention), kernels.assign_tokens(*tokens)
    for a, b in zip(whole, chunked, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_frozen_input_gets_no_gradient():
    x, weight = torch.randn(1, 2, 4, 3), torch.randn(2, 3, 5)
    with kernels.use("cpu"):
        kernels.task_linear(x, weight.requires_grad_()).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(weight.grad, x.sum((0, 2)).unsqueeze(-1).expand(2, 3, 5))
