"""One geometry for an image and all of its labels: zoom, crop, flip, colours, padding.

A sample is a dictionary: ``image`` uint8 (3 H W) and labels by task, laid out as ``tasks.py`` says; torchvision's
functions move both, by the rules of ``labels.py``. Every random draw comes from the generator that is handed in, so that
a sample is a pure function of its seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as tv

from mtlsi import kinds
from mtlsi.data.labels import Sample, as_tensors, as_tv_tensors
from mtlsi.nn.normalise import normalise
from mtlsi.tasks import TASKS

CROP_TRIES = 10
Box = tuple[int, int, int, int]
"""Top, left, height, width."""


@dataclass(frozen=True)
class TrainTransform:
    """The field's augmentation (PROTOCOL of InvPT), as one call on a sample and a generator.

    ``size_hw``: the crop. ``image_hw``: a whole image's size at zoom 1 (None: as stored), to which ``resize`` brings it as
    ``shown_hw`` says. ``zoom``: range of the zoom; depth is divided by it, and by no other resizing. ``class_limit``: a crop
    is drawn again, up to ten times, while one class fills more than this share of it. Choice: the crop is cut from the
    stored image and only then upsampled, which shows the same part at a fraction of the work.
    """

    size_hw: tuple[int, int]
    image_hw: tuple[int, int] | None = None
    zoom: tuple[float, float] = (0.5, 2.0)
    class_limit: float = 0.75
    resize: str = "stretch"

    def __call__(self, sample: Sample, generator: Generator, zoom: float | None = None) -> Sample:
        """``zoom``: that to whose size the whole image has been brought already; None: one is drawn, and it is resized."""
        (h, w), (scale_y, scale_x) = sample["image"].shape[-2:], (1.0, 1.0)
        if zoom is None:
            zoom = self.draw_zoom(generator)
            scale_y, scale_x = (zoom * scale for scale in scales((h, w), self.image_hw, self.resize))
        size = (_side(h * scale_y, self.size_hw[0]), _side(w * scale_x, self.size_hw[1]))
        box = self._choose_box(sample, (_side(size[0] / scale_y, h), _side(size[1] / scale_x, w)), generator)
        sample = resize(cut(sample, box), size, zoom=zoom)
        if _uniform(generator, 0, 1) < 0.5:
            sample = flip(sample)
        image = distort_colours(sample["image"].float() / 255, generator)
        return pad_centred(sample | {"image": normalise(image)}, self.size_hw)

    def draw_zoom(self, generator: Generator) -> float:
        """A zoom from the range, each as likely."""
        return _uniform(generator, *self.zoom)

    def _choose_box(self, sample: Sample, size_hw: tuple[int, int], generator: Generator) -> Box:
        """A random place for a box of ``size_hw``, not too full of one class where there is a choice."""
        h, w = sample["image"].shape[-2:]
        box = (0, 0, *size_hw)
        for _ in range(CROP_TRIES):
            top, left = _integer(generator, h - size_hw[0] + 1), _integer(generator, w - size_hw[1] + 1)
            box = (top, left, *size_hw)
            if (h, w) == size_hw or "semseg" not in sample or self.class_limit >= 1:
                break
            label = tv.crop(sample["semseg"], *box)[::4, ::4].flatten()  # a sixteenth of the pixels is enough
            counts = torch.bincount(label[kinds.of("semseg").valid(label)].long())
            if len(counts) == 0 or counts.max() <= self.class_limit * counts.sum():
                break
        return box


@dataclass(frozen=True)
class EvaluationTransform:
    """The image brought to ``image_hw`` as ``shown_hw`` says, and normalised; the labels stay as they are stored.

    Nothing is padded here: who shows the image pads it, and cuts the prediction back.
    """

    image_hw: tuple[int, int] | None = None
    resize: str = "stretch"

    def __call__(self, sample: Sample) -> Sample:
        image = sample["image"]
        size = shown_hw((image.shape[-2], image.shape[-1]), self.image_hw, self.resize)
        if image.shape[-2:] != torch.Size(size):
            image = tv.resize(image, list(size), antialias=True)
        return sample | {"image": normalise(image.float() / 255)}


def scales(size_hw: tuple[int, int], image_hw: tuple[int, int] | None, how: str) -> tuple[float, float]:
    """By what an image's height and width are multiplied to bring it from ``size_hw`` to ``image_hw`` (None: by 1).

    ``how``: stretch, or keep_ratio, min(H / h, W / w) for both.
    """
    if image_hw is None:
        return 1.0, 1.0
    down, right = image_hw[0] / size_hw[0], image_hw[1] / size_hw[1]
    both = min(down, right)
    return (both, both) if how == "keep_ratio" else (down, right)


def shown_hw(size_hw: tuple[int, int], image_hw: tuple[int, int] | None, how: str) -> tuple[int, int]:
    """The size to which an image of ``size_hw`` is brought; see ``scales``. It fits in ``image_hw``, by a side at least."""
    (h, w), (down, right), most = size_hw, scales(size_hw, image_hw, how), image_hw or size_hw
    return _side(h * down, most[0]), _side(w * right, most[1])


def cut(sample: Sample, box: Box) -> Sample:
    """The part of the image and of every label inside ``box``."""
    return as_tensors({name: tv.crop(x, *box) for name, x in as_tv_tensors(sample).items()})


def resize(sample: Sample, size_hw: tuple[int, int], *, zoom: float = 1.0) -> Sample:
    """Image bilinear, labels nearest, depth divided by ``zoom``; thin labels survive shrinking by their maximum."""
    resized = as_tensors(
        {name: tv.resize(x, list(size_hw), antialias=True) for name, x in as_tv_tensors(sample).items()}
    )
    return {name: kinds.of(name).zoom(x, zoom) if name in TASKS else x for name, x in resized.items()}


def flip(sample: Sample) -> Sample:
    """Left and right exchanged; a normal's x changes its sign."""
    return as_tensors({name: tv.horizontal_flip(x) for name, x in as_tv_tensors(sample).items()})


def distort_colours(image: Tensor, generator: Generator) -> Tensor:
    """Brightness, contrast, saturation and hue of an image (3 H W) in 0..1, each changed with probability one half.

    Brightness by up to 32/255, contrast and saturation by 0.5 to 1.5, hue by up to 18 degrees.
    """
    if _uniform(generator, 0, 1) < 0.5:
        image = (image + _uniform(generator, -32 / 255, 32 / 255)).clamp(0, 1)
    if _uniform(generator, 0, 1) < 0.5:
        image = (image * _uniform(generator, 0.5, 1.5)).clamp(0, 1)
    if _uniform(generator, 0, 1) < 0.5:
        image = tv.adjust_saturation(image, _uniform(generator, 0.5, 1.5))
    if _uniform(generator, 0, 1) < 0.5:
        image = tv.adjust_hue(image, _uniform(generator, -18 / 360, 18 / 360))
    return image


def pad_centred(sample: Sample, size_hw: tuple[int, int]) -> Sample:
    """Everything padded to ``size_hw``, image in the middle: the image with 0, every label with its invalid value."""
    h, w = sample["image"].shape[-2:]
    if (h, w) == size_hw:
        return sample
    top, left = (size_hw[0] - h) // 2, (size_hw[1] - w) // 2
    sides = [left, top, size_hw[1] - w - left, size_hw[0] - h - top]
    return as_tensors({name: tv.pad(x, sides) for name, x in as_tv_tensors(sample).items()})


def _side(length: float, most: int) -> int:
    """A length in whole pixels, 1 to ``most``."""
    return max(1, min(most, round(length)))


def _uniform(generator: Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _integer(generator: Generator, high: int) -> int:
    return int(torch.randint(max(high, 1), (), generator=generator).item())
