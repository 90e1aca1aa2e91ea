"""The backbone's gradient made of the tasks' gradients by torchjd, where they conflict: UPGrad, PCGrad, CAGrad, Nash-MTL."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlsi.errors import MistakeError
from mtlsi.model.network import MTLSINet
from mtlsi.training.balance.base import Balance


class Conflicts(Balance):
    """Gradients of the tasks (t rows) at the backbone's trained parameters, aggregated; the decoder's are added up.

    Choice: the backbone is what all tasks share by construction. The decoder's tensors hold the
    weights of all tasks side by side, each trained by its own task and, where tasks interact, by the others: they get the
    sum of the tasks' gradients, which is the fixed balance.
    The rows are those of the whole step: they are added up over micro-batches and averaged over processes before they are
    aggregated. In memory they take t times the backbone's trained parameters. Where a task has no label in a whole step,
    Nash-MTL, which needs all rows, keeps the weights of its last step.
    """

    needs_maps = True

    def __init__(self, name: str, num_tasks: int, network: MTLSINet):
        super().__init__(num_tasks)
        self.aggregator, self.network = build_aggregator(name, num_tasks), network
        self.shared = [p for p in network.backbone.parameters() if p.requires_grad]
        self.decoder = [p for p in network.decoder.parameters() if p.requires_grad]
        if not self.shared:
            raise MistakeError(
                f"train.balance {name} balances the gradients in the backbone, and all of it is frozen; "
                "train the backbone (train.freeze, train.freeze_stride) or choose fixed, uncertainty, dwa or famo"
            )

    def backward(
        self,
        losses: Tensor,
        maps: Sequence[Tensor],
        share: float,
        labelled: Tensor | None = None,  # noqa: ARG002
    ) -> None:
        from torchjd.autojac import mtl_backward

        # else torchjd keeps what autograd gives: views of one another, or in another order of memory than the parameter,
        # which fused optimizers misread
        for parameter in (*self.shared, *self.decoder):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        mtl_backward(
            (share * losses).unbind(),
            features=[x for x in maps if x.grad_fn is not None],  # not those of frozen stages
            tasks_params=[self.decoder] * len(losses),
            shared_params=self.shared,
            retain_graph=True,  # the tasks' graphs overlap
            parallel_chunk_size=1,  # one row after the other: not every operation can be batched
        )

    def collect(self, seed: int) -> bool:
        from torchjd.aggregation import GramianWeightedAggregator
        from torchjd.autojac import jac_to_grad

        rows: list[Any] = self.shared
        if self.accelerator.num_processes > 1:
            self._meet_other_processes(rows)
        if not torch.isfinite(torch.stack([x.jac.sum() for x in rows]).sum()):
            return False
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cvxpy's, on the way in which Nash-MTL's authors use it
            torch.manual_seed(seed)  # PCGrad's order of tasks
            if isinstance(self.aggregator, GramianWeightedAggregator):  # no second copy of the rows in memory
                self.weights = jac_to_grad(rows, self.aggregator, optimize_gramian_computation=True)
            else:
                self.weights = jac_to_grad(rows, self.aggregator)
        return True

    def _meet_other_processes(self, rows: list[Any]) -> None:
        """What the wrapper for several processes does in its own backward pass: gradients averaged, statistics of one."""
        for parameter in rows:
            parameter.jac = self.mean_of_processes(parameter.jac)
        others: list[Any] = self.decoder
        for parameter in others:
            parameter.grad = self.mean_of_processes(parameter.grad)
        for buffer in self.network.buffers():
            torch.distributed.broadcast(buffer, src=0)

    def forget_step(self) -> None:
        for parameter in self.shared:
            vars(parameter).pop("jac", None)

    def state_dict(self) -> dict[str, Tensor]:
        """The solution (t) that Nash-MTL's next one is looked for from; nothing of the others."""
        if not hasattr(self.aggregator, "n_tasks"):
            return {}
        return {"solution": torch.as_tensor(self.aggregator.weighting.prvs_alpha, dtype=torch.float64)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if state:
            self.aggregator.weighting.prvs_alpha = state["solution"].numpy()


def build_aggregator(name: str, num_tasks: int) -> Any:
    """torchjd's aggregator of ``num_tasks`` rows.

    Choice: UPGrad adds its projections up (torchjd: averages them), so that gradients without a conflict give the fixed
    balance, as they do in PCGrad. CAGrad's c is 0.4, its authors' for NYUDv2; it and Nash-MTL keep their own scale.
    Raises ``MistakeError`` where torchjd is not installed.
    """
    try:
        from torchjd import aggregation

        if name == "upgrad":
            return aggregation.UPGrad(pref_vector=torch.ones(num_tasks))
        if name == "pcgrad":
            return aggregation.PCGrad()
        return aggregation.CAGrad(c=0.4) if name == "cagrad" else aggregation.NashMTL(num_tasks)
    except ImportError as error:
        more = (
            " and, on Python 3.13 and later, pip install ecos (builds with a C compiler)" if name == "nash_mtl" else ""
        )
        raise MistakeError(
            f"train.balance {name} needs torchjd and its solvers; install them with: pip install 'mtlsi[balance]'{more}"
        ) from error
