"""Exported models, run by onnxruntime: nothing here imports torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any, overload

import numpy as np

from mtlsi.errors import MistakeError, message_of
from mtlsi.images import FilePath
from mtlsi.kinds.colouring import Colour
from mtlsi.options.using import PredictOptions
from mtlsi.prediction.camera import multiplied
from mtlsi.prediction.graph_facts import read_facts
from mtlsi.prediction.graph_file import names_other_files
from mtlsi.prediction.graph_results import checked_result
from mtlsi.prediction.images import ImageLike, as_pixels
from mtlsi.reading import read_content, shortened
from mtlsi.tasks import check_tasks

MOST_BYTES = 2**31
"""Of a file: more than that no file of this form can have."""
MOST_THREADS = 1024


class GraphPredictor:
    """Predicts every task on one image of any size from a file that ``mtlsi export`` wrote: ``GraphPredictor("m.onnx")``.

    Gives what ``Predictor`` gives for the model that was exported, up to the differences that ``mtlsi export`` printed.
    ``num_threads``: None lets onnxruntime choose.
    Raises ``MistakeError`` for a file that is not there, cannot be read, or was not written by ``mtlsi export``.
    """

    def __init__(self, path: FilePath, *, num_threads: int | None = None):
        self.path = path
        self.session, self.identity = open_session(path, num_threads)
        try:
            facts = self.session.get_modelmeta().custom_metadata_map
        except UnicodeError as error:
            raise MistakeError(f"{path}: its metadata is no text; export the model again with mtlsi export") from error
        if "mtlsi_version" not in facts:
            raise MistakeError(f"{path}: not written by mtlsi export; expected its result, or the name of a model")
        try:
            found = read_facts(facts)
            names = tuple(fact["name"] for fact in found.tasks)
            outputs = [output.name for output in self.session.get_outputs()]
            if not set(names) <= set(outputs):
                raise MistakeError(
                    f"tasks {shortened(list(names))}, outputs {shortened(outputs)}; expected an output for each task"
                )
        except (LookupError, ValueError, OverflowError) as error:
            raise MistakeError(
                f"{path}: its metadata is broken ({message_of(error, 200)}); export the model again with mtlsi export"
            ) from error
        self.facts: list[dict[str, Any]] = found.tasks
        """What each task's numbers mean: name, kind, title, unit or class names and their colours."""
        self.tasks: tuple[str, ...] = names
        self.classes: Mapping[str, Sequence[str]] = found.classes
        self.colours: Mapping[str, Sequence[Colour]] = found.colours
        self.resizes = found.resizes
        self.training_camera = found.training_camera
        self.share = found.share

    @overload
    def __call__(
        self, image: list[ImageLike] | tuple[ImageLike, ...], tasks: str | Iterable[str] | None = None
    ) -> list[dict[str, np.ndarray]]: ...

    @overload
    def __call__(self, image: ImageLike, tasks: str | Iterable[str] | None = None) -> dict[str, np.ndarray]: ...

    def __call__(
        self, image: ImageLike | list[ImageLike] | tuple[ImageLike, ...], tasks: str | Iterable[str] | None = None
    ) -> dict[str, np.ndarray] | list[dict[str, np.ndarray]]:
        """The prediction of each task (default: all that the file has), as arrays of the image's own size.

        A list of images gives a list of results, as ``Predictor`` does.
        Raises ``MistakeError`` for an unreadable image, an unknown task, a prediction that is not what its task means
        (``mtlsi.prediction.graph_results``), or, of a file that takes images at the network's size, for sides that are not
        multiples of 4.
        """
        if not isinstance(tasks, str | Iterable | None):
            raise MistakeError(f"tasks {shortened(tasks)}; expected some of {', '.join(self.tasks)}")
        names = check_tasks(self.tasks if tasks is None else tasks, among=self.tasks)
        if isinstance(image, list | tuple):
            return [self(one, names) for one in image]
        pixels = as_pixels(image)
        if not self.resizes and any(side % 4 for side in pixels.shape[:2]):
            raise MistakeError(
                f"an image of {pixels.shape[0]}x{pixels.shape[1]}; expected sides that are multiples of 4, since the model "
                "was exported with --no-resize: resize the image first"
            )
        try:
            results = self.session.run(list(names), {"image": np.ascontiguousarray(pixels)[None]})
        except Exception as error:  # onnxruntime's own exceptions share no base but this
            raise MistakeError(f"{self.path}: does not run ({message_of(error, 200)}); export it again") from error
        predictions = {}
        for task, result in zip(names, results, strict=True):
            try:
                predictions[task] = checked_result(task, result, pixels.shape[:2], self.classes)
            except MistakeError as error:
                raise MistakeError(f"{self.path}: {error}; export the model again with mtlsi export") from error
        return predictions if self.share == 1 else dict(multiplied(predictions, self.share))

    def maps(self, image: ImageLike, tasks: str | Iterable[str] | None = None) -> Mapping[str, np.ndarray]:
        """What a call gives: a graph makes all of its maps at once."""
        return self(image, tasks)


def open_session(path: FilePath, num_threads: int | None = None) -> tuple[Any, str]:
    """onnxruntime's session on a CPU, of the bytes that were looked at, and their digest.

    Raises ``MistakeError`` where it is not installed or cannot read the file, for one with weights in other files, and for a
    number of threads that is none.
    """
    if not isinstance(path, str | os.PathLike) or not os.path.isfile(path):
        raise MistakeError(f"{path}: not there; expected a file that mtlsi export wrote")
    if num_threads is not None and (type(num_threads) is not int or not 1 <= num_threads <= MOST_THREADS):
        raise MistakeError(f"num_threads {shortened(num_threads)}; expected 1..{MOST_THREADS}, or None")
    if find_spec("onnxruntime") is None:
        raise MistakeError("onnxruntime is not installed, which .onnx files need; pip install 'mtlsi[export]'")
    import onnxruntime

    content = read_content(Path(path), MOST_BYTES)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.add_session_config_entry("session.load_model_format", "ONNX")  # not guessed from the content
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    try:
        whole = not names_other_files(content)
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"]) if whole else None
    except Exception as error:  # onnxruntime's own exceptions share no base but this
        raise MistakeError(f"{path}: onnxruntime cannot read it ({message_of(error, 200)}); export it again") from error
    if session is None:
        raise MistakeError(
            f"{path}: has weights in other files, which are not followed; expected one that mtlsi export wrote"
        )
    return session, blake2b(content, digest_size=8).hexdigest()


def predictor_from_command(options: PredictOptions) -> GraphPredictor:
    """The predictor for ``mtlsi predict --model FILE.onnx``; ``MistakeError`` for flags that only PyTorch has."""
    for flag, given in (
        ("--device", options.device not in (None, "cpu")),
        ("--dtype", options.dtype != "float32"),
        ("--compile", options.compile),
        ("--tiles", options.tiles not in ("none", "1x1")),
        ("--plugin", bool(options.plugin)),
    ):
        if given:
            raise MistakeError(f"{flag} with {options.model}, which runs as it was exported; leave the flag out")
    return GraphPredictor(options.model)
