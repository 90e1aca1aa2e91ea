"""Which form of an operation runs: the one place where device, dtype, gradients and compilation decide.

``MTLSI_KERNELS`` (or ``use``) forces ``reference``, ``default``, ``graph``, for a graph that another runtime is to run, or
``cpu``: on a CPU, every CPU form where it applies. In ``auto``, the default, a CPU form gives way to the default form where
a short measurement on this very machine found it clearly slower. What was measured is kept, with the CPU's name, in
``kernels.json`` of the cache folder, so that later runs on the same machine take the same forms.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mtlsi.errors import MistakeError
from mtlsi.io import default_cache_dir, replace_text
from mtlsi.reading import read_json
from mtlsi.timing import cpu_name

MODES = ("auto", "cpu", "default", "graph", "reference")
ROUNDS = 5
MANY_POSITIONS = 1024
"""From here on one image is work enough for a loop over the images to cost nothing."""
CLEARLY_FASTER = 0.67
"""A CPU form gives way where the default form takes less than this share of its time: noise must not decide."""


@dataclass(frozen=True)
class CPUForm:
    """A form for CPUs, tried in the order of registration."""

    name: str
    function: Callable[..., Any]
    applies: Callable[..., bool]
    """Takes the operation's arguments."""
    calls: Callable[[], Mapping[str, Callable[[], Any]]]
    """A typical call of this form, ``cpu``, and of the ``default`` one, to be timed."""


@dataclass
class Operation:
    """The forms of one operation; all have its signature."""

    reference: Callable[..., Any]
    default: Callable[..., Any]
    cpu: list[CPUForm] = field(default_factory=list)
    graph: Callable[..., Any] | None = None
    """None: the default form."""


OPERATIONS: dict[str, Operation] = {}
_forced: list[str] = []
_measured: dict[str, bool] = {}
_lock = threading.RLock()


def mode() -> str:
    """The mode in force, one of ``MODES``, or the name of a CPU form within ``use``.

    Raises ``MistakeError`` where ``MTLSI_KERNELS`` says anything else.
    """
    if _forced:
        return _forced[-1]
    found = os.environ.get("MTLSI_KERNELS", "auto")
    if found not in MODES:
        raise MistakeError(f"MTLSI_KERNELS={found}; expected one of {', '.join(MODES)}")
    return found


@contextmanager
def use(forced: str) -> Iterator[None]:
    """Within the context operations run in this mode, or, by the name of a CPU form, in that form where it applies."""
    names = {form.name for operation in OPERATIONS.values() for form in operation.cpu}
    if forced not in MODES and forced not in names:
        raise MistakeError(f"kernels {forced!r}; expected one of {', '.join((*MODES, *sorted(names)))}")
    _forced.append(forced)
    try:
        yield
    finally:
        _forced.pop()


def choose(name: str, *arguments: Any) -> Callable[..., Any]:
    """The form of the operation ``name`` that is to run on ``arguments``, the first of which tells the device."""
    operation = OPERATIONS[name]
    wanted = mode()
    if wanted == "reference":
        return operation.reference
    if wanted == "graph":
        return operation.graph or operation.default
    first = arguments[0] if isinstance(arguments[0], torch.Tensor) else arguments[0][0]
    if wanted == "default" or first.device.type != "cpu" or _is_exporting() or any(map(is_free, first.shape)):
        return operation.default
    for form in operation.cpu:
        if not form.applies(*arguments):
            continue
        if wanted in ("cpu", form.name) or (wanted == "auto" and is_fast(form)):
            return form.function
    return operation.default


def is_fast(form: CPUForm) -> bool:
    """Whether ``form`` keeps up on this machine; true while a graph is traced, when nothing can be timed."""
    if form.name not in _measured and torch.compiler.is_compiling():
        return True
    return keeps_up(form.name, form.calls)


def keeps_up(name: str, calls: Callable[[], Mapping[str, Callable[[], Any]]]) -> bool:
    """Whether the call ``cpu`` is not clearly slower than ``default`` here; measured once and kept in the cache folder."""
    if name in _measured:
        return _measured[name]
    with _lock:
        if name not in _measured:
            path, key = default_cache_dir() / "kernels.json", _machine()
            found = _kept_choice(_read(path), key, name)
            if found is None:
                milliseconds = _time(calls)
                stored = _read(path)
                # of a process that measured at the same time: all take one form
                found = _kept_choice(stored, key, name)
                if found is None:
                    found = milliseconds["default"] > CLEARLY_FASTER * milliseconds["cpu"]
                    stored.setdefault(key, {})[name] = {"cpu_form": found, "ms": milliseconds}
                    _write(path, stored)
            _measured[name] = found
    return _measured[name]


def _kept_choice(stored: Mapping[str, Any], key: str, name: str) -> bool | None:
    """Whether the form ``name`` was found to keep up; None where nothing is kept of it."""
    entry = stored.get(key, {}).get(name)
    choice = entry.get("cpu_form") if isinstance(entry, dict) else None
    return choice if isinstance(choice, bool) else None


def always(*_: object) -> bool:
    """A form that fits all arguments."""
    return True


def loops_over_images(first: torch.Tensor | Sequence[torch.Tensor], *_: object) -> bool:
    """A form that takes one image (n positions each) after another: slower for a batch of small ones."""
    x = first if isinstance(first, torch.Tensor) else first[0]
    return len(x) == 1 or x.shape[2] >= MANY_POSITIONS


def has_own_backward(first: torch.Tensor | Sequence[torch.Tensor], *_: object) -> bool:
    """The same, with a backward pass of its own, which a compiler cannot look into."""
    return loops_over_images(first) and not torch.compiler.is_compiling()


def makes_graph() -> bool:
    """Whether forms for another runtime's graph are wanted, where there are no views of one memory."""
    return mode() == "graph"


def is_free(size: int | torch.SymInt) -> bool:
    """Whether ``size`` is no number but a symbol of a graph that is being traced for any size: nothing may depend on it."""
    return isinstance(size, torch.SymInt)


def _is_exporting() -> bool:
    return torch.compiler.is_exporting() if hasattr(torch.compiler, "is_exporting") else False


def _machine() -> str:
    return f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _time(make_calls: Callable[[], Mapping[str, Callable[[], Any]]]) -> dict[str, float]:
    """The shortest of some interleaved rounds, in milliseconds: other work on the machine can only add to it.

    In a thread of its own: gradient modes, autocast and whatever counts operations belong to the thread that set them.
    """
    taken: dict[str, list[float]] = {}

    def measure() -> None:
        calls = make_calls()
        for _ in range(1 + ROUNDS):
            for kind, call in calls.items():
                start = time.perf_counter()
                call()
                taken.setdefault(kind, []).append(1e3 * (time.perf_counter() - start))

    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
    return {kind: round(min(times[1:]), 4) for kind, times in taken.items()}


def _read(path: Path) -> dict[str, Any]:
    """What is kept; nothing where the file is missing or damaged: it is measured again then."""
    try:
        stored = read_json(path, "measurements")
    except MistakeError:
        return {}
    return stored if all(isinstance(value, dict) for value in stored.values()) else {}


def _write(path: Path, stored: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(stored, indent=2) + "\n")
    except OSError:
        return  # a cache folder that cannot be written costs a measurement per process
