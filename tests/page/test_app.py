"""What the page makes of what it is asked for."""

from __future__ import annotations

import importlib.util
import io
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from mtlsi.prediction.camera import Camera
from mtlsi.prediction.predictor import Predictor
from page_server import lively_model, served

pytestmark = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed here")

IN_TRAINING, BY_EXIF = "As in training", "By the photo's EXIF"


@pytest.mark.slow
def test_metres_and_points_are_by_the_camera_that_is_chosen(tmp_path, monkeypatch):
    from gradio_client import Client, handle_file

    lively_model(camera={"focal_px": 90.0, "size_hw": [96, 128]}).save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = 85
    pixels = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
    Image.fromarray(pixels).save("photo.jpg", exif=exif)
    Image.fromarray(pixels).save("plain.png")
    wanted = {IN_TRAINING: Predictor("model"), BY_EXIF: Predictor("model", camera=Camera())}
    depth = {chosen: predictor("photo.jpg")["depth"] for chosen, predictor in wanted.items()}
    factor = float(np.median(depth[BY_EXIF] / depth[IN_TRAINING]))
    assert factor > 1.5
    said = {
        ("photo.jpg", IN_TRAINING): f"the photo's EXIF, not used, would multiply the metres by {factor:.2f}",
        ("photo.jpg", BY_EXIF): f"metres multiplied by {factor:.2f}, by EXIF FocalLengthIn35mmFilm",
        ("plain.png", BY_EXIF): "no focal length in the photo's EXIF: the camera is taken to be as in training",
    }
    with served(Path("model"), tmp_path / "reached") as address:
        client = Client(address, verbose=False)
        for (photo, chosen), words in said.items():
            shown, cloud = client.predict(handle_file(photo), "model", ["depth"], "As trained", chosen, fn_index=0)
            assert shown["said"].endswith(f" s · {words}")
            with urllib.request.urlopen(f"{address}results/{shown['key']}/arrays.npz") as answer:
                got = np.load(io.BytesIO(answer.read()))["depth"]
            used = BY_EXIF if (photo, chosen) == ("photo.jpg", BY_EXIF) else IN_TRAINING
            want = depth[used] if photo == "photo.jpg" else wanted[used](photo)["depth"]
            np.testing.assert_allclose(got, want, rtol=1e-4)
            by_hand = 85 / 43.267 * np.hypot(48, 80) if used == BY_EXIF else 90 * np.sqrt(48 * 80 / (96 * 128))
            assert cloud["focal"] == pytest.approx(by_hand, rel=0.03)  # the working size has whole sides
