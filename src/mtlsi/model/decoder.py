"""MTLSI-Net's decoder, from the backbone's maps to predictions, in the paper's order.

Axes: b batch, t task, c channel, o the channels of all predictions side by side, h w map at the decoder's stride,
n = h*w positions, k semantic tokens. Every part is linear in n: no n x n matrix is ever formed.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mtlsi.model.fusion import NoFusion
from mtlsi.model.heads import TaskHeads
from mtlsi.model.preliminary import PreliminaryDecoder
from mtlsi.nn.layers import Predictions
from mtlsi.nn.task_subset import TakeTasks, for_tasks, shallow_copy


class MTLSIDecoder(nn.Module):
    """Four maps at strides 4, 8, 16, 32 -> ({task: final}, {task: coarse}), each (b channels h w).

    Paper: coarse to fine. A part that is switched off is a module that passes its input on.
    """

    def __init__(
        self,
        preliminary: PreliminaryDecoder,
        fusion: nn.Module,
        distiller: nn.Module,
        cross_window: nn.Module,
        heads: TaskHeads,
    ):
        super().__init__()
        self.preliminary = preliminary
        self.fusion = fusion
        self.distiller = distiller
        self.cross_window = cross_window
        self.heads = heads

    def forward(self, maps: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        # fmt: off
        features, coarse = self.preliminary(maps)      # b t c h w, b o h w
        fused = self.fusion(features, coarse)          # b t n c
        tokens = self.distiller(fused)                 # b t k c
        refined = self.cross_window(features, tokens)  # b t c h w
        final = self.heads(refined, maps[0])           # b o H/4 W/4
        return self.heads.predict.by_task(final), self.preliminary.predict.by_task(coarse)  # {task: b channels h w}
        # fmt: on

    def for_tasks(self, index: Sequence[int]) -> MTLSIDecoder:
        """The decoder of the tasks ``index``: what only other tasks need is not computed.

        The fusion reads every task's features, so that only what comes after it is cut down.
        """
        chosen = shallow_copy(self)
        chosen.heads = for_tasks(self.heads, index)
        if isinstance(self.fusion, NoFusion):
            chosen.preliminary = for_tasks(self.preliminary, index)
            chosen.distiller = for_tasks(self.distiller, index)
            chosen.cross_window = for_tasks(self.cross_window, index)
        else:
            chosen.distiller = nn.Sequential(TakeTasks(index), for_tasks(self.distiller, index))
            chosen.cross_window = OnFeaturesOf(index, for_tasks(self.cross_window, index))
        return chosen


class OnFeaturesOf(nn.Module):
    """A CWIB of some tasks on features (b t c h w) of all."""

    def __init__(self, index: Sequence[int], cross_window: nn.Module):
        super().__init__()
        self.take, self.cross_window = TakeTasks(index), cross_window

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        return self.cross_window(self.take(features), tokens)


def start_predictions_at(decoder: nn.Module, task: str, value: Tensor) -> None:
    """Let the untrained predictions of ``task``, final and coarse, begin at ``value``, in any decoder of ``Predictions``."""
    for module in decoder.modules():
        if isinstance(module, Predictions) and task in module.of_task:
            module.start_at(task, value)
