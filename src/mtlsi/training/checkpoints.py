"""Checkpoints on disk: ``state/step_000123/`` in a run folder, whole or not there, each with checksums of its files.

A checkpoint is four safetensors files, ``state.json`` and ``manifest.json``, which has size and SHA-256 of the other five.
Nothing in it is unpickled, and nothing beside these six names is opened.
It is written into a hidden folder, brought to the disk (fsync) and renamed: a run that is killed, or a disk that is full,
leaves the checkpoints of before as they were.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mtlsi.errors import MistakeError, message_of
from mtlsi.io import sync
from mtlsi.reading import parse_json
from mtlsi.run_folder import METRICS, STATE, STEP_FOLDER, saved_steps
from mtlsi.streams import write_line
from mtlsi.tensor_files import check_tensor_file, save_tensors

FACTS, MANIFEST = "state.json", "manifest.json"
TENSORS = ("model", "average", "optimizer", "learned")
"""Each a file of its own: the weights, their moving average, the optimizer's moments, and what else is learned."""
MOST_JSON_BYTES = 32 * 2**20
"""No file of facts is larger: a run has settings, not data."""

Tensors = Mapping[str, Tensor]


class DamagedError(Exception):
    """A checkpoint is not what was written; the message says what is wrong with it."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are those that were written."""

    folder: Path
    facts: dict[str, Any]
    """What ``state.json`` says, as it was given to ``write``."""


# ---- writing


def write(out: Path, step: int, facts: Mapping[str, Any], tensors: Mapping[str, Tensors], *, keep: int) -> None:
    """Write the checkpoint of ``step`` into the run folder ``out``; then the newest ``keep`` of them stay.

    ``tensors``: by name of ``TENSORS``. Checkpoints of later steps, which a run that went back repeats, go too.
    Raises ``OSError`` where the disk does not take it; the checkpoints of before are whole then.
    """
    state = out / STATE
    state.mkdir(exist_ok=True)
    sync(out)
    if (out / METRICS).is_file():  # what a resumed run knows of the evaluations before
        sync(out / METRICS)
    remove_leftovers(out)
    fresh, target = state / f".{STEP_FOLDER.format(step)}.new", state / STEP_FOLDER.format(step)
    try:
        fresh.mkdir()
        _write_json(fresh / FACTS, facts)
        for name in TENSORS:
            write_tensors(fresh / f"{name}.safetensors", tensors[name], like=fresh / FACTS)
        names = (FACTS, *(f"{name}.safetensors" for name in TENSORS))
        _write_json(fresh / MANIFEST, {"files": {name: _fingerprint(fresh / name) for name in names}})
        sync(fresh)
        if target.exists():
            os.replace(target, _aside(target))
        os.replace(fresh, target)
        sync(state)
    finally:
        remove_leftovers(out)
    for number in _to_go(saved_steps(out), step, keep):
        old = state / STEP_FOLDER.format(number)
        os.replace(old, _aside(old))  # at once: half of a checkpoint would look like a damaged one
    remove_leftovers(out)


def _to_go(steps: list[int], step: int, keep: int) -> list[int]:
    """Of the newest-first ``steps``, those that are not kept after ``step``."""
    kept = [number for number in steps if number <= step][:keep]
    return [number for number in steps if number not in kept]


def set_aside_after(out: Path, step: int) -> None:
    """Have those of steps after ``step``, from which the run goes on since they are damaged, count no more.

    Of those that ``write`` keeps each is then a whole one. It also removes what was set aside.
    """
    for number in saved_steps(out):
        if number > step:
            folder = out / STATE / STEP_FOLDER.format(number)
            os.replace(folder, _aside(folder))


def remove_leftovers(out: Path) -> None:
    """Remove what a run that was killed while it wrote or removed a checkpoint left behind."""
    for path in (out / STATE).glob(".step_*"):
        shutil.rmtree(path, ignore_errors=True)


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def write_tensors(path: Path, tensors: Tensors, *, like: Path) -> None:
    """A safetensors file on the disk, which may be read by whoever may read ``like``."""
    save_tensors(path, _on_their_own(tensors), {"format": "pt"})
    shutil.copymode(like, path)  # safetensors keeps its files to their owner
    sync(path)


def _on_their_own(tensors: Tensors) -> dict[str, Tensor]:
    """On the CPU, in plain order, no two of them in one piece of memory, as the format wants it."""
    found, seen = {}, set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        found[name] = own.clone() if place in seen else own
        seen.add(place)
    return found


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


# ---- reading


def newest(out: Path, console: Console) -> Checkpoint | None:
    """The newest checkpoint in the run folder ``out`` that is whole; None where there is none at all.

    Damaged ones after it are named on ``console``. Raises ``MistakeError`` where all are damaged, and for the state of a
    version of mtlsi that pickled it, which is not opened.
    """
    _refuse_pickled(out)
    damage: list[str] = []
    for step in saved_steps(out):
        folder = out / STATE / STEP_FOLDER.format(step)
        try:
            found = open_checkpoint(folder)
        except DamagedError as reason:
            damage.append(f"{STATE}/{folder.name} is damaged ({reason})")
            continue
        for line in damage:
            write_line(console, f"{line}; going on from {STATE}/{folder.name}")
        return found
    if damage:
        raise MistakeError(
            f"cannot resume {out}: {'; '.join(damage)}; restore a copy of one, or train on from the model alone with "
            f"--init {out} and another --out"
        )
    return None


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``, all of its files compared with its manifest; ``DamagedError`` where one differs."""
    files = {f"{name}.safetensors" for name in TENSORS} | {FACTS}
    manifest = _read_json(folder / MANIFEST)
    stored = manifest.get("files")
    if not isinstance(stored, dict) or stored.keys() != files:
        raise DamagedError(f"{MANIFEST} does not name the files of a checkpoint")
    for name in sorted(os.listdir(folder)):
        if name not in files | {MANIFEST} and not name.startswith("."):
            raise DamagedError(f"it holds {name[:80]}, which its manifest does not name")
    for name in sorted(files):
        _compare(folder / name, stored[name])
    return Checkpoint(folder, _read_json(folder / FACTS))


def _compare(path: Path, stored: Any) -> None:
    if not path.is_file():
        raise DamagedError(f"{path.name} is missing")
    if not isinstance(stored, dict):
        raise DamagedError(f"{MANIFEST} has no size and checksum of {path.name}")
    size = path.stat().st_size
    if size != stored.get("bytes"):
        raise DamagedError(f"{path.name} has {size} bytes; its manifest says {str(stored.get('bytes'))[:40]}")
    try:
        found = _fingerprint(path)
    except OSError as error:
        raise DamagedError(f"{path.name}: {message_of(error)}") from error
    if found != stored:
        raise DamagedError(f"{path.name} has another content than was written")


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a small JSON file."""
    if not path.is_file():
        raise DamagedError(f"{path.name} is missing")
    try:
        if path.stat().st_size > MOST_JSON_BYTES:
            raise DamagedError(f"{path.name} has more than {MOST_JSON_BYTES} bytes")
        content = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path.name} cannot be read: {message_of(error, 100)}") from error
    if not isinstance(content, dict):
        raise DamagedError(f"{path.name} is no JSON object")
    return content


def read_tensors(path: Path, expected: Tensors) -> dict[str, Tensor]:
    """The tensors of a checkpoint's file, which must be those of ``expected`` by name, shape and type.

    Nothing is read before all names and shapes are known to be right. Raises ``MistakeError`` for the first that is not.
    """
    check_tensor_file(path)
    try:
        with safe_open(path, "pt") as file:
            check_names(path, file.keys(), expected)
            for name, like in expected.items():
                shape = list(file.get_slice(name).get_shape())
                if shape != list(like.shape):
                    raise MistakeError(f"{path}: {name} has the shape {shape}; expected {list(like.shape)}")
            found = {name: file.get_tensor(name) for name in expected}
    except SafetensorError as error:
        raise MistakeError(f"{path}: {message_of(error, 200)}; expected a file that mtlsi wrote") from error
    for name, like in expected.items():
        if found[name].dtype != like.dtype:
            raise MistakeError(f"{path}: {name} is {found[name].dtype}; expected {like.dtype}")
    return found


def names_in(path: Path) -> list[str]:
    """The names of the tensors in a file; ``MistakeError`` where it is none."""
    check_tensor_file(path)
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise MistakeError(f"{path}: {message_of(error, 200)}; expected a file that mtlsi wrote") from error


def check_names(path: Path, found: Iterator[str] | list[str], expected: Tensors) -> None:
    """Raises ``MistakeError`` where the names in a file are not those of ``expected``."""
    names = set(found)
    for wrong, what in ((expected.keys() - names, "lacks"), (names - expected.keys(), "holds")):
        if wrong:
            first, more = min(wrong), len(wrong) - 1
            raise MistakeError(
                f"{path} {what} {first[:120]}{f' and {more} more' if more else ''}; expected the state of this very network "
                "and its optimizer"
            )


def _refuse_pickled(out: Path) -> None:
    """The state of mtlsi up to its run states in safetensors was pickled, and unpickling runs what a file says."""
    found = sorted(
        path.name
        for path in ((out / STATE).iterdir() if (out / STATE).is_dir() else ())
        if re.search(r"\.(pkl|pickle|pt|pth|bin)$", path.name)
    )
    if found:
        raise MistakeError(
            f"{out / STATE} holds {found[0][:80]}: an early version of mtlsi 0.1 wrote its state as pickle, which can run "
            f"code and is not opened; train on from the run's weights with --init {out} and another --out"
        )
