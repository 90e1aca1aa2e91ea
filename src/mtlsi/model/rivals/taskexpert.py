"""TaskExpert: experts split the backbone's features, each task's gate assembles its own from them, a memory joins depths.

    E_i = GELU(BN(conv(BN(W_i M))))                          expert i of this depth, the same for all tasks
    g_t = softmax(V_t GELU(BN(U_t [E_1 ... E_n]) + R_t F_t))  n + 1 shares at each position
    A_t = sum_i g_ti E_i + g_t,n+1 F_t                        the memory is one more expert
    F_t <- F_t + GELU(BN(conv_t(A_t)))                        and is written to

for each depth of the backbone in turn: M its map, F_t the memory of task t, empty before the first depth, W U V R matrices.

Paper: Ye and Xu, "TaskExpert: Dynamically Assembling Multi-Task Representations with Memorial Mixture-of-Experts", ICCV
2023, arXiv 2307.15324. Its code is not public; its abstract and figures say: modules at several depths of the backbone;
experts, the same for all tasks, that decompose the backbone's features; for each task a dynamic gate that assembles them; a
memory of the tasks' features that every depth reads as an additional expert and updates, and from which the tasks are
predicted after the last depth.
Choice: everything else, as each class says; docs/rivals.md has it all in one place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mtlsi.errors import MistakeError
from mtlsi.model.heads import TaskHeads
from mtlsi.nn.layers import Predictions, TaskConvolution, TaskLinear, TaskProjection
from mtlsi.nn.layout import pool_maps, resize_maps, side_by_side, to_map, to_positions
from mtlsi.nn.task_subset import for_tasks, shallow_copy

GATES = ("position", "image")


@dataclass(frozen=True)
class TaskExpertOptions:
    """What only TaskExpert reads besides the sizes. Raises ``MistakeError`` for values that cannot be built."""

    num_experts: int = 7
    """Experts at each depth. Choice: with it and the preset's widths the network has the published number of parameters."""
    gate: str = "position"
    """position: each position has its own shares of the experts; image: all positions of an image have the same."""
    memory_expert: bool = True
    """The memory is one more expert; off: it is written to and predicted from, but not read."""
    deep_supervision: bool = False
    """Coarse predictions, from the memory before the last depth. Choice: off, as in the same authors' code of that year
    (TaskPrompter, ``intermediate_supervision: False``); the paper's abstract and figures name none."""

    def __post_init__(self) -> None:
        if self.num_experts < 1:
            raise MistakeError(f"decoder option num_experts {self.num_experts}; expected 1 or more")
        if self.gate not in GATES:
            raise MistakeError(f"decoder option gate {self.gate!r}; expected one of {', '.join(GATES)}")


class TaskExpertDecoder(nn.Module):
    """Four maps at strides 4, 8, 16, 32 -> ({task: final}, {task: coarse}), each (b channels h w); e experts.

    Paper: a plain ViT, whose depths all have stride 16. Choice: the four maps are read as four depths, the finest as the
    shallowest (of a ViT that is the order in which they leave it), each brought to the decoder's stride, which is 16 in
    ``taskexpert_vit_large``. The heads are MTLSI-Net's own, as for ``heads_only``: they draw outlines at stride 4.
    Tasks meet in the experts alone, which all of them train; no task reads another's memory.
    """

    def __init__(
        self,
        map_channels: Sequence[int],
        channels: int,
        outputs: Mapping[str, int],
        heads: TaskHeads,
        options: TaskExpertOptions,
        *,
        skip: int,
        dense: bool,
    ):
        super().__init__()
        self.skip = skip
        """The position of the map at the decoder's stride: 0 for stride 4, 1 for 8, 2 for 16."""
        self.experts = nn.ModuleList(Experts(c, options.num_experts, channels, dense=dense) for c in map_channels)
        self.mixtures = nn.ModuleList(
            MemorialMixture(len(outputs), channels, options, reads_memory=depth > 0, dense=dense)
            for depth in range(len(map_channels))
        )
        self.heads = heads
        self.coarse = Predictions(channels, outputs) if options.deep_supervision else None

    def forward(self, maps: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        # fmt: off
        size_hw, memory, before = maps[self.skip].shape[-2:], None, None
        for experts, mixture, x in zip(self.experts, self.mixtures, maps, strict=True):  # from shallow to deep
            decomposed = experts(x, size_hw)                             # b e c h w
            memory, before = mixture(decomposed, memory), memory         # b t c h w
        final = self.heads.predict.by_task(self.heads(memory, maps[0]))  # {task: b channels H/4 W/4}
        if self.coarse is None:
            return final, {}
        return final, self.coarse.by_task(self.coarse(before))           # {task: b channels h w}
        # fmt: on

    def for_tasks(self, index: Sequence[int]) -> TaskExpertDecoder:
        """The decoder of the tasks ``index``: the experts are needed whole, the rest is each task's own."""
        chosen = shallow_copy(self)
        chosen.mixtures, chosen.heads = for_tasks(self.mixtures, index), for_tasks(self.heads, index)
        chosen.coarse = None if self.coarse is None else for_tasks(self.coarse, index)
        return chosen


class Experts(nn.Module):
    """One depth's map (b i y x) -> its e experts' features (b e c h w) at the decoder's stride.

    Choice: an expert is a 1x1 projection and a 3x3 convolution, the task's layers with experts in the place of tasks. A map
    of a finer stride is averaged before it is projected, one of a coarser stride upsampled after.
    """

    def __init__(self, in_channels: int, num_experts: int, channels: int, *, dense: bool):
        super().__init__()
        self.project = TaskProjection(in_channels, num_experts, channels)
        self.refine = TaskConvolution(num_experts, channels, channels, dense=dense)

    def forward(self, x: Float[Tensor, "b i y x"], size_hw: Sequence[int]) -> Float[Tensor, "b e c h w"]:
        if x.shape[-1] > size_hw[1]:
            x = pool_maps(x, x.shape[-1] // size_hw[1])
        return self.refine(resize_maps(self.project(x), size_hw))


class MemorialMixture(nn.Module):
    """One depth's experts (b e c h w) and the memory (b t c h w), None before the first depth, -> the memory after it.

    Choice: a gate reads all experts side by side and its task's memory, by one hidden layer of a quarter of the channels;
    what a task has assembled goes through a 3x3 convolution of its own and is added to its memory. At the first depth
    nothing has been written yet, so that the experts alone share out.
    """

    def __init__(self, num_tasks: int, channels: int, options: TaskExpertOptions, *, reads_memory: bool, dense: bool):
        super().__init__()
        hidden, reads_memory = max(channels // 4, 8), reads_memory and options.memory_expert
        self.per_image = options.gate == "image"
        self.from_experts = TaskProjection(options.num_experts * channels, num_tasks, hidden)
        self.from_memory = TaskLinear(num_tasks, channels, hidden) if reads_memory else None
        self.score = TaskLinear(num_tasks, hidden, options.num_experts + reads_memory)
        self.write = TaskConvolution(num_tasks, channels, channels, dense=dense)

    def forward(
        self, experts: Float[Tensor, "b e c h w"], memory: Float[Tensor, "b t c h w"] | None
    ) -> Float[Tensor, "b t c h w"]:
        size_hw = experts.shape[-2:]
        read = None if memory is None or self.from_memory is None else to_positions(memory)  # b t n c
        assembled = assemble(self.shares(experts, read), to_positions(experts), read)  # b t n c
        written = self.write(to_map(assembled, size_hw))  # b t c h w
        return written if memory is None else memory + written

    def shares(
        self, experts: Float[Tensor, "b e c h w"], read: Float[Tensor, "b t n c"] | None
    ) -> Float[Tensor, "b t n _"]:
        """The gates: shares of the experts, last that of the memory where it is read. They sum to one at each position."""
        hidden = to_positions(self.from_experts(side_by_side(experts)))  # b t n d
        if read is not None and self.from_memory is not None:
            hidden = hidden + self.from_memory(read)
        hidden = F.gelu(hidden)
        if self.per_image:
            hidden = hidden.mean(2, keepdim=True).expand_as(hidden)
        return self.score(hidden).softmax(-1)


def assemble(
    shares: Float[Tensor, "b t n s"], experts: Float[Tensor, "b e n c"], memory: Float[Tensor, "b t n c"] | None
) -> Float[Tensor, "b t n c"]:
    """sum_i shares_i experts_i at each position, by one small product; the last share, s = e + 1, is the memory's."""
    shares, count = shares.to(experts.dtype), experts.shape[1]
    assembled = torch.matmul(shares[..., :count].transpose(1, 2), experts.transpose(1, 2)).transpose(1, 2)
    return assembled if memory is None else torch.addcmul(assembled, shares[..., count:], memory.to(assembled.dtype))
