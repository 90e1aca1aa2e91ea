from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from by_colour import predictor
from mtlsi.errors import MistakeError
from mtlsi.prediction.clips import webcam
from mtlsi.prediction.clips.webcam import open_camera
from mtlsi.prediction.video import VideoOutcome, predict_video
from small_clips import av, decoded


@pytest.fixture
def _generated(monkeypatch) -> None:
    """FFmpeg's generator of test pictures in the place of a camera."""
    try:
        av.open("testsrc=size=64x48:rate=20", format="lavfi").close()
    except (ValueError, OSError):
        pytest.skip("this PyAV has no generator of test pictures (lavfi)")
    monkeypatch.setattr(webcam, "READERS", {sys.platform: ("lavfi", "testsrc=size=64x48:rate={}")})


def film(out: Path, predict: Any = None, num_frames: int | None = None) -> VideoOutcome:
    return predict_video(open_camera("20"), predictor(), out, "depth", predict=predict, num_frames=num_frames)


@pytest.mark.usefixtures("_generated")
def test_a_camera_is_filmed_for_as_many_frames_as_asked(tmp_path):
    outcome = film(tmp_path / "a.mp4", num_frames=5)
    assert (outcome.num_frames, outcome.sound) == (5, "none")
    assert [moment for moment, _ in decoded(outcome.path)] == pytest.approx([n / 20 for n in range(5)], abs=1e-3)


@pytest.mark.usefixtures("_generated")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_ctrl_c_ends_the_film_and_leaves_it_whole(num_workers, tmp_path):
    seen, handler, model = [], signal.getsignal(signal.SIGINT), predictor()

    def press_at_the_third(pixels: np.ndarray, tasks: tuple[str, ...]) -> dict[str, np.ndarray]:
        seen.append(1)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return model(pixels, tasks)

    camera = open_camera("20")
    outcome = predict_video(camera, model, tmp_path, "depth", predict=press_at_the_third, num_workers=num_workers)
    assert 3 <= outcome.num_frames <= 4
    assert len(decoded(outcome.path)) == outcome.num_frames
    assert outcome.path.name.startswith("camera_")
    assert outcome.path.name.endswith("_depth.mp4")
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_camera_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(webcam, "READERS", {sys.platform: ("lavfi", "no-such-source={}")})
    with pytest.raises(MistakeError, match="camera 7: no-such-source=7 cannot be opened"):
        open_camera("7")
    monkeypatch.setattr(webcam, "READERS", {})
    with pytest.raises(MistakeError, match="cameras are read on"):
        open_camera("0")
