from __future__ import annotations

import io
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError
from rich.console import Console
from torch import nn

from mtlsi.cli import main
from mtlsi.data.readers.folder import Folder
from mtlsi.data.readers.prepared import Prepared
from mtlsi.dataset_tools.check import check
from mtlsi.dataset_tools.prepare import prepare
from mtlsi.errors import MistakeError
from mtlsi.images import HEAVY, open_image, size_of_jpeg, to_rgb
from mtlsi.prediction.files import predict_paths
from mtlsi.prediction.images import as_pixels, read_image
from mtlsi.prediction.predictor import Predictor

HEIGHT, WIDTH = 64, 96
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREY = RGB[..., 0]
SMOOTH = np.stack(np.broadcast_arrays(*np.ogrid[60:188:64j, 60:156:96j], 128.0), -1).astype(np.uint8)


class Seeing(nn.Module):
    """Keeps the images it is given, as values 0..255."""

    tasks, classes, input_size = ("depth",), {}, (HEIGHT, WIDTH)

    def forward(self, images: torch.Tensor, **_: Any) -> SimpleNamespace:
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        self.seen = ((images * std + mean) * 255)[0].permute(1, 2, 0).numpy()
        return SimpleNamespace(final={"depth": images[:, :1]})


def seen_by_predictor(file: Path) -> np.ndarray:
    model = Seeing()
    Predictor(model, device="cpu")(file)  # type: ignore[arg-type]
    return model.seen


def folder_of(root: Path, image: Image.Image, name: str, label_hw: tuple[int, int], **options: Any) -> Path:
    """A data set of one image with depth; gives the image's file."""
    (root / "images").mkdir(parents=True)
    (root / "depth").mkdir()
    image.save(root / "images" / name, **options)
    np.save(root / "depth" / f"{Path(name).stem}.npy", np.ones(label_hw, np.float32))
    (root / "dataset.yaml").write_text(f"splits: {{train: [{Path(name).stem}], val: [{Path(name).stem}]}}\n")
    return root / "images" / name


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


TURNS = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}
"""From what is stored to what is shown, by orientation tag."""


def rgb_of(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, -1)


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return rgb * share + 255 * (1 - share)


ALPHA = np.broadcast_to(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, WIDTH))
KEYED = np.where(np.arange(WIDTH)[:, None] < 9, np.uint8([9, 8, 7]), RGB)
SIXTEEN = (GREY * 257.0 + np.where(GREY < 128, 100, -100)).astype(np.uint16)
TEXT = PngImagePlugin.PngInfo()
TEXT.add_text("Title", "a room")
KINDS = {
    "rgb": ("a.png", Image.fromarray(RGB), {"pnginfo": TEXT}, RGB, 0),
    "jpeg": ("a.jpg", Image.fromarray(SMOOTH), {"quality": 98}, SMOOTH, 4),
    "grey": ("a.png", Image.fromarray(GREY), {}, rgb_of(GREY), 0),
    "one bit": ("a.png", Image.fromarray(GREY > 99), {}, rgb_of(np.uint8(255) * (GREY > 99)), 0),
    "palette": ("a.png", Image.fromarray(GREY).convert("P"), {}, rgb_of(GREY), 0),
    "16-bit grey": ("a.png", Image.fromarray(SIXTEEN), {}, rgb_of(GREY), 0),
    "transparent": ("a.png", Image.fromarray(np.dstack([RGB, ALPHA])), {}, on_white(RGB, ALPHA), 1),
    "transparent grey": ("a.png", Image.fromarray(np.dstack([GREY, ALPHA])), {}, on_white(rgb_of(GREY), ALPHA), 1),
    "transparent colour": (
        "a.png",
        Image.fromarray(KEYED),
        {"transparency": (9, 8, 7)},
        np.where((KEYED == [9, 8, 7]).all(-1)[..., None], 255, KEYED),
        0,
    ),
    "cmyk": (
        "a.jpg",
        Image.merge("CMYK", [*Image.fromarray(255 - SMOOTH).split(), Image.new("L", (WIDTH, HEIGHT))]),
        {"quality": 98},
        SMOOTH,
        4,
    ),
    "PNG called JPEG": ("a.jpg", Image.fromarray(RGB), {"format": "PNG"}, RGB, 0),
    "animation": (
        "a.png",
        Image.fromarray(RGB),
        {"save_all": True, "append_images": [Image.fromarray(255 - RGB)], "default_image": False},
        RGB,
        0,
    ),
    "quarter turn": ("a.png", Image.fromarray(np.rot90(RGB, 1).copy()), {"exif": turned(6)}, RGB, 0),
    "half turn, mirrored": ("a.png", Image.fromarray(RGB[::-1].copy()), {"exif": turned(4)}, RGB, 0),
    "turned jpeg": (
        "a.jpg",
        Image.fromarray(np.rot90(SMOOTH, -1).copy()),
        {"exif": turned(8), "quality": 98},
        SMOOTH,
        4,
    ),
    "webp": ("a.webp", Image.fromarray(RGB), {"lossless": True}, RGB, 0),
    "lossy webp": ("a.webp", Image.fromarray(SMOOTH), {"quality": 98}, SMOOTH, 6),
    "tif": ("a.tif", Image.fromarray(RGB), {}, RGB, 0),
    "packed tiff of 16 bits": ("a.TIFF", Image.fromarray(SIXTEEN), {"compression": "tiff_lzw"}, rgb_of(GREY), 0),
    "bmp": ("a.bmp", Image.fromarray(RGB), {}, RGB, 0),
    "gif": ("a.gif", Image.fromarray(GREY), {}, rgb_of(GREY), 0),
    "avif": ("a.avif", Image.fromarray(SMOOTH), {"quality": 100}, SMOOTH, 6),
    "broken metadata": ("a.png", Image.fromarray(RGB), {"exif": b"Exif\x00\x00nonsense"}, RGB, 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_prediction_see_the_same_upright_rgb(tmp_path, kind):
    name, image, options, expected, tolerance = KINDS[kind]
    file = folder_of(tmp_path / "set", image, name, (HEIGHT, WIDTH), **options)
    trained = Folder(tmp_path / "set", "train")[0]["image"].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(trained, expected, atol=tolerance)
    np.testing.assert_allclose(seen_by_predictor(file), trained, atol=1e-3)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "packbits"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_a_tiff_of_any_orientation_is_read_upright(tmp_path, mode, compression):
    stored = Image.fromarray(SIXTEEN) if mode == "I;16" else Image.fromarray(RGB).convert(mode)
    expected = rgb_of(GREY) if mode == "I;16" else np.asarray(stored.convert("RGB"))
    for tag, turn in TURNS.items():
        stored.save(tmp_path / "a.tif", tiffinfo={274: tag}, compression=compression)
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), turn(expected))
        np.testing.assert_array_equal(as_pixels((tmp_path / "a.tif").read_bytes()), turn(expected))


def tiff_entry(tag: int, value: int, kind: int = 3) -> bytes:
    """What a little-endian TIFF holds about a tag of one number, of 16 bits or, as ``kind`` 4, of 32."""
    return struct.pack("<HHII", tag, kind, 1, value)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("values", [255 - GREY, 65535 - SIXTEEN], ids=["8 bits", "16 bits"])
def test_a_tiff_whose_0_is_white_is_no_negative(tmp_path, values, compression):
    Image.fromarray(values).save(tmp_path / "a.tif", compression=compression)
    content = (tmp_path / "a.tif").read_bytes()
    np.testing.assert_allclose(as_pixels(content), rgb_of(255 - GREY), atol=1)
    white_zero = content.replace(tiff_entry(262, 1), tiff_entry(262, 0))
    np.testing.assert_array_equal(as_pixels(white_zero), rgb_of(GREY))


def test_a_tiff_of_12_bits_is_as_bright_as_one_of_8(tmp_path):
    twelve = np.rint(GREY / 255 * 4095).astype(int)
    even, odd = twelve[:, ::2], twelve[:, 1::2]
    packed = np.stack([even >> 4, (even & 15) << 4 | odd >> 8, odd & 255], -1).reshape(HEIGHT, -1).astype(np.uint8)
    Image.fromarray(packed).save(tmp_path / "a.tif")  # three bytes hold two pixels
    content = (tmp_path / "a.tif").read_bytes()
    content = content.replace(tiff_entry(256, packed.shape[1], 4), tiff_entry(256, WIDTH, 4))
    content = content.replace(tiff_entry(258, 8), tiff_entry(258, 12))
    np.testing.assert_array_equal(as_pixels(content), rgb_of(GREY))


@pytest.mark.parametrize("kind", ["jpeg", "cmyk", "turned jpeg", "PNG called JPEG"])
def test_a_prepared_copy_holds_the_same_pixels(tmp_path, kind):
    name, image, options, expected, tolerance = KINDS[kind]
    folder_of(tmp_path / "set", image, name, (HEIGHT, WIDTH), **options)
    prepare(tmp_path / "set", tmp_path / "fast", num_workers=1, console=Console(quiet=True))
    kept = Prepared(tmp_path / "fast", "train")[0]["image"].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(kept, expected, atol=tolerance)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"these are words", "not a whole image; expected JPEG"),
        (b"", "an empty file|not a whole image"),
        (b"\x89PNG\r\n\x1a\n", "not a whole image"),
    ],
)
def test_both_doors_name_a_broken_file(tmp_path, content, message):
    file = folder_of(tmp_path, Image.fromarray(RGB), "a.png", (HEIGHT, WIDTH))
    file.write_bytes(content)
    for door in (lambda: Folder(tmp_path, "train")[0], lambda: seen_by_predictor(file)):
        with pytest.raises(MistakeError, match=f"a.png: .*({message})") as caught:
            door()
        assert "\n" not in str(caught.value)


def test_both_doors_refuse_too_many_pixels_and_floats(tmp_path, monkeypatch):
    file = folder_of(tmp_path, Image.fromarray(RGB), "a.png", (HEIGHT, WIDTH))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)
    for door in (lambda: Folder(tmp_path, "train")[0], lambda: seen_by_predictor(file)):
        with pytest.raises(MistakeError, match="more than 6143 pixels"):
            door()
    with pytest.raises(MistakeError, match="floating-point numbers"):
        Predictor(Seeing(), device="cpu")(Image.fromarray(RGB[..., 0].astype(np.float32)))  # type: ignore[arg-type]


def test_both_doors_tell_a_file_that_may_not_be_read_from_a_damaged_one(tmp_path, monkeypatch):
    def load(_):
        raise PermissionError(13, "Permission denied")

    file = folder_of(tmp_path, Image.fromarray(RGB), "a.png", (HEIGHT, WIDTH))
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    for door in (lambda: Folder(tmp_path, "train")[0], lambda: seen_by_predictor(file)):
        with pytest.raises(
            MistakeError, match=r"a\.png: may not be read \(Permission denied\); give yourself the perm"
        ):
            door()


def test_both_doors_name_an_image_that_memory_does_not_hold(tmp_path, monkeypatch):
    def load(_):
        raise MemoryError

    file = folder_of(tmp_path, Image.fromarray(RGB), "a.png", (HEIGHT, WIDTH))
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    for door in (lambda: Folder(tmp_path, "train")[0], lambda: seen_by_predictor(file)):
        with pytest.raises(MistakeError, match=r"a\.png: takes more memory than there is; make it smaller, or give an"):
            door()


@pytest.mark.parametrize(("name", "tag"), [("a.png", {"exif": turned(6)}), ("a.tif", {"tiffinfo": {274: 6}})])
def test_labels_drawn_on_the_stored_pixels_of_a_turned_image_are_named(tmp_path, name, tag):
    stored = np.rot90(RGB, 1).copy()  # 96x64 in the file, 64x96 as shown
    folder_of(tmp_path, Image.fromarray(stored), name, stored.shape[:2], **tag)
    message = (
        f"{tmp_path / 'images' / name}: orientation tag 6: its labels are 96x64, the upright image 64x96; "
        "turn the labels too, or remove the tag from the image"
    )
    assert message in check(tmp_path, num_workers=1, console=Console(quiet=True)).problems
    with pytest.raises(MistakeError) as caught:
        Folder(tmp_path, "train")[0]
    assert str(caught.value) == message


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)


@pytest.mark.parametrize("name", ["a.heic", "a.HEIF", "a.jpg"])
def test_both_doors_name_the_extra_package_that_heic_needs(tmp_path, monkeypatch, name):
    file = folder_of(tmp_path / "set", Image.fromarray(RGB), "a.png", (HEIGHT, WIDTH))
    file.unlink()
    file = file.with_name(name)
    file.write_bytes(HEIC)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as where it is not installed
    message = f"{file}: HEIC, which needs pip install 'mtlsi[heic]'; or convert the image to JPEG"
    assert message in check(tmp_path / "set", num_workers=1, console=Console(quiet=True)).problems
    for door in (lambda: Folder(tmp_path / "set", "train")[0], lambda: seen_by_predictor(file)):
        with pytest.raises(MistakeError) as caught:
            door()
        assert str(caught.value) == message
    assert main(["predict", str(file), "--out", str(tmp_path / "out")]) == 2
    with pytest.raises(MistakeError, match="image bytes: HEIC, which needs"):
        Predictor(Seeing(), device="cpu")(HEIC)  # type: ignore[arg-type]


def test_both_doors_read_heic_where_its_reader_is_installed(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra heic is not installed")
    file = folder_of(tmp_path / "set", Image.fromarray(RGB), "a.png", (HEIGHT, WIDTH))
    file.unlink()
    file = file.with_suffix(".heic")
    pillow_heif.from_pillow(Image.fromarray(SMOOTH)).save(file, quality=-1)
    trained = Folder(tmp_path / "set", "train")[0]["image"].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(trained, SMOOTH, atol=6)
    np.testing.assert_allclose(seen_by_predictor(file), trained, atol=1e-3)


def test_an_avif_that_pillow_cannot_read_is_said_to_be_one(tmp_path, monkeypatch):
    file = folder_of(tmp_path / "set", Image.fromarray(SMOOTH), "a.avif", (HEIGHT, WIDTH))

    def without_avif(*_, **__):
        raise UnidentifiedImageError

    monkeypatch.setattr(Image, "open", without_avif)
    with pytest.raises(MistakeError, match=r"a.avif: AVIF, which this Pillow cannot read; pip install"):
        seen_by_predictor(file)


def test_a_folder_of_images_of_every_format_is_predicted(tmp_path):
    for name, image, options, *_ in KINDS.values():
        image.save(tmp_path / f"{name[2:]}.{name[2:]}", **options)
    outcome = predict_paths(tmp_path, Predictor(Seeing(), device="cpu"), tmp_path / "out")  # type: ignore[arg-type]
    assert outcome.failed == 0
    panels = {path.name for path in (tmp_path / "out").glob("*_panel.png")}
    assert panels == {f"{end}_panel.png" for end in ("png", "jpg", "webp", "tif", "TIFF", "bmp", "gif", "avif")}


# ---- what takes long to decode


def parts_of_jpeg(content: bytes) -> list[tuple[int, bytes]]:
    """The markers of a JPEG file and what follows each, the last scan's data included."""
    parts, at = [], 2
    while content[at + 1] != 0xD9:
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if content[at + 1] == 0xDA:
            while content[end] != 0xFF or content[end + 1] in (0, *range(0xD0, 0xD8)):
                end += 1
        parts.append((content[at + 1], content[at:end]))
        at = end
    return parts


@pytest.fixture(scope="module")
def progressive() -> bytes:
    """4 million pixels in ten scans, and too many bytes for their scans not to be counted."""
    coarse = np.random.default_rng(0).integers(0, 256, (250, 250, 3), np.uint8)
    stored = io.BytesIO()
    Image.fromarray(coarse).resize((2000, 2000)).save(stored, "JPEG", progressive=True)
    assert len(stored.getvalue()) * 2000**2 > HEAVY
    return stored.getvalue()


def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded(progressive, tmp_path):
    *first, (marker, last) = parts_of_jpeg(progressive)
    assert marker == 0xDA
    bomb = progressive[:2] + b"".join(part for _, part in first) + last * 100 + b"\xff\xd9"
    (tmp_path / "bomb.jpg").write_bytes(bomb)
    with pytest.raises(MistakeError, match=r"bomb\.jpg: a JPEG of more than 64 scans"):
        read_image(tmp_path / "bomb.jpg")
    with pytest.raises(MistakeError, match="64 scans"):
        size_of_jpeg(bomb)


def test_what_follows_a_jpeg_is_no_scan(progressive, tmp_path):
    """Phones append a film, in which any two bytes occur."""
    (tmp_path / "a.jpg").write_bytes(progressive + 100 * b"\xff\xda\x00\x08")
    with open_image("a.jpg", tmp_path / "a.jpg") as image, Image.open(io.BytesIO(progressive)) as plain:
        np.testing.assert_array_equal(to_rgb(image), np.asarray(plain))
