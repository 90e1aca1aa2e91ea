from __future__ import annotations

import errno
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from mtlsi.errors import MistakeError
from mtlsi.prediction.clips import writing
from mtlsi.prediction.clips.reading import Frame, Sound, open_clip
from mtlsi.prediction.clips.writing import ClipWriter
from small_clips import av, click, decoded, grey_levels, heard, write_clip

TIMES_S = [Fraction(n, 1000) for n in (0, 40, 50, 200, 1000, 1040)]


def write(path: Path, shown: list[np.ndarray], times_s: list[Fraction] = TIMES_S, length_s: float = 0.5) -> Path:
    with ClipWriter(path, shown[0].shape[:2], Fraction(25)) as writer:
        ends = [*times_s[1:], times_s[-1] + Fraction(length_s)]
        for number, (pixels, start_s, end_s) in enumerate(zip(shown, times_s, ends, strict=True)):
            writer.add(pixels, Frame(pixels, number, start_s, end_s))
    return path


def dub(source: Path, target: Path) -> str:
    """Pictures and sound of one clip written as another; says what became of the sound."""
    with open_clip(source) as clip, ClipWriter(target, (32, 48), clip.rate, clip.sounds) as writer:
        for event in clip.events():
            if isinstance(event, Sound):
                writer.add_sound(event)
            else:
                writer.add(event.pixels, event)
        return writer.sound


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "A.MP4"])
def test_every_picture_is_shown_at_its_moment(name, tmp_path):
    shown = grey_levels(6)
    path = write(tmp_path / name, shown)
    found = decoded(path)
    assert [moment for moment, _ in found] == pytest.approx([float(t) for t in TIMES_S], abs=1e-3)
    np.testing.assert_allclose([p.mean() for _, p in found], [p.mean() for p in shown], atol=4)
    with av.open(str(path)) as container:
        assert container.duration / 1e6 == pytest.approx(1.54, abs=2e-3)  # the last picture's own length is kept
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_colours_survive(tmp_path):
    colours = [(200, 60, 30), (20, 160, 70), (40, 60, 220), (255, 255, 255), (0, 0, 0), (128, 128, 128)]
    shown = [np.full((32, 48, 3), colour, np.uint8) for colour in colours]
    path = write(tmp_path / "a.mp4", shown)
    for (_, pixels), colour in zip(decoded(path), colours, strict=True):
        assert np.abs(pixels[8:24, 8:40].astype(int) - colour).max() <= 6
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).colorspace == 1  # BT.709, said in the file


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
@pytest.mark.parametrize("size_hw", [(31, 47), (32, 47), (9, 8), (2, 2), (1, 1)])
def test_odd_and_tiny_sizes_become_even(size_hw, name, tmp_path):
    shown = [np.full((*size_hw, 3), 90, np.uint8)] * 6
    _, pixels = decoded(write(tmp_path / name, shown))[0]
    assert pixels.shape[:2] == tuple(side + side % 2 for side in size_hw)
    assert abs(pixels.mean() - 90) < 4


def test_without_h264_mpeg4_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(writing.ENCODERS, "mp4", writing.ENCODERS["mp4"][-1:])
    path = write(tmp_path / "a.mp4", grey_levels(6))
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    assert [moment for moment, _ in decoded(path)] == pytest.approx([float(t) for t in TIMES_S], abs=1e-4)
    monkeypatch.setitem(writing.ENCODERS, "mp4", (writing.Encoder("no-such", {}),))
    with pytest.raises(MistakeError, match="no encoder for mp4"):
        write(tmp_path / "b.mp4", grey_levels(6))


def test_moments_that_do_not_advance_are_moved_apart(tmp_path):
    path = write(tmp_path / "a.mp4", grey_levels(4), [Fraction(0), Fraction(1, 10**7), Fraction(1, 10**7), Fraction(1)])
    assert len(decoded(path)) == 4


def test_a_picture_that_is_shown_for_longer_than_mp4_can_say_is_refused(tmp_path):
    times_s = [Fraction(0), Fraction(8 * 3600)]
    assert [moment for moment, _ in decoded(write(tmp_path / "a.mkv", grey_levels(2), times_s))] == [0, 8 * 3600]
    with pytest.raises(MistakeError, match=r"a\.mp4: a frame is shown for 8\.0 hours; \.mp4 can say .*; write \.mkv"):
        write(tmp_path / "a.mp4", grey_levels(2), times_s)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mkv"]


def test_a_relative_name_with_a_colon_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file:12").mkdir()
    assert len(decoded(tmp_path / write(Path("file:12/30.mkv"), grey_levels(6)))) == 6


def test_nothing_is_left_after_an_error_and_what_was_there_stays(tmp_path):
    path = write(tmp_path / "a.mp4", grey_levels(6))
    before = path.read_bytes()
    frame = Frame(grey_levels(1)[0], 0, Fraction(0), Fraction(1, 25))
    for error in (KeyboardInterrupt, MistakeError):
        with pytest.raises(error), ClipWriter(path, (32, 48), Fraction(25)) as writer:  # noqa: PT012
            writer.add(frame.pixels, frame)
            raise error
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


def test_a_link_stays_one_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link.mp4").symlink_to("far/clip")  # the link's own ending says the format
    write(tmp_path / "link.mp4", grey_levels(6))
    assert (tmp_path / "link.mp4").is_symlink()
    assert len(decoded(tmp_path / "far/clip")) == 6
    assert {path.name for path in tmp_path.rglob("*")} == {"far", "clip", "link.mp4"}


def test_places_and_kinds_that_cannot_be_written_are_refused(tmp_path, monkeypatch):
    for name in ("a.avi", "a", "a.gif"):
        with pytest.raises(MistakeError, match=r"ends in \.mp4, \.mkv, \.webm"):
            write(tmp_path / name, grey_levels(6))
    with pytest.raises(MistakeError, match=r"cannot write .*a\.mp4; give a file in an existing folder"):
        write(tmp_path / "none" / "a.mp4", grey_levels(6))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(MistakeError, match="No space left"):
        write(tmp_path / "a.mp4", grey_levels(6))
    assert list(tmp_path.iterdir()) == []


def compressed_sound(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


@pytest.mark.parametrize("begin_ms", [0, 1400])
@pytest.mark.parametrize(
    ("source", "codec", "target", "became"),
    [
        ("a.mp4", "aac", "b.mp4", "copied"),
        ("a.mkv", "aac", "b.mkv", "copied"),
        ("a.mkv", "flac", "b.mp4", "copied"),
        ("a.mkv", "pcm_s16le", "b.mkv", "copied"),
        ("a.mkv", "pcm_s16le", "b.mp4", "compressed again as aac"),
        ("a.mp4", "aac", "b.webm", "compressed again as opus"),
        ("a.mkv", "libopus", "b.webm", "copied"),
    ],
)
def test_sound_is_kept_and_heard_at_the_right_moment(source, codec, target, became, begin_ms, tmp_path):
    shown = grey_levels(50)
    path = write_clip(
        tmp_path / source,
        shown,
        codec="mpeg4",
        pix_fmt="yuv420p",
        sound=click(2, 1),
        sound_codec=codec,
        begin_ms=begin_ms,
    )
    assert dub(path, tmp_path / target) == became
    if became == "copied":
        assert compressed_sound(tmp_path / target) == compressed_sound(path)
    loudness, begin_s = heard(tmp_path / target)
    onset_s = begin_s + np.argmax(loudness > 0.3 * loudness.max()) / 48_000
    bright = next(moment for moment, pixels in decoded(tmp_path / target) if pixels.mean() > shown[25].mean() - 2)
    assert onset_s == pytest.approx(1, abs=0.03)
    assert bright == pytest.approx(1, abs=0.03)


def test_sound_from_a_broadcast_goes_into_mp4(tmp_path):
    path = write_clip(tmp_path / "a.ts", grey_levels(50), codec="mpeg4", pix_fmt="yuv420p", sound=click(2, 1))
    assert dub(path, tmp_path / "b.mp4") == "copied"
    loudness, begin_s = heard(tmp_path / "b.mp4")
    assert begin_s + np.argmax(loudness > 0.3) / 48_000 == pytest.approx(1, abs=0.03)
