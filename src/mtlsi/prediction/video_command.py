"""``mtlsi predict`` for a video or a camera: which flags ask for it, and which have no meaning there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mtlsi.errors import MistakeError
from mtlsi.options.using import PredictOptions
from mtlsi.prediction.camera import Camera
from mtlsi.prediction.clips.webcam import open_camera
from mtlsi.prediction.clips.writing import CONTAINERS
from mtlsi.prediction.contract import PredictsImages
from mtlsi.prediction.images import VIDEO_ENDINGS
from mtlsi.prediction.video import Predict, predict_video

NOT_FOR_IMAGES = ("arrays", "stride", "num_frames", "smooth", "smooth_outputs")
NOT_FOR_VIDEOS = ("points", "exif", "calibrate", "recursive", "overwrite")
PANEL = ("panel",)
"""What of --write a video can be."""


def asks_for_video(options: PredictOptions) -> bool:
    """Whether a command is for a video: one is given alone, --camera is, or --out ends as a video's name does.

    Raises ``MistakeError`` for flags that images do not have, and where nothing is given.
    """
    if options.camera is not None or (options.images and options.out.suffix.lower() in CONTAINERS):
        return True
    if len(options.images) == 1 and is_video(options.images[0]):
        return True
    if not options.images:
        raise MistakeError("no images given; expected image files, folders of them, one video, or --camera 0")
    if any(map(is_video, options.images)):
        video = next(filter(is_video, options.images))
        raise MistakeError(
            f"{video}: a video among other paths; expected it alone: mtlsi predict {video} --out result.mp4"
        )
    _refuse(options, NOT_FOR_IMAGES, "is for videos; leave it out")
    return False


def is_video(path: Path) -> bool:
    """Whether a name ends as a video's does, and is no folder's."""
    return path.suffix.lower() in VIDEO_ENDINGS and not path.is_dir()


def video_from_command(options: PredictOptions, open_predictor: Callable[[PredictOptions], PredictsImages]) -> int:
    """Predict the video or the camera; the exit code is 1 where frames were passed over, or are missing."""
    if options.camera is not None and options.images:
        raise MistakeError(f"--camera {options.camera} and {options.images[0]}; expected one of them")
    if len(options.images) > 1:
        raise MistakeError(f"{len(options.images)} paths for one video, {options.out}; expected one clip at a time")
    _refuse(options, NOT_FOR_VIDEOS, "is for images; leave it out for a video")
    usual = PredictOptions().write
    if options.write not in (usual, PANEL):
        raise MistakeError(f"--write {','.join(options.write)}; of a video expected panel, and --arrays for arrays")
    camera = None
    if options.focal_px is not None or options.fov_deg is not None:
        camera = Camera(options.focal_px, options.fov_deg)
    predictor = open_predictor(options)
    outcome = predict_video(
        options.images[0] if options.camera is None else open_camera(options.camera),
        predictor,
        options.out,
        options.tasks,
        predict=smoothed(predictor, options),
        as_panel=True if options.write == PANEL else None,
        arrays=options.arrays,
        stride=options.stride,
        num_frames=options.num_frames,
        camera=camera,
        scale=options.scale,
        num_workers=options.num_workers,
    )
    return 0 if outcome.is_whole and not outcome.num_broken else 1


def smoothed(predictor: PredictsImages, options: PredictOptions) -> Predict | None:
    """What predicts frame after frame where ``--smooth`` or ``--smooth-outputs`` asks for it; None: the predictor itself."""
    if not (options.smooth or options.smooth_outputs):
        return None
    from mtlsi.prediction.smoothing import Smoothed  # imports torch, which an exported model does without

    return Smoothed(predictor, context=options.smooth, outputs=options.smooth_outputs)


def _refuse(options: PredictOptions, names: tuple[str, ...], reason: str) -> None:
    """Raises ``MistakeError`` for the first of these options that is not as usual."""
    usual = PredictOptions()
    for name in names:
        if getattr(options, name) != getattr(usual, name):
            flag = name.removeprefix("num_").replace("_", "-")
            raise MistakeError(f"--{flag} {reason}")
