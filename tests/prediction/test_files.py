from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from by_colour import predictor
from mtlsi.errors import MistakeError
from mtlsi.io import number_of
from mtlsi.lock import held
from mtlsi.prediction import files
from mtlsi.prediction.files import Outcome, predict_paths, save_prediction
from mtlsi.prediction.manifest import Line, Manifest, Source
from mtlsi.prediction.predictor import Predictor


class Quiet(Console):
    def __init__(self) -> None:
        super().__init__(file=io.StringIO(), width=300)

    @property
    def lines(self) -> list[str]:
        return self.file.getvalue().splitlines()  # type: ignore[attr-defined]


def run(paths: Any, out: Path, tasks: Any = "depth", **options: Any) -> tuple[Outcome, list[str]]:
    console = Quiet()
    outcome = predict_paths(paths, predictor(), out, tasks, console=console, **options)
    return outcome, console.lines


def results(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} - {"manifest.jsonl"}


def manifest(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def test_a_place_that_cannot_be_written_is_refused_before_computing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Predictor, "maps", lambda *_: pytest.fail("computed"))
    (tmp_path / "file").write_text("here")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(MistakeError, match="no folder to write to"):
            predict_paths([folder], predictor(), out)


def test_a_folder_in_natural_order(folder, tmp_path):
    (folder / "notes.txt").write_text("not an image")
    (folder / "._room1.png").write_bytes(b"hidden")
    outcome, said = run([folder, folder / "room2.png"], tmp_path / "out")
    assert [line["results"] for line in manifest(tmp_path / "out")] == ["Room1", "room2", "room10"]
    assert (outcome.written, outcome.num_files, outcome.failed) == (3, 12, 0)
    assert said[-2] == "passed over, no images: 1 .txt"
    assert said[-1].startswith("3 images predicted: 12 files, ")
    assert said[-1].endswith(f" MB, in {tmp_path / 'out'}")
    assert outcome.num_bytes == sum((tmp_path / "out" / name).stat().st_size for name in results(tmp_path / "out"))


def test_folders_and_paths_as_plain_strings(folder, tmp_path, photo):
    out = tmp_path / "out"
    run(str(folder / "room2.png"), out)
    again = save_prediction(predictor()(photo, "depth"), str(folder / "room2.png"), str(tmp_path / "again"), "room2")
    assert {path.name for path in again} == results(out)
    for path in again:
        assert path.read_bytes() == (out / path.name).read_bytes()


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_a_tree_gives_the_same_tree_whatever_reads_and_writes_it(folder, tmp_path, num_workers):
    for place in ("a", "a/b"):
        (folder / place).mkdir()
        for number in range(4):
            (folder / place / f"{number}.png").write_bytes((folder / "room2.png").read_bytes())
    outcome, _ = run(folder, tmp_path / "out", recursive=True, write="npy,png", num_workers=num_workers)
    assert outcome.written == 11
    stems = ["Room1", "room2", "room10", *(f"a/{n}" for n in range(4)), *(f"a/b/{n}" for n in range(4))]
    assert results(tmp_path / "out") == {f"{stem}_depth{end}" for stem in stems for end in (".npy", ".png", "_mm.png")}
    expected = np.load(tmp_path / "out/room2_depth.npy")
    for stem in stems:
        np.testing.assert_array_equal(np.load(tmp_path / f"out/{stem}_depth.npy"), expected)
    lines = {line["results"]: line for line in manifest(tmp_path / "out")}
    assert set(lines) == set(stems)
    assert lines["a/b/2"]["image"] == str(folder / "a/b/2.png")
    assert lines["a/b/2"]["files"] == ["a/b/2_depth.npy", "a/b/2_depth.png", "a/b/2_depth_mm.png"]
    assert (lines["a/b/2"]["height"], lines["a/b/2"]["width"]) == (96, 128)


def test_subfolders_that_are_left_out_are_told(folder, tmp_path):
    (folder / "below").mkdir()
    assert "1 subfolder passed over; --recursive" in run(folder, tmp_path / "out")[1][-2]
    with pytest.raises(MistakeError, match=r"no images in this folder itself; .*its 2 subfolders: --recursive"):
        run(tmp_path, tmp_path / "other/out")


# ---- odd entries


def test_something_else_in_the_place_of_the_claims_is_one_line(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/.claims").touch()
    with pytest.raises(MistakeError, match=r"\.claims: is no folder; remove it"):
        run(folder, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == [".claims"]


STEERS = "\x1b]0;x\x07\x9b\x7f"
WRITTEN_OUT = r"\x1b]0;x\x07\x9b\x7f"


def test_names_steer_no_terminal(folder, tmp_path):
    (folder / f"broken{STEERS}.jpg").write_bytes(b"broken")
    (folder / f"clip{STEERS}.mp4").touch()
    (folder / f"notes.{STEERS}").touch()
    (folder / f"out{STEERS}").symlink_to(folder)
    _, said = run([folder], tmp_path / f"out{STEERS}", recursive=True)
    assert sum(WRITTEN_OUT in line for line in said) == len(said) == 5
    assert all(sign not in "".join(said) for sign in STEERS if not sign.isprintable())


def test_what_cannot_be_predicted_is_named_and_passed_over(folder, tmp_path, monkeypatch):
    (folder / "room3 [b].png").write_bytes(b"broken")
    (folder / "room4.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (folder / "room5.avif").write_bytes(b"\0\0\0\x18ftypavif" + bytes(40))
    (folder / "room6.jpg").symlink_to("room6.jpg")
    (folder / "room7.jpg").symlink_to("nowhere")
    (folder / "room8.jpg").touch()
    os.mkfifo(folder / "room9.jpg")
    Image.new("RGB", (200, 100)).save(folder / "room11.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15_000)
    outcome, said = run([folder], tmp_path / "out", num_workers=2)
    assert (outcome.written, outcome.failed) == (3, 8)
    told = {line.split(": ")[0].rpartition("/")[2]: line for line in said[:-1]}
    assert len(said) == 9
    for name, reason in {
        "room3 [b].png": "not a whole image", "room4.heic": "", "room5.avif": "", "room6.jpg": "leads nowhere",
        "room7.jpg": "leads nowhere", "room8.jpg": "empty file", "room9.jpg": "not a plain file",
        "room11.png": "more than 15000 pixels",
    }.items():  # fmt: skip
        assert reason in told[name]
    assert said[-1].endswith("; 8 failed")
    assert {line["results"] for line in manifest(tmp_path / "out")} == {"Room1", "room2", "room10"}


def test_an_empty_file_among_others_is_named_and_passed_over(folder, tmp_path):
    (folder / "empty.png").touch()
    outcome, said = run([folder / "room2.png", folder / "empty.png"], tmp_path / "out")
    assert (outcome.written, outcome.failed) == (1, 1)
    assert "empty.png: an empty file; expected an image" in said[0]


def test_an_address_is_no_file(tmp_path):
    for address in ("https://example.com/a.jpg", "s3://bucket/a.jpg"):
        with pytest.raises(MistakeError, match=r":/.*a\.jpg: an address; expected a file: download it first"):
            run([address], tmp_path / "out")


def test_where_nothing_can_be_read_it_is_a_mistake(folder, tmp_path):
    (folder / "x [b].png").write_bytes(b"broken")
    with pytest.raises(MistakeError, match=r"^\S*x \[b\]\.png: not a whole image"):
        run(folder / "x [b].png", tmp_path / "out")
    for path in folder.iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(MistakeError, match=r"none of 4 images can be read; the first: \S*Room1.png: not a whole"):
        run(folder, tmp_path / "out")


def test_names_as_long_as_names_can_be(folder, tmp_path):
    name = "n" * 251 + ".png"
    (folder / "room2.png").rename(folder / name)
    outcome, said = run(folder, tmp_path / "out", ["depth", "semseg"])
    assert (outcome.written, outcome.failed) == (3, 0)
    assert "a very long name; its results begin with nnn" in said[0]
    assert all(len(path) <= 255 for path in results(tmp_path / "out"))


def test_names_that_differ_by_their_ending_only(folder, tmp_path):
    with Image.open(folder / "room2.png") as image:
        image.save(folder / "ROOM2.jpg")
    assert run(folder, tmp_path / "out", write="npy")[0].written == 4
    assert results(tmp_path / "out") == {f"{stem}_depth.npy" for stem in ("Room1", "room2_png", "ROOM2_jpg", "room10")}


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")], ids=repr
)
@pytest.mark.parametrize("where", ["reading", "network", "writing"])
def test_an_image_too_large_for_the_memory_is_passed_over(folder, tmp_path, monkeypatch, error, where):
    if where == "reading" and isinstance(error, RuntimeError):
        pytest.skip("torch reads no images")
    home, name = {
        "reading": (files, "read_image"), "network": (Predictor, "maps"), "writing": (files, "save_prediction"),
    }[where]  # fmt: skip
    real, calls = getattr(home, name), []

    def second_fails(*given, **options):
        calls.append(given)
        if len(calls) == 2:
            raise error
        return real(*given, **options)

    monkeypatch.setattr(home, name, second_fails)
    outcome, said = run(folder, tmp_path / "out", num_workers=0)
    assert (outcome.written, outcome.failed) == (2, 1)
    assert said[0] == f"{folder / 'room2.png'}: too large for the memory of this machine; make it smaller first"


def test_a_fault_of_ours_is_not_taken_for_an_odd_image(folder, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Predictor, "maps", fail)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run(folder, tmp_path / "out", num_workers=2)
    assert results(tmp_path / "out") == set()  # no claim is left


@pytest.mark.parametrize(("number", "ends"), [(28, True), (36, False)])
def test_a_full_disk_ends_the_run_and_one_odd_result_does_not(folder, tmp_path, monkeypatch, number, ends):
    from mtlsi.prediction import results as module

    real, calls = module.replace_array, []

    def second_fails(path, content):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(number, os.strerror(number))
        real(path, content)

    monkeypatch.setattr(module, "replace_array", second_fails)
    if ends:
        with pytest.raises(MistakeError, match="No space left"):
            run(folder, tmp_path / "out", write="npy", num_workers=1)
    else:
        assert run(folder, tmp_path / "out", write="npy")[0].failed == 1


# ---- a second run


def count_predictions(monkeypatch) -> list[int]:
    real, counted = Predictor.maps, [0]

    def call(*given):
        counted[0] += 1
        return real(*given)

    monkeypatch.setattr(Predictor, "maps", call)
    return counted


def test_a_second_run_skips_what_is_done(folder, tmp_path, monkeypatch, photo):
    counted, out = count_predictions(monkeypatch), tmp_path / "out"
    run(folder, out)
    outcome, said = run(folder, out)
    assert (counted, outcome.written, outcome.skipped) == ([3], 0, 3)
    assert said == [f"0 images predicted; 3 done before in {out}, skipped (--overwrite predicts again)"]
    Image.fromarray(photo[:40]).save(folder / "room2.png")  # another image
    (out / "room10_depth.npy").unlink()
    assert run(folder, out)[0].written == 2
    assert np.load(out / "room2_depth.npy").shape == (40, 128)
    folder.rename(tmp_path / "moved")
    assert run(tmp_path / "moved", out)[0].skipped == 3
    assert run(tmp_path / "moved", out, overwrite=True)[0].written == 3


@pytest.mark.parametrize("change", [{"tasks": "semseg"}, {"write": "npz"}, {"tasks": "depth,semseg", "write": "npy"}])
def test_other_wishes_are_no_repetition(folder, tmp_path, change):
    run(folder, tmp_path / "out")
    assert run(folder, tmp_path / "out", **change)[0].written == 3
    assert run(folder, tmp_path / "out")[0].written == 3  # the last line counts


def test_another_model_or_setting_is_no_repetition(folder, tmp_path):
    from mtlsi.model.build import create_model

    models = [create_model("tiny", tasks=("depth",), input_size=(32, 32)) for _ in range(2)]
    made = [Predictor(models[0], device="cpu"), Predictor(models[1], device="cpu")]
    made += [
        Predictor(models[0], device="cpu", dtype="bf16"),
        Predictor(models[0], device="cpu", working_size=(32, 64)),
    ]
    assert len({one.identity for one in made}) == 4
    rooms = [
        create_model(
            "tiny",
            tasks=("semseg",),
            classes={"semseg": ("floor", name)},
            input_size=(32, 32),
            colours={"semseg": colours},
        )
        for name, colours in (
            ("wall", [(0, 0, 0), (9, 9, 9)]),
            ("door", [(0, 0, 0), (9, 9, 9)]),
            ("wall", [(0, 0, 0), (8, 9, 9)]),
        )
    ]
    for room in rooms[1:]:
        room.load_state_dict(rooms[0].state_dict())
    assert len({Predictor(room, device="cpu").identity for room in rooms}) == 3
    assert Predictor(models[0], device="cpu").identity == made[0].identity
    for one in (*made, made[0]):
        assert predict_paths(folder, one, tmp_path / "out", console=Quiet(), write="npy").written == 3


def test_a_line_cut_short_by_a_killed_process_does_no_harm(folder, tmp_path):
    out = tmp_path / "out"
    run(folder, out)
    text = (out / "manifest.jsonl").read_text()
    (out / "manifest.jsonl").write_text(text[:-30])
    outcome, _ = run(folder, out)
    assert (outcome.written, outcome.skipped) == (1, 2)
    assert run(folder, out)[0].skipped == 3


def test_a_line_that_a_full_disk_takes_in_parts_is_whole_or_a_mistake(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, content: write(file, content[:7]))
    Manifest(tmp_path).append("a", Source("/photos/a.jpg", 7, 3), 5, {})
    assert [line["results"] for line in manifest(tmp_path)] == ["a"]

    def full(file, content):
        if os.fstat(file).st_size > 200:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, content[:7])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(MistakeError, match=r"manifest\.jsonl: cannot be written \(.*space"):
        Manifest(tmp_path).append("b", Source("/photos/b.jpg", 8, 3), 5, {"more": "x" * 100})
    monkeypatch.undo()
    Manifest(tmp_path).append("c", Source("/photos/c.jpg", 9, 3), 5, {})
    again = Manifest(tmp_path)
    assert [bool(again.last(name)) for name in "abc"] == [True, False, True]


def test_a_manifest_of_many_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("mtlsi.prediction.manifest.RECENT", 7)
    written = Manifest(tmp_path)
    for number in range(50):
        written.append(f"a/{number % 20}", Source(f"/{number}", number, 2**64 - number - 1), 2**63 + number, {})
    read = Manifest(tmp_path)
    for number in range(30, 50):
        line = Line(number, number_of(f"/{number}"), 2**64 - number - 1, 2**63 + number)
        assert read.last(f"a/{number % 20}") == line
    assert read.last("a/99") is None
    written.append("a/3", Source("/3", 3, 0), 1, {})
    assert read.last("a/3") == Line(3, number_of("/3"), 0, 1)


def two_folders(tmp_path: Path, photo: np.ndarray) -> tuple[Path, Path]:
    """Two images that differ in nothing but their folders and their pixels."""
    for day, pixels in (("day1", photo), ("day2", photo[:, ::-1])):
        (tmp_path / day).mkdir()
        Image.fromarray(pixels).save(tmp_path / day / "1.bmp")
        os.utime(tmp_path / day / "1.bmp", ns=(10**18, 10**18))
    return tmp_path / "day1", tmp_path / "day2"


def test_an_image_of_the_same_name_in_another_folder_is_another_one(tmp_path, photo):
    (day1, day2), out = two_folders(tmp_path, photo), tmp_path / "out"
    run(day1, out, write="npy")
    first = np.load(out / "1_depth.npy")
    for day, expected in ((day2, first[:, ::-1]), (day1, first)):
        outcome, said = run(day, out, write="npy")
        assert (outcome.written, outcome.replaced, outcome.skipped) == (1, 1, 0)
        np.testing.assert_array_equal(np.load(out / "1_depth.npy"), expected)
        assert said[0] == (
            f"{day / '1.bmp'}: its results replaced those of another file in {out}, 1; another --out keeps both"
        )
        assert said[-1].endswith(f", in {out}, 1 in the place of another file's results")
        outcome, said = run(day, out, write="npy")
        assert (outcome.skipped, len(said)) == (1, 1)
    assert run(day2, out, write="npy", overwrite=True)[0].replaced == 0  # which was asked for


def test_the_same_image_by_any_path_is_done(folder, tmp_path, monkeypatch):
    counted, out = count_predictions(monkeypatch), tmp_path / "out"
    run(folder, out)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(folder)
    shutil.copytree(folder, tmp_path / "copy")  # with its times of change
    for path in ("photos", "./photos", f"../{tmp_path.name}/photos", "link", "copy"):
        assert run(path, out)[0].skipped == 3
        assert run(Path(path).absolute(), out)[0].skipped == 3
    folder.rename(tmp_path / "moved")
    out.rename(tmp_path / "moved_out")
    assert run("moved", Path("moved_out"))[0].skipped == 3
    assert counted == [3]
    for path in (tmp_path / "moved").iterdir():
        path.touch()
    outcome, _ = run("moved", Path("moved_out"))
    assert (outcome.written, outcome.replaced) == (3, 0)


def test_an_image_that_was_exchanged_is_another_one(tmp_path, photo):
    (day1, day2), out = two_folders(tmp_path, photo), tmp_path / "out"
    run(day1, out)
    shutil.copy2(day2 / "1.bmp", day1)  # which keeps the time of change
    outcome, _ = run(day1, out)
    assert (outcome.written, outcome.replaced) == (1, 0)
    (day1 / "1.bmp").chmod(0o600)
    assert run(day1, out)[0].skipped == 1


def test_a_manifest_of_before_is_believed_about_the_images_where_they_were(folder, tmp_path):
    out = tmp_path / "out"
    run(folder, out)
    lines = [{k: v for k, v in line.items() if k not in ("changed", "content")} for line in manifest(out)]
    (out / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(folder, out)[0].skipped == 3
    folder.rename(tmp_path / "moved")
    assert run(tmp_path / "moved", out)[0].replaced == 3  # or they were others


# ---- several processes


def test_images_of_another_process_are_left_to_it(folder, tmp_path):
    out = tmp_path / "out"
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom mtlsi.lock import held\n"
        "with held(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    claim = out / files.CLAIMS / f"{number_of('room2'):016x}.lock"
    command = [sys.executable, "-c", program, str(claim)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        outcome, said = run(folder, out)
        assert (outcome.written, outcome.elsewhere) == (2, 1)
        assert "1 left to another process" in said[-1]
        other.kill()  # its claim stays behind
    assert claim.exists()
    assert run(folder, out)[0].written == 1
    assert not (out / files.CLAIMS).exists()


def test_what_another_process_finishes_meanwhile_is_not_repeated(folder, tmp_path, monkeypatch):
    counted, out = count_predictions(monkeypatch), tmp_path / "out"
    real = held

    def other_was_faster(path):
        monkeypatch.setattr(files, "held", real)
        run(folder, out)
        return real(path)

    monkeypatch.setattr(files, "held", other_was_faster)
    assert run(folder, out)[0].skipped == 3
    assert counted == [3]


def test_videos_in_a_folder_are_named_and_passed_over(folder, tmp_path):
    for name in ("clip.mp4", "notes.txt"):
        (folder / name).write_bytes(b"film")
    _, said = run([folder], tmp_path / "out")
    assert said[0].startswith(f"video {folder / 'clip.mp4'} passed over; each is predicted by itself: mtlsi predict")
    assert said[1] == "passed over, no images: 1 .txt"
    (tmp_path / "films").mkdir()
    for number in range(5):
        (tmp_path / "films" / f"{number}.MOV").write_bytes(b"film")
    with pytest.raises(MistakeError, match=r"no images in this folder.*; videos .* and 2 more: give each by itself"):
        run([tmp_path / "films"], tmp_path / "out")


# ---- what is refused


def test_inputs_that_cannot_be_predicted_are_refused(folder, tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "clip.MOV").write_bytes(b"film")
    for given, message in (
        ([tmp_path / "bare"], "no images in this folder"),
        ([folder, tmp_path / "nowhere.jpg"], "nowhere.jpg: not there"),
        ([tmp_path / "clip.MOV"], "a video; expected an image"),
        ([], "no images given"),
    ):
        with pytest.raises(MistakeError, match=message):
            run(given, tmp_path / "out")
    with pytest.raises(MistakeError, match="unknown task 'saliency'"):
        run([folder], tmp_path / "out", ["saliency"])
    with pytest.raises(MistakeError, match="cannot write 'tiff'"):
        run([folder], tmp_path / "out", write="tiff")
    with pytest.raises(MistakeError, match="workers -1; expected 0 or more"):
        run([folder], tmp_path / "out", num_workers=-1)
    assert not (tmp_path / "out").exists()


def test_results_never_lie_among_the_images_or_replace_one(folder, tmp_path):
    with pytest.raises(MistakeError, match="would lie among the images"):
        run([folder], folder)
    Image.new("RGB", (4, 4)).save(folder / "room2_panel.png")
    with pytest.raises(MistakeError, match=r"room2_panel\.png: would be replaced"):
        run([folder / "room2.png", folder / "room2_panel.png"], folder)
    (folder / "photos").mkdir()
    (folder / "room2_panel.png").rename(folder / "photos" / "a.png")
    with pytest.raises(MistakeError, match="would lie among the images"):
        run([folder], tmp_path, recursive=True)  # photos/photos/a.png's would go to photos
    assert run([folder / "room2.png"], folder)[0].written == 1
    assert run([folder / "photos"], folder)[0].written == 1
