"""What a run must keep to go on to the very weights of an unbroken one, as tensors by name and plain facts.

Nothing else is needed: the order of images, their augmentation and the network's own draws are functions of the seed and
the step, and the learning rates follow from the step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mtlsi.data.datasets import LabelledImages
from mtlsi.errors import MistakeError, message_of
from mtlsi.io import plain, replace_text
from mtlsi.reading import read_json, shortened
from mtlsi.run_folder import STEP_FOLDER, count_in
from mtlsi.training import checkpoints, class_weights, sharding
from mtlsi.training.checkpoints import Checkpoint
from mtlsi.training.same_settings import flat

if TYPE_CHECKING:
    from mtlsi.training.setup import TrainingRun

OWN_PARTS = "own_parts.json"
"""In the folder of a run that began with parts of a person's own: ``own_parts``."""
MOMENTS = ("exp_avg", "exp_avg_sq", "step")
"""What Adam keeps of every parameter that had a gradient."""


def save(run: TrainingRun) -> None:
    """Write the checkpoint of the run's present step, in the first process; all of them must ask.

    Raises ``OSError``; the ones of before are whole then.
    """
    facts = {
        "position": run.position.state_dict(),
        "average_updates": run.average.num_updates,
        "processes": run.accelerator.num_processes,
        "images": images_of(run.train_set),
        "settings": flat(run.config),
        "own_parts": run.own_parts,
        "class_weights": plain(run.class_weights),
        "torch": torch.__version__,
    }
    made = tensors_of(run)
    parts = _Gathered(made) if run.is_sharded else {name: make() for name, make in made.items()}
    if run.accelerator.is_main_process:
        checkpoints.write(run.out, run.position.step, facts, parts, keep=run.config.train.keep_checkpoints)
    elif run.is_sharded:
        for name in parts:
            parts[name]


def tensors_of(run: TrainingRun) -> dict[str, Callable[[], Mapping[str, Tensor]]]:
    """By name of ``checkpoints.TENSORS`` what gives a checkpoint's tensors, as this process keeps them."""
    return {
        "model": run.network.state_dict,
        "average": lambda: run.average.state,
        "optimizer": lambda: _moments(run),
        "learned": lambda: _learned(run),
    }


class _Gathered(Mapping[str, Mapping[str, Tensor]]):
    """The tensors of a network that is shared out, put together when they are asked for: one file's after the other."""

    def __init__(self, made: Mapping[str, Callable[[], Mapping[str, Tensor]]]):
        self.made = made

    def __getitem__(self, name: str) -> Mapping[str, Tensor]:
        return sharding.whole_in_first(self.made[name]())

    def __iter__(self) -> Iterator[str]:
        return iter(checkpoints.TENSORS)

    def __len__(self) -> int:
        return len(checkpoints.TENSORS)


def load(run: TrainingRun, checkpoint: Checkpoint) -> None:
    """Have ``run`` go on from ``checkpoint``. Raises ``MistakeError`` where that is another network's or data set's."""
    facts, folder = checkpoint.facts, checkpoint.folder
    check_own_parts(facts.get("own_parts", run.own_parts), run.own_parts, run.out)  # none of an older version
    _check_class_weights(run, checkpoint)
    try:
        if facts["images"] != (here := images_of(run.train_set)):
            raise MistakeError(
                f"cannot resume {run.out}: it trained on {facts['images']['count']} images, and the {here['count']} in "
                f"{run.config.data.root or run.config.data.name} are not the same ones; restore them, or train on from the "
                f"weights with --init {run.out} and another --out"
            )
        run.position.load_state_dict(facts["position"])
        run.average.num_updates = count_in(facts, "average_updates", run.position.step)
        if (of_step := STEP_FOLDER.format(run.position.step)) != folder.name:
            raise ValueError(f"step {run.position.step}, in {folder.name}; expected {of_step}")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, MistakeError):
            raise
        raise MistakeError(f"{folder / checkpoints.FACTS}: {message_of(error)}; expected the facts of a run") from error
    own = run.network.state_dict()
    stored = checkpoints.read_tensors(folder / "model.safetensors", own)
    run.network.load_state_dict({name: _as_kept(run, value, own[name]) for name, value in stored.items()})
    for name, value in checkpoints.read_tensors(folder / "average.safetensors", run.average.state).items():
        run.average.state[name].copy_(_as_kept(run, value, run.average.state[name]))
    _load_moments(run, folder / "optimizer.safetensors")
    _load_learned(run, folder / "learned.safetensors")
    _go_on_at(run.scheduler, run.position.step)


def own_parts(criterion: Any, train_transform: Any, metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a person gave instead of built-in parts, by argument of ``train``, each by the name of its class or function.

    The module is left out: what a script calls ``__main__`` has another name wherever it is imported.
    """
    given = {"criterion": criterion, "train_transform": train_transform}
    found: dict[str, Any] = {argument: _name_of(part) for argument, part in given.items() if part is not None}
    return found | ({"metrics": {task: _name_of(metric) for task, metric in metrics.items()}} if metrics else {})


def _name_of(part: Any) -> str:
    return str(getattr(part, "__name__", type(part).__name__))


def begin_with(own: Mapping[str, Any], out: Path) -> None:
    """Have the run folder ``out`` name the ``own`` parts of a run that begins, until a checkpoint does.

    Raises ``MistakeError`` where one that was cut before its first checkpoint began with others.
    """
    if (out / OWN_PARTS).exists():
        check_own_parts(read_json(out / OWN_PARTS, "the parts of your own that the run began with"), own, out)
    elif own:
        replace_text(out / OWN_PARTS, json.dumps(own, indent=2) + "\n", on_disk=True)


def check_own_parts(stored: Any, own: Mapping[str, Any], out: Path) -> None:
    """Raises ``MistakeError`` where the run in ``out`` had other parts of a person's own than it is given now."""
    if stored != own:
        was, now = (shortened(parts, 200) if parts else "none of that kind" for parts in (stored, own))
        raise MistakeError(
            f"cannot resume {out}: it trained with parts of your own, {was}, and would go on with {now}; give "
            f"mtlsi.train the same ones with resume=True, or begin anew with another --out"
        )


def _check_class_weights(run: TrainingRun, checkpoint: Checkpoint) -> None:
    """Raises ``MistakeError`` where the run folder no longer has the class weights that the run trained with."""
    ours = plain(run.class_weights)
    if checkpoint.facts.get("class_weights", ours) != ours:  # not in a checkpoint of an older version
        raise MistakeError(
            f"{run.out / class_weights.FILE}: other class weights than the run trained with, which "
            f"{checkpoint.folder / checkpoints.FACTS} lists; put those back, or train on from the weights with --init "
            f"{run.out} and another --out"
        )


def _as_kept(run: TrainingRun, tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor of a checkpoint, as this process keeps ``like``."""
    return sharding.share_like(tensor, like) if run.is_sharded else tensor


def images_of(dataset: LabelledImages) -> dict[str, Any]:
    """How many training images there are, and a checksum of their names in order: a step's images are numbers of it."""
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        digest.update(dataset.name(index).encode(errors="surrogatepass") + b"\0")  # a file's name need not be UTF-8
    return {"count": len(dataset), "names": digest.hexdigest()}


# ---- the optimizer, by name: the order of its parameters does not matter


def trained_parameters(run: TrainingRun) -> dict[str, nn.Parameter]:
    """What the optimizer trains, by name: the network's, the criterion's own and the balance's."""
    criterion = run.accelerator.unwrap_model(run.criterion) if isinstance(run.criterion, nn.Module) else nn.Module()
    named = dict(run.network.named_parameters())
    named |= {f"criterion/{name}": parameter for name, parameter in criterion.named_parameters()}
    named |= {f"balance/{i}": x for i, x in enumerate(run.balance.learned() if run.balance is not None else [])}
    ours = {id(parameter) for group in run.optimizer.param_groups for parameter in group["params"]}
    return {name: parameter for name, parameter in named.items() if id(parameter) in ours}


def _moments(run: TrainingRun) -> dict[str, Tensor]:
    state = run.optimizer.state
    return {
        f"{kind}/{name}": state[parameter][kind]
        for name, parameter in trained_parameters(run).items()
        if parameter in state  # it had a gradient in some step
        for kind in MOMENTS
    }


def _load_moments(run: TrainingRun, path: Any) -> None:
    named, stored = trained_parameters(run), set(checkpoints.names_in(path))
    had_gradient = {name: x for name, x in named.items() if any(f"{kind}/{name}" in stored for kind in MOMENTS)}
    number = torch.zeros((), dtype=torch.float32)
    expected = {
        f"{kind}/{name}": number if kind == "step" else x for name, x in had_gradient.items() for kind in MOMENTS
    }
    found = checkpoints.read_tensors(path, expected)
    of_parameter = {}
    for name, parameter in had_gradient.items():
        moments = {"step": found[f"step/{name}"]}
        for kind in ("exp_avg", "exp_avg_sq"):  # in the parameter's order of memory: fused optimizers misread another
            kept = _as_kept(run, found[f"{kind}/{name}"], parameter)
            moments[kind] = torch.empty_like(parameter).copy_(kept).detach()
        of_parameter[id(parameter)] = moments
    ordered = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    state = {i: of_parameter[id(x)] for i, x in enumerate(ordered) if id(x) in of_parameter}
    run.optimizer.load_state_dict({"state": state, "param_groups": run.optimizer.state_dict()["param_groups"]})


def _go_on_at(scheduler: torch.optim.lr_scheduler.LambdaLR, step: int) -> None:
    """Learning rates are functions of the step, so that they follow a number of iterations that was changed."""
    rates = [base * factor(step) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    position = {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
    scheduler.load_state_dict({**scheduler.state_dict(), **position})


# ---- what else is learned


def _learned(run: TrainingRun) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    if isinstance(run.criterion, nn.Module):
        own = run.accelerator.unwrap_model(run.criterion).state_dict()
        found |= {f"criterion/{name}": value for name, value in own.items()}
    if run.balance is not None:
        found |= {f"balance/{name}": value for name, value in run.balance.state_dict().items()}
    return found


def _load_learned(run: TrainingRun, path: Any) -> None:
    found = checkpoints.read_tensors(path, _learned(run))
    parts: dict[str, dict[str, Tensor]] = {"criterion": {}, "balance": {}}
    for full_name, value in found.items():
        part, _, name = full_name.partition("/")
        parts[part][name] = value
    if parts["criterion"]:
        run.accelerator.unwrap_model(run.criterion).load_state_dict(parts["criterion"])
    if run.balance is not None:
        run.balance.load_state_dict(parts["balance"])
