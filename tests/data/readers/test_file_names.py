from __future__ import annotations

import os

import pytest

from mtlsi.data.readers.file_names import files_below
from mtlsi.errors import MistakeError

LINKS = pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")


def write(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


@LINKS
def test_links_to_other_folders_are_followed_and_those_to_folders_above_are_not(tmp_path, monkeypatch):
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "above/set"
    write(elsewhere / "far.png", tmp_path / "above/secret.png", root / "images/a.png", root / "images/sub/b.png")
    (root / "images/there").symlink_to(elsewhere)
    (root / "images/again").symlink_to("sub")
    for number, target in enumerate(("..", "../..", tmp_path, ".", root / "images")):
        (root / f"images/sub/up_{number}").symlink_to(target)
    (elsewhere / "back").symlink_to(tmp_path)
    (root / "semseg").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path / "above")
    for folder in (root, root.relative_to(tmp_path / "above")):
        assert {*files_below(folder / "images")} <= {"a.png", "again/b.png", "sub/b.png", "there/far.png"}
        assert {"a.png", "there/far.png"} < {*files_below(folder / "images")}
        assert [*files_below(folder / "semseg")] == []


@LINKS
def test_a_folder_that_is_a_link_is_read(tmp_path):
    write(tmp_path / "disk/photos/sub/a.png", tmp_path / "set/dataset.yaml")
    (tmp_path / "set/images").symlink_to(tmp_path / "disk/photos")
    (tmp_path / "name").symlink_to("set")
    assert [*files_below(tmp_path / "name/images")] == ["sub/a.png"]


def test_more_files_than_any_data_set_has_are_a_mistake(tmp_path, monkeypatch):
    monkeypatch.setattr("mtlsi.data.readers.file_names.MOST_ENTRIES", 5)
    write(*(tmp_path / f"set/{folder}/{name}.png" for folder in "ab" for name in "cd"))
    with pytest.raises(MistakeError, match=r"set: more than 5 files and folders, the last in .*; expected") as raised:
        list(files_below(tmp_path / "set"))
    assert "\n" not in str(raised.value)
    assert [*files_below(tmp_path / "set/a")] == ["c.png", "d.png"]
