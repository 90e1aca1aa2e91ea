import math

import pytest
import torch
import torch.nn.functional as F

from mtlsi.kinds import decode
from mtlsi.model.heads import TaskHeads
from mtlsi.nn.task_subset import for_tasks
from mtlsi.tasks import TASKS
from random_weights import draw_weights

OUTPUTS = {"semseg": 5, "depth": 1, "normals": 3}
CHANNELS, WIDTH, FINE = 32, 12, 6
SUBSET = [0, 2]
RAW_CHANNELS = {"semseg": 40, "parsing": 7, "saliency": 2, "depth": 1, "normals": 3, "boundary": 1}


def heads(*, at_stride_4, dense=False, mix=0):
    """Heads in evaluation, with every weight and statistic drawn again."""
    torch.manual_seed(0)
    module = TaskHeads(CHANNELS, FINE, OUTPUTS, width=WIDTH, at_stride_4=at_stride_4, dense=dense, mix=mix)
    return draw_weights(module, std=0.3)


def raw_scores(task, dtype=torch.float32):
    """Raw channels (2 c 6 7) of which some are large, some negative."""
    draw = torch.Generator().manual_seed(0)
    return (4 * torch.randn(2, RAW_CHANNELS[task], 6, 7, generator=draw)).to(dtype)


def folded(norm, task, narrow):
    """Gain and offset of one task's batch norm in evaluation, as maps."""
    own = slice(task * narrow, (task + 1) * narrow)
    gain = norm.norm.weight[own] / (norm.norm.running_var[own] + norm.norm.eps).sqrt()
    return gain[:, None, None], (norm.norm.bias[own] - norm.norm.running_mean[own] * gain)[:, None, None]


def naive_convolution(layer, task, x, narrow):
    x = F.conv2d(x, layer.spatial[task], padding=1, groups=x.shape[1])
    x = torch.einsum("bchw,cd->bdhw", x, layer.pointwise.weight[task]) + layer.pointwise.bias[task, 0][:, None, None]
    gain, offset = folded(layer.norm, task, narrow)
    return F.gelu(x * gain + offset)


@torch.no_grad()
def test_coarse_features_are_enlarged_and_joined_by_the_finest_map():
    module, narrow = heads(at_stride_4=False), WIDTH
    x, finest = torch.randn(2, 3, CHANNELS, 4, 6), torch.randn(2, FINE, 8, 12)
    for t, (task, out) in enumerate(module.predict.by_task(module(x, finest)).items()):
        features = naive_convolution(module.refine, t, x[:, t], narrow)
        features = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
        gain, offset = folded(module.fine.norm, t, narrow)
        features = features + F.conv2d(finest, module.fine.weight[t]) * gain + offset
        features = naive_convolution(module.finish, t, features, narrow)
        torch.testing.assert_close(out, module.predict.of_task[task](features), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_features_at_stride_4_need_no_finest_map():
    module = heads(at_stride_4=True)
    x, finest = torch.randn(2, 3, CHANNELS, 8, 12), torch.full((2, FINE, 8, 12), torch.nan)
    for t, (task, out) in enumerate(module.predict.by_task(module(x, finest)).items()):
        expected = module.predict.of_task[task](naive_convolution(module.refine, t, x[:, t], WIDTH))
        torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("at_stride_4", [True, False])
def test_predictions_have_the_finest_maps_size_and_the_tasks_channels(at_stride_4, dense):
    module = heads(at_stride_4=at_stride_4, dense=dense)
    x = torch.randn(2, 3, CHANNELS, *((8, 12) if at_stride_4 else (4, 6)))
    finest = torch.randn(2, FINE, 8, 12)
    out = module.predict.by_task(module(x, finest))
    assert {task: tuple(v.shape) for task, v in out.items()} == {t: (2, c, 8, 12) for t, c in OUTPUTS.items()}
    chosen = for_tasks(module, SUBSET)
    some = chosen.predict.by_task(chosen(x[:, SUBSET], finest))
    assert list(some) == ["semseg", "normals"]
    for task, value in some.items():
        torch.testing.assert_close(value, out[task], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("task", TASKS)
def test_decoded_predictions_are_laid_out_and_typed_as_labels(task, dtype):
    record, raw = TASKS[task], raw_scores(task, dtype)
    out = decode(task, raw)
    assert out.shape == ((2, 3, 6, 7) if task == "normals" else (2, 6, 7))
    assert out.dtype == (torch.uint8 if record.kind == "classes" else torch.float32)
    if record.kind == "strength":
        assert 0 <= out.min() < 0.5 < out.max() <= 1
    if record.kind == "classes":
        assert out.max() < RAW_CHANNELS[task]


@pytest.mark.parametrize("task", ["semseg", "parsing"])
def test_class_is_the_channel_with_the_highest_score(task):
    raw = raw_scores(task)
    out = decode(task, raw)
    scores = raw[1, :, 2, 3].tolist()
    assert out[1, 2, 3] == scores.index(max(scores))


def test_saliency_is_the_softmax_share_of_the_second_channel():
    raw = raw_scores("saliency")
    back, front = raw[1, :, 2, 3].tolist()
    assert float(decode("saliency", raw)[1, 2, 3]) == pytest.approx(1 / (1 + math.exp(back - front)), rel=1e-5)


def test_boundary_is_the_sigmoid_of_its_channel():
    raw = raw_scores("boundary")
    expected = 1 / (1 + math.exp(-float(raw[1, 0, 2, 3])))
    assert float(decode("boundary", raw)[1, 2, 3]) == pytest.approx(expected, rel=1e-5)


def test_depth_is_its_channel_and_never_negative():
    raw = raw_scores("depth")
    assert torch.equal(decode("depth", raw), torch.where(raw[:, 0] > 0, raw[:, 0], 0.0))


def test_normals_have_unit_length_and_the_raw_direction():
    raw = raw_scores("normals")
    out = decode("normals", raw)
    torch.testing.assert_close(out.square().sum(1), torch.ones(2, 6, 7))
    torch.testing.assert_close(out * raw.norm(dim=1, keepdim=True), raw)


def test_a_normal_of_no_length_stays_finite():
    assert decode("normals", torch.zeros(1, 3, 2, 2)).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("at_stride_4", [True, False])
def test_the_mix_adds_what_all_tasks_say_side_by_side(at_stride_4):
    module = heads(at_stride_4=at_stride_4, mix=2)
    x, finest, seen = torch.randn(2, 3, CHANNELS, 8, 12), torch.randn(2, FINE, 8, 12), {}
    module.mix.register_forward_hook(lambda _, args, out: seen.update(before=args[0], after=out))
    whole = module(x, finest)
    before, mix = seen["before"], module.mix
    few = torch.cat([torch.einsum("bchw,cd->bdhw", before[:, t], mix.down.weight[t]) for t in range(3)], 1)
    few = few + mix.down.bias.reshape(6, 1, 1)
    few = torch.einsum("bchw,dc->bdhw", few, mix.across.weight[..., 0, 0])
    few = torch.cat([F.conv2d(few[:, i : i + 1], mix.spatial.weight[i : i + 1], padding=1) for i in range(6)], 1)
    gain = mix.norm.weight / (mix.norm.running_var + mix.norm.eps).sqrt()
    few = F.gelu((few - mix.norm.running_mean[:, None, None]) * gain[:, None, None] + mix.norm.bias[:, None, None])
    of_task = few.split(2, 1)
    for t in range(3):
        many = torch.einsum("bdhw,dc->bchw", of_task[t], mix.up.weight[t]) + mix.up.bias[t, 0, :, None, None]
        torch.testing.assert_close(seen["after"][:, t], before[:, t] + many, atol=1e-4, rtol=1e-4)
    subset = module.for_tasks(SUBSET)
    names = [list(OUTPUTS)[i] for i in SUBSET]
    for name in names:
        expected = module.predict.by_task(whole)[name]
        torch.testing.assert_close(subset.predict.by_task(subset(x, finest))[name], expected, atol=1e-5, rtol=1e-5)


def test_a_new_mix_changes_nothing():
    fresh = TaskHeads(CHANNELS, FINE, OUTPUTS, width=WIDTH, at_stride_4=True, dense=False, mix=2)
    x = torch.randn(2, 3, WIDTH, 8, 12)
    assert torch.equal(fresh.mix(x), x)
