from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from by_colour import CLASSES, predictor
from mtlsi.errors import MistakeError
from mtlsi.prediction import full_size, results
from mtlsi.prediction.results import endings_of, save_prediction
from mtlsi.tasks import TASKS, Task


def test_files_hold_exactly_what_was_predicted(tmp_path, photo):
    prediction = predictor()(photo)
    files = save_prediction(prediction, photo, tmp_path / "new" / "out", "room", CLASSES)
    names = {path.name for path in files}
    assert names == {path.name for path in (tmp_path / "new" / "out").iterdir()}
    ends = "semseg.npy semseg.png semseg_index.png depth.npy depth.png depth_mm.png normals.npy normals.png"
    assert names == {f"room_{end}" for end in [*ends.split(), "boundary.npy", "boundary.png", "panel.png"]}
    out = tmp_path / "new" / "out"
    for task, array in prediction.items():
        np.testing.assert_array_equal(np.load(out / f"room_{task}.npy"), array)
    with Image.open(out / "room_semseg_index.png") as image:
        np.testing.assert_array_equal(np.asarray(image), prediction["semseg"])
    with Image.open(out / "room_depth_mm.png") as image:
        np.testing.assert_allclose(np.asarray(image) / 1000, prediction["depth"], atol=0.0005001)


@pytest.mark.parametrize("write", ["png,npy,panel", "npz,ply"])
def test_a_large_photo_is_written_in_bands_with_the_same_bytes(tmp_path, photo, monkeypatch, write):
    large = np.tile(photo, (12, 10, 1))  # 1152 x 1280: drawings look at every second row and column
    used = predictor()
    monkeypatch.setattr(full_size, "BAND_VALUES", 3 * 1280 * 101)
    save_prediction(used(large), large, tmp_path / "whole", "b/room", CLASSES, write=write, focal_px=900)
    monkeypatch.setattr(results, "LARGE", 1)
    save_prediction(used.maps(large), large, tmp_path / "bands", "b/room", CLASSES, write=write, focal_px=900)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole" / "b").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "bands" / "b").iterdir()} == whole


@pytest.mark.parametrize("write", ["png", "npy", "npz", "panel", "npz,panel", ("png", "npy", "npz", "panel")])
def test_what_is_written_is_chosen_and_known_beforehand(tmp_path, photo, write):
    prediction = predictor()(photo, ["depth", "semseg"])
    files = save_prediction(prediction, photo, tmp_path, "b/room", CLASSES, write=write)
    formats = write.split(",") if isinstance(write, str) else write
    expected = [f"room{ending}" for ending in endings_of(["depth", "semseg"], formats)]
    assert [path.name for path in files] == expected
    assert {path.name for path in (tmp_path / "b").iterdir()} == set(expected)


def test_an_archive_is_small_and_holds_every_array_to_the_promised_precision(tmp_path, photo):
    prediction = predictor()(photo)
    save_prediction(prediction, photo, tmp_path, "a", write="npz,npy")
    with np.load(tmp_path / "a.npz") as archive:
        assert set(archive) == set(predictor().tasks)
        assert archive["semseg"].dtype == np.uint8
        np.testing.assert_array_equal(archive["semseg"], prediction["semseg"])
        for task in ("depth", "normals", "boundary"):
            assert archive[task].dtype == np.float16
            np.testing.assert_allclose(archive[task], prediction[task], rtol=2**-11, atol=2**-24)
    exact = sum(path.stat().st_size for path in tmp_path.glob("*.npy"))
    assert (tmp_path / "a.npz").stat().st_size < exact / 2


def test_an_archive_keeps_values_whose_size_nobody_knows(tmp_path, photo, monkeypatch):
    curvature = np.full(photo.shape[:2], 2e-8, np.float32)
    monkeypatch.setitem(TASKS, "curvature", Task("curvature", kind="value"))
    save_prediction({"curvature": curvature}, photo, tmp_path, "a", write="npz")
    with np.load(tmp_path / "a.npz") as archive:
        np.testing.assert_array_equal(archive["curvature"], curvature)


def test_an_unknown_format_is_refused(tmp_path, photo):
    with pytest.raises(MistakeError, match=r"cannot write 'jpg'; expected some of png,npy,npz,panel"):
        save_prediction(predictor()(photo, "depth"), photo, tmp_path, "a", write="png,jpg")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing_behind(tmp_path, photo, monkeypatch):
    prediction = predictor()(photo, ["depth"])
    (tmp_path / "a_depth.npy").write_bytes(b"from before")

    def full(file, _):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(MistakeError, match=r"a_depth\.npy: cannot be written \(No space left"):
        save_prediction(prediction, photo, tmp_path, "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a_depth.npy"]
    assert (tmp_path / "a_depth.npy").read_bytes() == b"from before"
