from __future__ import annotations

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from rich.console import Console
from torch import nn

from by_colour import ByColour, predictor
from mtlsi.data.scenes.geometry import gather
from mtlsi.data.scenes.layout import Camera as SceneCamera
from mtlsi.data.scenes.layout import Scene
from mtlsi.data.scenes.raycast import cast
from mtlsi.data.scenes.shapes import Item, Material
from mtlsi.errors import MistakeError
from mtlsi.options.using import PredictOptions
from mtlsi.prediction.calibration import calibrate, read_camera, read_measured
from mtlsi.prediction.camera import Camera, TrainingCamera, view_from_exif
from mtlsi.prediction.files import predict_paths
from mtlsi.prediction.predictor import Predictor
from mtlsi.prediction.shown import Shown

BALL_M = 0.4
"""The radius of the ball that ``ByApparentSize`` knows."""
FOCAL, SIZE = 80.0, (72, 96)


class ByApparentSize(nn.Module):
    """Judges distance as a network has to: by how large a ball of known size looks, for its training camera."""

    tasks = ("depth",)
    classes: ClassVar[dict[str, Any]] = {}
    input_size = SIZE
    resize = "stretch"
    camera: ClassVar = {"focal_px": FOCAL, "size_hw": SIZE}

    def forward(self, images: torch.Tensor, tasks: tuple[str, ...], **_: Any) -> SimpleNamespace:
        red = images[:, :1] * 0.229 + 0.485
        radius_px = (red.sum() / math.pi).sqrt()
        return SimpleNamespace(final={task: torch.full_like(red, FOCAL * BALL_M / float(radius_px)) for task in tasks})


class Nameless(ByApparentSize):
    """Does not know its camera."""

    camera: ClassVar = {}


def photo_of_ball(distance_m: float, focal_px: float, size_hw: tuple[int, int]) -> np.ndarray:
    """A red ball before a black wall, ray-cast as generated rooms are."""
    camera = SceneCamera((3.0, 3.0, 9.0), (1, 0, 0), (0, 1, 0), (0, 0, 1), focal_px / max(size_hw))
    ball = Item("vase")
    ball.ellipsoid((3.0, 3.0, 9.0 - distance_m), (BALL_M, BALL_M, BALL_M), Material((1, 0, 0), (1, 0, 0)))
    scene = Scene((6.0, 6.0, 12.0), (), camera, [ball], [], (0, 0, 0), None)  # type: ignore[arg-type]
    hits = cast(scene, gather(scene), size_hw)
    pixels = np.zeros((*size_hw, 3), np.uint8)
    pixels[(hits.solid >= 6).reshape(size_hw), 0] = 255
    return pixels


def seeing(**options: Any) -> Predictor:
    return Predictor(ByApparentSize(), device="cpu", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("focal_px", "size_hw", "working_size"),
    [
        (FOCAL, SIZE, None),
        (2 * FOCAL, SIZE, None),  # the middle half of such a photo
        (0.7 * FOCAL, SIZE, None),
        (4 * FOCAL, (288, 384), None),  # the same view in more pixels
        (500.0, (400, 300), None),  # upright, another camera
        (150.0, (144, 192), (144, 192)),  # shown larger than in training
    ],
)
def test_metres_are_right_for_any_focal_length_of_a_known_camera(focal_px, size_hw, working_size):
    for distance_m in (3.0, 5.0):
        photo = photo_of_ball(distance_m, focal_px, size_hw)
        found = seeing(camera=focal_px, working_size=working_size)(photo)["depth"]
        assert found.shape == size_hw
        np.testing.assert_allclose(found, distance_m, rtol=0.03)
        if focal_px == 2 * FOCAL:
            np.testing.assert_allclose(seeing()(photo)["depth"], distance_m / 2, rtol=0.03)


@pytest.mark.parametrize("working_size", [(36, 48), (72, 96), (144, 192)])
def test_metres_are_those_of_the_training_camera_at_any_working_size(working_size):
    photo = photo_of_ball(4.0, FOCAL, SIZE)
    for network in (ByApparentSize(), Nameless()):
        found = Predictor(network, device="cpu", working_size=working_size)(photo)["depth"]  # type: ignore[arg-type]
        np.testing.assert_allclose(found, 4.0, rtol=0.04)


@pytest.mark.parametrize("size_hw", [(72, 96), (36, 96), (144, 96), (60, 60)])
def test_metres_follow_how_training_brought_images_to_their_size(size_hw):
    """Of images of one camera and several shapes, resized by one factor, each shape has a scale of its own."""
    network = ByApparentSize()
    network.resize = "keep_ratio"
    factor = min(72 / size_hw[0], 96 / size_hw[1])  # training shows such an image at this factor
    seen = Predictor(network, device="cpu")(photo_of_ball(4.0, FOCAL, size_hw))["depth"]  # type: ignore[arg-type]
    np.testing.assert_allclose(seen, 4.0 / factor, rtol=0.05)
    right = Predictor(network, device="cpu", camera=FOCAL)  # type: ignore[arg-type]
    np.testing.assert_allclose(right(photo_of_ball(4.0, FOCAL, size_hw))["depth"], 4.0, rtol=0.05)


def test_a_field_of_view_is_a_focal_length():
    photo = photo_of_ball(4.0, 120.0, SIZE)
    degrees = 2 * math.degrees(math.atan(96 / 2 / 120.0))
    np.testing.assert_allclose(
        seeing(camera=Camera(fov_deg=degrees))(photo)["depth"], seeing(camera=120.0)(photo)["depth"], rtol=1e-6
    )


def test_a_model_that_does_not_know_its_camera_rescales_nothing():
    with pytest.raises(MistakeError, match="names no training camera"):
        predictor(camera=500.0)
    with pytest.raises(MistakeError, match="focal length -3; expected"):
        Camera(focal_px=-3)
    with pytest.raises(MistakeError, match="focal length '500'; expected a number"):
        Camera(focal_px="500")  # type: ignore[arg-type]
    with pytest.raises(MistakeError, match="field of view 180; expected"):
        Camera(fov_deg=180)
    with pytest.raises(MistakeError, match="expected one of --focal-px and --fov-deg"):
        Camera(500, 60)


@pytest.mark.parametrize("focal_px", [0.0, 1e-320, 1e-9, 1e300, math.inf, math.nan, 10**400])
def test_focal_lengths_that_are_none_are_refused(focal_px):
    with pytest.raises(MistakeError, match=r"focal length .*; expected a number of pixels above 0, 1e-06\.\.1e\+09"):
        Camera(focal_px=focal_px)
    with pytest.raises(MistakeError, match=r"focal length .*; expected a number of pixels above 0, 1e-06\.\.1e\+09"):
        TrainingCamera(focal_px, (64, 96), Shown((64, 96)))


@pytest.mark.parametrize("size_hw", [(10**400, 10**400), (1, 10**300), (0, 1), (1, 2**20 + 1)])
def test_sizes_that_no_image_has_are_refused(size_hw):
    with pytest.raises(MistakeError, match=r"the camera's size_hw \[.*; expected sides of 1\.\.1048576 pixels"):
        TrainingCamera(500.0, size_hw, Shown((64, 96)))


@pytest.mark.parametrize("fov_deg", [0.0, 1e-320, 180 - 1e-13, math.nan, 10**400])
def test_fields_of_view_that_are_none_are_refused(fov_deg):
    with pytest.raises(MistakeError, match=r"field of view .*; expected degrees, 1e-06\.\.179\.9999"):
        Camera(fov_deg=fov_deg)


# ---- metadata


def photo_with(tmp_path: Path, tags: dict[int, Any], size_hw: tuple[int, int] = (300, 400)) -> Path:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif).update(tags)
    Image.new("RGB", size_hw[::-1], (9, 9, 102)).save(tmp_path / "a.jpg", exif=exif)  # blue: metres away
    return tmp_path / "a.jpg"


FILM, LENGTH, PER_UNIT, UNIT, WIDTH = (
    ExifTags.Base.FocalLengthIn35mmFilm,
    ExifTags.Base.FocalLength,
    ExifTags.Base.FocalPlaneXResolution,
    ExifTags.Base.FocalPlaneResolutionUnit,
    ExifTags.Base.ExifImageWidth,
)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({FILM: 26}, 26 / math.hypot(24, 36) * 500),
        ({FILM: 26, LENGTH: 4.2, PER_UNIT: 9e9}, 26 / math.hypot(24, 36) * 500),
        # 50 mm before a sensor 36 mm wide of 4000 pixels, of which the file keeps every tenth
        ({LENGTH: 50.0, PER_UNIT: 4000 / 36 * 25.4, WIDTH: 4000}, 50 / 36 * 400),
        ({LENGTH: 50.0, PER_UNIT: 4000 / 3.6, UNIT: 3, WIDTH: 4000}, 50 / 36 * 400),
        ({LENGTH: 50.0, PER_UNIT: 400 / 36, UNIT: 4}, 50 / 36 * 400),
        ({FILM: 0}, None),
        ({LENGTH: 50.0}, None),
        ({FILM: 9000}, None),  # a field of view of half a degree
        ({LENGTH: 50.0, PER_UNIT: 1e-3}, None),
        ({LENGTH: 1e-200, PER_UNIT: 1e-200}, None),  # their product is 0
        ({LENGTH: 1e200, PER_UNIT: 1e200}, None),
        ({LENGTH: 1e-160, PER_UNIT: 1e-160}, None),
        ({}, None),
    ],
)
def test_the_focal_length_of_a_photos_metadata(tmp_path, tags, expected):
    view = view_from_exif(photo_with(tmp_path, tags), (300, 400))
    assert (view and view.focal_px) == (expected and pytest.approx(expected, rel=1e-3))


def test_metadata_of_no_use_are_no_mistake(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    for path in (tmp_path / "text.jpg", tmp_path / "nowhere.jpg"):
        assert view_from_exif(path, (3, 4)) is None


# ---- the command's images


class Knowing(ByColour):
    camera: ClassVar = {"focal_px": 100.0, "size_hw": (48, 64)}


def run(path: Path, out: Path, **options: Any) -> tuple[dict[str, Any], str]:
    console = Console(file=io.StringIO(), width=300)
    network = Predictor(Knowing(), device="cpu")  # type: ignore[arg-type]
    predict_paths(path, network, out, "depth,boundary", write="npy,ply", overwrite=True, console=console, **options)
    line = json.loads((out / "manifest.jsonl").read_text().splitlines()[-1])
    return line, console.file.getvalue()  # type: ignore[attr-defined]


def test_points_take_the_camera_that_is_known_best_and_say_which(tmp_path):
    photo, out = photo_with(tmp_path, {FILM: 30}), tmp_path / "out"
    plain = predictor()(photo, "depth")["depth"]
    own = 100.0 * 400 / 64
    exif = 30 / math.hypot(24, 36) * 500
    for camera, focal_px, source in (
        (None, exif, "EXIF FocalLengthIn35mmFilm"),
        (Camera(focal_px=500), 500.0, "--focal-px"),
        (Camera(fov_deg=60), 200 / math.tan(math.pi / 6), "--fov-deg"),
    ):
        line, said = run(photo, out, camera=camera)
        assert line["focal_px"] == pytest.approx(focal_px, abs=0.01)
        assert line["focal_from"] == source
        assert f"focal length: {focal_px:.0f} px, {source}" in said
        np.testing.assert_allclose(np.load(out / "a_depth.npy"), plain * np.float32(focal_px / own), rtol=1e-5)
    line, said = run(photo_with(tmp_path, {}), out, scale=1.5)
    assert (line["focal_px"], line["focal_from"]) == (own, "assumed: as the camera of the training set")
    np.testing.assert_allclose(np.load(out / "a_depth.npy"), plain * 1.5, rtol=1e-5)


def test_a_photos_exif_is_used_without_points_where_that_is_asked_for(tmp_path):
    """Otherwise a line says by how much metres would change; rounding to whole millimetres is no change."""
    photo, plain = photo_with(tmp_path, {FILM: 30}), predictor()(photo_with(tmp_path, {FILM: 30}), "depth")["depth"]
    factor = 30 / math.hypot(24, 36) * 500 / (100.0 * 400 / 64)

    def metres(tasks: str = "depth", **options: Any) -> tuple[np.ndarray | None, str]:
        said, network = Console(file=io.StringIO(), width=300), Predictor(Knowing(), device="cpu")  # type: ignore[arg-type]
        predict_paths(photo, network, tmp_path / "out", tasks, write="npy", overwrite=True, console=said, **options)
        return np.load(tmp_path / "out/a_depth.npy"), said.file.getvalue()  # type: ignore[attr-defined]

    told = f"the focal length in this photo's EXIF was not used; --exif multiplies the metres by {factor:.2f}"
    found, said = metres()
    np.testing.assert_array_equal(found, plain)
    assert told in said
    found, said = metres(camera=Camera())
    np.testing.assert_allclose(found, plain * np.float32(factor), rtol=1e-5)
    assert "not used" not in said
    assert "EXIF FocalLengthIn35mmFilm" in said
    assert "not used" not in metres("semseg")[1]
    assert "not used" not in metres(camera=Camera(focal_px=500))[1]
    for film_mm, is_told in ((54, False), (55, False), (57, True)):  # 54.08 is the training camera's
        photo_with(tmp_path, {FILM: film_mm})
        assert ("not used" in metres()[1]) == is_told
    photo_with(tmp_path, {})
    np.testing.assert_array_equal(metres(camera=Camera())[0], plain)


def test_the_photos_of_a_folder_whose_exif_is_left_out_are_counted(tmp_path):
    pictures = tmp_path / "in"
    for name, tags in (("a", {FILM: 30}), ("b", {}), ("c", {FILM: 108})):
        pictures.mkdir(exist_ok=True)
        photo_with(tmp_path, tags).rename(pictures / f"{name}.jpg")
    said, network = Console(file=io.StringIO(), width=300), Predictor(Knowing(), device="cpu")  # type: ignore[arg-type]
    predict_paths(pictures, network, tmp_path / "out", "depth", write="npy", num_workers=1, console=said)
    line = "the focal length in the EXIF of 2 images was not used; --exif multiplies the metres by 0.55 to 2.00"
    assert line in said.file.getvalue()  # type: ignore[attr-defined]


def test_an_unknown_training_camera_leaves_metres_as_they_are(tmp_path):
    photo = photo_with(tmp_path, {})
    predict_paths(photo, predictor(), tmp_path / "out", write="ply", console=Console(file=io.StringIO()))
    line = json.loads((tmp_path / "out/manifest.jsonl").read_text())
    assert line["focal_px"] == pytest.approx(200 / math.tan(math.pi / 6), abs=0.01)
    for camera in (Camera(focal_px=9), Camera()):
        with pytest.raises(MistakeError, match="names no training camera"):
            predict_paths(photo, predictor(), tmp_path / "out", camera=camera)
    with pytest.raises(MistakeError, match="no task of distances"):
        predict_paths(photo, predictor(), tmp_path / "out", "semseg", write="ply")


# ---- measured distances


def test_a_scale_from_measured_distances_forgives_some_wrong_ones():
    depth = np.linspace(1, 5, 40 * 30, dtype=np.float32).reshape(30, 40)
    true = {(x, y): 1.3 * float(depth[y, x]) for x, y in ((5, 3), (20, 10), (33, 25), (39, 29), (0, 0))}
    assert calibrate(depth, true).scale == pytest.approx(1.3, rel=0.02)
    wrong = true | {(5, 3): 11.0, (33, 25): 0.2}
    found = calibrate(depth, wrong)
    assert found.scale == pytest.approx(1.3, rel=0.02)
    assert "from 5 distances" in str(found)
    assert str(found).endswith(f"far from it: {found.ratios[0]:.2f} at 5,3, {found.ratios[2]:.2f} at 33,25")


@pytest.mark.parametrize("tags", [{}, {FILM: 30}])
@pytest.mark.parametrize("write", ["npy", "npy,glb", "npy,ply"])
def test_the_metres_measured_are_those_that_come_out(tmp_path, tags, write):
    """Points follow a photo's EXIF, whichever flag asks for them."""
    photo, out, said = photo_with(tmp_path, tags), tmp_path / "out", io.StringIO()
    network = Predictor(Knowing(), device="cpu")  # type: ignore[arg-type]
    options = PredictOptions([photo], out=out, write=write, calibrate=("40,30,2.5",))  # type: ignore[arg-type]
    camera, scale = read_camera(options, network, Console(file=said, width=200))
    predict_paths(photo, network, out, "depth", write=write, camera=camera, scale=scale, console=Console(file=said))
    assert np.load(out / "a_depth.npy")[30, 40] == pytest.approx(2.5, rel=1e-4)
    same = ", again with" if "l" in write.split(",")[-1] else ", again without"
    assert (f"{same} points: --scale" in said.getvalue()) == bool(tags)


def test_metres_measured_by_a_photos_exif_say_so_and_another_focal_length_is_refused(tmp_path):
    photo, said = photo_with(tmp_path, {FILM: 30}), io.StringIO()
    network = Predictor(Knowing(), device="cpu")  # type: ignore[arg-type]
    options = PredictOptions([photo], out=tmp_path / "out", write=("npy",), calibrate=("40,30,2.5",), exif=True)
    camera, scale = read_camera(options, network, Console(file=said, width=200))
    assert camera == Camera()
    assert ", again with --exif: --scale" in said.getvalue()
    predict_paths(photo, network, tmp_path / "out", "depth", write="npy", camera=camera, scale=scale)
    assert np.load(tmp_path / "out/a_depth.npy")[30, 40] == pytest.approx(2.5, rel=1e-4)
    with pytest.raises(MistakeError, match="expected one of --exif, --focal-px and --fov-deg"):
        read_camera(PredictOptions([photo], exif=True, focal_px=300.0), network)


@pytest.mark.parametrize(
    ("measured", "told"),
    [
        (("320,240",), "--calibrate 320,240; expected X,Y,METRES"),
        (("a,b,c",), "expected X,Y,METRES"),
        (("4,3,2", "4,3,2.5"), "--calibrate 4,3,2.5: that pixel has a distance already; expected one for each pixel"),
        (("40,3,2.0",), "pixel 40,3 is outside the image of 40x30"),
        (("4,3,-2.0",), "distance -2 at 4,3; expected metres above 0"),
        (("4,3,nan",), "expected metres above 0"),
        (("0,29,2",), "no depth is predicted at 0,29"),
        ((), "no distances to calibrate by"),
    ],
)
def test_distances_that_cannot_be_are_refused(measured, told):
    depth = np.ones((30, 40), np.float32)
    depth[20:, :10] = 0
    with pytest.raises(MistakeError) as caught:
        calibrate(depth, read_measured(measured))
    assert told in str(caught.value)


# ---- the model's own camera


def test_the_training_camera_lies_in_config_json(tmp_path):
    from mtlsi.model.build import create_model
    from mtlsi.model.network import MTLSINet

    camera = {"focal_px": 518.86, "size_hw": [480, 640]}
    for given, stored in ((camera, camera), (None, {})):
        model = create_model("tiny", tasks=("depth",), input_size=(64, 96), camera=given)
        model.save_pretrained(tmp_path / "model")
        assert json.loads((tmp_path / "model/config.json").read_text()).get("camera") == given
        loaded = MTLSINet.from_pretrained(tmp_path / "model")
        assert loaded.camera == stored
        known = Predictor(loaded, device="cpu").training_camera
        assert known == (TrainingCamera(518.86, (480, 640), Shown((64, 96))) if given else None)
    assert TrainingCamera(518.86, (480, 640), Shown((64, 96))).focal_of((960, 1280)) == pytest.approx(2 * 518.86)
    wrong_numbers = [{"focal_px": f, "size_hw": [1, 2]} for f in (0, 1e-300, 1e300, math.nan)]
    wrong_sides = [{"focal_px": 9, "size_hw": sides} for sides in ([0, 1], [1, 2**20 + 1], [10**400, 1])]
    for wrong in (*wrong_numbers, *wrong_sides, {"focal_px": 9}, {"focal_px": 9, "size_hw": [1], "f": 2}):
        with pytest.raises(MistakeError, match=r"expected focal_px, 1e-06\.\.1e\+09, and the size_hw"):
            create_model("tiny", tasks=("depth",), camera=wrong)  # type: ignore[arg-type]


def test_the_packaged_models_know_their_cameras():
    from mtlsi.model.pretrained import PACKAGED

    cameras = {path.parent.name: json.loads(path.read_text())["camera"] for path in PACKAGED.glob("*/config.json")}
    assert cameras == {
        "nyud-efficientnet-lite2": {"focal_px": 518.86, "size_hw": [480, 640]},
        "nyud-mobilenetv2": {"focal_px": 518.86, "size_hw": [480, 640]},
        "scenes": {"focal_px": 296.0, "size_hw": [240, 320]},
    }


def test_a_training_takes_the_camera_of_its_data(nyud_root, tiny_run):
    from mtlsi.data.datasets import camera_of
    from mtlsi.data.readers.nyud import NYUD
    from mtlsi.model.network import MTLSINet

    assert camera_of(NYUD(nyud_root)) == {"focal_px": 518.86, "size_hw": [480, 640]}
    assert MTLSINet.from_pretrained(tiny_run.out).camera == {"focal_px": 0.925 * 64, "size_hw": [64, 64]}
