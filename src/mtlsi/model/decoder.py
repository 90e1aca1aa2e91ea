"""MTLSI-Net's decoder, from the backbone's maps to predictions, in the paper's order.

Axes: b batch, t task, c channel, o the channels of all predictions side by side, h w map at the decoder's stride, y x the
same where tasks interact, n = y*x positions, k semantic tokens. Every part is linear in n: no n x n matrix is ever formed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtlsi.model.cross_window import CrossWindowBlock
from mtlsi.model.final import FinalPredictions
from mtlsi.model.fusion import NoFusion, ReplaceContext
from mtlsi.model.heads import TaskHeads
from mtlsi.model.preliminary import PreliminaryDecoder
from mtlsi.nn.layers import PredictionEmbedding, Predictions
from mtlsi.nn.layout import pool_maps, resize_maps
from mtlsi.nn.task_subset import for_tasks, shallow_copy, take_tasks


class MTLSIDecoder(FinalPredictions):
    """Four maps at strides 4, 8, 16, 32 -> ({task: final}, {task: coarse}), each (b channels h w).

    Paper: coarse to fine. A part that is switched off is a module that passes its input on.
    Choice: tasks may interact at a coarser stride than the heads work at (``pool``), where the same products reach ``pool``
    squared times as far and cost as much less; what they add to the preliminary features is then upsampled.
    """

    def __init__(
        self,
        preliminary: PreliminaryDecoder,
        fusion: nn.Module,
        distiller: nn.Module,
        cross_window: nn.Module,
        heads: TaskHeads,
        *,
        local: nn.Module,
        pool: int = 1,
        add_coarse: str = "none",
    ):
        super().__init__()
        self.pool, self.add_coarse = pool, add_coarse
        self.index: Sequence[int] | None = None
        """The tasks that are computed behind the fusion; None: all."""
        self.preliminary = preliminary
        self.fusion = fusion
        self.distiller = distiller
        self.local = local
        self.cross_window = cross_window
        self.heads = heads

    @property
    def has_context(self) -> bool:
        """Whether ``forward`` takes a context."""
        return not isinstance(self.fusion, NoFusion)

    def forward(
        self, maps: Sequence[Tensor], context: ReplaceContext | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        following = () if context is None else (context,)
        # fmt: off
        features, coarse = self.preliminary(maps)                       # b t c h w, b o h w
        met = pool_maps(features, self.pool)                            # b t c y x
        fused = self.fusion(met, pool_maps(coarse, self.pool), *following)  # b t n c
        if self.index is not None:
            features, met, fused = (take_tasks(x, self.index) for x in (features, met, fused))
        tokens = self.distiller(fused)                                  # b t k c
        refined = self.cross_window(self.local(met, fused), tokens)     # b t c y x
        if self.pool > 1:
            refined = features + resize_maps(refined - met, features.shape[-2:])  # b t c h w
        drawn = self.heads(refined, maps[0])                            # b o H/4 W/4
        by_task = self.preliminary.predict.by_task(coarse)              # {task: b channels h w}
        return self.finished(drawn, by_task), by_task
        # fmt: on

    def for_tasks(self, index: Sequence[int]) -> MTLSIDecoder:
        """The decoder of the tasks ``index``: what only other tasks need is not computed.

        What reads every task's features, the fusion, tokens of all tasks and a mix of the heads, is computed whole, and so
        is what comes before it.
        """
        chosen = shallow_copy(self)
        if self.heads.mix is not None or self.reads_all_tokens():
            chosen.heads = self.heads.for_tasks(index)
            return chosen
        chosen.heads = for_tasks(self.heads, index)
        chosen.distiller, chosen.local, chosen.cross_window = (
            for_tasks(part, index) for part in (self.distiller, self.local, self.cross_window)
        )
        if isinstance(self.fusion, NoFusion):
            chosen.preliminary = for_tasks(self.preliminary, index)
        else:
            chosen.index = tuple(index)
        return chosen

    def reads_all_tokens(self) -> bool:
        """Whether a CWIB reads the tokens of other tasks than its own."""
        return any(isinstance(block, CrossWindowBlock) and block.read_all for block in self.cross_window.modules())


def start_predictions_at(decoder: nn.Module, task: str, value: Tensor) -> None:
    """Let the untrained predictions of ``task``, final and coarse, begin at ``value``, in any decoder of ``Predictions``."""
    for module in decoder.modules():
        if isinstance(module, Predictions) and task in module.of_task:
            module.start_at(task, value)
    if isinstance(decoder, FinalPredictions) and decoder.begins_at_coarse(task):
        decoder.heads.predict.start_at(task, torch.zeros_like(value))


def rescale_predictions(decoder: nn.Module, task: str, factor: float) -> None:
    """Let predictions of ``task``, final and coarse, be ``factor`` times what they are, in any decoder of ``Predictions``.

    What embeds them reads them as before.
    """
    for module in decoder.modules():
        if isinstance(module, Predictions) and task in module.of_task:
            module.rescale(task, factor)
        if isinstance(module, PredictionEmbedding) and task in module:
            module.rescale(task, factor)
