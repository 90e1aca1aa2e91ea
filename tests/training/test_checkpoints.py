"""Checkpoints as files: written whole, compared with their checksums, and nothing in them executed."""

from __future__ import annotations

import errno
import json
import os
import pickle
import stat
from functools import partial
from io import StringIO

import pytest
import torch
from rich.console import Console

from mtlsi.errors import MistakeError
from mtlsi.training import checkpoints
from mtlsi.training.checkpoints import DamagedError, newest, open_checkpoint, read_tensors, set_aside_after, write

FILES = ["average.safetensors", "learned.safetensors", "manifest.json", "model.safetensors", "optimizer.safetensors",
         "state.json"]  # fmt: skip


def tensors(number: float = 1.0) -> dict[str, dict[str, torch.Tensor]]:
    table = torch.arange(6.0).view(2, 3) + number
    return {"model": {"a": table, "b": table.T}, "average": {"a": table.bfloat16()}, "optimizer": {}, "learned": {}}


def saved(out, *steps: int, keep: int = 2) -> None:
    for step in steps:
        write(out, step, {"number": step}, tensors(step), keep=keep)


def folders(out) -> list[str]:
    return sorted(os.listdir(out / "state"))


def told(out) -> tuple[str, str]:
    """The newest whole checkpoint's folder, and what is said."""
    said = StringIO()
    found = newest(out, Console(file=said, width=400))
    assert found is not None
    return found.folder.name, said.getvalue()


# ---- writing


def test_the_newest_are_kept_and_nothing_lies_beside_them(tmp_path):
    saved(tmp_path, 2, 4, 6)
    assert folders(tmp_path) == ["step_000004", "step_000006"]
    assert sorted(os.listdir(tmp_path / "state" / "step_000006")) == FILES
    saved(tmp_path, 8, keep=1)
    assert folders(tmp_path) == ["step_000008"]
    assert told(tmp_path) == ("step_000008", "")


def test_checkpoints_of_steps_that_are_repeated_go(tmp_path):
    saved(tmp_path, 2, 4, 6)
    saved(tmp_path, 4)  # of a run that went on from step 2, because 4 and 6 were damaged
    assert folders(tmp_path) == ["step_000004"]


def test_a_damaged_one_that_a_run_did_not_go_on_from_takes_no_whole_ones_place(tmp_path):
    saved(tmp_path, 100, 110)  # the second at a signal
    flip(tmp_path / "state" / "step_000110" / "model.safetensors")
    assert told(tmp_path)[0] == "step_000100"
    set_aside_after(tmp_path, 100)
    assert told(tmp_path) == ("step_000100", "")
    saved(tmp_path, 120)
    assert folders(tmp_path) == ["step_000100", "step_000120"]


def test_a_folder_that_is_called_almost_like_a_checkpoint_is_none(tmp_path):
    (tmp_path / "state" / "step_0000050").mkdir(parents=True)
    saved(tmp_path, 2, 4, 1234567, 2000000)
    assert folders(tmp_path) == ["step_0000050", "step_1234567", "step_2000000"]


def test_what_was_written_comes_back_whatever_its_order_in_memory(tmp_path):
    saved(tmp_path, 7)
    checkpoint = open_checkpoint(tmp_path / "state" / "step_000007")
    assert checkpoint.facts == {"number": 7}
    expected = tensors(7)["model"]
    found = read_tensors(checkpoint.folder / "model.safetensors", expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.skipif(os.name == "nt", reason="no such permissions there")
def test_whoever_may_read_other_files_may_read_these(tmp_path):
    before = os.umask(0o022)
    try:
        saved(tmp_path, 1)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state" / "step_000001").iterdir()}
    assert modes == {0o644}


@pytest.mark.parametrize(("call", "number"), [("fsync", 0), ("fsync", 3), ("fsync", 7), ("replace", 0), ("replace", 1)])
def test_a_full_disk_leaves_the_checkpoints_of_before(tmp_path, monkeypatch, call, number):
    saved(tmp_path, 2, 4)
    calls, whole = [], getattr(os, call)

    def full(*given):
        calls.append(given)
        if len(calls) > number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(*given)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.os, call, full)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            saved(tmp_path, 6)
    assert told(tmp_path)[0] in ("step_000004", "step_000006")
    assert told(tmp_path)[1] == ""
    saved(tmp_path, 8)
    assert len(folders(tmp_path)) == 2


def test_the_names_of_all_and_the_metrics_before_are_on_the_disk(tmp_path, on_disk):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n')
    saved(tmp_path, 2)
    state = tmp_path / "state"
    whole = {path.stat().st_ino for path in (tmp_path, state, state / "step_000002", tmp_path / "metrics.jsonl")}
    assert whole | {path.stat().st_ino for path in (state / "step_000002").iterdir()} == {*on_disk} - {None}
    assert on_disk.index(tmp_path.stat().st_ino) < on_disk.index(None)


def test_half_a_folder_of_a_killed_run_is_no_checkpoint(tmp_path):
    saved(tmp_path, 2)
    (tmp_path / "state" / ".step_000004.new").mkdir()
    (tmp_path / "state" / ".step_000004.new" / "model.safetensors").write_bytes(b"half")
    assert told(tmp_path) == ("step_000002", "")
    saved(tmp_path, 4)
    assert folders(tmp_path) == ["step_000002", "step_000004"]


# ---- damage


def flip(path, place=-1):
    raw = bytearray(path.read_bytes())
    raw[place] ^= 4
    path.write_bytes(raw)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["flipped", "cut", "missing", "empty", "a folder", "flipped first"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, name, how):
    saved(tmp_path, 2, 4)
    path = tmp_path / "state" / "step_000004" / name
    if how.startswith("flipped"):
        flip(path, 9 if how == "flipped first" else path.stat().st_size // 2)
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        if how == "a folder":
            path.mkdir()
    name_used, said = told(tmp_path)
    assert name_used == "step_000002"
    assert "state/step_000004 is damaged" in said
    assert "going on from state/step_000002" in said


def test_without_a_whole_checkpoint_one_line_says_what_is_wrong_with_each(tmp_path):
    assert newest(tmp_path, Console()) is None
    saved(tmp_path, 2, 4)
    (tmp_path / "state" / "step_000004" / "model.safetensors").unlink()
    flip(tmp_path / "state" / "step_000002" / "average.safetensors")
    with pytest.raises(MistakeError) as caught:
        newest(tmp_path, Console())
    for part in ("step_000004 is damaged (model.safetensors is missing)", "step_000002 is damaged", "--init"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "manifest",
    [{}, [], {"files": []}, {"files": {}}, {"files": {"../../x": {}}}, {"files": dict.fromkeys(FILES, 3)}, None, "[" * 9999],
)  # fmt: skip
def test_a_manifest_of_another_form_is_damage(tmp_path, manifest):
    saved(tmp_path, 2)
    path = tmp_path / "state" / "step_000002" / "manifest.json"
    path.write_text(manifest if isinstance(manifest, str) else json.dumps(manifest))
    with pytest.raises(DamagedError):
        open_checkpoint(path.parent)


# ---- hostile folders


class Executed:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("place", ["state", "state/step_000002"])
@pytest.mark.parametrize("name", ["custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin"])
def test_a_pickled_state_is_refused_and_not_executed(tmp_path, place, name):
    saved(tmp_path, 2)
    trap = tmp_path / "executed"
    (tmp_path / place / name).write_bytes(pickle.dumps(Executed(trap)))
    with pytest.raises(MistakeError, match=name) as caught:
        newest(tmp_path, Console())
    assert "--init" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not trap.exists()
    pickle.loads((tmp_path / place / name).read_bytes())  # the trap is one
    assert trap.exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"a": torch.zeros(3)}, r"a has the shape \[3\]; expected \[2, 3\]"),
        ({"a": torch.zeros(2, 3, dtype=torch.float64)}, "a is torch.float64; expected torch.float32"),
        ({}, "lacks a"),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(1)}, "holds b"),
        ({"a": torch.zeros(2, 3), **{f"x{i}": torch.zeros(0) for i in range(3000)}}, "holds x0 and 2999 more"),
    ],
)
def test_tensors_of_other_names_shapes_and_types_are_refused(tmp_path, given, told):
    (tmp_path / "like").touch()
    checkpoints.write_tensors(tmp_path / "x.safetensors", given, like=tmp_path / "like")
    with pytest.raises(MistakeError, match=told):
        read_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(2, 3)})


@pytest.mark.parametrize("raw", [b"", b"12345678", b"\xff" * 64, (2**40).to_bytes(8, "little") + b"{}"])
def test_what_is_no_safetensors_file_is_refused(tmp_path, raw):
    (tmp_path / "x.safetensors").write_bytes(raw)
    with pytest.raises(MistakeError, match=r"x\.safetensors: .*(not a whole safetensors file|a header of)"):
        read_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(2, 3)})


@pytest.mark.parametrize(("number", "told"), [(20_001, "20001 tensors; expected"), (200_000, "a header of .* bytes")])
def test_a_header_of_more_than_any_network_has_is_refused_before_it_is_looked_through(tmp_path, number, told):
    """A few bytes name a tensor without numbers, which takes a thousand times as much in memory."""
    names = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(number)}
    header, path = json.dumps(names).encode(), tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    for read in (checkpoints.names_in, partial(read_tensors, expected={"a": torch.zeros(2, 3)})):
        with pytest.raises(MistakeError, match=told):
            read(path)
