from __future__ import annotations

import gc
import io
import json
import os
import socket
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from by_colour import predictor
from mtlsi import kinds
from mtlsi.errors import MistakeError
from mtlsi.prediction.camera import Camera
from mtlsi.prediction.video import VideoOutcome, predict_video
from small_clips import Levels, click, damage, decoded, grey_levels, heard, pictures, write_clip


def run(path: Path, out: Path, tasks: Any = None, **options: Any) -> tuple[VideoOutcome, list[str]]:
    console = Console(file=io.StringIO(), width=300)
    outcome = predict_video(path, options.pop("predictor", None) or predictor(), out, tasks, console=console, **options)
    return outcome, console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def damaged_whole(tmp_path: Path) -> Path:
    """A clip of which no picture can be decoded."""
    clip = write_clip(tmp_path / "damaged.mkv", pictures(2, 48, 64), options={"slicecrc": "1", "g": "1"})
    return damage(clip, 0, 1)


def test_one_task_has_the_clips_size_and_the_colours_of_its_map(tmp_path):
    shown = grey_levels(20)
    outcome, said = run(write_clip(tmp_path / "clip.mkv", shown), tmp_path / "out.mp4", "depth", predictor=Levels())
    found = decoded(outcome.path)
    assert (outcome.num_frames, outcome.num_broken, outcome.duration_s) == (20, 0, pytest.approx(0.8))
    low, high = outcome.limits["depth"]
    size = f"{outcome.num_bytes / 1e6:.1f} MB, 0.8 s"
    assert said == [
        f"20 frames predicted, {20 / outcome.spent_s:.1f} a second: {tmp_path}/out.mp4, {size}; "
        f"depth in colours from {low:.2f} to {high:.2f} m"
    ]
    for (moment, drawn), pixels, number in zip(found, shown, range(20), strict=True):
        assert moment == pytest.approx(number / 25, abs=1e-3)
        right = kinds.of("depth").colours(pixels[..., 0] / 100, outcome.limits["depth"])
        assert np.abs(drawn.astype(int) - right).mean() < 6


def test_the_scale_of_colours_is_that_of_the_whole_clip(tmp_path):
    outcome, _ = run(write_clip(tmp_path / "clip.mkv", grey_levels(90)), tmp_path, "depth", predictor=Levels())
    low, high = outcome.limits["depth"]
    assert low == pytest.approx((20 + 200 * 5 / 89) / 100, abs=0.03)  # the first and the last of nine samples
    assert high == pytest.approx((20 + 200 * 85 / 89) / 100, abs=0.03)


def test_all_tasks_make_a_panel_that_stands_still(tmp_path):
    shown = [np.full((48, 64, 3), (200, 20, level), np.uint8) for level in (30, 230)] * 10
    outcome, _ = run(write_clip(tmp_path / "clip.mkv", shown), tmp_path / "out")
    assert outcome.path == tmp_path / "out" / "clip_panel.mp4"
    first, second = (pixels.astype(int) for _, pixels in decoded(outcome.path)[:2])
    assert first.shape[1] > 3 * 480
    moved = np.abs(first - second).max(-1) > 40
    assert 0.1 < moved.mean() < 0.4  # the photo, depth and normals: not the classes, no titles, no legends
    edge = moved.any(1)
    assert not edge[:20].any()


def test_names_of_results(tmp_path):
    clip = write_clip(tmp_path / "clip.mkv", grey_levels(2))
    (tmp_path / "there.v2").mkdir()
    for out, tasks, options, expected in (
        ("new", "depth", {}, "new/clip_depth.mp4"),
        ("new", "depth", {"as_panel": True}, "new/clip_panel.mp4"),
        ("there.v2", "depth", {}, "there.v2/clip_depth.mp4"),
        ("below/it/a.webm", "depth", {}, "below/it/a.webm"),
    ):
        outcome, _ = run(clip, tmp_path / out, tasks, predictor=Levels(), **options)
        assert outcome.path == tmp_path / expected
        assert len(decoded(outcome.path)) == 2


def test_a_predictor_in_its_place_sees_every_picture_once_in_order(tmp_path):
    seen: list[float] = []

    def remember(pixels: np.ndarray, tasks: tuple[str, ...]) -> dict[str, np.ndarray]:
        seen.append(float(pixels.mean()))
        return Levels()(pixels, tasks)

    path = write_clip(tmp_path / "clip.mkv", grey_levels(40))
    outcome, _ = run(path, tmp_path, "depth", predictor=Levels(), predict=remember, stride=4, num_frames=8)
    assert outcome.num_frames == 8
    assert seen == pytest.approx([20 + 200 * n // 39 for n in range(0, 32, 4)], abs=0.5)
    assert outcome.duration_s == pytest.approx(32 / 25)  # the playing time of 32 pictures


def test_arrays_of_every_picture(tmp_path):
    shown, times_ms = grey_levels(3), [0, 40, 500]
    path = write_clip(tmp_path / "clip.mkv", shown, times_ms)
    outcome, _ = run(path, tmp_path / "out.mp4", "depth", predictor=Levels(), arrays=True)
    assert outcome.arrays == tmp_path / "out_arrays"
    assert sorted(file.name for file in outcome.arrays.iterdir()) == ["000000.npz", "000001.npz", "000002.npz"]
    for number, (pixels, moment) in enumerate(zip(shown, times_ms, strict=True)):
        with np.load(outcome.arrays / f"{number:06d}.npz") as arrays:
            assert set(arrays) == {"depth", "time_us"}
            np.testing.assert_allclose(arrays["depth"], pixels[..., 0] / 100, atol=1e-3)
            assert int(arrays["time_us"]) == 1000 * moment


def test_arrays_of_an_earlier_run_are_removed_and_no_others(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", grey_levels(9))
    place = tmp_path / "out_arrays"
    for stride, options in ((7, {}), (4, {"num_workers": 0})):
        run(path, tmp_path / "out.mp4", "depth", predictor=Levels(), arrays=True, stride=stride, **options)
        (place / "notes.txt").write_text("mine")
        np.savez(place / "mean.npz", depth=np.zeros(3))
    assert sorted(file.name for file in place.iterdir()) == [
        "000000.npz",
        "000004.npz",
        "000008.npz",
        "mean.npz",
        "notes.txt",
    ]
    with pytest.raises(MistakeError, match="no picture in it"):  # nothing is removed for it
        run(damaged_whole(tmp_path), tmp_path / "out.mp4", "depth", predictor=Levels(), arrays=True)
    assert len(list(place.iterdir())) == 5
    np.savez(place / "000005.npz", depth=np.zeros(3))
    with pytest.raises(MistakeError, match=r"out_arrays/000005.npz: no arrays of a video, .*; give another --out"):
        run(path, tmp_path / "out.mp4", "depth", predictor=Levels(), arrays=True)
    assert len(list(place.iterdir())) == 6


def test_arrays_with_a_damaged_directory_are_none_of_ours(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", grey_levels(1))
    outcome, _ = run(path, tmp_path / "out.mp4", "depth", predictor=Levels(), arrays=True)
    arrays = tmp_path / "out_arrays" / "000000.npz"
    content = arrays.read_bytes()
    start = content.index(b"PK\x01\x02")
    for at, damage_to in (
        (start + 6, b"\xff"),
        (start + 8, b"\x00\x08\x00" + content[start + 11 : start + 46] + b"\xff"),
    ):
        arrays.write_bytes(content[:at] + damage_to + content[at + len(damage_to) :])
        with pytest.raises(MistakeError, match=r"000000.npz: no arrays of a video"):
            run(path, tmp_path / "out.mp4", "depth", predictor=Levels(), arrays=True)
    assert outcome.arrays == arrays.parent
    assert list(arrays.parent.iterdir()) == [arrays]


def test_two_processes_write_no_arrays_into_one_folder_at_once(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", grey_levels(2))
    run(path, tmp_path / "out.mp4", "depth", predictor=Levels(), arrays=True)
    lock, before = tmp_path / "out_arrays" / ".lock", (tmp_path / "out.mp4").stat()
    lock.write_text(json.dumps({"pid": os.getppid(), "host": socket.gethostname(), "since": 0}))
    with pytest.raises(MistakeError, match=r"out_arrays: arrays are being written there by process .*; wait, or give"):
        run(path, tmp_path / "out.mp4", "depth", predictor=Levels(), arrays=True, stride=2)
    assert sorted(file.name for file in lock.parent.iterdir()) == [".lock", "000000.npz", "000001.npz"]
    assert (tmp_path / "out.mp4").stat() == before
    lock.unlink()
    run(path, tmp_path / "out.mp4", "depth", predictor=Levels(), arrays=True, stride=2)
    assert [file.name for file in lock.parent.iterdir()] == ["000000.npz"]


def test_sound_and_broken_pictures(tmp_path):
    settings = {"options": {"slicecrc": "1", "g": "1"}, "sound": click(1, 0.5)}
    path = damage(write_clip(tmp_path / "clip.mkv", pictures(25, 48, 64), **settings), 12)
    outcome, said = run(path, tmp_path / "out.mp4", "depth", predictor=Levels())
    assert (outcome.num_frames, outcome.num_broken, outcome.sound) == (24, 1, "copied")
    assert len(said) == 2
    assert "a frame after 0." in said[0]
    assert said[1].endswith("; sound copied; 1 broken frame passed over")
    loudness, begin_s = heard(outcome.path)
    assert begin_s + np.argmax(loudness > 0.3) / 48_000 == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_no_more_than_a_few_pictures_are_held(num_workers, tmp_path):
    alive: set[int] = set()
    most, levels = [], Levels()

    def count(pixels: np.ndarray, tasks: tuple[str, ...]) -> dict[str, np.ndarray]:
        made = levels(pixels, tasks)
        for array in (pixels, made["depth"]):
            alive.add(id(array))
            weakref.finalize(array, alive.discard, id(array))
        most.append(len(alive))
        return made

    path = write_clip(tmp_path / "clip.mkv", grey_levels(120))
    run(path, tmp_path / "out.mp4", "depth", predictor=levels, predict=count, num_workers=num_workers)
    gc.collect()
    assert len(most) == 120
    assert max(most) <= 6  # two of each picture: being predicted, drawn and written, and one that waits
    assert not alive


def test_metres_for_another_camera(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", grey_levels(20))
    plain, _ = run(path, tmp_path / "a", "depth", predictor=Levels())
    for options in ({"scale": 2.0}, {"camera": Camera(focal_px=200.0)}):
        twice, _ = run(path, tmp_path / "b", "depth", predictor=Levels(), **options)
        assert twice.limits["depth"] == pytest.approx([2 * limit for limit in plain.limits["depth"]])


def test_ctrl_c_leaves_nothing_of_a_clips_result(tmp_path):
    def press(*_: Any) -> dict[str, np.ndarray]:
        raise KeyboardInterrupt

    path = write_clip(tmp_path / "clip.mkv", grey_levels(5))
    with pytest.raises(KeyboardInterrupt):
        run(path, tmp_path / "out", "depth", predictor=Levels(), predict=press)
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_be_done_is_refused_before_computing(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", grey_levels(2))
    (tmp_path / "photo.jpg").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.mp4")
    for source, out, options, told in (
        (path, "a.avi", {}, "ends in"),
        (path, "a.mp4", {"stride": 0}, "stride 0"),
        (path, "a.mp4", {"num_frames": 0}, "frames 0"),
        (path, "a.mp4", {"tasks": "smell"}, "smell"),
        (path, "a.mp4", {"tasks": "semseg", "scale": 2.0}, "no task of distances"),
        (path, "clip.mkv", {}, "is the clip itself"),
        (path, "photo.jpg/a.mp4", {}, "no folder to write to"),
        (path, "pipe.mp4", {}, "a pipe, socket or device"),
        (tmp_path / "photo.jpg", "a.mp4", {}, "an image"),
        (tmp_path / "none.mp4", "a.mp4", {}, "not there"),
    ):
        with pytest.raises(MistakeError, match=told):
            predict_video(source, Levels(), tmp_path / out, options.pop("tasks", None), **options)  # type: ignore[arg-type]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["clip.mkv", "photo.jpg", "pipe.mp4"]


def test_names_steer_no_terminal(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", pictures(2, 48, 64), options={"slicecrc": "1", "g": "1"})
    path = damage(path, 1).rename(tmp_path / "\x1b]0;x\x07\x9b.mkv")
    _, said = run(path, tmp_path / "\x1b]0;x\x07.mp4", "depth", predictor=Levels())
    assert len(said) == 2
    assert r"\x1b]0;x\x07\x9b.mkv: 1 frames are missing" in said[0]
    assert r"\x1b]0;x\x07.mp4" in said[1]
    assert not {"\x1b", "\x07", "\x9b"} & set("".join(said))


def test_a_clip_without_a_whole_picture_is_refused(tmp_path):
    with pytest.raises(MistakeError, match="no picture in it can be decoded"):
        run(damaged_whole(tmp_path), tmp_path / "out.mp4", "depth", predictor=Levels())
    assert not (tmp_path / "out.mp4").exists()


def test_without_pyav_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("mtlsi.prediction.clips.reading.find_spec", lambda _: None)
    with pytest.raises(MistakeError, match=r"pip install 'mtlsi\[video\]'"):
        predict_video(tmp_path / "clip.mp4", Levels(), tmp_path)  # type: ignore[arg-type]


def test_a_predictor_without_torch_needs_none(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", grey_levels(3))
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, numpy as np\n"
            "from types import SimpleNamespace\n"
            "from mtlsi.prediction.video import predict_video\n"
            "class Levels(SimpleNamespace):\n"
            "    def __call__(self, image, tasks): return {'depth': image[..., 0] / np.float32(100)}\n"
            "levels = Levels(tasks=('depth',), classes={}, colours={}, training_camera=None, identity='')\n"
            f"predict_video({str(path)!r}, levels, {str(tmp_path / 'out.mp4')!r}, as_panel=True)\n"
            "assert 'torch' not in sys.modules",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(decoded(tmp_path / "out.mp4")) == 3


def test_progress_is_shown_in_a_terminal(tmp_path):
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    predict_video(
        write_clip(tmp_path / "clip.mkv", grey_levels(8)), Levels(), tmp_path, "depth", stride=2, console=console
    )
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "4/4" in said
    assert "frames/s" in said
