"""The field's multi-task baseline: a shared backbone, and per task a head on its maps; tasks never meet.

X = GELU(BN(conv(sum_i up(BN(W_i M_i)))))        prediction = head(X, M_1)        per task

With ``deep_supervision`` also coarse = V X, whose losses train X as those of the final predictions do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mtlsi.errors import MistakeError, check_choice
from mtlsi.model.final import ADD_COARSE, FinalPredictions
from mtlsi.model.heads import TaskHeads
from mtlsi.model.preliminary import DEEP_SUPERVISION, PreliminaryDecoder, TaskPyramid
from mtlsi.nn.task_subset import for_tasks, shallow_copy


@dataclass(frozen=True)
class HeadsOnlyOptions:
    """What only the baseline reads besides the sizes. Raises ``MistakeError`` for values that cannot be built."""

    deep_supervision: str = "none"
    """none: no coarse predictions; all or areas: as in MTLSI-Net's own decoder, to tell what they give from what the
    interaction gives."""
    add_coarse: str = "none"
    """Which final predictions begin at the coarse ones, as in MTLSI-Net's own decoder."""

    def __post_init__(self) -> None:
        check_choice("decoder option deep_supervision:", self.deep_supervision, DEEP_SUPERVISION)
        check_choice("decoder option add_coarse:", self.add_coarse, ADD_COARSE)
        if self.add_coarse != "none" and self.deep_supervision == "none":
            raise MistakeError("decoder option add_coarse without coarse predictions; give deep_supervision: areas too")


class HeadsOnlyDecoder(FinalPredictions):
    """Four maps -> ({task: final}, {task: coarse}); no coarse predictions without deep supervision: nothing reads them.

    Choice: the pyramid and heads of MTLSI-Net's own decoder, so that what the two differ in is the interaction alone.
    """

    def __init__(self, pyramid: TaskPyramid, heads: TaskHeads, *, add_coarse: str = "none"):
        super().__init__()
        self.pyramid, self.heads, self.add_coarse = pyramid, heads, add_coarse

    def forward(self, maps: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if isinstance(self.pyramid, PreliminaryDecoder):
            features, together = self.pyramid(maps)  # b t c h w, b o h w
            coarse = self.pyramid.predict.by_task(together)
        else:
            features, coarse = self.pyramid(maps), {}
        return self.finished(self.heads(features, maps[0]), coarse), coarse  # {task: b channels h w}

    def for_tasks(self, index: Sequence[int]) -> HeadsOnlyDecoder:
        """The decoder of the tasks ``index``."""
        chosen = shallow_copy(self)
        chosen.pyramid, chosen.heads = for_tasks(self.pyramid, index), for_tasks(self.heads, index)
        return chosen
