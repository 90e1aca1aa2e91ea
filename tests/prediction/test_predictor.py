from __future__ import annotations

import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import small_backbones  # noqa: F401 (registers them)
from by_colour import ByColour, predictor
from mtlsi.drawing.panels import panel
from mtlsi.errors import MistakeError
from mtlsi.model.build import create_model
from mtlsi.model.decoder import start_predictions_at
from mtlsi.model.network import MTLSINet
from mtlsi.prediction import predictor as predict
from mtlsi.prediction.images import read_image
from mtlsi.prediction.predictor import Predictor, find_device

# ---- predicting


def test_predictions_have_the_images_own_size_and_the_promised_units(photo):
    prediction = predictor()(photo)
    assert {task: (a.shape, a.dtype.name) for task, a in prediction.items()} == {
        "semseg": ((96, 128), "uint8"),
        "depth": ((96, 128), "float32"),
        "normals": ((96, 128, 3), "float32"),
        "boundary": ((96, 128), "float32"),
    }
    columns = np.r_[0:60, 68:128]  # the two halves, away from the seam that resizing blurs
    np.testing.assert_array_equal(prediction["semseg"][:, columns], photo[..., 1][:, columns] > 100)
    np.testing.assert_allclose(prediction["depth"][4:-4], photo[4:-4, :, 2] / 25.5, atol=0.12)
    np.testing.assert_allclose(np.linalg.norm(prediction["normals"], axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(prediction["boundary"][:, 0], 1 / (1 + np.exp(-8 * (230 / 255 - 0.5))), atol=1e-4)


def test_ways_to_give_an_image(photo, tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(photo).save(file)
    tensor = torch.from_numpy(photo).permute(2, 0, 1)
    ways: dict[str, Any] = {
        "path": file,
        "string": str(file),
        "PIL image": Image.open(file),
        "bytes": file.read_bytes(),
        "file object": io.BytesIO(file.read_bytes()),
        "floats": (photo / 255).astype(np.float32),
        "opaque": np.dstack([photo, np.full(photo.shape[:2], 255, np.uint8)]),
        "tensor": tensor,
        "float tensor": tensor[None] / 255,
        "tensor with gradient": (tensor / 255).requires_grad_(),
    }
    expected = predictor()(photo)
    for way, image in ways.items():
        for task, array in predictor()(image).items():
            np.testing.assert_array_equal(array, expected[task], err_msg=way)
    with file.open("rb") as opened:
        np.testing.assert_array_equal(predictor()(opened, "depth")["depth"], expected["depth"])
        assert not opened.closed


def test_grey_and_transparent_arrays(photo):
    grey, clear = photo[..., 2], np.dstack([photo, np.zeros(photo.shape[:2], np.uint8)])
    expected = predictor()(np.dstack([grey] * 3))["depth"]
    for given in (grey, grey[..., None], grey / 255, grey.astype(np.uint16) * 257, Image.fromarray(grey)):
        np.testing.assert_array_equal(predictor()(given)["depth"], expected)
    np.testing.assert_allclose(predictor()(clear)["depth"], 10, atol=1e-5)  # white: blue is 1


def test_a_list_of_images_gives_a_list_of_results(photo, tmp_path):
    Image.fromarray(photo[:48]).save(tmp_path / "b.png")
    results = predictor()([photo, str(tmp_path / "b.png"), torch.from_numpy(photo).permute(2, 0, 1)], "depth")
    assert [result["depth"].shape for result in results] == [(96, 128), (48, 128), (96, 128)]
    np.testing.assert_array_equal(results[0]["depth"], results[2]["depth"])
    assert predictor()([]) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((3, 8, 9), np.uint8), r"shape \(3, 8, 9\), uint8; expected an image \(height, width, 3\)"),
        (np.zeros((2, 8, 9, 3), np.uint8), r"shape \(2, 8, 9, 3\), uint8; expected"),
        (np.zeros((0, 9, 3), np.uint8), r"shape \(0, 9, 3\)"),
        (np.zeros((8, 9, 3), np.int64), "int64; expected uint8, or floats in 0..1"),
        (np.full((8, 9, 3), 255.0), "values 255..255; expected 0..1"),
        (np.full((8, 9, 3), np.nan), "values nan..nan; expected 0..1"),
        (torch.zeros(8, 9, 3), r"a tensor of shape \(8, 9, 3\); expected an image \(3, height, width\)"),
        (torch.zeros(2, 3, 8, 9), "expected one image, or a list: give list"),
        (torch.full((3, 8, 9), -2.1), "not normalised"),
        (b"these are words", "image bytes: not a whole image"),
        (io.StringIO("words"), "file object: not a whole image"),
        (7, "an image of type int; expected a path"),
        ([7], "an image of type int"),
        (None, "an image of type NoneType"),
    ],
)
def test_what_is_no_image_is_told_in_one_line(given, message):
    with pytest.raises(MistakeError, match=message) as caught:
        predictor()(given)
    assert "\n" not in str(caught.value)


def test_devices_and_dtypes_by_name_or_as_torchs_own(photo):
    assert Predictor(ByColour(), device=torch.device("cpu")).device == torch.device("cpu")  # type: ignore[arg-type]
    with pytest.raises(MistakeError, match="'meta' is not there"):
        Predictor(ByColour(), device=torch.device("meta"))  # type: ignore[arg-type]
    for name in ("bf16", "bfloat16", torch.bfloat16):
        assert predictor(dtype=name).dtype is torch.bfloat16
    for wrong in ("int8", torch.int8, None):
        with pytest.raises(MistakeError, match="expected one of float32"):
            predictor(dtype=wrong)
    assert predictor()(photo, "depth, normals").keys() == {"depth", "normals"}


def test_a_model_by_its_name_or_its_folder(photo, tmp_path):
    torch.manual_seed(0)
    model = create_model("tiny", dataset="nyud")
    model.save_pretrained(tmp_path / "model")
    for name in (tmp_path / "model", str(tmp_path / "model")):
        found, expected = Predictor(name, device="cpu")(photo), Predictor(model, device="cpu")(photo)
        for task in model.tasks:
            np.testing.assert_array_equal(found[task], expected[task])
    assert Predictor("scenes", device="cpu").tasks == MTLSINet.from_pretrained("scenes").tasks
    with pytest.raises(MistakeError, match="model 'nyudd' is not a folder, not packaged"):
        Predictor("nyudd")


def test_predictions_are_drawn_in_the_models_own_names(photo, tmp_path):
    """As the panel that the command writes: of an image given in any way, or of some of its predictions."""
    network = predictor()
    found = network(photo)
    whole = panel(photo, found, network.classes)
    np.testing.assert_array_equal(network.draw(photo), whole)
    np.testing.assert_array_equal(network.draw(photo, found), whole)
    Image.fromarray(photo).save(tmp_path / "a.png")
    with open(tmp_path / "a.png", "rb") as file:
        np.testing.assert_array_equal(network.draw(file), whole)
    some = {"depth": found["depth"], "semseg": found["semseg"]}
    np.testing.assert_array_equal(network.draw(tmp_path / "a.png", some), panel(photo, some, network.classes))
    for wrong, message in (
        ({"depth": found["depth"][1:]}, "expected its own prediction"),
        ({"depth": found["normals"]}, "expected its own prediction"),
        ({"heat": found["depth"]}, "unknown task 'heat'"),
        ({}, "expected at least one"),
    ):
        with pytest.raises(MistakeError, match=message):
            network.draw(photo, wrong)


def test_only_the_tasks_asked_for_are_computed(photo):
    assert list(predictor()(photo, ["normals", "depth"])) == ["normals", "depth"]
    with pytest.raises(MistakeError, match="unknown task 'parsing'; expected some of semseg, depth"):
        predictor()(photo, ["parsing"])


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (3, 2)])
def test_tiny_and_thin_images(size):
    prediction = predictor()(np.full((*size, 3), 102, np.uint8))
    assert prediction["normals"].shape == (*size, 3)
    np.testing.assert_allclose(prediction["depth"], 4.0, atol=1e-3)


def test_the_network_sees_the_training_area_in_the_images_shape():
    model = ByColour()
    Predictor(model, device="cpu", working_size=(20, 80))(np.zeros((100, 100, 3), np.uint8))  # type: ignore[arg-type]
    assert model.seen.shape == (1, 3, 40, 40)


# ---- many predictions


def test_eight_threads_get_what_each_image_gives_alone():
    torch.manual_seed(0)
    shared = Predictor(create_model("tiny", dataset="nyud"), device="cpu", working_size=(64, 64))
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (20 + 9 * n, 90 - 7 * n, 3), dtype=np.uint8) for n in range(8)]
    alone, begin = [shared(photo) for photo in photos], threading.Barrier(8, timeout=60)

    def several(first: int) -> list[dict[str, np.ndarray]]:
        begin.wait()
        return [shared(photos[(first + n) % 8]) for n in range(3)]

    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(several, range(8)))
    for first, predictions in enumerate(together):
        for n, prediction in enumerate(predictions):
            for task, array in alone[(first + n) % 8].items():
                np.testing.assert_array_equal(prediction[task], array)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="this system does not list open files")
def test_a_hundred_predictions_leave_no_file_open_and_no_thread(photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "a.png")
    Image.fromarray(photo).save(tmp_path / "b.jpg")
    used, paths = predictor(), [tmp_path / "a.png", tmp_path / "b.jpg", tmp_path / "missing.png"]

    def opened() -> tuple[int, int]:
        for path in paths[:2]:
            used(path)
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    before = opened()
    for number in range(100):
        if number % 3 == 2:
            with pytest.raises(MistakeError):
                used(paths[2])
        else:
            used(paths[number % 3])
    assert opened() == before


def test_lower_precision_changes_little(photo):
    exact, mixed = predictor()(photo), predictor(dtype="bfloat16")(photo)
    np.testing.assert_allclose(mixed["depth"], exact["depth"], atol=0.1)


def test_settings_that_cannot_be_met_are_refused():
    with pytest.raises(MistakeError, match="unknown dtype 'int8'; expected one of float32"):
        predictor(dtype="int8")
    for size in ((0, 64), 224, (64,), (64.5, 64), "64x64"):
        with pytest.raises(MistakeError, match=r"working size .*; expected a height and a width"):
            predictor(working_size=size)
    for wrong in ("500", True):
        with pytest.raises(
            MistakeError, match=f"camera {wrong!r}; expected a focal length in the image's pixels, or a C"
        ):
            predictor(camera=wrong)
    for given in (None, 3):
        with pytest.raises(
            MistakeError, match=f"a model of type {type(given).__name__}; expected a network, or the name"
        ):
            Predictor(given)
    with pytest.raises(MistakeError, match="'abacus' is not there; expected auto or one of cpu"):
        find_device("abacus")


def test_a_network_that_gives_no_numbers_is_named(photo, monkeypatch):
    broken = SimpleNamespace(final={"depth": torch.full((1, 1, 48, 64), torch.nan)})
    monkeypatch.setattr(ByColour, "forward", lambda *_, **__: broken)
    with pytest.raises(MistakeError, match="depth is not finite"):
        predictor()(photo, ["depth"])


# ---- reading


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_reading_turns_the_image_upright(tmp_path, photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    path = saved(Image.fromarray(photo), tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(path), np.rot90(photo, -1))


def test_reading_kinds_of_images(tmp_path):
    grey = np.array([[0, 100, 255]], np.uint8)
    expected = np.repeat(grey[..., None], 3, -1)
    for name, image in {
        "grey.png": Image.fromarray(grey),
        "sixteen.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "sixteen.tif": Image.fromarray(grey.astype(np.uint16) * 257),
        "palette.png": Image.fromarray(grey).convert("P"),
        "cmyk.tif": Image.fromarray(expected).convert("CMYK"),
        "colour.bmp": Image.fromarray(expected),
    }.items():
        np.testing.assert_array_equal(read_image(saved(image, tmp_path / name)), expected, err_msg=name)
    bits = read_image(saved(Image.fromarray(grey > 50), tmp_path / "bits.png"))
    np.testing.assert_array_equal(bits[0, :, 0], [0, 255, 255])


def test_transparent_parts_become_white(tmp_path):
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)
    seen = read_image(saved(Image.fromarray(rgba), tmp_path / "a.png"))
    np.testing.assert_array_equal(seen, [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]])
    key = read_image(saved(Image.fromarray(rgba[..., :3]), tmp_path / "key.png", transparency=(0, 0, 0)))
    np.testing.assert_array_equal(key, [[[10, 20, 30], [10, 20, 30], [255, 255, 255]]])


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    path = saved(frames[0], tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(path), np.asarray(frames[0]))


def test_reading_names_what_is_wrong(tmp_path, photo, monkeypatch):
    whole = io.BytesIO()
    Image.fromarray(photo).save(whole, "JPEG")
    contents = {
        "text.jpg": (b"these are words", "not a whole image; expected JPEG"),
        "cut.jpg": (whole.getvalue()[:600], r"not a whole image \(.*; give an undamaged copy"),
        "empty.jpg": (b"", "an empty file"),
        "clip.mp4": (b"film", "a video; expected an image"),
    }
    for name, (content, message) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MistakeError, match=f"{name}: .*{message}") as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    Image.fromarray(photo.astype(np.float32)[..., 0]).save(tmp_path / "float.tif")
    for path, message in (
        (tmp_path, "a folder"),
        (tmp_path / "no.jpg", "not there"),
        (tmp_path / "float.tif", "16 bits"),
    ):
        with pytest.raises(MistakeError, match=message):
            read_image(path)
    (tmp_path / "big.jpg").write_bytes(whole.getvalue())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8000)  # the photo has 12288: between the limit and its double
    with pytest.raises(MistakeError, match="more than 8000 pixels"):
        read_image(tmp_path / "big.jpg")


# ---- the real network


@pytest.mark.parametrize("dataset", ["nyud", "pascal"])
def test_the_network_predicts_a_photo(dataset, photo):
    torch.manual_seed(0)
    model = create_model("tiny", dataset=dataset, input_size=(64, 96))
    prediction = Predictor(model, device="cpu")(photo)
    assert tuple(prediction) == model.tasks
    for task, array in prediction.items():
        assert array.shape == ((96, 128, 3) if task == "normals" else (96, 128))
        if task in model.classes:
            assert array.max() < len(model.classes[task])
        elif task in ("boundary", "saliency"):
            assert 0 <= array.min() <= array.max() <= 1


def test_predictions_go_to_the_images_size_in_one_step_where_their_grid_fits(photo):
    model = ByColour()
    for working_size, whole in (((48, 64), True), ((96, 128), False)):  # below 64 pixels a side is not rounded
        model.input_size = working_size
        Predictor(model, device="cpu")(photo[:95])  # type: ignore[arg-type]
        assert model.full_size == (whole and model.seen.shape[-2] % 4 != 0)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    "options", [{}, pytest.param({"compile": True}, marks=pytest.mark.slow), {"dtype": "bfloat16"}], ids=str
)
def test_what_makes_it_faster_leaves_the_predictions_as_they_are(photo, options, monkeypatch):
    """Folded norms, compiled, in bf16: against the model's own raw outputs, upsampled in float64.

    The graph is as the compiler gets it and runs under torch's own operations: the C++ of a hundred kernels takes minutes.
    """
    from mtlsi.nn.normalise import normalise

    compiled = []
    compile_ = partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", lambda network, **more: compiled.append(network) or compile_(network, **more))
    torch.manual_seed(0)
    model = create_model("tiny", tasks=("depth", "normals"), input_size=(96, 128)).eval()
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = Predictor(model, device="cpu", **options)(photo)
    assert len(compiled) == ("compile" in options)
    with torch.no_grad():
        raw = model(normalise(torch.from_numpy(photo).permute(2, 0, 1)[None] / 255), full_size=False).final["depth"]
    expected = F.interpolate(raw.double(), photo.shape[:2], mode="bilinear")[0, 0].clamp_min(0)
    tolerance = 0.05 if "dtype" in options else 1e-5
    assert np.abs(seen["depth"] - expected.numpy()).max() < tolerance * max(expected.abs().max(), 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("backbone", ["mobilenetv2_035", "hrnet_w18_small", "resnet18", "swin_of_five_blocks"])
def test_no_part_of_what_predicts_is_in_training_mode(backbone, monkeypatch):
    """Such a part keeps a GPU from recording the pass."""
    monkeypatch.setattr(predict, "convolutions_are_faster", lambda: True)
    network = Predictor(create_model("tiny", backbone=backbone), device="cpu").network
    assert not any(module.training for module in network.modules())  # type: ignore[attr-defined]


@pytest.mark.parametrize("faster", [True, False])
def test_linear_layers_are_convolutions_only_where_these_are_faster(photo, monkeypatch, faster):
    torch.manual_seed(0)
    model = create_model("swin_tiny", tasks=("depth",), input_size=(64, 96), num_tokens=16).eval()
    monkeypatch.setattr(predict, "convolutions_are_faster", lambda: False)
    expected = Predictor(model, device="cpu")(photo)["depth"]
    monkeypatch.setattr(predict, "convolutions_are_faster", lambda: faster)
    made = Predictor(model, device="cpu")
    assert (type(made.network) is type(model) and made.network is not model) == faster
    np.testing.assert_allclose(made(photo)["depth"], expected, atol=1e-5)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert all(parameter.data_ptr() in own for parameter in made.network.parameters())  # no second set of weights
    assert Predictor(model, device="cpu", dtype="bfloat16").network is model


@pytest.mark.parametrize("camera", [None, 80.0])
def test_what_is_shown_alike_is_as_far_away_at_any_working_size(camera):
    """Of a network that kept the images' shape: the same pixels lie in working sizes of other shapes."""
    settings = {"resize": "keep_ratio", "camera": {"focal_px": 100.0, "size_hw": [60, 60]}}
    model = create_model("tiny", tasks=["depth"], input_size=(72, 104), **settings)
    start_predictions_at(model.decoder, "depth", torch.tensor(2.0))
    image = np.random.default_rng(0).integers(0, 256, (72, 104, 3), np.uint8)
    sizes = (None, (104, 104), (72, 300), (144, 208))
    alike, taller, wider, larger = (
        Predictor(model, device="cpu", working_size=size, camera=camera)(image)["depth"] for size in sizes
    )
    np.testing.assert_array_equal(alike, taller)
    np.testing.assert_array_equal(alike, wider)
    assert alike.mean() == pytest.approx(2 if camera is None else 2 * 80 / 120, rel=0.02)  # 120: 100 times 72 / 60
    assert larger.mean() == pytest.approx(2 * alike.mean(), rel=0.02)


@pytest.mark.parametrize("tasks", [None, ["depth"]])
def test_a_predictor_that_is_kept_predicts_by_the_models_present_weights(tasks, photo):
    """As one made anew does, also where the backbone alone has changed, whose norms were folded."""
    model = create_model("tiny", tasks=["depth", "boundary"], input_size=(64, 96))
    start_predictions_at(model.decoder, "depth", torch.tensor(2.0))
    kept = Predictor(model, device="cpu")
    before = kept(photo, tasks)
    statistics = [buffer for name, buffer in model.backbone.named_buffers() if name.endswith("running_mean")]
    for changed in (model.backbone.parameters(), model.decoder.parameters(), statistics):
        with torch.no_grad():
            for tensor in changed:
                tensor.add_(0.02 * torch.randn_like(tensor))
        after, fresh = kept(photo, tasks), Predictor(model, device="cpu")(photo, tasks)
        for task, array in after.items():
            np.testing.assert_array_equal(array, fresh[task])
            assert not np.array_equal(array, before[task])
        before = after
