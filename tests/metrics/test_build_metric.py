import pickle

import pytest
import torch

from mtlsi import kinds
from mtlsi.errors import MistakeError
from mtlsi.metrics import MetricSettings, build_metric
from mtlsi.tasks import TASKS


def build(name):
    return build_metric(TASKS[name], MetricSettings(num_classes=4, boundary_tolerance=0.05, num_thresholds=9))


def batch(name, num_images=2, seed=0):
    """Decoded predictions and labels of random images, all pixels valid."""
    draw = torch.Generator().manual_seed(seed)
    shape = (num_images, 24, 32)
    valid = torch.ones(shape, dtype=torch.bool)
    if name == "normals":
        a, b = (torch.randn(num_images, 3, 24, 32, generator=draw) for _ in range(2))
        return a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True), valid
    if name == "depth":
        return torch.rand(shape, generator=draw) + 1, torch.rand(shape, generator=draw) + 1, valid
    if name in ("semseg", "parsing"):
        return torch.randint(4, shape, generator=draw), torch.randint(4, shape, generator=draw).to(torch.uint8), valid
    return torch.rand(shape, generator=draw), (torch.rand(shape, generator=draw) > 0.9).to(torch.uint8), valid


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_a_metric_with_its_headline(name):
    metric = build(name)
    metric.update(*batch(name))
    scores = metric.compute()
    assert TASKS[name].score in scores
    for value in scores.values():
        assert value.shape == ()
        assert value.is_floating_point()
        assert torch.isfinite(value)


@pytest.mark.parametrize("name", TASKS)
def test_without_a_valid_pixel_scores_are_not_numbers(name):
    metric = build(name)
    prediction, label, valid = batch(name)
    metric.update(prediction, torch.full_like(label, kinds.of(name).fill_value(label.dtype)), torch.zeros_like(valid))
    assert all(torch.isnan(value) for value in metric.compute().values())


@pytest.mark.parametrize("name", TASKS)
def test_invalid_pixels_change_nothing(name):
    prediction, label, valid = batch(name)
    valid[:, :, 20:] = False
    hidden_label, hidden_prediction = label.clone(), prediction.clone()
    hidden_label[..., 20:] = kinds.of(name).fill_value(label.dtype)
    if name != "boundary":  # the smoothing before suppression looks a few pixels further
        hidden_prediction[..., 20:] = 0
    one, other = build(name), build(name)
    one.update(prediction, label, valid)
    other.update(hidden_prediction, hidden_label, valid)
    assert one.compute() == other.compute()


@pytest.mark.parametrize("name", TASKS)
def test_reset_clone_pickle_and_adding_up_over_processes(name):
    first, second, whole = build(name), build(name), build(name)
    first.update(*batch(name, seed=1))
    second.update(*batch(name, seed=2))
    whole.update(*batch(name, seed=1))
    whole.update(*batch(name, seed=2))
    copied = pickle.loads(pickle.dumps(first)).clone()
    for state in copied._defaults:  # what the reduction "sum" does between processes
        assert copied._reductions[state] is whole._reductions[state]
        getattr(copied, state).add_(getattr(second, state))
    for key, value in whole.compute().items():
        assert copied.compute()[key].item() == pytest.approx(value.item(), rel=1e-12)
    first.reset()
    first.update(*batch(name, seed=2))
    assert first.compute() == second.compute()


def test_classes_are_needed_for_miou():
    with pytest.raises(MistakeError, match="semseg: number of classes not given"):
        build_metric(TASKS["semseg"], MetricSettings())


def test_settings_reach_their_metrics():
    from mtlsi.metrics import BoundaryF, MaxF

    legacy = build_metric(TASKS["saliency"], MetricSettings(legacy_saliency=True))
    boundary = build_metric(
        TASKS["boundary"], MetricSettings(boundary_tolerance=0.02, boundary_protocol="seism", num_thresholds=7)
    )
    assert isinstance(legacy, MaxF)
    assert legacy.legacy
    assert isinstance(boundary, BoundaryF)
    protocol = boundary.protocol
    assert (protocol.name, protocol.max_dist, protocol.num_thresholds) == ("seism", 0.02, 7)
