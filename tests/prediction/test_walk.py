from __future__ import annotations

import os
from pathlib import Path

import pytest

from mtlsi.errors import MistakeError
from mtlsi.prediction import walk
from mtlsi.prediction.names import Names, keep_sources
from mtlsi.prediction.walk import Found, Notes, Walk


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def found(root: Path, paths, out: Path | None = None, **options) -> list[str]:
    images = Walk(paths, root / "out" if out is None else out, **options).images()
    return [image.path.relative_to(root).as_posix() for image in images]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    names = (
        "a10.jpg",
        "a2.PNG",
        "b/c.heic",
        "b/d/e.avif",
        "z.tif",
        ".hidden.jpg",
        "b/.git/x.png",
        "notes.txt",
        "b/film.mp4",
    )
    touch(*(tmp_path / "in" / name for name in names))
    return tmp_path


def test_a_folder_without_and_with_its_subfolders(tree):
    assert found(tree, tree / "in") == ["in/a2.PNG", "in/a10.jpg", "in/z.tif"]
    below = [*found(tree, tree / "in"), "in/b/c.heic", "in/b/d/e.avif"]
    assert found(tree, [tree / "in"], recursive=True) == below
    assert {image.below for image in Walk(tree / "in", tree / "out", recursive=True).images()} == {"", "b/", "b/d/"}


def test_what_is_passed_over_is_counted(tree):
    notes = Notes()
    list(Walk(tree / "in", tree / "out").images(notes))
    assert (notes.num_subfolders, dict(notes.others)) == (1, {".txt": 1})
    notes = Notes()
    list(Walk(tree / "in", tree / "out", recursive=True).images(notes))
    assert (notes.num_subfolders, dict(notes.others)) == (0, {".txt": 1, ".mp4": 1})


def test_each_image_once_in_the_order_given(tree):
    given = [tree / "in/z.tif", tree / "in/b", tree / "in/b/c.heic", tree / "in/z.tif"]
    assert found(tree, given) == ["in/z.tif", "in/b/c.heic"]
    given = [tree / "in/b/d/e.avif", tree / "in/b/d", tree / "in", tree / "in/b"]
    assert found(tree, given, recursive=True) == found(tree, tree / "in", recursive=True)
    touch(tree / "in/strange.name")  # its ending is none that folders are searched for
    assert found(tree, [tree / "in/strange.name", tree / "in/b"]) == ["in/strange.name", "in/b/c.heic"]


def test_the_folder_of_results_is_left_out(tree):
    touch(tree / "in/b/out/e_panel.png")
    notes = Notes()
    images = [image.path.name for image in Walk(tree / "in", tree / "in/b/out", recursive=True).images(notes)]
    assert images == ["a2.PNG", "a10.jpg", "z.tif", "c.heic", "e.avif"]
    list(Walk(tree / "in/b", tree / "in/b/out").images(notes := Notes()))
    assert notes.num_subfolders == 1  # d
    with pytest.raises(MistakeError, match="would lie among the images"):
        Walk([tree / "in/b"], tree / "in" / "b")


def test_links_are_followed_but_never_in_a_circle(tree):
    touch(tree / "elsewhere/f.jpg", tree / "elsewhere/deep/g.jpg")
    (tree / "in/outside").symlink_to(tree / "elsewhere")
    (tree / "in/outside again").symlink_to(tree / "elsewhere/deep")
    (tree / "in/b/up").symlink_to("..")
    (tree / "in/b/d/top").symlink_to("/")
    (tree / "elsewhere/back").symlink_to(tree / "in")
    (tree / "in/self").symlink_to("self")
    notes = Notes()
    images = [image.path.name for image in Walk(tree / "in", tree / "out", recursive=True).images(notes)]
    assert images == ["a2.PNG", "a10.jpg", "z.tif", "c.heic", "e.avif", "f.jpg", "g.jpg"]
    assert {path.name for path, _ in notes.links} == {"up", "top", "back", "outside again"}
    assert notes.others["without an ending"] == 1


@pytest.mark.skipif(os.getuid() == 0 if hasattr(os, "getuid") else True, reason="this user may read every folder")
def test_a_folder_that_cannot_be_read_is_named(tree):
    (tree / "in/b").chmod(0)
    try:
        list(Walk(tree / "in", tree / "out", recursive=True).images(notes := Notes()))
        assert [path.name for path, _ in notes.failed] == ["b"]
        with pytest.raises(MistakeError, match="b: cannot be read"):
            list(Walk(tree / "in/b", tree / "out").images())
    finally:
        (tree / "in/b").chmod(0o700)


def test_a_folder_that_goes_away_meanwhile_is_named(tree, monkeypatch):
    real = os.scandir

    def scan(folder):
        if Path(folder).name == "d":
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", scan)
    images = Walk(tree / "in", tree / "out", recursive=True).images(notes := Notes())
    assert [image.path.name for image in images] == ["a2.PNG", "a10.jpg", "z.tif", "c.heic"]
    assert notes.failed == [(tree / "in/b/d", "Permission denied")]


@pytest.mark.slow
def test_a_large_folder_is_read_in_blocks_and_a_deep_tree_to_its_end(tmp_path, monkeypatch):
    names = [f"{number}.jpg" for number in range(40)]
    touch(*(tmp_path / "in" / name for name in names))
    monkeypatch.setattr(walk, "SORTED", 7)
    assert sorted(found(tmp_path, tmp_path / "in")) == sorted(f"in/{name}" for name in names)
    folder = tmp_path / "deep"
    folder.mkdir()
    place = os.getcwd()
    try:
        os.chdir(folder)  # a path of so many letters cannot be given at once
        for _ in range(1200):
            os.mkdir("x")
            os.chdir("x")
        Path("last.jpg").touch()
    finally:
        os.chdir(place)
    try:
        assert [image.path.name for image in Walk(folder, tmp_path / "out", recursive=True).images()] == ["last.jpg"]
    finally:  # pytest's own removal is recursive and would not get to the end
        try:
            os.chdir(folder)
            for _ in range(1200):
                os.chdir("x")
            Path("last.jpg").unlink()
            for _ in range(1200):
                os.chdir("..")
                os.rmdir("x")
        finally:
            os.chdir(place)


# ---- names


def names_of(*images: Found) -> list[str]:
    names = Names(lambda: images, len("_semseg_index.png"))
    assert names.num_images == len(images)
    return [names.of(image) for image in images]


def test_equal_names_do_not_replace_each_other(tmp_path):
    places = ["one/a.png", "one/a.jpg", "two/a.jpg", "two/b.jpg", "x/two/a.jpg", "one/B.bmp"]
    stems = names_of(*(Found(tmp_path / place) for place in places))
    assert [*stems[:2], stems[3], stems[5]] == ["a_png", "one_a_jpg", "b_jpg", "B_bmp"]
    assert stems[2].startswith("a_jpg_")
    assert stems[4].startswith("a_jpg_")
    assert len({stem.casefold() for stem in stems}) == 6
    assert names_of(Found(tmp_path / "one/a.png"), Found(tmp_path / "two/b.png")) == ["a", "b"]


def test_equal_names_in_two_folders_of_a_tree_stay_short(tmp_path):
    images = [Found(tmp_path / "a.jpg"), Found(tmp_path / "b/a.jpg", "b/"), Found(tmp_path / "b/A.png", "b/")]
    assert names_of(*images) == ["a", "b/a_jpg", "b/A_png"]


def test_a_name_that_another_image_would_get_is_not_taken_twice(tmp_path):
    stems = names_of(*(Found(tmp_path / name) for name in ("a.png", "a.jpg", "a_png.gif", "a_jpg.gif")))
    assert len(set(stems)) == 4


@pytest.mark.parametrize("letter", ["x", "ü"])
def test_long_names_are_cut_to_what_a_file_system_takes(tmp_path, letter):
    room = 255 - len("_semseg_index.png") - 1
    images = [Found(tmp_path / f"{letter * (room // len(letter.encode()))}{end}.jpg") for end in ("", "abc", "abd")]
    whole, *cut = names_of(*images)
    assert whole == images[0].path.stem
    assert len({*cut, whole}) == 3
    for name in (whole, *cut):
        assert len(f"{name}_semseg_index.png".encode()) <= 255


def test_names_do_not_depend_on_the_order_of_images(tmp_path):
    images = [Found(tmp_path / name) for name in ("a.png", "a.jpg", "b.png", "a_png.jpg", "A.gif")]
    names = dict(zip(images, names_of(*images), strict=True))
    for image, name in zip(reversed(images), names_of(*reversed(images)), strict=True):
        assert names[image] == name


def test_results_of_an_earlier_command_are_no_images(tree):
    results = tree / "in/b/maps"
    touch(results / "a10_depth.png", results / "sub/a2_depth.png")
    (results / "manifest.jsonl").write_text('{"state": "1", "image": "/a10.jpg", "files": ["a10_depth.png"]}\n')
    notes = Notes()
    every = [image.path.name for image in Walk(tree / "in", tree / "out", recursive=True).images(notes)]
    assert every == ["a2.PNG", "a10.jpg", "z.tif", "c.heic", "e.avif"]
    assert notes.results == [results]
    assert found(tree, results) == ["in/b/maps/a10_depth.png"]  # unless the folder itself is given
    for other in ('{"audio_filepath": "a.wav"}\n', "no JSON", ""):  # somebody else's file of that name
        (results / "manifest.jsonl").write_text(other)
        assert "in/b/maps/a10_depth.png" in found(tree, tree / "in", recursive=True)


@pytest.mark.parametrize("recursive", [False, True])
def test_results_do_not_go_among_images_of_a_folder_below_the_one_given(tree, recursive):
    def refused() -> str:
        walked = Walk(tree / "in", out, recursive=recursive)
        try:
            keep_sources(walked, Names(walked.images, 20), out, ["_depth.png"])
        except MistakeError as error:
            return str(error)
        return ""

    out = tree / "in/b"
    assert "in/b lies in the folder given and holds images of its own, such as c.heic" in refused()
    (out / "manifest.jsonl").touch()  # of an earlier command
    assert not refused()
    out = tree / "in/new"
    assert not refused()
    out.mkdir()
    assert not refused()
