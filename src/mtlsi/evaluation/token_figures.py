"""What the tokens of an MTLSI-Net are like, and how much of a CWIB's change comes from them.

    cosine = mean_{i != j} t_i . t_j / |t_i| |t_j|             of the k tokens t_i of an image and a task
    effective tokens = exp H(eigenvalues of cov(t))            H(p) = -sum p log p, p divided by its sum
    effective assignment = exp H(mean_n A_n)                   A_n what position n gives to each token
    change = |Y - X| / |X|        through a branch = |Y - Y'| / |X|

Y = CWIB(X), Y' the same block with that branch at zero. Everything per image and task; what is reported is the mean over
images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlsi.evaluation.without_parts import for_each_block, without_branch
from mtlsi.model.cross_window import NoCrossWindow
from mtlsi.model.decoder import MTLSIDecoder

NO_SPREAD = 1e-10
"""Tokens whose variance is below this share of their mean square differ by rounding alone."""


def mean_cosine(tokens: Tensor) -> Tensor:
    """The mean cosine (b t) between different tokens (b t k c), each with itself left out; NaN for one token."""
    k = tokens.shape[2]
    unit = F.normalize(tokens.double(), dim=-1)
    with_themselves = unit.square().sum((2, 3))
    return (unit.sum(2).square().sum(-1) - with_themselves) / (k * (k - 1) or float("nan"))


def effective_number(shares: Tensor) -> Tensor:
    """exp of the entropy of ``shares`` (... k) >= 0, divided by their sum: k where all are equal, 1 where one has all."""
    shares = shares.double().clamp(min=0)
    return torch.special.entr(shares / shares.sum(-1, keepdim=True)).sum(-1).exp()


def effective_tokens(tokens: Tensor) -> Tensor:
    """In how many directions (b t) tokens (b t k c) spread round their mean; 1 where they are all the same."""
    tokens = tokens.double()
    centred = tokens - tokens.mean(2, keepdim=True)
    variances = torch.linalg.eigvalsh(centred.mT @ centred)  # times k; b t c
    same = variances.sum(-1) <= NO_SPREAD * tokens.square().sum((2, 3))
    return torch.where(same, 1.0, effective_number(variances))


TaskFigures = dict[str, dict[str, float]]
"""Figures by task and name."""


class Figures:
    """Figures by name, one row (t) per image seen."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, name: str, values: Tensor) -> None:
        """Take ``values`` (b t) of a batch."""
        self.rows[name] += values.double().cpu().unbind()

    def means(self, tasks: Sequence[str], all_tasks: Sequence[str]) -> TaskFigures:
        """{task: {name: mean over images}} of ``tasks``; {} where nothing was seen.

        The rows are of ``all_tasks`` where the network computed the part for all of them, else of ``tasks``.
        """
        if not self.rows:
            return {}
        means = {name: torch.stack(rows).mean(0).tolist() for name, rows in self.rows.items()}
        seen = all_tasks if len(next(iter(means.values()))) == len(all_tasks) else tasks
        return {task: {name: values[seen.index(task)] for name, values in means.items()} for task in tasks}


class WatchedDistiller(nn.Module):
    """A distiller whose tokens, and whose assignment where it gives one, go into ``figures``."""

    def __init__(self, distiller: nn.Module, figures: Figures):
        super().__init__()
        self.distiller, self.figures = distiller, figures

    def forward(self, fused: Tensor, *more: Tensor) -> Tensor:
        tokens = self.distiller(fused, *more)
        self.figures.add("tokens", torch.full(tokens.shape[:2], tokens.shape[2]))
        self.figures.add("mean_cosine", mean_cosine(tokens))
        self.figures.add("effective_tokens", effective_tokens(tokens))
        assign: Any = getattr(self.distiller, "assignment", None)
        if assign is not None:
            for i in range(len(fused)):  # one by one: n k values for each image
                shares = assign(fused[i : i + 1]).double().mean(2)  # 1 t k
                self.figures.add("effective_assignment", effective_number(shares))
        return tokens


class WatchedBlock(nn.Module):
    """A CWIB whose change, and what of it is lost without either branch, go into ``figures``."""

    def __init__(self, block: nn.Module, figures: Figures):
        super().__init__()
        self.block, self.figures = block, figures
        self.without_tokens = without_branch(block, "to_tokens")
        self.without_windows = without_branch(block, "within_windows")

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        refined = self.block(features, tokens)  # b t c h w
        size = _norm(features)
        self.figures.add("change", _norm(refined - features) / size)
        self.figures.add("through_tokens", _norm(refined - self.without_tokens(features, tokens)) / size)
        self.figures.add("through_windows", _norm(refined - self.without_windows(features, tokens)) / size)
        return refined


def _norm(x: Tensor) -> Tensor:
    """|x| (b t) of maps (b t c h w)."""
    return x.double().square().sum((2, 3, 4)).sqrt()


class Watch:
    """What is seen of a decoder's tokens and of its CWIBs while it computes what it did before."""

    def __init__(self) -> None:
        self.tokens, self.blocks = Figures(), list[Figures]()

    def put_on(self, decoder: MTLSIDecoder) -> None:
        """Look at ``decoder`` from now on. Without a CWIB there is nothing to see: no tokens are made."""
        if not isinstance(decoder.cross_window, NoCrossWindow):
            decoder.distiller = WatchedDistiller(decoder.distiller, self.tokens)
            for_each_block(decoder, self._watched)

    def _watched(self, block: nn.Module) -> WatchedBlock:
        self.blocks.append(Figures())
        return WatchedBlock(block, self.blocks[-1])
