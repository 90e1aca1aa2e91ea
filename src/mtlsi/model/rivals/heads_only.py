"""The field's multi-task baseline: a shared backbone, and per task a head on its maps; tasks never meet.

X = GELU(BN(conv(sum_i up(BN(W_i M_i)))))        prediction = head(X, M_1)        per task
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mtlsi.model.heads import TaskHeads
from mtlsi.model.preliminary import TaskPyramid
from mtlsi.nn.task_subset import for_tasks, shallow_copy


class HeadsOnlyDecoder(nn.Module):
    """Four maps -> ({task: final}, {}): no coarse predictions, since nothing reads them.

    Choice: the pyramid and heads of MTLSI-Net's own decoder, so that what the two differ in is the interaction alone.
    """

    def __init__(self, pyramid: TaskPyramid, heads: TaskHeads):
        super().__init__()
        self.pyramid, self.heads = pyramid, heads

    def forward(self, maps: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        features = self.pyramid(maps)  # b t c h w
        final = self.heads(features, maps[0])  # b o H/4 W/4
        return self.heads.predict.by_task(final), {}  # {task: b channels h w}

    def for_tasks(self, index: Sequence[int]) -> HeadsOnlyDecoder:
        """The decoder of the tasks ``index``."""
        chosen = shallow_copy(self)
        chosen.pyramid, chosen.heads = for_tasks(self.pyramid, index), for_tasks(self.heads, index)
        return chosen
