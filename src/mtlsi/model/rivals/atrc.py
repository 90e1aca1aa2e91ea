"""ATRC: adaptive task-relational context, after Brueggemann et al., "Exploring Relational Context for Multi-Task Dense
Prediction", ICCV 2021.

    x = concat_i up(M_i)                                        the backbone's maps at one stride
    X_t = ReLU(BN(conv3x3_t(x)))                                features of a task
    A_t = classes of a task, see ``atrc_classes``
    C_t = BN(P_t concat_s relation_ts(X_t, X_s, A))             relations: see ``atrc_relations``, which: ``atrc_genotype``
    Z_t = Dropout(ReLU(BN(J_t [X_t, C_t])))        prediction_t = V_t Z_t
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtlsi.errors import MistakeError
from mtlsi.model.heads import TaskHeads
from mtlsi.model.rivals.atrc_classes import AuxiliaryClasses
from mtlsi.model.rivals.atrc_genotype import Genotype, read_genotype
from mtlsi.model.rivals.atrc_relations import LinearNorm, build_relation
from mtlsi.nn.layers import Predictions
from mtlsi.nn.layout import apart, resize_maps, side_by_side, to_map, to_positions
from mtlsi.nn.task_subset import for_tasks, shallow_copy


@dataclass(frozen=True)
class ATRCOptions:
    """``decoder_options`` of the decoder ``atrc``; the defaults are the published ones."""

    genotype: str | Mapping[str, Mapping[str, str]] | None = None
    """Relation of each pair, see ``read_genotype``; None: the published one for these tasks."""
    window: int = 9
    """Side of the window of local relations, in positions; odd."""
    attention_channels: int | None = None
    """Channels of queries, keys and values; None: half of ``channels``."""
    auxiliary_channels: int | None = None
    """Channels of each task's auxiliary head; None: as many as the maps have together."""
    bins: int = 40
    """Auxiliary classes of a task that has none of its own."""
    dropout: float = 0.05
    """Share of the channels of the refined features that training drops."""

    def __post_init__(self) -> None:
        if not 1 <= self.window <= 255 or self.window % 2 == 0:
            raise MistakeError(f"window {self.window}; expected an odd number of positions, such as 9")
        for name in ("attention_channels", "auxiliary_channels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise MistakeError(f"{name} {value}; expected at least 1")
        if self.bins < 2:
            raise MistakeError(f"bins {self.bins}; expected at least 2")
        if not 0 <= self.dropout < 1:
            raise MistakeError(f"dropout {self.dropout}; expected at least 0 and below 1")


class ATRCDecoder(nn.Module):
    """Four maps -> ({task: final}, {task: coarse}), each (b channels h w).

    Paper: everything at stride 4; a quarter of the maps' channels for a task's features, half of that for attention; the
    prediction is a 1x1 convolution. Coarse predictions are the auxiliary ones, of the tasks whose classes a relation reads.
    Choice: ``decoder_stride`` may be coarser, then the maps before it are left out and MTLSI-Net's heads draw the prediction
    at stride 4; padded pixels take part in the softmax over positions.
    """

    def __init__(
        self,
        map_channels: Sequence[int],
        channels: int,
        outputs: Mapping[str, int],
        heads: TaskHeads | LastConvolution,
        options: ATRCOptions,
    ):
        super().__init__()
        joined = sum(map_channels)
        self.tasks = tuple(outputs)
        self.skip = 4 - len(map_channels)
        genotype = read_genotype(options.genotype, self.tasks)
        self.features = nn.Sequential(
            nn.Conv2d(joined, len(outputs) * channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(len(outputs) * channels),
            nn.ReLU(),
        )
        named = {task for target, row in genotype.items() for task in _who_names(target, row).values()}
        read = {task: out for task, out in outputs.items() if task in named}
        self.auxiliary = (
            AuxiliaryClasses(joined, options.auxiliary_channels or joined, read, options.bins) if read else None
        )
        self.context = RelationalContext(genotype, channels, options)
        self.heads = heads

    def forward(self, maps: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        # fmt: off
        x = join_maps(maps[self.skip :])                                        # b i h w
        features = apart(self.features(x), len(self.tasks))                     # b t c h w
        scores, coarse = self.auxiliary(x) if self.auxiliary else ({}, {})      # {task: b n k}, {task: b channels h w}
        refined = self.context(features, scores)                                # b t c h w
        final = self.heads(refined, maps[0])                                    # b o H/4 W/4
        return self.heads.predict.by_task(final), coarse
        # fmt: on

    def for_tasks(self, index: Sequence[int]) -> ATRCDecoder:
        """The decoder of the tasks ``index``: others are read as sources, but distil nothing themselves."""
        chosen = shallow_copy(self)
        chosen.context = self.context.for_targets([self.tasks[i] for i in index])
        chosen.heads = for_tasks(self.heads, index)
        return chosen


class RelationalContext(nn.Module):
    """Features (b t c h w) and class scores {task: b n k} of all tasks -> refined features (b r c h w) of the r targets."""

    def __init__(self, genotype: Genotype, channels: int, options: ATRCOptions):
        super().__init__()
        self.tasks = tuple(genotype)
        self.targets = nn.ModuleDict(
            {target: TargetContext(target, row, channels, options) for target, row in genotype.items()}
        )
        self.drop = nn.Dropout2d(options.dropout)

    def forward(self, features: Float[Tensor, "b t c h w"], scores: Mapping[str, Tensor]) -> Float[Tensor, "b r c h w"]:
        size_hw = features.shape[-2:]
        of_task = dict(zip(self.tasks, to_positions(features).unbind(1), strict=True))  # {task: b n c}
        shares = {task: x.softmax(1).mT for task, x in scores.items()}  # {task: b k n}, over positions
        pairs = dict.fromkeys(p for target in self.targets.values() for p in cast(TargetContext, target).gathered)
        gathered = {(namer, source): shares[namer] @ of_task[source] for namer, source in pairs}  # b k c
        refined = [target(of_task, gathered, size_hw) for target in self.targets.values()]  # b n c
        x = to_map(torch.stack(refined, 2).transpose(1, 2), size_hw)  # b r c h w
        return apart(self.drop(side_by_side(x)), len(refined))

    def for_targets(self, names: Sequence[str]) -> RelationalContext:
        """The same for some targets."""
        chosen = shallow_copy(self)
        chosen.targets = nn.ModuleDict({name: self.targets[name] for name in names})
        return chosen


class TargetContext(nn.Module):
    """What one target distils from its sources, joined to its own features.

    Paper: the contexts concatenated, brought to the features' channels, concatenated with the features and projected; the
    context's norm starts at 0, so that an untrained network has plain features.
    """

    def __init__(self, target: str, row: Mapping[str, str], channels: int, options: ATRCOptions):
        super().__init__()
        width = options.attention_channels or max(channels // 2, 1)
        self.target, self.named_by = target, _who_names(target, row)
        self.relations = nn.ModuleDict(
            {source: build_relation(kind, channels, width, options.window) for source, kind in row.items()}
        )
        self.project = LinearNorm(len(row) * width, channels, None) if row else None
        self.join = LinearNorm((2 if row else 1) * channels, channels, nn.ReLU())
        if self.project is not None:
            nn.init.zeros_(self.project.norm.weight)

    @property
    def gathered(self) -> list[tuple[str, str]]:
        """Whose classes gather which source, for every source that is read by classes."""
        return [(namer, source) for source, namer in self.named_by.items()]

    def forward(
        self,
        of_task: Mapping[str, Float[Tensor, "b n c"]],
        gathered: Mapping[tuple[str, str], Float[Tensor, "b _ c"]],
        size_hw: Sequence[int],
    ) -> Float[Tensor, "b n c"]:
        own = of_task[self.target]
        if self.project is None:
            return self.join(own)
        contexts = []
        for source, relation in self.relations.items():
            read = gathered[self.named_by[source], source] if source in self.named_by else of_task[source]
            contexts.append(relation(own, read, size_hw))  # b n a
        return self.join(torch.cat((own, self.project(torch.cat(contexts, -1))), -1))


class LastConvolution(nn.Module):
    """The published head: a 1x1 convolution of the refined features (b t c h w) at stride 4."""

    def __init__(self, channels: int, outputs: Mapping[str, int]):
        super().__init__()
        self.predict = Predictions(channels, outputs)

    def forward(self, x: Float[Tensor, "b t c h w"], finest: Tensor) -> Float[Tensor, "b o h w"]:  # noqa: ARG002
        return self.predict(x)


def join_maps(maps: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b i h w"]:
    """The maps at the first one's size, side by side."""
    return torch.cat([resize_maps(x, maps[0].shape[-2:]) for x in maps], 1)


def _who_names(target: str, row: Mapping[str, str]) -> dict[str, str]:
    """By source that is read by classes: the task whose classes they are."""
    namer = {"t_label": lambda _: target, "s_label": lambda source: source}
    return {source: namer[kind](source) for source, kind in row.items() if kind in namer}
