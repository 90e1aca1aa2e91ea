"""Files are written whole or not at all, with the permissions of any other new file."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from full_disk import files_of_at_most
from mtlsi.config import RunConfig
from mtlsi.errors import MistakeError
from mtlsi.evaluation.report import write_scores
from mtlsi.io import (
    check_picture,
    check_writable,
    default_cache_dir,
    file_names,
    fitting,
    replace_array,
    replace_bytes,
    replace_text,
    replacing,
)
from mtlsi.model.build import create_model
from mtlsi.model.stored import write_settings
from mtlsi.run_folder import append_metrics, forget_metrics_after, pack_model, save_config
from mtlsi.training import class_weights
from mtlsi.weights import replace_weights


@pytest.fixture(params=[0o022, 0o027, 0o002], ids=oct)
def usual(request):
    """The permissions of new files under a umask."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def permissions_below(folder):
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}


def test_every_file_has_the_usual_permissions(usual, tmp_path):
    replace_text(tmp_path / "a.txt", "a")
    replace_bytes(tmp_path / "b", b"b")
    replace_array(tmp_path / "c.npy", np.zeros(3))
    replace_array(tmp_path / "d.png", Image.new("RGB", (4, 4)))
    replace_weights(tmp_path / "e.safetensors", {"w": torch.zeros(3)})
    assert permissions_below(tmp_path) == dict.fromkeys(("a.txt", "b", "c.npy", "d.png", "e.safetensors"), usual)


def test_the_files_of_a_model_have_them_too(usual, tmp_path):
    create_model("tiny", tasks=["depth"]).save_pretrained(tmp_path / "saved")
    pack_model(tmp_path / "saved", tmp_path / "packed")
    assert permissions_below(tmp_path / "saved") == dict.fromkeys(
        ("README.md", "config.json", "model.safetensors"), usual
    )
    assert permissions_below(tmp_path / "packed") == dict.fromkeys(("config.json", "model.safetensors"), usual)


def test_a_library_that_writes_for_its_owner_alone_is_put_right(usual, tmp_path):
    with replacing(tmp_path / "a") as part:
        part.unlink()
        os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))
    assert permissions_below(tmp_path) == {"a": usual}


def test_what_fails_halfway_leaves_the_old_file_alone(tmp_path):
    (tmp_path / "a").write_text("old")

    def fail():
        with replacing(tmp_path / "a") as part:
            part.write_text("ne")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


@pytest.mark.parametrize("ending", ["npy", "png", "pdf", "jpg"])
def test_a_full_disk_names_the_file_and_leaves_nothing(ending, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    content = noise if ending == "npy" else Image.fromarray(noise)
    with files_of_at_most(1000), pytest.raises(OSError, match=rf"a\.{ending}") as caught:
        replace_array(tmp_path / f"a.{ending}", content)
    assert caught.value.errno == errno.EFBIG
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "array",
    [np.arange(12.0, dtype=np.float32).reshape(3, 4), np.asfortranarray(np.arange(24).reshape(2, 3, 4)), np.ones(())
     , np.arange(20, dtype=np.uint8)[::3], np.zeros((0, 3), np.float16), np.arange(6).reshape(2, 3).T],
    ids=lambda array: str(array.shape),
)  # fmt: skip
def test_arrays_are_written_as_numpy_writes_them(array, tmp_path):
    replace_array(tmp_path / "ours.npy", array)
    np.save(tmp_path / "numpys.npy", array)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "numpys.npy").read_bytes()


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
@pytest.mark.parametrize("through_link", [False, True])
def test_what_is_no_plain_file_is_refused_and_stays(kind, through_link, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket may not be long
    name = path = tmp_path / "odd"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("odd")
    else:
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes devices")
    before = path.stat()
    if through_link:
        name = tmp_path / "link"
        name.symlink_to("odd")
    with pytest.raises(MistakeError, match=f"cannot write {name}, a pipe, socket or device; give a file"):
        check_writable(name)
    assert path.stat() == before


def test_a_link_that_a_person_named_is_followed_and_stays(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link.txt").symlink_to("between.txt")
    (tmp_path / "between.txt").symlink_to("far/file.txt")
    for content in ("new", "again"):  # the first time there is no file yet
        replace_text(check_writable(tmp_path / "link.txt"), content)
        assert (tmp_path / "far/file.txt").read_text() == content
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "between.txt").is_symlink()
    assert os.listdir(tmp_path / "far") == ["file.txt"]
    assert check_writable(tmp_path / "new.txt") == tmp_path / "new.txt"


def test_links_that_lead_to_no_place_for_a_file_are_refused(tmp_path):
    for target in ("no/folder.txt", "link.txt", "."):
        link = tmp_path / "link.txt"
        link.symlink_to(target)
        with pytest.raises(MistakeError, match=r"cannot write .*link.txt; give a file in an existing folder"):
            check_writable(link)
        link.unlink()


def test_the_kind_of_a_picture_is_that_of_the_file_it_links_to(tmp_path):
    (tmp_path / "link.png").symlink_to("file.txt")
    with pytest.raises(MistakeError, match=r"link.png: of no known kind"):
        check_picture(tmp_path / "link.png")


def test_other_files_take_the_place_of_a_link_and_leave_its_target_alone(tmp_path):
    (tmp_path / "target").write_text("mine")
    (tmp_path / "result").symlink_to("target")
    replace_text(tmp_path / "result", "ours")
    assert ((tmp_path / "result").read_text(), (tmp_path / "target").read_text()) == ("ours", "mine")


# ---- power cuts


@pytest.mark.parametrize(
    "name", ["a.txt", "config.yaml", "metrics.jsonl", "config.json", "class_weights.json", "scores.json"]
)
def test_what_a_run_needs_after_a_power_cut_is_on_the_disk_before_the_old_file_is_gone(name, on_disk, tmp_path):
    append_metrics(tmp_path, {"step": 1})
    write: dict[str, Callable[[], object]] = {
        "a.txt": lambda: replace_text(tmp_path / name, "a", on_disk=True),
        "config.yaml": lambda: save_config(RunConfig(), tmp_path),
        "metrics.jsonl": lambda: forget_metrics_after(tmp_path, 1),
        "config.json": lambda: write_settings(SimpleNamespace(_hub_mixin_config={}), tmp_path),
        "scores.json": lambda: write_scores({}, tmp_path / name),
        "class_weights.json": lambda: class_weights.save({"semseg": (1.0,)}, {"semseg": ("wall",)}, tmp_path),
    }
    write[name]()
    assert on_disk == [(tmp_path / name).stat().st_ino, None, tmp_path.stat().st_ino]


@pytest.mark.parametrize(("number", "matters"), [(errno.EINVAL, False), (errno.EIO, True), (errno.ENOSPC, True)])
def test_a_file_system_that_cannot_bring_folders_to_the_disk_is_no_fault(number, matters, tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=os.strerror(number)) if matters else nullcontext():
        replace_text(tmp_path / "a", "a", on_disk=True)


def test_other_files_wait_for_no_disk(on_disk, tmp_path):
    replace_bytes(tmp_path / "a", b"a")
    assert on_disk == [None]


# ---- names of files


def test_a_name_that_fits_stays_and_a_longer_one_ends_in_a_number_of_all_of_it():
    assert fitting("a" * 20, 20) == "a" * 20
    one, other = fitting("a" * 40, 20), fitting("a" * 40 + "b", 20)
    assert one[:12] == other[:12] == "a" * 11 + "_"
    assert one != other
    assert len(one) == len(other) == 20
    assert len(fitting("ü" * 40, 20).encode()) <= 20


def test_names_of_images_become_files_of_one_folder_that_no_two_share(tmp_path):
    deep = "/".join(["camera_2024-05-01T12-33-11_of_the_long_corridor"] * 7)
    names = ["scene/1", "a/b", "a_b", "A/B", f"{deep}/1", f"{deep}/2", "byte_\udcff/1"]
    files = file_names(names, len(".png"))
    assert list(files) == names
    assert files["scene/1"] == "scene_1"
    assert files["a/b"].startswith("a_b_")
    assert len({file.casefold() for file in files.values()}) == len(names)
    for file in files.values():
        replace_bytes(tmp_path / f"{file}.png", b"")
    assert len(os.listdir(tmp_path)) == len(names)


@pytest.mark.parametrize("variable", ["MTLSI_CACHE", "XDG_CACHE_HOME"])
def test_a_cache_in_a_home_that_is_not_known_is_one_line(variable, monkeypatch):
    monkeypatch.delenv("MTLSI_CACHE", raising=False)
    monkeypatch.setenv(variable, "~nosuchuser/x")
    with pytest.raises(MistakeError, match="cache ~nosuchuser/x: no such home folder; set MTLSI_CACHE"):
        default_cache_dir()
