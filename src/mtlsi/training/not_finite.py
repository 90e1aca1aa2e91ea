"""Steps whose loss or gradient is not finite: found without waiting for the device, named, and kept for inspection."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mtlsi import processes
from mtlsi.data.sampling import RunSampler
from mtlsi.errors import MistakeError
from mtlsi.evaluation.report import defined
from mtlsi.io import replace_text, replacing
from mtlsi.kernels.recompute import FrozenStatistics
from mtlsi.losses import MultiTaskLoss
from mtlsi.training.checkpoints import write_tensors

if TYPE_CHECKING:
    from mtlsi.training.log import Step
    from mtlsi.training.setup import TrainingRun

FOLDER = "not_finite"
"""In the run folder."""


def all_finite(losses: Sequence[Mapping[str, Tensor]], norm: Tensor | None) -> Tensor:
    """Whether a step's totals and the norm of its gradient are finite, as one bool on their device."""
    numbers = [one["loss"] for one in losses] + ([norm] if norm is not None else [])
    return torch.stack([number.detach().float() for number in numbers]).isfinite().all()


class Watch:
    """Reads each step's verdict: on a GPU while that computes the next step, elsewhere at once.

    A GPU is so never waited for: the verdict is copied behind the step's back, and asked for when the next step has been
    handed over. A broken step is found one step late, before anything of it is saved.
    """

    def __init__(self, run: TrainingRun):
        self.run = run
        self.late: tuple[int, Step, Tensor, Any] | None = None

    def look(self, step: Step) -> None:
        """Take in the step that the run has just taken, and read the verdict of the one before where that is still to come.

        Raises ``MistakeError`` for a step that is not finite, unless ``train.skip_not_finite`` lets it pass.
        """
        before, self.late = self.late, self._sent_for(step)
        self._read(before)
        if step.finite.device.type != "cuda":
            self.settle()

    def settle(self) -> None:
        """Read the last step's verdict now, for it will be saved or logged. Raises ``MistakeError`` as ``look`` does."""
        before, self.late = self.late, None
        self._read(before)

    def _sent_for(self, step: Step) -> tuple[int, Step, Tensor, Any]:
        verdict, arrived = step.finite.to("cpu", non_blocking=True), None
        if step.finite.device.type == "cuda":
            arrived = torch.cuda.Event()
            arrived.record()
        return self.run.position.step, step, verdict, arrived

    def _read(self, sent: tuple[int, Step, Tensor, Any] | None) -> None:
        if sent is None:
            return
        number, step, verdict, arrived = sent
        if arrived is not None:
            arrived.synchronize()
        if not verdict:
            told = report(self.run, number, step)
            allowed = self.run.config.train.skip_not_finite
            if not step.skipped or self.run.position.skipped > allowed:
                passed = f" ({allowed} such steps were passed over before)" if allowed else ""
                raise MistakeError(
                    f"{told}{passed}; look at the batch there, lower --train.lr, or pass such steps over with "
                    f"--train.skip_not_finite {max(10, 2 * allowed)}"
                )


def report(run: TrainingRun, number: int, step: Step) -> str:
    """Write the batch of the step ``number`` into the run folder, and say what of it is not finite."""
    images = images_of_step(run, number)
    tasks = tasks_of_losses(step.losses)
    what = f"the loss of {', '.join(tasks)}" if tasks else "the loss"
    if all(processes.gathered(all(bool(one["loss"].isfinite()) for one in step.losses))):
        # shares of the weights have no gradient by task; and all processes ask for it, or none
        tasks = tasks_of_gradients(run, step) if step.skipped and not run.is_sharded else []
        what = f"the gradient of {', '.join(tasks)}" if tasks else "the gradient"
    several = run.accelerator.num_processes > 1  # each of which saw other images
    own = f"_process_{run.accelerator.process_index}" if several else ""
    path = run.out / FOLDER / f"step_{number:06d}{own}.safetensors"
    path.parent.mkdir(exist_ok=True)
    losses = [{name: float(value) for name, value in one.items()} for one in step.losses]
    norm = None if step.norm is None else float(step.norm)
    facts: Any = {"step": number, "tasks": tasks, "images": images, "losses": losses, "gradient_norm": norm}
    replace_text(path.with_suffix(".json"), json.dumps(defined(facts), indent=2) + "\n")
    write_batches(path, step.batches)
    processes.gathered(None)  # the first that ends the run ends the others, too: each has written by then
    names = [name for batch in images for name in batch]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    shown = ", ".join(name[:60] for name in names[:8])
    return f"{what} is not finite at step {number}, on the images {shown}{more} (in {path})"


def write_batches(path: Path, batches: Sequence[Mapping[str, Tensor]]) -> None:
    """The step's batches as the network got them: ``0/image`` (b 3 H W), ``0/TASK`` (b h w) or (b c h w), ``1/image`` ..."""
    tensors = {f"{i}/{name}": value for i, batch in enumerate(batches) for name, value in batch.items()}
    with replacing(path) as part:
        write_tensors(part, tensors, like=path.with_suffix(".json"))


def images_of_step(run: TrainingRun, number: int) -> list[list[str]]:
    """The names of the images of step ``number`` in this process, by micro-batch."""
    options, accelerator = run.config.train, run.accelerator
    sampler = RunSampler(
        len(run.train_set),
        options.batch_size,
        seed=run.config.seed,
        start=(number - 1) * options.accumulate,
        stop=number * options.accumulate,
        process=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    return [[run.train_set.name(index) for _, index in batch] for batch in sampler]


def tasks_of_losses(losses: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """The tasks whose loss, coarse or final, is not finite."""
    bad = {name.removeprefix("coarse/") for one in losses for name, value in one.items() if not value.isfinite()}
    return sorted(bad - {"loss"})


def tasks_of_gradients(run: TrainingRun, step: Step) -> list[str]:
    """The tasks whose gradient is not finite though their loss is, computed again; [] where the criterion does not tell."""
    criterion = run.accelerator.unwrap_model(run.criterion)
    if not isinstance(criterion, MultiTaskLoss):
        return []
    parameters = [parameter for parameter in run.network.parameters() if parameter.requires_grad]
    bad: set[str] = set()
    torch.manual_seed(step.seed)
    for batch in step.batches:
        with FrozenStatistics(run.network), run.accelerator.autocast():
            output = run.network(batch["image"], full_size=run.config.train.loss_at == "image")
        for name, loss in criterion.per_task(output.final, output.coarse, batch).items():
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            if not all(bool(x.isfinite().all()) for x in gradients if x is not None):
                bad.add(name.removeprefix("coarse/"))
    return sorted(bad)
