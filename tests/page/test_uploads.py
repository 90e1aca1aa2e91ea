from __future__ import annotations

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from mtlsi.errors import MistakeError
from mtlsi.page import uploads
from mtlsi.page.uploads import check_uploaded, plain_name, plain_stem, read_upload


def refusal(path, name="photo.jpg"):
    with pytest.raises(MistakeError) as error:
        read_upload(path, name)
    assert "\n" not in str(error.value)
    return str(error.value)


def png_that_claims(width, height):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png", pixels


def test_only_files_that_the_browser_sent_are_taken(photo, tmp_path):
    folder = tmp_path / "uploads"
    (folder / "a").mkdir(parents=True)
    sent = folder / "a/photo.png"
    sent.write_bytes(photo[0].read_bytes())
    check_uploaded(sent, folder)
    (folder / "link.png").symlink_to(photo[0])
    os.mkfifo(folder / "pipe")
    outside = (
        photo[0],
        "/dev/zero",
        "/etc/passwd",
        "",
        "\0",
        "a" * 5000,
        folder,
        folder / "none.png",
        folder / "link.png",
    )
    for path in (*outside, folder / "pipe", f"{sent}/../../../photo.png", 5):
        with pytest.raises(MistakeError, match="not an uploaded file; expected an image that the page was sent"):
            check_uploaded(path, folder)


def test_a_photo_comes_out_as_it_is(photo):
    upload = read_upload(photo[0], "holiday.png")
    np.testing.assert_array_equal(upload.pixels, photo[1])
    assert upload.changed == ""
    assert upload.view is None


@pytest.mark.parametrize(
    "content",
    [
        b"<html><script>alert(1)</script></html>",
        b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        b"%PDF-1.4 nothing",
    ],
)
def test_what_is_no_image_is_refused_whatever_it_is_called(tmp_path, content):
    (tmp_path / "upload").write_bytes(content)
    assert refusal(tmp_path / "upload").startswith("photo.jpg: not a whole image; expected JPEG")


def test_formats_that_run_programs_are_refused_before_they_are_decoded(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "drawing.eps")
    assert refusal(tmp_path / "drawing.eps").startswith("photo.jpg: not a whole image; expected JPEG, PNG")


def test_a_truncated_photo_is_refused(tmp_path, photo):
    content = photo[0].read_bytes()
    (tmp_path / "half.png").write_bytes(content[: len(content) // 2])
    assert "not a whole image" in refusal(tmp_path / "half.png")
    (tmp_path / "empty.png").write_bytes(b"")
    assert "an empty file" in refusal(tmp_path / "empty.png")


@pytest.mark.parametrize(
    ("side", "said"),
    [(8000, "8000 x 8000 pixels; expected at most 50 million"), (40000, "more than 50 million pixels")],
)
def test_images_of_too_many_pixels_are_refused_by_their_header(tmp_path, side, said):
    (tmp_path / "bomb.png").write_bytes(png_that_claims(side, side))
    assert said in refusal(tmp_path / "bomb.png")


def test_files_of_too_many_bytes_are_refused(photo, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_BYTES", 2**10)
    assert "expected at most 0 MB" in refusal(photo[0])


def test_a_large_photo_is_shrunk_and_it_says_so(tmp_path):
    ramp = np.linspace(0, 255, 3000).astype(np.uint8)[None, :, None].repeat(2000, 0).repeat(3, 2)
    Image.fromarray(ramp).save(tmp_path / "large.png")
    upload = read_upload(tmp_path / "large.png", "large.png")
    pixels = upload.pixels
    assert upload.changed == "shrunk from 3000 x 2000"
    assert pixels.shape[0] * pixels.shape[1] <= 4_000_000 < 1.01 * pixels.shape[0] * pixels.shape[1]
    assert pixels.shape[1] / pixels.shape[0] == pytest.approx(1.5, rel=2e-3)
    np.testing.assert_allclose(pixels[1000, :, 0], np.linspace(0, 255, pixels.shape[1]), atol=1.5)


@pytest.mark.parametrize("size", [(300, 200), (3000, 2000)])
def test_the_focal_length_is_in_the_pixels_that_are_kept(tmp_path, size):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # turned by a quarter
    sensor = {ExifTags.Base.FocalLength: 4.0, ExifTags.Base.FocalPlaneXResolution: 250.0}
    exif.get_ifd(ExifTags.IFD.Exif).update(sensor | {ExifTags.Base.FocalPlaneResolutionUnit: 4})  # pixels a millimetre
    Image.new("RGB", size).save(tmp_path / "photo.jpg", exif=exif)
    upload = read_upload(tmp_path / "photo.jpg", "photo.jpg")
    height, width = upload.pixels.shape[:2]
    assert height > width
    assert upload.view is not None
    assert upload.view.focal_px == pytest.approx(4 * 250 * width / size[1], rel=1e-3)


@pytest.mark.parametrize(
    ("name", "shown", "stem"),
    [
        ("holiday.jpg", "holiday.jpg", "holiday"),
        ("../../etc/passwd", "passwd", "passwd"),
        ("C:\\photos\\cat.png", "cat.png", "cat"),
        ('<img src="x">.png', '<img src="x">.png', "img_src_x"),
        ("a\nb\x00.png", "a b .png", "a_b"),
        ("..", "..", "photo"),
        ("", "photo", "photo"),
        ("höhle 2.jpeg", "höhle 2.jpeg", "höhle_2"),
        ("x" * 300 + ".png", "x" * 59 + "…", "x" * 59),
    ],
)
def test_names_are_shown_in_one_line_and_name_no_other_folder(name, shown, stem):
    assert (plain_name(name), plain_stem(name)) == (shown, stem)
