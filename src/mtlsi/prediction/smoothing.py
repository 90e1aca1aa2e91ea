"""The frames of a clip predicted one after the other, what was seen before smoothing what is seen now.

Two running means, each with a share of its own that is kept from frame to frame:

- the fusion's context, before it is attended to (``RunningContext``);
- the raw outputs, R_t = a R_(t-1) + (1 - a) R(frame t), pixel by pixel, before they are decoded: metres, logits and normals
  of any length. Resizing is linear, so it does not matter that they are averaged on the network's grid. Nothing is warped:
  what moves leaves a trace.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from mtlsi.errors import MistakeError
from mtlsi.kinds.colouring import Colour
from mtlsi.model.network import Output, check_context
from mtlsi.model.running_context import RunningContext, checked_share, mean_with
from mtlsi.prediction.camera import TrainingCamera
from mtlsi.prediction.images import ImageLike, as_pixels
from mtlsi.prediction.predictor import Predictor
from mtlsi.prediction.recorded import RecordedNetwork
from mtlsi.prediction.tiles import NO_TILES, TiledPredictor

if TYPE_CHECKING:
    from mtlsi.prediction.contract import PredictsImages


class Smoothed:
    """Predicts the frames of one clip in their order: ``Smoothed(Predictor(model), outputs=0.5)(frame)``.

    ``context`` and ``outputs``, in [0, 1), are the shares that the two running means keep; with 0 and 0 it is the predictor
    itself. The state is this object's own: a predictor may serve several clips at once, each through a ``Smoothed`` of its
    own, in a thread of its own. ``reset`` begins another clip, and so does a frame of another size.
    Raises ``MistakeError`` for other shares, an exported graph, tiles, and ``context`` with a decoder that has none.
    """

    def __init__(self, predictor: PredictsImages, *, context: float = 0.0, outputs: float = 0.0):
        self.context, self.outputs = checked_share(context, "context"), checked_share(outputs, "outputs")
        if not isinstance(predictor, Predictor):
            raise MistakeError(
                "an exported graph gives finished predictions, which are not smoothed; give a PyTorch model"
            )
        if isinstance(predictor, TiledPredictor) and predictor.tiles != NO_TILES:
            raise MistakeError("frames in tiles are not smoothed; leave out one of tiles and smoothing")
        if self.context:
            check_context(getattr(predictor.model, "decoder", predictor.model))  # a network of one's own may have none
        self._running = RunningContext(self.context)
        self._options: dict[str, Any] = {"context": self._follow(predictor)} if self.context else {}
        self._mean: dict[str, torch.Tensor] = {}
        self._size_hw: tuple[int, ...] | None = None
        self._network = predictor.network
        self._predictor = copy.copy(predictor)
        self._predictor.network = self._smoothed

    def reset(self) -> None:
        """The next frame is a clip's first."""
        self._running.reset()
        self._mean = {}

    def __call__(self, image: ImageLike, tasks: str | Iterable[str] | None = None) -> dict[str, np.ndarray]:
        """The prediction of each task for the next frame, as ``Predictor`` gives it for one image.

        A frame that is no image raises ``MistakeError`` and leaves the clip as it was; one of whose predictions some are
        not finite ends it.
        """
        pixels = as_pixels(image)
        if pixels.shape != self._size_hw:
            self.reset()
        self._size_hw = pixels.shape
        try:
            return self._predictor(self._predictor.once_read(image, pixels), tasks)
        except MistakeError:
            self.reset()
            raise

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the model has."""
        return self._predictor.tasks

    @property
    def classes(self) -> Mapping[str, Sequence[str]]:
        """The class names of each task that has classes."""
        return self._predictor.classes

    @property
    def colours(self) -> Mapping[str, Sequence[Colour]]:
        """The colours of the classes, by task, where the training set chose them."""
        return self._predictor.colours

    @property
    def training_camera(self) -> TrainingCamera | None:
        """The camera of the images that the model was trained on, where that is known."""
        return self._predictor.training_camera

    @property
    def identity(self) -> str:
        """Differs where the predictions for the same clip would."""
        return f"{self._predictor.identity} context {self.context} outputs {self.outputs}"

    def _follow(self, predictor: Predictor) -> Callable[..., Any]:
        """The running context, kept out of a compiled network's graphs, whose buffers the next frame overwrites."""
        compiled = not isinstance(predictor.network, nn.Module | RecordedNetwork)
        return torch.compiler.disable(self._running.__call__) if compiled else self._running

    def _smoothed(self, images: torch.Tensor, **options: Any) -> Output:
        """In the network's place."""
        output = self._network(images, **options, **self._options)
        if self.outputs:
            self._mean = {
                task: mean_with(self._mean.get(task), raw, self.outputs) for task, raw in output.final.items()
            }
            output.final = self._mean
        return output
