import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mtlsi.model.preliminary import PreliminaryDecoder
from mtlsi.nn.layers import Predictions, TaskProjection
from mtlsi.nn.task_subset import for_tasks
from random_weights import draw_weights

OUTPUTS = {"semseg": 5, "depth": 1, "normals": 3}
IN_CHANNELS = (3, 4, 5, 6)
CHANNELS = 8
SUBSET = [0, 2]


def randomized(module):
    """``module`` in evaluation, with every weight and statistic drawn again."""
    torch.manual_seed(0)
    return draw_weights(module, std=0.5)


def decoder(skip=0, **options):
    return randomized(PreliminaryDecoder(IN_CHANNELS, CHANNELS, OUTPUTS, skip=skip, **({"dense": False} | options)))


def maps(height=64, width=96):
    torch.manual_seed(1)
    sizes = [(height // stride, width // stride) for stride in (4, 8, 16, 32)]
    return tuple(torch.randn(2, c, *size) for c, size in zip(IN_CHANNELS, sizes, strict=True))


def weights_with_norm(projection, task):
    """One task's 1x1 convolution with its batch norm folded in, float64: weight (d c), bias (d)."""
    norm = projection.norm.norm
    channels = slice(task * CHANNELS, (task + 1) * CHANNELS)
    gain = norm.weight[channels].double() / (norm.running_var[channels].double() + norm.eps).sqrt()
    weight = projection.weight[task, :, :, 0, 0].double() * gain[:, None]
    return weight, norm.bias[channels].double() - norm.running_mean[channels].double() * gain


def test_projection_is_a_convolution_and_a_norm_per_task():
    projection, x = randomized(TaskProjection(5, 3, CHANNELS)), torch.randn(2, 5, 4, 6)
    expected = []
    for task in range(3):
        weight, bias = weights_with_norm(projection, task)
        expected.append(torch.einsum("dc,bchw->bdhw", weight, x.double()) + bias[:, None, None])
    expected = torch.stack(expected, 1)
    torch.testing.assert_close(projection(x).double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(for_tasks(projection, SUBSET)(x).double(), expected[:, SUBSET], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_projecting_before_enlarging_equals_one_projection_of_all_enlarged_maps(skip):
    """Float64: the maps upsampled step by step to the finest, concatenated, then one 1x1 convolution per task."""
    module, inputs = decoder(skip), maps()
    seen = []
    module.refine.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        module(inputs)

    used = [x.double() for x in inputs[skip:]]
    upsampled = []
    for level, x in enumerate(used):
        for finer in reversed(used[:level]):
            x = F.interpolate(x, size=finer.shape[-2:], mode="bilinear", align_corners=False)
        upsampled.append(x)
    together = torch.cat(upsampled, 1)
    for task in range(len(OUTPUTS)):
        folded = [weights_with_norm(lateral, task) for lateral in module.lateral]
        weight = torch.cat([w for w, _ in folded], 1)[:, :, None, None]
        expected = F.conv2d(together, weight, torch.stack([b for _, b in folded]).sum(0))
        torch.testing.assert_close(seen[0][:, task].double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dense", [True, False])
def test_features_and_coarse_predictions_at_the_decoders_stride(dense):
    for skip, stride in ((0, 4), (1, 8), (2, 16)):
        module = decoder(skip, dense=dense)
        features, coarse = module(maps())
        coarse = module.predict.by_task(coarse)
        size = (64 // stride, 96 // stride)
        assert features.shape == (2, 3, CHANNELS, *size)
        assert {task: tuple(x.shape) for task, x in coarse.items()} == {t: (2, c, *size) for t, c in OUTPUTS.items()}


def test_maps_finer_than_the_decoder_are_not_read():
    inputs = maps()
    features, _ = decoder(skip=1)((torch.full_like(inputs[0], torch.nan), *inputs[1:]))
    assert features.isfinite().all()


def test_a_subset_gives_its_slice_and_no_other_predictions():
    module, inputs = decoder(), maps()
    features, coarse = module(inputs)
    chosen = for_tasks(module, SUBSET)
    some_features, some_coarse = chosen(inputs)
    torch.testing.assert_close(some_features, features[:, SUBSET], atol=1e-5, rtol=1e-5)
    of_some = chosen.predict.by_task(some_coarse)
    assert list(of_some) == ["semseg", "normals"]
    for task, value in of_some.items():
        torch.testing.assert_close(value, module.predict.by_task(coarse)[task], atol=1e-5, rtol=1e-5)


def test_predictions_are_a_1x1_convolution_of_the_tasks_own_features():
    predictions, x = Predictions(CHANNELS, OUTPUTS), torch.randn(2, 3, CHANNELS, 4, 5)
    for task, value, features in zip(OUTPUTS, predictions.by_task(predictions(x)).values(), x.unbind(1), strict=True):
        own = predictions.of_task[task]
        assert isinstance(own, nn.Conv2d)
        expected = torch.einsum("oc,bchw->bohw", own.weight[:, :, 0, 0], features) + own.bias[:, None, None]
        torch.testing.assert_close(value, expected)


def test_a_prediction_starts_at_its_given_value():
    predictions = Predictions(CHANNELS, OUTPUTS)
    predictions.start_at("depth", torch.tensor(2.5))
    predictions.start_at("normals", torch.tensor([1.0, 2.0, 3.0]))
    out = predictions.by_task(predictions(torch.zeros(1, 3, CHANNELS, 4, 5)))
    assert (out["depth"] == 2.5).all()
    assert torch.equal(out["normals"][0, :, 3, 4], torch.tensor([1.0, 2.0, 3.0]))
    assert not (out["normals"] == 2.5).any()
