from __future__ import annotations

import errno
import os
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from full_disk import files_of_at_most
from mtlsi.errors import MistakeError
from mtlsi.weights import check_weights, is_whole, replace_weights

TENSORS = {"a": torch.arange(12.0).view(3, 4), "b.c": torch.tensor(3)}


def test_a_file_with_its_checksum_is_an_ordinary_one(tmp_path):
    path = tmp_path / "model.safetensors"
    before = os.umask(0o022)
    try:
        replace_weights(path, TENSORS)
    finally:
        os.umask(before)
    found = load_file(path)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    with safe_open(path, "pt") as file:
        assert len(set(file.metadata()["sha256"])) > 4  # no placeholder
    check_weights(path)
    assert is_whole(path)
    first = path.read_bytes()
    for _ in range(5):
        replace_weights(path, TENSORS)
        assert path.read_bytes() == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path):
    path = tmp_path / "model.safetensors"
    replace_weights(path, TENSORS)
    assert is_whole(path)
    raw = path.read_bytes()
    for place in range(len(raw)):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        if is_whole(path):  # a space that JSON passes over, or the word that says which format it is
            found = load_file(path)
            assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items()), place
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        assert not is_whole(path)


def test_damage_is_a_mistake_and_a_file_without_a_checksum_is_none(tmp_path):
    path = tmp_path / "model.safetensors"
    replace_weights(path, TENSORS)
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + b"\x01")
    with pytest.raises(MistakeError, match=r"model\.safetensors is damaged"):
        check_weights(path)
    save_file(TENSORS, path, metadata={"format": "pt"})
    check_weights(path)
    assert not is_whole(path)
    assert not is_whole(tmp_path / "nowhere")


def test_a_full_disk_is_told_as_of_any_file_and_leaves_the_old_one(tmp_path):
    path = tmp_path / "model.safetensors"
    replace_weights(path, {"a": torch.zeros(3)})
    with files_of_at_most(1000), pytest.raises(OSError, match=r"model\.safetensors") as caught:
        replace_weights(path, {"a": torch.zeros(1000)})
    assert caught.value.errno == errno.EFBIG
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert torch.equal(load_file(path)["a"], torch.zeros(3))
