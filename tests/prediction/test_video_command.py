from __future__ import annotations

import numpy as np
import pytest
import torch

from mtlsi.cli import main
from mtlsi.model.build import create_model
from mtlsi.prediction.predictor import Predictor
from mtlsi.prediction.smoothing import Smoothed
from mtlsi.prediction.tiles import TiledPredictor
from random_weights import draw_weights
from small_clips import Levels, damage, decoded, grey_levels, pictures, write_clip


@pytest.fixture
def clip(tmp_path, monkeypatch):
    monkeypatch.setattr("mtlsi.cli._open_predictor", lambda _: Levels())
    monkeypatch.chdir(tmp_path)
    return str(write_clip(tmp_path / "clip.mkv", grey_levels(12)))


def test_a_clip_gives_a_film_by_its_name_or_in_a_folder(clip, tmp_path):
    assert main(["predict", clip]) == 0
    assert main(["predict", clip, "--out", "result.webm", "--tasks", "depth", "--stride", "4", "--frames", "2"]) == 0
    assert main(["predict", clip, "--out", "sheet.mp4", "--tasks", "depth", "--write", "panel", "--workers", "0"]) == 0
    assert len(decoded(tmp_path / "out" / "clip_panel.mp4")) == 12
    assert [pixels.shape for _, pixels in decoded(tmp_path / "result.webm")] == 2 * [(32, 48, 3)]
    assert decoded(tmp_path / "sheet.mp4")[0][1].shape[1] > 960


def test_arrays_and_metres(clip, tmp_path):
    assert main(["predict", clip, "--out", "a.mp4", "--arrays", "--tasks", "depth", "--scale", "3"]) == 0
    assert main(["predict", clip, "--out", "b.mp4", "--arrays", "--tasks", "depth", "--focal-px", "200"]) == 0
    for stem, factor in (("a", 3), ("b", 2)):
        with np.load(tmp_path / f"{stem}_arrays" / "000011.npz") as arrays:
            np.testing.assert_allclose(arrays["depth"], factor * 2.2, rtol=1e-3)


@pytest.mark.usefixtures("clip")
def test_the_exit_code_says_that_frames_are_missing(tmp_path, capsys):
    path = write_clip(tmp_path / "b.mkv", pictures(12, 48, 64), options={"slicecrc": "1", "g": "1"})
    assert main(["predict", str(damage(path, 5)), "--tasks", "depth"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("1 broken frame passed over")


def test_the_exit_code_says_that_a_clip_ends_early(clip, tmp_path, capsys):
    path = write_clip(tmp_path / "b.mkv", pictures(50))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert main(["predict", str(path), "--tasks", "depth"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-2].startswith(f"{path}: it ends at ")
    assert said[-1].endswith("; the clip is not whole")
    assert main(["predict", str(path), "--tasks", "depth", "--frames", "5"]) == 0  # which are there
    assert main(["predict", clip, "--tasks", "depth"]) == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "no images given"),
        (["CLIP", "--camera", "0"], "--camera 0 and"),
        (["CLIP", "CLIP", "--out", "a.mp4"], "one clip at a time"),
        (["CLIP", "photo.jpg"], "a video among other paths"),
        (["photo.jpg", "--out", "a.mp4"], "an image"),
        (["CLIP", "--out", "a.avi"], "ends in .mp4, .mkv, .webm"),
        (["CLIP", "--points"], "--points is for images"),
        (["CLIP", "--recursive"], "--recursive is for images"),
        (["CLIP", "--overwrite"], "--overwrite is for images"),
        (["CLIP", "--calibrate", "1,1,2"], "--calibrate is for images"),
        (["CLIP", "--write", "npy"], "--write npy"),
        (["photo.jpg", "--arrays"], "--arrays is for videos"),
        (["photo.jpg", "--stride", "2"], "--stride is for videos"),
        (["photo.jpg", "--frames", "2"], "--frames is for videos"),
        (["photo.jpg", "--smooth", "0.5"], "--smooth is for videos"),
        (["photo.jpg", "--smooth-outputs", "0.5"], "--smooth-outputs is for videos"),
        (["CLIP", "--stride", "-1"], "stride -1"),
    ],
)
def test_flags_that_have_no_meaning_are_refused_in_one_line(arguments, told, clip, tmp_path, capsys):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    before = sorted(tmp_path.iterdir())
    assert main(["predict", *(clip if word == "CLIP" else word for word in arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert sorted(tmp_path.iterdir()) == before


def test_smoothed_frames_are_those_of_the_class(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = create_model("tiny", tasks=("normals",), input_size=(64, 96))
    draw_weights(model.decoder, std=0.3)
    monkeypatch.setattr("mtlsi.cli._open_predictor", lambda _: Predictor(model))
    frames = pictures(3, 64, 96)
    clip = write_clip(tmp_path / "clip.mkv", frames)
    asked = ["predict", str(clip), "--out", str(tmp_path / "a.mp4"), "--arrays", "--smooth-outputs", "0.5"]
    assert main([*asked, "--smooth", "0.8"]) == 0
    smoothed = Smoothed(Predictor(model), context=0.8, outputs=0.5)
    for number, (_, pixels) in enumerate(decoded(clip)):
        expected = smoothed(pixels)["normals"]
        with np.load(tmp_path / "a_arrays" / f"{number:06}.npz") as arrays:
            np.testing.assert_allclose(arrays["normals"], expected, atol=1e-3)
    assert np.abs(expected - Predictor(model)(pixels)["normals"]).max() > 0.01


def test_tiles_are_not_smoothed(tmp_path, monkeypatch, capsys):
    model = create_model("tiny", tasks=("depth",), input_size=(32, 48))
    monkeypatch.setattr("mtlsi.cli._open_predictor", lambda _: TiledPredictor(model, "2x2"))
    clip = write_clip(tmp_path / "clip.mkv", pictures(3, 64, 96))
    assert main(["predict", str(clip), "--out", str(tmp_path / "a.mp4"), "--smooth-outputs", "0.5"]) == 2
    assert "leave out one of tiles and smoothing" in capsys.readouterr().err
    assert not (tmp_path / "a.mp4").exists()
