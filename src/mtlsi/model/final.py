"""How final predictions follow from what the heads draw.

    final = drawn                    final = drawn + up(coarse)          for the tasks that ``add_coarse`` says

``up`` bilinear.
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from mtlsi.model.heads import TaskHeads
from mtlsi.nn.layout import resize_maps
from mtlsi.tasks import TASKS

ADD_COARSE = ("none", "areas", "areas_but_values")
VALUES = ("distance", "value")
"""Kinds whose predictions are measured quantities."""


class FinalPredictions(nn.Module):
    """A decoder's end: the heads, and what their predictions begin at.

    Choice: ``add_coarse`` says of which tasks the heads draw only what the coarse predictions lack, which learn faster than
    what lies behind them: areas, all but those of thin lines, which are wide in coarse predictions; areas_but_values, not
    those of distances and other values either, whose sum of two predictions fits the training images at the cost of others.
    """

    heads: TaskHeads
    add_coarse: str
    """One of ``ADD_COARSE``."""

    def begins_at_coarse(self, task: str) -> bool:
        """Whether the final prediction of ``task`` is the coarse one and what the heads add to it."""
        record = TASKS[task]
        if self.add_coarse == "none" or record.thin:
            return False
        return self.add_coarse == "areas" or record.kind not in VALUES

    def finished(
        self, drawn: Float[Tensor, "b o y x"], coarse: Mapping[str, Float[Tensor, "b _ h w"]]
    ) -> dict[str, Float[Tensor, "b _ y x"]]:
        """{task: final prediction} of what the heads drew, side by side."""
        return {
            task: x + resize_maps(coarse[task], x.shape[-2:]) if self.begins_at_coarse(task) else x
            for task, x in self.heads.predict.by_task(drawn).items()
        }
