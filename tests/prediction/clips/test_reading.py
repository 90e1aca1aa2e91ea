from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mtlsi.errors import MistakeError
from mtlsi.prediction.clips.reading import Frame, Sound, open_clip
from mtlsi.prediction.clips.samples import sample_clip
from small_clips import av, click, damage, grey_levels, pictures, turn, write_clip

PHONE = {"codec": "qtrle", "pix_fmt": "rgb24"}  # lossless, in the file format of phones


def frames_of(path: Path, *settings: Any) -> tuple[list[Frame], list[str]]:
    said: list[str] = []
    with open_clip(path, said.append) as clip:
        return [event for event in clip.events(*settings) if isinstance(event, Frame)], said


def only(path: Path) -> np.ndarray:
    frames, said = frames_of(path)
    assert (len(frames), said) == (1, [])
    return frames[0].pixels


def test_pictures_and_their_moments_at_a_variable_rate(tmp_path):
    shown, times_ms = pictures(5), [0, 40, 50, 200, 1000]
    frames, said = frames_of(write_clip(tmp_path / "clip.mkv", shown, times_ms))
    np.testing.assert_array_equal([frame.pixels for frame in frames], shown)
    assert [frame.start_s * 1000 for frame in frames] == times_ms
    assert [frame.end_s for frame in frames[:-1]] == [frame.start_s for frame in frames[1:]]
    assert frames[-1].end_s > frames[-1].start_s
    assert [frame.number for frame in frames] == [0, 1, 2, 3, 4]
    assert said == []


@pytest.mark.parametrize(("ending", "codec"), [(".ts", "mpeg2video"), (".avi", "mjpeg"), (".webm", "libvpx")])
def test_other_formats_begin_at_0_and_have_all_pictures(ending, codec, tmp_path):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    shown = grey_levels(6)
    with av.open(str(tmp_path / f"clip{ending}"), "w") as container:
        video = container.add_stream(codec, rate=25)
        video.height, video.width, video.pix_fmt = 32, 48, pix_fmt
        for number, pixels in enumerate(shown):
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts = number
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    frames, said = frames_of(tmp_path / f"clip{ending}")
    assert [float(frame.start_s) for frame in frames] == pytest.approx([n / 25 for n in range(6)], abs=2e-3)
    assert [frame.pixels.mean() for frame in frames] == pytest.approx([pixels.mean() for pixels in shown], abs=6)
    assert said == []


def test_a_stream_without_moments_is_shown_at_its_rate(tmp_path):
    with av.open(str(tmp_path / "clip.m2v"), "w", format="mpeg2video") as container:
        video = container.add_stream("mpeg2video", rate=25)
        video.height, video.width, video.pix_fmt = 32, 48, "yuv420p"
        for number, pixels in enumerate(grey_levels(20)):
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts = number
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    frames, _ = frames_of(tmp_path / "clip.m2v")
    steps = np.diff([float(frame.start_s) for frame in frames])
    assert len(frames) == 20
    np.testing.assert_allclose(steps, 1 / 25, atol=1e-6)


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((1, 0, 0, 1), lambda stored: stored),
        ((0, 1, -1, 0), lambda stored: np.rot90(stored, -1)),  # the usual portrait: a quarter turn clockwise
        ((-1, 0, 0, -1), lambda stored: np.rot90(stored, 2)),
        ((0, -1, 1, 0), lambda stored: np.rot90(stored, 1)),
        ((-1, 0, 0, 1), np.fliplr),  # the mirror of a front camera
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda stored: stored.transpose(1, 0, 2)),
    ],
)
def test_turned_and_mirrored_clips_are_upright(matrix, upright, tmp_path):
    stored = pictures(1)[0]
    path = turn(write_clip(tmp_path / "clip.mov", [stored], **PHONE), matrix)
    np.testing.assert_array_equal(only(path), upright(stored))


@pytest.mark.parametrize("size_hw", [(23, 33), (24, 31), (7, 9), (1, 5)])
def test_odd_sizes(size_hw, tmp_path):
    shown = pictures(1, *size_hw)
    np.testing.assert_array_equal(only(write_clip(tmp_path / "clip.mkv", shown)), shown[0])


def studio_range(rgb: tuple[int, ...], red: float, blue: float, bits: int) -> list[int]:
    """Luma and both chroma of a colour, by the standard's own formulas; ``red`` and ``blue`` are its weights."""
    r, g, b = (value / 255 for value in rgb)
    luma = red * r + (1 - red - blue) * g + blue * b
    scale = 2 ** (bits - 8)
    chroma = (b - luma) / (2 - 2 * blue), (r - luma) / (2 - 2 * red)
    return [round(scale * (16 + 219 * luma)), *(round(scale * (128 + 224 * value)) for value in chroma)]


BT709, BT601 = (0.2126, 0.0722), (0.299, 0.114)


@pytest.mark.parametrize(
    ("space", "weights", "bits", "pix_fmt", "size_hw"),
    [
        (1, BT709, 8, "yuv420p", (32, 48)),
        (1, BT709, 10, "yuv420p10le", (32, 48)),
        (5, BT601, 8, "yuv444p", (32, 48)),
        (2, BT709, 8, "yuv420p", (720, 64)),  # not said: by the size
        (2, BT601, 8, "yuv420p", (480, 64)),
    ],
)
def test_colours_are_those_of_the_clips_colour_space(space, weights, bits, pix_fmt, size_hw, tmp_path):
    colour = 200, 60, 30
    frame = av.VideoFrame(size_hw[1], size_hw[0], pix_fmt)
    for plane, value in zip(frame.planes, studio_range(colour, *weights, bits), strict=True):
        dtype = np.uint16 if bits > 8 else np.uint8
        plane.update(np.full(plane.buffer_size // dtype().itemsize, value, dtype).tobytes())
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        video = container.add_stream("ffv1", rate=25)
        video.height, video.width, video.pix_fmt = *size_hw, pix_fmt
        video.codec_context.colorspace, video.codec_context.color_range = space, 1
        container.mux(video.encode(frame))
        container.mux(video.encode(None))
    assert np.abs(only(tmp_path / "clip.mkv").astype(int) - colour).max() <= 3


def test_grey_and_transparent_pictures(tmp_path):
    grey = pictures(1)[0][..., 0]
    path = write_clip(tmp_path / "grey.mkv", [grey], pix_fmt="gray", given="gray")
    np.testing.assert_array_equal(only(path), grey[..., None].repeat(3, -1))
    clear = np.dstack([pictures(1)[0], np.linspace(0, 255, 24 * 32).reshape(24, 32).astype(np.uint8)])
    path = write_clip(tmp_path / "clear.mkv", [clear], pix_fmt="bgra", given="rgba")
    over_white = Image.new("RGBA", (32, 24), "white")
    over_white.alpha_composite(Image.fromarray(clear))
    np.testing.assert_array_equal(only(path), np.asarray(over_white.convert("RGB")))


@pytest.mark.parametrize(("aspect", "width"), [(Fraction(2), 64), (Fraction(1, 2), 16), (Fraction(9), 32)])
def test_pixels_become_square(aspect, width, tmp_path):
    path = write_clip(
        tmp_path / "clip.mkv", grey_levels(1, 24, 32), codec="mpeg4", pix_fmt="yuv420p", pixel_aspect=aspect
    )
    assert only(path).shape == (24, width, 3)


def test_broken_pictures_are_named_and_the_rest_is_read(tmp_path):
    shown = pictures(12, 48, 64)
    path = damage(write_clip(tmp_path / "clip.mkv", shown, options={"slicecrc": "1", "g": "1"}), 5, 6)
    frames, said = frames_of(path)
    assert len(frames) == 10
    for frame, right in zip(frames, shown[:5] + shown[7:], strict=True):
        np.testing.assert_array_equal(frame.pixels, right)
    assert frames[4].end_s == Fraction(7, 25)  # the picture before the broken ones stays
    assert len(said) == 2
    assert all(line.startswith(f"{path}: a frame after 0.") for line in said)


def test_a_file_that_breaks_off_is_read_up_to_there(tmp_path):
    shown = pictures(12, 48, 64)
    path = write_clip(tmp_path / "clip.mkv", shown)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames, _ = frames_of(path)
    assert 3 <= len(frames) <= 7
    np.testing.assert_array_equal([frame.pixels for frame in frames], shown[: len(frames)])


def cut(path: Path, share: float) -> Path:
    """Leave a file's first part only."""
    path.write_bytes(path.read_bytes()[: round(path.stat().st_size * share)])
    return path


def missing_of(path: Path) -> str:
    with open_clip(path) as clip:
        assert [event for event in clip.events() if isinstance(event, Frame)]
        return clip.missing


UNEVEN_MS = [0, 40, 50, 200, 1000, 1040, 1500]
WHOLE: dict[str, dict[str, Any]] = {
    "clip.mkv": {},
    "sound beyond the pictures.mkv": {"sound": click(4, 1)},
    "variable rate.mkv": {"times_ms": UNEVEN_MS},
    "dropped frames.mkv": {"times_ms": [*range(0, 800, 40), *range(2000, 2800, 40)], "sound": click(3, 1)},
    "slides.mkv": {"times_ms": [0, 5000, 10_000]},
    "late.mkv": {"begin_ms": 3000},
    "one.mkv": {"times_ms": [0], "sound": click(4, 1)},
    "clip.mp4": {"codec": "mpeg4", "pix_fmt": "yuv420p"},
    "late.mp4": {"codec": "mpeg4", "pix_fmt": "yuv420p", "begin_ms": 3000, "sound": click(4, 1)},
    "reordered.mp4": {"codec": "mpeg4", "pix_fmt": "yuv420p", "options": {"bf": "2"}},
    "variable rate.mp4": {"codec": "mpeg4", "pix_fmt": "yuv420p", "times_ms": UNEVEN_MS},
}


@pytest.mark.parametrize("name", WHOLE)
def test_of_a_whole_clip_nothing_is_missing(name, tmp_path):
    settings = WHOLE[name]
    assert missing_of(write_clip(tmp_path / name, pictures(len(settings.get("times_ms", range(50)))), **settings)) == ""


@pytest.mark.parametrize("sound", [None, click(4, 1)], ids=["silent", "with sound beyond the pictures"])
def test_a_clip_that_ends_early_is_found_out(sound, tmp_path):
    path = cut(write_clip(tmp_path / "clip.mkv", pictures(50), sound=sound, sound_codec="pcm_s16le"), 0.3)
    frames, _ = frames_of(path)
    end_s = float(frames[-1].end_s)
    assert missing_of(path) == f"it ends at {end_s:.2f} s, and says that it plays until 2.00 s: the rest is missing"


def test_a_part_of_a_clip_that_cannot_be_read_is_told(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", pictures(250), sound=click(10, 1), sound_codec="pcm_s16le")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = np.random.default_rng(0).integers(0, 256, 4000, np.uint8).tobytes()
    path.write_bytes(content)
    frames, said = frames_of(path)
    longest = int(np.argmax(np.diff([float(frame.start_s) for frame in frames])))
    last_s = float(frames[longest].start_s)
    assert frames[-1].number < 245
    assert missing_of(path) == f"after {last_s:.2f} s a part of the file cannot be read: frames are missing"
    assert said == []  # no frame that was read is broken


def test_a_picture_that_is_cut_short_and_yet_decoded_is_told(tmp_path):
    path = write_clip(tmp_path / "clip.avi", pictures(9, 240, 320), codec="mjpeg", pix_fmt="yuvj420p")
    with av.open(str(path)) as container:
        last = [packet for packet in container.demux(video=0) if packet.size][5]
        middle = last.pos + last.size * 3 // 4
    path.write_bytes(path.read_bytes()[:middle])
    assert missing_of(path) == "1 of its frames are damaged or cut short; they were decoded as well as can be"


def test_every_third_picture_is_shown_until_the_next(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", pictures(8))
    frames, _ = frames_of(path, 3)
    assert [frame.number for frame in frames] == [0, 3, 6]
    assert [frame.end_s * 25 for frame in frames] == [3, 6, 8]
    first, _ = frames_of(path, 3, 2)
    assert [(frame.number, frame.end_s * 25) for frame in first] == [(0, 3), (3, 6)]


def test_sound_comes_between_the_pictures_and_ends_with_them(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", pictures(50), sound=click(2, 1), sound_codec="pcm_s16le")
    for most, end_s in ((None, 2.0), (10, 0.4)):
        with open_clip(path) as clip:
            events = list(clip.events(1, most))
        sounds = [event for event in events if isinstance(event, Sound)]
        assert float(sounds[0].start_s) == 0
        assert float(sounds[-1].start_s) == pytest.approx(end_s, abs=0.05)
        assert max(sound.start_s for sound in sounds) < end_s
        latest = 0.0
        for event in events:  # no sound is far from its picture
            assert abs(float(event.start_s) - latest) < 0.2
            latest = float(event.start_s)


def test_what_is_no_video_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("hello " * 500)
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        audio = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 48000, 0
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    for name, told in {
        "empty.mp4": "an empty file",
        "text.mp4": "no video that can be read",
        "song.mp4": "without pictures",
        "none.mp4": "not there",
        ".": "not there, or no plain file",
    }.items():
        with pytest.raises(MistakeError, match=told):
            open_clip(tmp_path / name)


@pytest.mark.parametrize(
    "script",
    [
        "ffconcat version 1.0\nfile clip.mkv\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nclip.mkv\n#EXT-X-ENDLIST\n",
        "v=0\nm=video 5004 RTP/AVP 26\nc=IN IP4 127.0.0.1\n",
    ],
    ids=["concat", "m3u8", "sdp"],
)
def test_scripts_and_playlists_open_no_other_file(script, tmp_path):
    write_clip(tmp_path / "clip.mkv", pictures(2))
    for name in ("script.mp4", "script.m3u8", "script.ts", "script.sdp"):
        (tmp_path / name).write_text(script)
        with pytest.raises(MistakeError, match="no video that can be read"):
            open_clip(tmp_path / name)


@pytest.mark.parametrize("keyframes", ["300", "5"])
def test_samples_come_from_all_over_the_clip(keyframes, tmp_path):
    levels = grey_levels(90)
    times_ms = [1000 * n for n in range(90)]  # so far apart that they are searched for
    path = write_clip(tmp_path / "clip.mkv", levels, times_ms, options={"g": keyframes})
    means = [pixels.mean() for pixels in sample_clip(path)]
    assert len(means) == 9
    np.testing.assert_allclose(means, [levels[5 + 10 * n].mean() for n in range(9)], atol=5)
    early = [pixels.mean() for pixels in sample_clip(path, 20)]
    assert len(early) == 2
    assert max(early) <= levels[20].mean()


def test_a_short_clip_has_one_sample(tmp_path):
    shown = pictures(3)
    (sample,) = sample_clip(write_clip(tmp_path / "clip.mkv", shown))
    assert any((sample == pixels).all() for pixels in shown)


def test_a_name_with_a_colon_is_a_file_and_no_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = pictures(2)
    for name, picture in zip(("12:30 kitchen.mkv", "concat:other.mkv"), shown, strict=True):
        write_clip(tmp_path / name, [picture])
    write_clip(tmp_path / "other.mkv", [255 - shown[1]])
    for name, picture in zip(("12:30 kitchen.mkv", "concat:other.mkv"), shown, strict=True):
        np.testing.assert_array_equal(only(Path(name)), picture)


def with_a_jump(path: Path, kind: str, jump: int) -> Path:
    """A copy of a clip in which the clock of its pictures or sound jumps after three packets."""
    odd = path.with_name("odd.mkv")
    with av.open(str(path)) as read, av.open(str(odd), "w") as written:
        streams = {stream.index: written.add_stream_from_template(stream) for stream in read.streams}
        num_packets = dict.fromkeys(streams, 0)
        for packet in (p for p in read.demux() if p.dts is not None):
            at = packet.stream.index
            if packet.stream.type == kind and num_packets[at] >= 3:
                packet.pts, packet.dts = packet.pts + jump, packet.dts + jump
            num_packets[at] += 1
            packet.stream = streams[at]
            written.mux(packet)
    return odd


JUMP = "its clock jumps by more than 24 hours: frames follow one another there, and sound is left out"


@pytest.mark.parametrize("jump", [2**54, 2**57])
def test_pictures_after_a_moment_that_cannot_be_follow_the_ones_before(jump, tmp_path):
    path = with_a_jump(write_clip(tmp_path / "clip.mkv", pictures(6)), "video", jump)
    frames, _ = frames_of(path)
    assert len(frames) == 6
    starts = [float(frame.start_s) for frame in frames]
    assert starts == sorted(starts)
    assert starts[-1] < 1
    assert missing_of(path) == JUMP


def test_sound_at_a_moment_that_cannot_be_is_left_out(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", pictures(50), sound=click(2, 1), sound_codec="pcm_s16le")
    path = with_a_jump(path, "audio", 2**54)
    with open_clip(path) as clip:
        sounds = [event for event in clip.events() if isinstance(event, Sound)]
        assert len(sounds) == 3
        assert clip.missing == JUMP


def test_frames_of_more_pixels_than_an_image_may_have_are_refused(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "clip.mkv", pictures(1))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 32)
    assert len(frames_of(path)[0]) == 1
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 32 - 1)
    with pytest.raises(MistakeError, match="frames of 32x24 pixels"):
        frames_of(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2 * 24 * 32 - 1)
    flat = {"codec": "mpeg4", "pix_fmt": "yuv420p", "pixel_aspect": Fraction(2)}
    with pytest.raises(MistakeError, match="frames of 64x24 pixels"):
        frames_of(write_clip(tmp_path / "flat.mkv", pictures(1), **flat))


@pytest.mark.parametrize(
    ("most", "told"),
    [(32 * 48, "Invalid argument"), (320 * 480 - 1, "480x320 pixels; expected at most 0 million")],
    ids=["before they are decoded", "after"],
)
def test_frames_that_grow_on_their_way_are_passed_over(most, told, tmp_path, monkeypatch):
    content = b""
    for height, width in ((32, 48), (320, 480), (32, 48)):
        part = write_clip(tmp_path / "part.mjpeg", grey_levels(2, height, width), codec="mjpeg", pix_fmt="yuvj420p")
        content += part.read_bytes()
    (tmp_path / "clip.mjpeg").write_bytes(content)
    assert len(frames_of(tmp_path / "clip.mjpeg")[0]) == 6
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    frames, said = frames_of(tmp_path / "clip.mjpeg")
    assert [frame.pixels.shape for frame in frames] == [(32, 48, 3)] * 4
    assert len(said) == 2
    assert all(f"cannot be decoded ({told}), passed over" in line for line in said)


@pytest.mark.parametrize("length", ["9" * 5000 + ":00:01", "00:00:01." + "9" * 5000])
def test_a_length_of_thousands_of_digits_says_nothing(length, tmp_path):
    path, word = tmp_path / "clip.mkv", b"DURATION"
    write_clip(path, pictures(2))
    with av.open(str(path)) as read, av.open(str(tmp_path / "odd.mkv"), "w") as written:
        stream = written.add_stream_from_template(read.streams.video[0])
        stream.metadata["DURATIOM"] = length
        for packet in read.demux():
            if packet.dts is not None:
                packet.stream = stream
                written.mux(packet)
    content = (tmp_path / "odd.mkv").read_bytes().replace(word, b"DURATIOX").replace(b"DURATIOM", word)
    (tmp_path / "odd.mkv").write_bytes(content)
    with open_clip(tmp_path / "odd.mkv") as clip:
        assert clip.video.metadata["DURATION"] == length
        assert len([event for event in clip.events() if isinstance(event, Frame)]) == 2
        assert clip.missing == ""
