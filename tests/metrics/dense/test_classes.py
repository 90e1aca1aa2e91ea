import numpy as np
import pytest
import torch

from mtlsi.errors import MistakeError
from mtlsi.metrics import MeanIoU


@pytest.fixture
def guesses(random_batch):
    """Predictions, labels and the pairs (prediction, label) of the valid pixels; class 3 is labelled, never predicted."""
    prediction, label, valid = random_batch(MeanIoU)
    prediction[prediction == 3] = 2
    pixels = [
        (int(p), int(y)) for p, y, v in zip(prediction.flatten(), label.flatten(), valid.flatten(), strict=True) if v
    ]
    return (prediction, label, valid), pixels


def test_class_figures_equal_counting(guesses, scores):
    batch, pixels = guesses
    ious, accuracies, weighted = [], [], 0.0
    for c in range(4):
        both, either = sum(p == y == c for p, y in pixels), sum(c in pair for pair in pixels)
        labelled = sum(y == c for _, y in pixels)
        ious.append(100 * both / either)
        accuracies.append(100 * both / labelled)
        weighted += labelled / len(pixels) * ious[-1]
    metric = MeanIoU(4)
    assert scores(metric, batch) == pytest.approx(
        {
            "mIoU": sum(ious) / 4,
            "pixel_acc": 100 * sum(p == y for p, y in pixels) / len(pixels),
            "mean_acc": sum(accuracies) / 4,
            "fw_IoU": weighted,
            "mIoU_absent_0": sum(ious) / 4,
        }
    )
    assert metric.per_class().tolist() == pytest.approx(ious)
    assert ious[3] == 0  # labelled and never predicted: counts as a failure


def test_the_confusion_matrix_has_labels_in_rows(guesses, scores):
    batch, pixels = guesses
    metric = MeanIoU(4)
    scores(metric, batch)
    table = np.zeros((4, 4), int)
    for p, y in pixels:
        table[y, p] += 1
    assert metric.pixels().tolist() == table.tolist()


def test_a_class_that_never_occurs_is_left_out_or_counted_as_zero():
    label = torch.tensor([[[0, 0, 1, 255]]], dtype=torch.uint8)
    prediction = torch.tensor([[[0, 1, 1, 2]]])
    metric = MeanIoU(4)
    metric.update(prediction, label, label != 255)
    figures = {name: float(x) for name, x in metric.compute().items()}
    assert figures == pytest.approx(
        {"mIoU": 50, "pixel_acc": 200 / 3, "mean_acc": 75, "fw_IoU": 50, "mIoU_absent_0": 25}
    )
    assert metric.per_class().isnan().tolist() == [False, False, True, True]


def test_a_class_that_is_predicted_and_never_labelled_has_no_accuracy_but_an_iou_of_zero(scores):
    label, prediction = torch.tensor([[[0, 0]]]), torch.tensor([[[0, 1]]])
    figures = scores(MeanIoU(2), (prediction, label, torch.ones_like(label, dtype=torch.bool)))
    assert (figures["mIoU"], figures["mean_acc"], figures["fw_IoU"]) == pytest.approx((25, 50, 50))


def test_a_label_outside_the_classes_is_named():
    label = torch.tensor([[[0, 40]]], dtype=torch.uint8)
    with pytest.raises(MistakeError, match=r"label holds class indices 0\.\.40; expected 0\.\.39"):
        MeanIoU(40).update(torch.zeros(1, 1, 2, dtype=torch.long), label, label != 255)
