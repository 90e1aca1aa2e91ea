"""The files of a run folder. Atomic: temporary file, then rename.

``config.yaml``: the run's configuration. ``config.json`` and ``model.safetensors``: the model, as ``from_pretrained``
reads it. ``state/``: everything that a resumed run needs. ``metrics.jsonl``: one line per logged step and evaluation.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from mtlsi.config import DataConfig, RunConfig, TrainConfig
from mtlsi.errors import MistakeError, message_of
from mtlsi.field_types import check_types
from mtlsi.io import replace_text
from mtlsi.plugins import import_plugins, settle_plugins
from mtlsi.yaml_files import read_yaml

STATE, METRICS = "state", "metrics.jsonl"
FORMER_NAMES = {"picture_hw": "image_hw", "evaluate_pictures": "evaluate_images"}
"""Renamed settings, so that older run folders still load."""


class MovingAverage:
    """Exponential moving average of a module's weights and float buffers; integer buffers are copied.

    The decay is (1 + n) / (10 + n) after n updates, at most ``decay``, so that early weights are forgotten. Decay 0
    follows the module exactly.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay, self.num_updates = decay, 0
        self.state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the module's present weights."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates)) if self.decay else 0.0
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                self.state[name].lerp_(tensor, 1 - decay)
            else:
                self.state[name].copy_(tensor)

    @contextmanager
    def lent_to(self, module: nn.Module) -> Iterator[None]:
        """``module`` has the averaged weights within the context, and its own again afterwards."""
        own = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        module.load_state_dict(self.state)
        try:
            yield
        finally:
            module.load_state_dict(own)

    def to(self, device: torch.device) -> None:
        """Move the average to where the module trains."""
        self.state = {name: tensor.to(device) for name, tensor in self.state.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything to continue from."""
        return {"num_updates": self.num_updates, "state": self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state``."""
        self.num_updates = state["num_updates"]
        for name, tensor in state["state"].items():
            self.state[name].copy_(tensor)


class Position:
    """The step that a run has reached, and the seconds of training that it took, evaluations left out."""

    def __init__(self) -> None:
        self.step, self.seconds = 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """The number of finished optimizer steps, and their time."""
        return {"step": self.step, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after ``state``."""
        self.step = state["step"]
        self.seconds = state.get("seconds", 0.0)  # states of older runs lack it


def prepare_run_folder(out: Path, *, resume: bool) -> None:
    """Create ``out`` for a new run, or check that it can be resumed. Raises ``MistakeError`` where it cannot be used."""
    if resume:
        if not (out / STATE).is_dir():
            raise MistakeError(
                f"nothing to resume in {out}: it has no {STATE}/ folder; expected the folder of a started run"
            )
        return
    if (out / "config.yaml").exists():
        advice = f"continue it with --resume {out}" if (out / STATE).is_dir() else "remove it: it has no saved state"
        raise MistakeError(f"{out} holds a run already; give another --out, or {advice}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise MistakeError(
            f"cannot write to {out} ({error.strerror}); give a folder you may write to with --out"
        ) from error


def save_config(config: RunConfig, out: Path) -> None:
    """``config.yaml``, from which the run can be repeated."""
    replace_text(out / "config.yaml", yaml.safe_dump(_plain(asdict(config)), sort_keys=False))


def load_config(out: Path) -> RunConfig:
    """The configuration that ``save_config`` wrote into the run folder ``out``."""
    path = out / "config.yaml"
    try:
        stored = read_yaml(path)
        if not isinstance(stored, dict) or not all(isinstance(stored.get(part), dict) for part in ("data", "train")):
            raise ValueError("no settings of data and train")
        data, train = (_renamed(stored.pop(part)) for part in ("data", "train"))
        for kind, values, where in (
            (RunConfig, stored, ""),
            (DataConfig, data, "data."),
            (TrainConfig, train, "train."),
        ):
            check_types(kind, values, where)
        return RunConfig(**stored, data=DataConfig(**data), train=TrainConfig(**train))
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise MistakeError(f"{path}: {message_of(error)}; expected the folder of a started run") from error


def _renamed(settings: dict[str, Any]) -> dict[str, Any]:
    """Stored settings under their present names, lists as tuples."""
    return {
        FORMER_NAMES.get(name, name): tuple(value) if isinstance(value, list) else value
        for name, value in settings.items()
    }


def import_named_plugins(named: Iterable[str], model: str | Path) -> None:
    """Import the plugins ``named`` on the command, which must be all that the run folder ``model`` was trained with.

    Importing runs their code, and a run folder may be somebody else's: its config.yaml alone runs nothing. Raises
    ``MistakeError`` for a plugin that is not named.
    """
    named = tuple(named)
    if (Path(model) / "config.yaml").is_file():
        for name in load_config(Path(model)).plugins:
            if name not in settle_plugins(named):
                raise MistakeError(f"{model} was trained with the plugin {name}; give --plugin {name} to run its code")
    import_plugins(named)


def save_model(model: nn.Module, state: dict[str, Tensor], out: Path) -> None:
    """``model.safetensors``, with ``state``, and ``config.json``: enough to rebuild the network."""
    from safetensors.torch import save_file

    temporary = out / ".model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary, metadata={"format": "pt"})
    os.replace(temporary, out / "model.safetensors")
    config = model._hub_mixin_config  # what PyTorchModelHubMixin would write, without its model card
    replace_text(out / "config.json", json.dumps(_plain(config), indent=2) + "\n")


def pack_model(run: Path, folder: Path) -> None:
    """A model folder to share: matrices in float16, which halves the size; vectors, such as batch statistics, stay."""
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = load_file(run / "model.safetensors")
    packed = {name: tensor.half() if tensor.dim() > 1 else tensor for name, tensor in state.items()}
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(run / "config.json", folder / "config.json")


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    saved_step: int
    """The step whose weights ``model.safetensors`` holds."""
    seconds: float | None
    """Of training, evaluations left out; None where the metrics do not say."""


def progress_of(run: Path, config: RunConfig) -> Progress:
    """What ``metrics.jsonl`` says of the run: weights are saved every ``checkpoint_every`` steps, and at the end."""
    path, step, seconds = run / METRICS, 0, 0.0
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            values = json.loads(line)
        except ValueError:  # cut short by a stopped run
            continue
        step, seconds = max(step, values.get("step", 0)), max(seconds, values.get("train_s", 0.0))
    every = config.train.checkpoint_every
    stopped = 0 < step < config.train.iterations and every
    return Progress(step // every * every if stopped else config.train.iterations, seconds or None)


def save_state(accelerator: Any, out: Path) -> None:
    """The full state of the run. Atomic: written to a temporary folder, then renamed."""
    fresh, old = out / f".{STATE}.new", out / f".{STATE}.old"
    if accelerator.is_main_process:
        shutil.rmtree(fresh, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(fresh), safe_serialization=True)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(old, ignore_errors=True)
        if (out / STATE).exists():
            os.replace(out / STATE, old)
        os.replace(fresh, out / STATE)
        shutil.rmtree(old, ignore_errors=True)


def load_state(accelerator: Any, out: Path) -> None:
    """Load the state in the run folder ``out``. Raises ``MistakeError`` where it is damaged or another network's."""
    from safetensors import SafetensorError

    try:
        accelerator.load_state(str(out / STATE))
    except (OSError, EOFError, UnpicklingError, SafetensorError, RuntimeError, ValueError, KeyError) as error:
        reason = message_of(error)[:200]
        raise MistakeError(
            f"the state in {out / STATE} cannot be loaded ({reason}); start again, or restore a copy of it"
        ) from error


def recover_state(out: Path) -> None:
    """Restore the previous state where a run was killed between the two renames of ``save_state``."""
    old = out / f".{STATE}.old"
    if not (out / STATE).exists() and old.exists():
        os.replace(old, out / STATE)


def append_metrics(out: Path, line: dict[str, Any]) -> None:
    """Append a line to ``metrics.jsonl``."""
    with (out / METRICS).open("a") as file:
        file.write(json.dumps(line) + "\n")


def forget_metrics_after(out: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run will repeat."""
    path = out / METRICS
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
        replace_text(path, "".join(line + "\n" for line in lines))


def _step_of(line: str) -> float:
    """The step of a line of metrics; beyond all steps for a line that was cut off when the run was killed."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
