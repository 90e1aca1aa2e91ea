import math

import numpy as np
import pytest
import torch

from mtlsi import kinds, losses
from mtlsi.errors import MistakeError
from mtlsi.losses import LOSSES, MultiTaskLoss, shrink_label
from mtlsi.tasks import TASKS, Task

CHANNELS = {"semseg": 5, "parsing": 7, "saliency": 2, "depth": 1, "normals": 3, "boundary": 1}


def make_label(task, size=(6, 8), batch=2, seed=0):
    """A random label with about a third of its pixels invalid."""
    draw = np.random.default_rng(seed)
    shape = (batch, *size)
    hidden = draw.random(shape) < 0.3
    if task == "normals":
        label = draw.standard_normal((batch, 3, *size))
        label = label / np.linalg.norm(label, axis=1, keepdims=True) * ~hidden[:, None]
        return torch.tensor(label, dtype=torch.float32)
    if task == "depth":
        label = np.where(hidden, np.nan, draw.uniform(0.5, 9, shape))
        label[:, 0, 0] = 0
        return torch.tensor(label, dtype=torch.float32)
    num_values = CHANNELS[task] if task in ("semseg", "parsing") else 2
    return torch.tensor(np.where(hidden, 255, draw.integers(0, num_values, shape)), dtype=torch.uint8)


def make_prediction(task, size=(6, 8), batch=2, seed=1, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(batch, CHANNELS[task], *size, generator=draw)).to(dtype).requires_grad_()


def task_loss(task, prediction, label):
    return LOSSES[TASKS[task].loss](prediction, label, kinds.of(task).valid(label))


def naive_loss(task, prediction, label):
    """Pixel by pixel, in float64."""
    p, y = prediction.detach().double().numpy(), label.double().numpy()
    valid = kinds.of(task).valid(label).numpy()
    where = list(zip(*np.nonzero(valid), strict=True))
    share = sum(y[at] == 1 for at in where) / len(where) if task in ("saliency", "boundary") else 0
    total = 0.0
    for b, i, j in where:
        v = [float(value) for value in p[b, :, i, j]]
        if task == "depth":
            total += abs(v[0] - y[b, i, j])
        elif task == "normals":
            length = math.sqrt(sum(x * x for x in v))
            total += sum(abs(v[c] / length - y[b, c, i, j]) for c in range(3))
        elif task == "boundary":
            probability = 1 / (1 + math.exp(-v[0]))
            total -= 0.95 * math.log(probability) if y[b, i, j] == 1 else 0.05 * math.log(1 - probability)
        else:
            cost = math.log(sum(math.exp(x) for x in v)) - v[int(y[b, i, j])]
            weight = (1 - share if y[b, i, j] == 1 else share) if task == "saliency" else 1
            total += weight * cost
    return total / len(where)


@pytest.mark.parametrize("task", TASKS)
def test_loss_equals_a_loop_over_pixels(task):
    prediction, label = make_prediction(task), make_label(task)
    value = task_loss(task, prediction, label)
    assert value.item() == pytest.approx(naive_loss(task, prediction, label), rel=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_gradient_is_zero_on_invalid_pixels_and_only_there(task):
    prediction, label = make_prediction(task), make_label(task)
    task_loss(task, prediction, label).backward()
    touched = prediction.grad.abs().sum(1) > 0
    assert torch.isfinite(prediction.grad).all()
    assert torch.equal(touched, kinds.of(task).valid(label))


@pytest.mark.parametrize("task", TASKS)
def test_half_precision_predictions_are_computed_in_float32(task):
    prediction, label = make_prediction(task, dtype=torch.bfloat16), make_label(task)
    value = task_loss(task, prediction, label)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(naive_loss(task, prediction, label), rel=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_without_valid_pixels_gives_zero_with_a_gradient(task):
    prediction = make_prediction(task)
    label = torch.full_like(make_label(task), 0 if task in ("depth", "normals") else 255)
    value = task_loss(task, prediction, label)
    value.backward()
    assert value.item() == 0
    assert torch.equal(prediction.grad, torch.zeros_like(prediction))


def test_balanced_cross_entropy_gives_both_classes_the_same_say():
    label = torch.zeros(1, 4, 4, dtype=torch.uint8)
    label[0, 0, 0] = 1
    prediction = torch.zeros(1, 2, 4, 4, requires_grad=True)
    task_loss("saliency", prediction, label).backward()
    pull = prediction.grad[0, 1]
    assert -pull[0, 0].item() == pytest.approx(pull.sum().item() - pull[0, 0].item(), rel=1e-5)


def test_unit_l1_ignores_length_and_survives_a_zero_prediction():
    label = make_label("normals")
    prediction = make_prediction("normals")
    assert task_loss("normals", 50 * prediction, label).item() == pytest.approx(
        task_loss("normals", prediction, label).item(), rel=1e-5
    )
    nothing = torch.zeros_like(prediction, requires_grad=True)
    task_loss("normals", nothing, label).backward()
    assert nothing.grad.abs().max() <= 1000


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("loss", ["l1", "l2", "smooth_l1"])
def test_losses_of_values_average_over_channels(loss, channels):
    draw = torch.Generator().manual_seed(0)
    prediction = (2 * torch.randn(2, channels, 4, 5, generator=draw)).requires_grad_()
    label = torch.randn(2, channels, 4, 5, generator=draw)
    label[1, channels - 1, 2, 3] = math.nan
    task = Task("mine", kind="value", channels=channels)
    given = label if channels > 1 else label[:, 0]
    valid = kinds.of(task).valid(given)
    value = LOSSES[loss](prediction, given, valid)
    value.backward()
    cost = {"l1": abs, "l2": lambda d: d * d, "smooth_l1": lambda d: d * d / 2 if abs(d) < 1 else abs(d) - 0.5}[loss]
    p, y = prediction.detach().double().numpy(), label.double().numpy()
    pixels = [sum(cost(d) for d in p[b, :, i, j] - y[b, :, i, j]) / channels for b, i, j in np.argwhere(valid.numpy())]
    assert len(pixels) == 39
    assert value.item() == pytest.approx(sum(pixels) / len(pixels), rel=1e-5)
    assert torch.equal(prediction.grad.abs().sum(1) > 0, valid)


def test_weighted_bce_takes_its_weight():
    label = torch.tensor([[[1, 0, 255]]], dtype=torch.uint8)
    value = losses.weighted_bce(torch.zeros(1, 1, 1, 3), label, label != 255, positive_weight=0.8)
    assert value.item() == pytest.approx((0.8 + 0.2) * math.log(2) / 2)


@pytest.mark.parametrize("size", [(12, 16), (3, 4), (5, 7), (1, 1)])
def test_nearest_shrink_takes_the_pixel_at_the_centre(size):
    for task in ("semseg", "depth", "normals"):
        label = make_label(task, size=(12, 16))
        small = shrink_label(TASKS[task], label, size)
        assert small.dtype == label.dtype
        assert small.shape == (*label.shape[:-2], *size)
        for i in range(size[0]):
            for j in range(size[1]):
                row, column = math.floor((i + 0.5) * 12 / size[0]), math.floor((j + 0.5) * 16 / size[1])
                torch.testing.assert_close(small[..., i, j], label[..., row, column], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("size", [(12, 16), (3, 4), (5, 7), (1, 1)])
def test_max_shrink_keeps_thin_lines_and_marks_empty_cells_invalid(size):
    label = make_label("boundary", size=(12, 16))
    label[:, :5, :5] = 255
    label[:, 5:, 5:][label[:, 5:, 5:] == 1] = 0
    label[:, 9, 11] = 1
    small = shrink_label(TASKS["boundary"], label, size)
    assert small.dtype == torch.uint8
    for b in range(2):
        for i in range(size[0]):
            for j in range(size[1]):
                rows = slice(math.floor(i * 12 / size[0]), math.ceil((i + 1) * 12 / size[0]))
                columns = slice(math.floor(j * 16 / size[1]), math.ceil((j + 1) * 16 / size[1]))
                seen = [v for v in label[b, rows, columns].flatten().tolist() if v != 255]
                assert small[b, i, j].item() == (max(seen) if seen else 255)


def test_shrink_refuses_a_label_smaller_than_the_prediction():
    with pytest.raises(MistakeError, match="depth: prediction of 8x8 is larger than its label of 4x8"):
        shrink_label(TASKS["depth"], torch.ones(1, 4, 8), (8, 8))


def test_multi_task_loss_is_the_weighted_sum_of_its_parts():
    tasks = ("semseg", "depth", "normals", "boundary")
    labels = {task: make_label(task, size=(12, 16)) for task in tasks}
    final = {task: make_prediction(task, size=(12, 16)) for task in tasks}
    coarse = {task: make_prediction(task, size=(3, 4), seed=3) for task in tasks}
    criterion = MultiTaskLoss(tasks, weights={"depth": 3.0}, coarse_weight=0.5, boundary_weight=0.95)
    total, parts = criterion(final, coarse, labels)
    expected = 0.0
    for task, weight in zip(tasks, (1.0, 3.0, 10.0, 50.0), strict=True):
        small = shrink_label(TASKS[task], labels[task], (3, 4))
        values = naive_loss(task, final[task], labels[task]), naive_loss(task, coarse[task], small)
        assert parts[task].item() == pytest.approx(values[0], rel=1e-5)
        assert parts[f"coarse/{task}"].item() == pytest.approx(values[1], rel=1e-5)
        expected += weight * (values[0] + 0.5 * values[1])
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert not any(part.requires_grad for part in parts.values())
    assert len(parts) == 8


def test_multi_task_loss_without_labels_still_reaches_every_prediction():
    final = {"depth": make_prediction("depth"), "semseg": make_prediction("semseg", dtype=torch.bfloat16)}
    coarse = {"depth": make_prediction("depth"), "semseg": make_prediction("semseg")}
    labels = {"semseg": torch.full((2, 6, 8), 255, dtype=torch.uint8)}
    total, parts = MultiTaskLoss(("depth", "semseg"))(final, coarse, labels)
    total.backward()
    assert total.item() == 0
    assert all(part == 0 for part in parts.values())
    for prediction in (*final.values(), *coarse.values()):
        assert torch.equal(prediction.grad, torch.zeros_like(prediction))


def test_multi_task_loss_takes_a_network_without_coarse_predictions():
    label, prediction = make_label("depth"), make_prediction("depth")
    total, parts = MultiTaskLoss(("depth",))({"depth": prediction}, {}, {"depth": label})
    assert list(parts) == ["depth"]
    assert total.item() == pytest.approx(naive_loss("depth", prediction, label), rel=1e-5)


def test_multi_task_loss_uses_the_boundary_weight():
    label = torch.tensor([[[1, 0]]], dtype=torch.uint8)
    prediction = torch.tensor([[[[0.0, 40.0]]]])
    _, parts = MultiTaskLoss(("boundary",), boundary_weight=0.8)({"boundary": prediction}, {}, {"boundary": label})
    assert parts["boundary"].item() == pytest.approx((0.8 * math.log(2) + 0.2 * 40) / 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": ["flow"]}, "unknown task 'flow'"),
        ({"tasks": ["depth"], "weights": {"semseg": 1.0}}, "unknown task 'semseg'; expected some of depth"),
        ({"tasks": ["depth"], "weights": {"depth": -1.0}}, "loss weight of depth: -1.0"),
        ({"tasks": ["depth"], "coarse_weight": float("nan")}, "loss weight of coarse_weight: nan"),
        ({"tasks": ["boundary"], "boundary_weight": 95}, "boundary_weight: 95; expected a number between 0 and 1"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(MistakeError, match=message):
        MultiTaskLoss(**arguments)


def test_losses_by_task_have_gradients_and_add_up_to_the_total():
    numbers = torch.Generator().manual_seed(0)
    criterion = MultiTaskLoss(("depth", "boundary"), weights={"depth": 3.0}, coarse_weight=0.5)
    final = {task: torch.randn(2, 1, 8, 8, generator=numbers, requires_grad=True) for task in criterion.tasks}
    coarse = {task: torch.randn(2, 1, 4, 4, generator=numbers, requires_grad=True) for task in criterion.tasks}
    labels = {
        "depth": torch.rand(2, 8, 8, generator=numbers) + 1,
        "boundary": torch.randint(2, (2, 8, 8), generator=numbers, dtype=torch.uint8),
    }
    losses = criterion.per_task(final, coarse, labels)
    assert list(losses) == ["depth", "boundary", "coarse/depth", "coarse/boundary"]
    total, detached = criterion(final, coarse, labels)
    weights = {"depth": 3.0, "boundary": 50.0, "coarse/depth": 1.5, "coarse/boundary": 25.0}
    torch.testing.assert_close(total, sum(weights[name] * value for name, value in losses.items()))
    assert all(torch.equal(losses[name], value) and not value.requires_grad for name, value in detached.items())
    (gradient,) = torch.autograd.grad(losses["coarse/depth"], [coarse["depth"]], retain_graph=True)
    assert gradient.abs().sum() > 0
    of_tasks = criterion.of_tasks(losses)  # in the order of the tasks, coarse losses with their task
    for task, value in zip(criterion.tasks, of_tasks, strict=True):
        alone = weights[task] * losses[task] + weights[f"coarse/{task}"] * losses[f"coarse/{task}"]
        torch.testing.assert_close(value, alone)
    torch.testing.assert_close(of_tasks.sum(), total)
    torch.testing.assert_close(torch.autograd.grad(of_tasks[0], [coarse["depth"]])[0], 1.5 * gradient)
    alone = criterion.per_task(final, {}, labels)
    assert list(alone) == ["depth", "boundary"]
    torch.testing.assert_close(criterion.of_tasks(alone)[1], 50 * alone["boundary"])


def test_class_weights_are_torchs_own():
    prediction, label = make_prediction("semseg"), make_label("semseg")
    weights = [0.2, 3.0, 1.0, 0.0, 7.5]
    criterion = MultiTaskLoss(("semseg", "depth"), coarse_weight=0.5, class_weights={"semseg": weights})
    final = {"semseg": prediction, "depth": make_prediction("depth")}
    labels = {"semseg": label, "depth": make_label("depth")}
    parts = criterion.per_task(final, {"semseg": 2 * prediction}, labels)
    for name, scale in (("semseg", 1), ("coarse/semseg", 2)):
        expected = torch.nn.functional.cross_entropy(
            scale * prediction.double(), label.long(), torch.tensor(weights, dtype=torch.float64), ignore_index=255
        )
        assert parts[name].item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(parts["semseg"], prediction, retain_graph=True)
    double = prediction.detach().double().requires_grad_()
    torch.nn.functional.cross_entropy(
        double, label.long(), torch.tensor(weights, dtype=torch.float64), ignore_index=255
    ).backward()
    assert torch.allclose(gradient.double(), double.grad, atol=1e-6)
    assert parts["depth"].item() == pytest.approx(naive_loss("depth", final["depth"], labels["depth"]), rel=1e-5)
    assert not criterion.state_dict()


def test_equal_class_weights_change_nothing_and_only_classes_of_weight_0_give_0_with_a_gradient():
    prediction, label = make_prediction("semseg"), make_label("semseg")
    plain = task_loss("semseg", prediction, label).item()
    valid = kinds.of("semseg").valid(label)
    assert losses.cross_entropy(prediction, label, valid, torch.full((5,), 40.0)).item() == pytest.approx(plain)
    nothing = losses.cross_entropy(prediction, label, valid, torch.zeros(5))
    nothing.backward()
    assert nothing.item() == 0
    assert torch.equal(prediction.grad, torch.zeros_like(prediction))


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"depth": [1.0]}, "depth: it has no classes"),
        ({"parsing": [1.0]}, "parsing"),
        ({"semseg": [1.0, -1.0]}, "at least 0"),
        ({"semseg": [1.0, math.nan]}, "at least 0"),
    ],
)
def test_class_weights_that_make_no_sense_are_refused(weights, told):
    with pytest.raises(MistakeError, match=told):
        MultiTaskLoss(("semseg", "depth"), class_weights=weights)


def test_class_weights_must_be_as_many_as_classes():
    criterion = MultiTaskLoss(("semseg",), class_weights={"semseg": [1.0, 2.0]})
    with pytest.raises(MistakeError, match="2 for 5 classes"):
        criterion({"semseg": make_prediction("semseg")}, {}, {"semseg": make_label("semseg")})


# ---- one part of a larger batch


@pytest.mark.parametrize("loss_at", ["its own grid", "a coarser grid"])
def test_means_over_the_whole_batch_do_not_depend_on_how_it_is_cut(loss_at):
    size = (6, 8) if loss_at == "its own grid" else (3, 4)
    weights = {"semseg": [1.0, 0.0, 3.0, 0.5, 2.0]}
    criterion = MultiTaskLoss(tuple(TASKS), coarse_weight=0.5, class_weights=weights)
    final = {name: make_prediction(name, size=size, batch=4) for name in TASKS}
    coarse = {name: make_prediction(name, size=(3, 4), batch=4, seed=2) for name in TASKS}
    labels = {name: make_label(name, batch=4) for name in TASKS}
    labels["depth"][3:] = 0  # the last part has no depth, and no normals at all
    labels["normals"][3:] = 0
    labels["boundary"][:2] = 255
    total, whole = criterion(final, coarse, labels)
    total.backward()
    expected = {name: x.grad.clone() for name, x in final.items()}

    cuts = (slice(0, 2), slice(2, 3), slice(3, 4))
    parts = [[{name: x[cut] for name, x in group.items()} for group in (final, coarse, labels)] for cut in cuts]
    del parts[2][2]["normals"]
    amounts = [criterion.amounts(*part) for part in parts]
    means = {
        name: losses.Whole(*(sum(x) / 3 for x in zip(*(one[name] for one in amounts), strict=True))) for name in whole
    }
    for prediction in final.values():
        prediction.grad = None
    found = [criterion(*part, means) for part in parts]
    (sum(total for total, _ in found) / 3).backward()
    for name, value in whole.items():
        assert sum(float(values[name]) for _, values in found) / 3 == pytest.approx(value.item(), rel=1e-5), name
    for name, prediction in final.items():
        torch.testing.assert_close(prediction.grad, expected[name], rtol=1e-4, atol=1e-7)
    assert {name: x.dtype for name, (x, _) in amounts[0].items()} == dict.fromkeys(whole, torch.float64)
