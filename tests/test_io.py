"""Files are written whole or not at all, with the permissions of any other new file."""

from __future__ import annotations

import errno
import os
import stat

import numpy as np
import pytest
import torch
from PIL import Image

from full_disk import files_of_at_most
from mtlsi.io import replace_array, replace_bytes, replace_text, replacing
from mtlsi.model.build import create_model
from mtlsi.run_folder import pack_model
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
