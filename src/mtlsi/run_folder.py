"""The files of a run folder. Atomic: temporary file, then rename.

``config.yaml``: the run's configuration. ``config.json`` and ``model.safetensors``: the model, as ``from_pretrained``
reads it. ``state/``: everything that a resumed run needs. ``metrics.jsonl``: one line per logged step and evaluation.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
import yaml
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mtlsi.config import DataConfig, RunConfig, TrainConfig
from mtlsi.errors import MistakeError, message_of
from mtlsi.field_types import check_types
from mtlsi.io import plain, replace_text
from mtlsi.model.pretrained import is_packaged, note_on_name
from mtlsi.model.stored import WEIGHTS, write_settings
from mtlsi.plugins import import_plugins, settle_plugins
from mtlsi.reading import json_lines, read_json, shortened
from mtlsi.weights import replace_weights
from mtlsi.yaml_files import read_yaml

BEST = "best"
"""The model with the best score, in the run folder."""
STATE, METRICS, SCORES = "state", "metrics.jsonl", "scores.json"
TIMES = ("train_s", "evaluation_s")
"""Seconds, in a line of metrics."""
MOST_S = 1e10
"""Three hundred years: no run takes longer, and sums of such times stay numbers."""
LAST_STEP = 10**12
"""More than that a step's folder could not be called."""
STEP_FOLDER = "step_{:06d}"
"""A checkpoint's folder in ``state/``, by its step."""
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
        present = module.state_dict()
        for name in (name for name, tensor in present.items() if not tensor.is_floating_point()):
            self.state[name].copy_(present[name])
        # one call for many tensors, a few kernels on a GPU; shares of sharded weights and whole buffers do not mix
        alike: dict[Any, list[str]] = defaultdict(list)
        for name, tensor in present.items():
            if tensor.is_floating_point():
                alike[type(tensor), tensor.dtype].append(name)
        average = get_ema_multi_avg_fn(decay)
        for names in alike.values():
            average([self.state[name] for name in names], [present[name] for name in names], self.num_updates)

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


class Position:
    """The step that a run has reached, and the seconds of training that it took, evaluations left out."""

    def __init__(self) -> None:
        self.step, self.seconds, self.skipped = 0, 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """The number of finished optimizer steps, their time, and how many were passed over as not finite."""
        return {"step": self.step, "seconds": self.seconds, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after ``state``. Raises ``TypeError``, ``KeyError`` or ``ValueError`` for what is none."""
        step = count_in(state, "step", LAST_STEP)
        skipped, seconds = count_in(state, "skipped", step), state["seconds"]
        if not _is_number(seconds) or not 0 <= seconds < math.inf:
            raise ValueError(f"seconds {shortened(seconds)}; expected a number of at least 0")
        self.step, self.seconds, self.skipped = step, float(seconds), skipped


def count_in(facts: Mapping[str, Any], name: str, most: int) -> int:
    """The whole number ``name`` of ``facts``, 0 to ``most``; ``KeyError`` or ``ValueError`` where it is none."""
    value = facts[name]
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{name} {shortened(value)}; expected a whole number from 0 to {most}")
    return value


def saved_steps(out: Path) -> list[int]:
    """The steps of the checkpoints in the run folder ``out``, the newest first; whether they are whole is not looked at."""
    folders = (out / STATE).iterdir() if (out / STATE).is_dir() else ()
    found = ((folder.name, re.fullmatch(r"step_(\d{6,12})", folder.name)) for folder in folders)
    steps = [int(match[1]) for name, match in found if match and STEP_FOLDER.format(int(match[1])) == name]
    return sorted(steps, reverse=True)


def has_state(out: Path) -> bool:
    """Whether anything at all lies in the run's ``state/``; what a killed process left unfinished does not count."""
    return (out / STATE).is_dir() and any(not path.name.startswith(".") for path in (out / STATE).iterdir())


def prepare_run_folder(out: Path, *, resume: bool) -> None:
    """Create ``out`` for a run, or check that it can be started or resumed there.

    A run that was cut before its first checkpoint has lost nothing: it starts from the beginning, either way.
    Raises ``MistakeError`` for a folder that cannot be used.
    """
    check_usable(out, resume=resume)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):  # of a name of its own: several processes look at once
            pass
    except OSError as error:
        raise MistakeError(
            f"cannot write to {out} ({error.strerror}); give a folder you may write to with --out"
        ) from error


def check_usable(out: Path, *, resume: bool = False) -> None:
    """Raises ``MistakeError`` where a run can plainly not be started, or resumed, in ``out``; writes nothing."""
    if not has_state(out) and (out / WEIGHTS).exists():
        raise MistakeError(
            f"{out} holds a model and no {STATE}/ to resume from; train on from it with --init {out} and another --out"
        )
    if not resume and has_state(out):  # its first checkpoint would remove those that are there
        lost = "" if (out / "config.yaml").exists() else "restore its config.yaml and "
        raise MistakeError(f"{out} holds a run already; give another --out, or {lost}continue it with --resume {out}")
    check_may_write(out)


def check_may_write(out: Path) -> None:
    """Raises ``MistakeError`` where a folder ``out`` can neither be made nor written into; writes nothing."""
    nearest = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise MistakeError(f"cannot write to {out}; give a folder you may write to with --out")


def save_config(config: RunConfig, out: Path) -> None:
    """``config.yaml``, from which the run can be repeated."""
    replace_text(out / "config.yaml", yaml.safe_dump(plain(asdict(config)), sort_keys=False), on_disk=True)


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


def run_of(model: str | Path) -> Path | None:
    """The run folder that a model is from: ``model`` itself, or, of RUN/best, RUN; None for a model without its run.

    Such is a packaged model, even where a run lies in a folder of its name here.
    """
    if is_packaged(model):
        return None
    path = Path(model)
    if path.name in ("", ".."):  # given from within a run or its best/, such as "."
        path = path.resolve()
    folders = (path, path.parent) if path.name == BEST else (path,)
    return next((folder for folder in folders if (folder / "config.yaml").is_file()), None)


def is_run(model: str | Path) -> bool:
    """Whether ``model`` is a run folder, and not the best model in one."""
    run = run_of(model)
    return run is not None and run.resolve() == Path(model).resolve()


def kept_step(out: Path) -> int | None:
    """The step of the model in ``out``/best; None where there is none."""
    try:
        step = read_json(out / BEST / SCORES, "scores").get("step")
    except MistakeError:
        return None
    return step if isinstance(step, int) and not isinstance(step, bool) else None


def note_of_best(model: str | Path) -> str | None:
    """One line where there is a model beside ``model`` that may be meant; None where there is none.

    That is a better one in the same run, or, for a packaged model, the one in a folder of its name here.
    """
    run = run_of(model)
    if run is None or not is_run(model):
        return note_on_name(model)
    if (step := kept_step(run)) is None or step in saved_steps(run)[:1]:
        return None
    return f"{run} has the run's last weights; the best, of step {step}: {run / BEST}"


def _renamed(settings: dict[str, Any]) -> dict[str, Any]:
    """Stored settings under their present names, lists as tuples."""
    return {
        FORMER_NAMES.get(name, name): tuple(value) if isinstance(value, list) else value
        for name, value in settings.items()
    }


def import_named_plugins(named: Iterable[str], model: str | Path) -> None:
    """Import the plugins ``named`` on the command, which must be all that the run of ``model`` was trained with.

    Importing runs their code, and a run folder may be somebody else's: its config.yaml alone runs nothing. Raises
    ``MistakeError`` for a plugin that is not named.
    """
    named = tuple(named)
    if (run := run_of(model)) is not None:
        for name in load_config(run).plugins:
            if name not in settle_plugins(named):
                raise MistakeError(f"{model} was trained with the plugin {name}; give --plugin {name} to run its code")
    import_plugins(named)


def save_model(model: nn.Module, state: dict[str, Tensor], out: Path) -> None:
    """``model.safetensors``, with ``state``, and ``config.json``: enough to rebuild the network."""
    replace_weights(out / WEIGHTS, state)
    write_settings(model, out)


def pack_model(model: str | Path, folder: Path) -> tuple[str, ...]:
    """A model folder to share: matrices in float16, which halves the size; vectors, such as batch statistics, stay.

    So do matrices with numbers that float16 does not reach; gives their names. Raises ``MistakeError`` where ``model`` does
    not open: the new checksum would vouch for whatever its files hold.
    """
    from mtlsi.model.network import MTLSINet  # lazy: timm takes a second

    network = MTLSINet.from_pretrained(model)
    state = network.state_dict()
    halves = {name: tensor.half() for name, tensor in state.items() if tensor.dim() > 1 and tensor.is_floating_point()}
    wide = tuple(name for name, half in halves.items() if not torch.equal(half.isfinite(), state[name].isfinite()))
    save_model(network, {**state, **halves, **{name: state[name] for name in wide}}, folder)
    return wide


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    saved_step: int
    """The step whose weights ``model.safetensors`` holds."""
    seconds: float | None
    """Of training, evaluations left out; None where the metrics do not say."""


def progress_of(run: Path, config: RunConfig) -> Progress:
    """What the run's checkpoints say, or, where ``state/`` was removed, ``metrics.jsonl`` and the cadences of saving."""
    step, seconds, options = 0, 0.0, config.train
    for values in read_metrics(run)[0]:
        step = max(step, values["step"])
        if is_time(spent := values.get("train_s")):
            seconds = max(seconds, spent)
    if saved := saved_steps(run):
        return Progress(saved[0], seconds or None)
    if (run / SCORES).exists():  # ended, early perhaps
        return Progress(step or options.iterations, seconds or None)
    cadences = [options.checkpoint_every, options.evaluate_every if options.best_by else 0]
    stopped = 0 < step < options.iterations and any(cadences)
    last = max(step // every * every for every in cadences if every) if stopped else options.iterations
    return Progress(last, seconds or None)


def is_time(seconds: Any) -> TypeGuard[float]:
    """Whether a run can have taken as long; NaN is no time."""
    return isinstance(seconds, int | float) and 0 <= seconds <= MOST_S


def seconds_until(run: Path, step: int) -> float | None:
    """Seconds of training up to ``step``, evaluations left out; None where the metrics do not say."""
    spent = [values.get("train_s") for values in read_metrics(run)[0] if values["step"] <= step]
    return max(filter(is_time, spent), default=None)


def append_metrics(out: Path, line: dict[str, Any]) -> None:
    """Append a line to ``metrics.jsonl``."""
    with (out / METRICS).open("a") as file:
        file.write(json.dumps(line) + "\n")


def forget_metrics_after(out: Path, step: int) -> tuple[str, ...]:
    """Drop the lines of steps that a resumed run will repeat, and what is no line of metrics; gives a note where some was.

    A last line that was cut off when the run was killed is dropped without a word.
    """
    path = out / METRICS
    if not path.exists():
        return ()
    lines, broken = read_metrics(out)
    kept = "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= step)
    replace_text(path, kept, on_disk=True)
    return (f"{path}: {broken} lines that were no metrics of a run were left out",) if broken else ()


def read_metrics(out: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of the run's ``metrics.jsonl``, and how many others there are, a cut last one left out.

    Raises ``MistakeError`` where it is no file, or has more values than any run.
    """
    path = out / METRICS
    if path.exists() and not path.is_file():
        raise MistakeError(f"{path} is no file; expected the metrics of a run: remove it")
    found, broken = [], 0
    for values, has_ended in json_lines(path, finite=False) if path.exists() else ():
        if _are_metrics(values):
            found.append(values)
        elif has_ended:
            broken += 1
    return found, broken


def was_evaluated(out: Path, step: int, num_images: int | None = None) -> bool:
    """Whether ``metrics.jsonl`` has the scores of an evaluation after ``step``, of ``num_images`` (None: of any number)."""
    found = [line for line in read_metrics(out)[0] if line["step"] == step and "evaluation_s" in line]
    return any(num_images in (None, line.get("evaluation_images")) for line in found)


def _are_metrics(values: Any) -> bool:
    """Whether these are a line of metrics: an object with its step, whose scores and times are numbers."""
    step = values.get("step") if isinstance(values, dict) else None
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < LAST_STEP:
        return False
    measured = (value for name, value in values.items() if name.startswith("val/") or name in TIMES)
    return all(value is None or _is_number(value) for value in measured)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53)
