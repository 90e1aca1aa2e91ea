"""How published lines of work show an image to their networks when they test, each in one record.

The sizes and the padding are those of their public code; predictions are compared at the labels' own size in any case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from mtlsi.config import DataConfig
from mtlsi.data.transforms import Box, Sample, cut, pad_centred
from mtlsi.errors import MistakeError
from mtlsi.options.values import Size

Cut = tuple[Size, Box]
"""A size, and the part of an image of that size that is kept."""
NYUD_CUT: Cut = ((480, 640), (45, 40, 425, 560))
"""How the 425x560 packages of NYUDv2 were made, for FCN first: rows 46 to 470 and columns 41 to 600, counted from 1."""


@dataclass(frozen=True)
class Showing:
    """What is done to a test image, of any size, before a network sees it."""

    resize_hw: Size | None = None
    """It is brought to this size; None: left as stored."""
    pad_hw: Size | None = None
    """Then padded to this one, the image in the middle, with the mean colour; None: not padded."""
    cut: Cut | None = None
    """Before all that, an image of this stored size is cut to this part of it, and its labels with it."""
    protocol: str | None = None
    """The protocol that this belongs to."""
    resize: str = "stretch"
    """stretch, or keep_ratio: to the largest size of its own shape inside ``resize_hw``."""
    rendered: bool = False
    """It is made at that size, as generated rooms are."""

    @property
    def resized(self) -> str:
        """What size an image is brought to, in words."""
        if self.resize_hw is None:
            return "as stored"
        how = "resized by one factor into" if self.resize == "keep_ratio" else "resized to"
        how = "rendered at" if self.rendered else how
        return "{} {}x{}".format(how, *self.resize_hw)

    def __str__(self) -> str:
        name = f"protocol {self.protocol}: " if self.protocol else ""
        sized = self.resized
        if self.cut is not None:
            sized += ", {}x{} cut to {}x{}".format(*self.cut[0], *self.cut[1][2:])
        return f"{name}images {sized}" + (", padded to {}x{}".format(*self.pad_hw) if self.pad_hw else "")


@dataclass(frozen=True)
class Protocol:
    """One line of work."""

    showings: Mapping[str, Showing]
    """By data set."""
    source: str
    """Where the facts come from."""


PROTOCOLS = {
    "invpt": Protocol(
        {"nyud": Showing(pad_hw=(448, 576), cut=NYUD_CUT), "pascal": Showing(pad_hw=(512, 512))},
        "InvPT, InvPT++, TaskPrompter: prismformore/Multi-Task-Transformer, PadImage to TEST.SCALE; NYUDv2 at 425x560",
    ),
    "atrc": Protocol(
        {"nyud": Showing(pad_hw=(425, 560), cut=NYUD_CUT), "pascal": Showing(pad_hw=(512, 512))},
        "ATRC: brdav/atrc, PadImage to the data set's image_dims; NYUDv2 at 425x560",
    ),
    "mti-net": Protocol(
        {"nyud": Showing((480, 640)), "pascal": Showing((512, 512))},
        "MTI-Net: SimonVandenhende/Multi-Task-Learning-PyTorch, FixedResize to TEST.SCALE (bicubic there, bilinear here)",
    ),
}
"""By name, as ``mtlsi evaluate --protocol`` takes it."""


def showing_of(name: str, data: str) -> Showing:
    """How the protocol ``name`` shows the data set ``data``; ``MistakeError`` where there is no such protocol."""
    if name not in PROTOCOLS:
        raise MistakeError(f"--protocol {name}; expected one of {', '.join(PROTOCOLS)}")
    showings = PROTOCOLS[name].showings
    if data not in showings:
        raise MistakeError(
            f"--protocol {name} with --data {data}; expected {' or '.join(showings)}, which it was published on: for other "
            "data give --size"
        )
    return replace(showings[data], protocol=name)


def showing_by(config: DataConfig) -> Showing:
    """How a run with the data of ``config`` shows its test images: whole, at ``image_hw``, padded where they leave room."""
    keeps = config.resize == "keep_ratio"
    return Showing(config.image_hw, config.image_hw if keeps else None, resize=config.resize)


def cut_out(sample: Sample, showing: Showing, name: str) -> Sample:
    """The part of an image and of its labels that ``showing`` keeps; images of other sizes stay whole.

    Raises ``MistakeError``, which begins with ``name``, for one of another size than a protocol was published on.
    """
    size_hw = tuple(sample["image"].shape[-2:])
    if showing.cut is None:
        return sample
    whole, box = showing.cut
    if size_hw == whole:
        return cut(sample, box)
    if showing.protocol is not None and size_hw != box[2:]:
        raise MistakeError(
            "image {} is {}x{}; expected the {}x{} that the protocol was published on, or {}x{} to cut them from: give "
            "--size in place of --protocol".format(name, *size_hw, *box[2:], *whole)
        )
    return sample


def padded(image: Tensor, pad_hw: Size | None, name: str) -> tuple[Tensor, Box]:
    """A normalised image (3 h w) in the middle of ``pad_hw`` (None: as it is), and where in it the image lies.

    Raises ``MistakeError``, which begins with ``name``, for an image that is larger.
    """
    height, width = image.shape[-2:]
    if pad_hw is None:
        return image, (0, 0, height, width)
    if height > pad_hw[0] or width > pad_hw[1]:
        raise MistakeError(
            f"image {name} is {height}x{width}, the protocol pads to {pad_hw[0]}x{pad_hw[1]}; expected the package that it "
            "was published on (NYUDv2: 425x560), or give --size in place of --protocol"
        )
    box = ((pad_hw[0] - height) // 2, (pad_hw[1] - width) // 2, height, width)
    return pad_centred({"image": image}, pad_hw)["image"], box


def cut_back(raw: Tensor, box: Box) -> Tensor:
    """Of predictions (1 c H W) the part in ``box``."""
    top, left, height, width = box
    return raw[..., top : top + height, left : left + width]
