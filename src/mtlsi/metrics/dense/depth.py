"""Errors of depth, raw and in the readings of other benchmarks: cropped, capped, aligned, image by image.

With n valid pixels, predictions p and labels y in metres and d = ln p - ln y:

    RMSE = sqrt(sum (p - y)^2 / n)      abs_rel = sum |p - y| / y / n      log10 = sum |log10 p - log10 y| / n
    RMSE_log = sqrt(sum d^2 / n)        sq_rel = sum (p - y)^2 / y / n     delta_k = share of max(p / y, y / p) < 1.25^k
    MAE = sum |p - y| / n               silog = 100 sqrt(sum d^2 / n - (sum d / n)^2)

Paper: Eigen, Puhrsch and Fergus, "Depth map prediction from a single image using a multi-scale deep network", NIPS 2014:
RMSE, RMSE_log, abs_rel, sq_rel, delta, and the scale-invariant error, which is (silog / 100)^2; silog is that of the
KITTI depth benchmark. log10: Saxena, Sun and Ng, "Make3D", PAMI 2009. MAE and abs_rel are the absolute and the relative
error of the tables of MTAN and LibMTL.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

from mtlsi.metrics.dense.finite import check_finite
from mtlsi.tasks import NYUD_RANGE_M

FIGURES = ("RMSE", "abs_rel", "log10", "delta1", "delta2", "delta3", "sq_rel", "RMSE_log", "silog", "MAE")
Range = tuple[float, float]
LEAST_M = 1e-3
"""Ratios and logarithms need positive depths: for them a prediction below a millimetre counts as a millimetre."""
NYUD_HW = (480, 640)
CROPPED_HW = ((425, 560), (426, 560))
"""Sizes of NYUDv2 in packages that are cut to the Eigen crop already."""


@dataclass(frozen=True)
class Reading:
    """Which pixels of an image count, and what is done to its prediction before it is compared."""

    name: str
    """What its figures are called: ``name/RMSE``; of the raw one ``RMSE``."""
    eigen_crop: bool = False
    """See ``eigen_crop``."""
    range_m: Range | None = None
    """Caps: labels strictly between the two count, predictions are clamped to them."""
    align: str = ""
    """``median``, ``scale_shift`` or neither: see ``align_median`` and ``align_scale_shift``."""


def readings(range_m: Range | None = None) -> tuple[Reading, ...]:
    """The raw reading and the others. ``range_m``: caps of all but the raw one; None: of ``eigen`` alone, NYUDv2's."""
    capped = (Reading("capped", range_m=range_m),) if range_m else ()
    return (
        Reading(""),
        *capped,
        Reading("eigen", eigen_crop=True, range_m=range_m or NYUD_RANGE_M),
        Reading("median", range_m=range_m, align="median"),
        Reading("scale_shift", range_m=range_m, align="scale_shift"),
    )


class DepthError(Metric):
    """Errors of depth, pooled over all valid pixels of the set, and beside them as means over images.

    ``update``: ``prediction`` and ``label`` (b H W) in metres.
    ``compute``: ``RMSE``, ``MAE`` and ``sq_rel`` in metres; ``abs_rel``, ``log10``, ``RMSE_log``; ``delta1``..``delta3`` in
    percent; ``silog``, times 100, always the mean over images: over pixels of several images it would not be free of
    scale. The module says how each is computed. ``per_image/RMSE`` and the others: means of the images' own figures, as
    BTS, AdaBins and the KITTI benchmark report them. ``eigen/...``, ``median/...``, ``scale_shift/...``, each with its
    ``..._per_image/...``: the same in other readings, see ``readings``.
    Choice: ratios and logarithms need positive depths, so for them alone a prediction below a millimetre counts as a
    millimetre. Where an image has no pixel that counts, it is left out of the means.
    """

    full_state_update = False
    counts: Tensor
    """By reading: valid pixels, and those within 1.25, 1.25^2 and 1.25^3 (readings 4)."""
    sums: Tensor
    """By reading: of (p - y)^2, |p - y| / y, |log10 p - log10 y|, (p - y)^2 / y, d^2, d and |p - y| (readings 7)."""
    num_images: Tensor
    """By reading: images with a pixel that counts."""
    of_images: Tensor
    """By reading: sums of the images' figures (readings figures)."""

    def __init__(self, range_m: Range | None = None) -> None:
        super().__init__()
        self.readings = readings(range_m)
        num = len(self.readings)
        self.add_state("counts", torch.zeros(num, 4, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(num, 7, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_images", torch.zeros(num, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("of_images", torch.zeros(num, len(FIGURES), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor, valid: Tensor) -> None:
        """Add a batch."""
        check_finite(prediction[valid])
        for one in zip(prediction, label, valid, strict=True):
            for index, reading in enumerate(self.readings):
                self._add(index, *read(reading, *one))

    def _add(self, index: int, predicted_m: Tensor, labelled_m: Tensor) -> None:
        if not len(labelled_m):
            return
        counts, sums = _sums(predicted_m, labelled_m)
        self.counts[index] += counts
        self.sums[index] += sums
        self.num_images[index] += 1
        self.of_images[index] += _figures(counts, sums)

    def compute(self) -> dict[str, Tensor]:
        """Every figure of every reading, pooled and ``per_image``, the raw and pooled ones first and without a prefix."""
        values = {}
        for index, reading in enumerate(self.readings):
            of_image = self.of_images[index] / self.num_images[index]
            pooled = _figures(self.counts[index], self.sums[index])
            pooled[FIGURES.index("silog")] = of_image[FIGURES.index("silog")]
            for name, row in ((reading.name, pooled), (f"{reading.name}_per_image".lstrip("_"), of_image)):
                values |= {f"{name}/{figure}".lstrip("/"): x for figure, x in zip(FIGURES, row, strict=True)}
        return values


def read(reading: Reading, prediction: Tensor, label: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """What ``reading`` compares in one image (H W): predictions and labels (n) in metres, float64."""
    if reading.eigen_crop:
        inside = eigen_crop(*label.shape)
        prediction, label, valid = prediction[inside], label[inside], valid[inside]
    predicted_m, labelled_m = prediction[valid].double(), label[valid].double()
    if reading.range_m is not None:
        low, high = reading.range_m
        counts = (low < labelled_m) & (labelled_m < high)
        predicted_m, labelled_m = predicted_m[counts], labelled_m[counts]
    if reading.align and len(labelled_m):
        predicted_m = {"median": align_median, "scale_shift": align_scale_shift}[reading.align](predicted_m, labelled_m)
    return predicted_m if reading.range_m is None else predicted_m.clamp(*reading.range_m), labelled_m


def eigen_crop(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of an image of NYUDv2 that are compared: 45 to 470 and 41 to 600 of 480x640, from 0.

    Paper: Eigen et al., NIPS 2014; the pixels are those of the code of BTS and its successors. Choice: at 425x560 and
    426x560 the image is that crop already; at any other size the same fractions of it.
    """
    if (height, width) in CROPPED_HW:
        return slice(0, height), slice(0, width)
    rows, columns = ((45, 471), (41, 601))
    return (
        slice(*(round(row * height / NYUD_HW[0]) for row in rows)),
        slice(*(round(column * width / NYUD_HW[1]) for column in columns)),
    )


def align_median(predicted_m: Tensor, labelled_m: Tensor) -> Tensor:
    """``predicted_m`` (n) scaled so that its median is the label's (Zhou et al., SfMLearner, CVPR 2017)."""
    return predicted_m * (_median(labelled_m) / _median(predicted_m).clamp(min=LEAST_M))


def align_scale_shift(predicted_m: Tensor, labelled_m: Tensor) -> Tensor:
    """s p + t (n) with the s and t of least squares, min sum (s p + t - y)^2.

    Paper: Ranftl et al. (MiDaS), PAMI 2022, there in inverse depth. Choice: in metres, which is what is predicted here.
    A constant prediction becomes the labels' mean.
    """
    centre, target = predicted_m.mean(), labelled_m.mean()
    spread = (predicted_m - centre).square().mean()
    if spread <= 1e-14 * centre.square():  # the same everywhere but for rounding
        return torch.full_like(predicted_m, float(target))
    scale = ((predicted_m - centre) * (labelled_m - target)).mean() / spread
    return scale * (predicted_m - centre) + target


def _median(values: Tensor) -> Tensor:
    """The middle value (n), the mean of the two middle ones where n is even. Selected: sorting takes three times as long."""
    n = len(values)
    return (values.kthvalue((n + 1) // 2).values + values.kthvalue(n // 2 + 1).values) / 2


def _sums(predicted_m: Tensor, labelled_m: Tensor) -> tuple[Tensor, Tensor]:
    """The counts (4) and sums (7) of pixels (n), in the order of ``DepthError.counts`` and ``sums``."""
    error_m = predicted_m - labelled_m
    ratio = predicted_m.clamp(min=LEAST_M) / labelled_m
    either_way = torch.maximum(ratio, 1 / ratio)
    log = ratio.log()
    counts = [torch.tensor(len(ratio), device=ratio.device)]
    counts += [(either_way < 1.25**power).sum() for power in (1, 2, 3)]
    squared, absolute = error_m.square(), error_m.abs()
    sums = [squared, absolute / labelled_m, ratio.log10().abs(), squared / labelled_m, log.square(), log, absolute]
    return torch.stack(counts), torch.stack([values.sum() for values in sums])


def _figures(counts: Tensor, sums: Tensor) -> Tensor:
    """The figures, in the order of ``FIGURES``, that counts (4) and sums (7) give."""
    squared, relative, log10, squared_relative, squared_log, log, absolute = sums / counts[0]
    shares = 100 * counts[1:].double() / counts[0]
    silog = 100 * (squared_log - log.square()).clamp(min=0).sqrt()
    return torch.stack(
        [squared.sqrt(), relative, log10, *shares, squared_relative, squared_log.sqrt(), silog, absolute]
    )
