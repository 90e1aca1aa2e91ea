"""What the field's boundary scores are measured by: one record for each reading, by name.

All of them thin what lies above a threshold, match one to one and count (``score.py``). They differ in what becomes of the
soft map before, and that moves the score by points: suppression takes false pixels beside a ridge away, and a map of 8 bits
has plateaus that suppression cannot break.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mtlsi.errors import MistakeError, counted
from mtlsi.tasks import MAX_DIST, NUM_THRESHOLDS


@dataclass(frozen=True)
class Protocol:
    """How soft maps are read, suppressed, thinned, thresholded and matched."""

    name: str
    eight_bit: bool
    """Soft maps are rounded to 256 levels first, as an 8-bit file holds them."""
    nms: bool
    """The non-maxima of the soft map are suppressed."""
    thin: bool = True
    """What lies above a threshold is thinned, and the truth too."""
    num_thresholds: int = NUM_THRESHOLDS
    max_dist: float | None = None
    """Reach of a match, as a fraction of the image's diagonal; None: the data set's own."""
    mask_unknown: bool = True
    """Pixels whose label is unknown count neither as predicted nor as labelled; else as labelled without a boundary.

    Choice: on in every protocol. The benchmarks' own labels have no unknown pixels, so that their tools know none.
    """

    def __post_init__(self) -> None:
        if self.max_dist is not None and not 0 < self.max_dist < 1:
            raise MistakeError(
                f"max_dist: {self.max_dist}; expected a fraction of the image's diagonal between 0 and 1, such as {MAX_DIST}"
            )
        if self.num_thresholds < 1:
            raise MistakeError(
                f"num_thresholds: {self.num_thresholds}; expected 1 or more; papers use {NUM_THRESHOLDS}"
            )

    def with_changes(self, **changes: Any) -> Protocol:
        """The same with other values where ``changes`` are not None."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    def on_data(self, max_dist: float) -> Protocol:
        """The same on a data set whose own reach is ``max_dist``, which counts where the protocol has none."""
        return self if self.max_dist is not None else replace(self, max_dist=max_dist)

    def as_stored(self, soft: np.ndarray) -> np.ndarray:
        """The soft map (H W) in 0..1 as the protocol reads it: of ``eight_bit`` the values k / 255."""
        return np.rint(soft * 255).astype(np.float64) / 255 if self.eight_bit else soft

    def counting(self) -> dict[str, Any]:
        """The keywords of ``boundary_counts``; needs a ``max_dist``."""
        if self.max_dist is None:
            raise MistakeError(f"protocol {self.name}: no max_dist; give the data set's, such as {MAX_DIST}")
        return {
            "max_dist": self.max_dist,
            "num_thresholds": self.num_thresholds,
            "nms": self.nms,
            "thin": self.thin,
        }

    def record(self) -> dict[str, Any]:
        """What a file of figures says of how they were measured."""
        return {
            "protocol": self.name,
            "max_dist": self.max_dist,
            "eight_bit": self.eight_bit,
            "nms": self.nms,
            "thin": self.thin,
            "thresholds": self.num_thresholds,
            "unknown": "masked" if self.mask_unknown else "no boundary",
        }

    def __str__(self) -> str:
        """In a table's words."""
        parts = [
            self.name,
            "suppressed" if self.nms else "not suppressed",
            "8-bit maps" if self.eight_bit else "maps as they are",
            *(() if self.thin else ("not thinned",)),
            counted(self.num_thresholds, "threshold"),
            *(() if self.max_dist is None else (f"within {self.max_dist:g} of the diagonal",)),
            *(() if self.mask_unknown else ("unknown pixels count",)),
        ]
        return ", ".join(parts)


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # Arbelaez et al. 2011, the BSDS500 benchmark: reads 8-bit images as they are; 0.0075 in every paper on BSDS
        Protocol("bsds", eight_bit=True, nms=False, max_dist=MAX_DIST),
        # the InvPT line scores saved 8-bit maps with SEISM, whose reader suppresses their non-maxima
        Protocol("seism-nms", eight_bit=True, nms=True),
        # MTI-Net: SEISM without that
        Protocol("seism", eight_bit=True, nms=False),
        # the network's own numbers, suppressed: nothing is lost to rounding
        Protocol("float", eight_bit=False, nms=True),
    )
}


def protocol_named(name: str | Protocol) -> Protocol:
    """A record as it is, or by name; raises ``MistakeError`` for a name that is not in ``PROTOCOLS``."""
    if isinstance(name, Protocol):
        return name
    if name not in PROTOCOLS:
        raise MistakeError(f"boundary protocol {name!r}; expected one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
