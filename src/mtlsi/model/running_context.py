"""The fusion's context as a running mean over the frames of a clip:

    C_t = a C_(t-1) + (1 - a) C(frame t)      z_t = a z_(t-1) + (1 - a) z(frame t)      C_1, z_1: frame 1's

C and z are means over positions, so theirs over frames is the context of the frames' positions together, late ones weighing
more: every position of a frame then attends to what the clip has shown, not to this frame alone. No module keeps it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mtlsi.errors import MistakeError


class RunningContext:
    """The state of one clip, for ``MTLSINet.forward(..., context=...)``: gives C_t and z_t for those of the frame.

    ``keep`` is a, in [0, 1); 0 gives the frame's own. One object serves one clip of one size in one thread; ``reset``
    begins another. Kept in float32 or wider.
    Raises ``MistakeError`` for another ``keep``.
    """

    def __init__(self, keep: float):
        self.keep = checked_share(keep, "context")
        self._before: tuple[Tensor, Tensor] | None = None

    def reset(self) -> None:
        """The next frame is a clip's first."""
        self._before = None

    def __call__(self, context: Tensor, normaliser: Tensor) -> tuple[Tensor, Tensor]:
        """C (b heads d d) and z (b heads d) of a frame to the clip's."""
        before = self._before or (None, None)
        now = (mean_with(before[0], context, self.keep), mean_with(before[1], normaliser, self.keep))
        self._before = now
        return now[0].to(context.dtype), now[1].to(normaliser.dtype)


def mean_with(before: Tensor | None, now: Tensor, keep: float) -> Tensor:
    """``keep`` of the running mean and the rest of the new values, which are the mean where there is none before."""
    now = now.to(torch.promote_types(now.dtype, torch.float32))
    return now.clone() if before is None else torch.lerp(before, now, 1 - keep)


def checked_share(share: float, name: str) -> float:
    """``share`` where it is in [0, 1); else ``MistakeError``."""
    if not 0 <= share < 1:
        raise MistakeError(f"smoothing of {name} {share:g}; expected 0 (none) or more, below 1, such as 0.8")
    return float(share)
