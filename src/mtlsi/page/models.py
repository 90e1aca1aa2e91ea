"""The models that the page offers, loaded when they are first asked for."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from mtlsi.errors import MistakeError
from mtlsi.model.network import MTLSINet
from mtlsi.model.pretrained import ALIASES, packaged_models
from mtlsi.prediction.predictor import Predictor, Size

LOADED = 3
"""Models held in memory; the one that was not asked for longest is dropped."""
SCALES = {"Small: fast": 0.5, "As trained": 1.0, "Large: fine detail": 1.5}
"""What the sides of the training size are multiplied by, by what the page calls it."""
AS_TRAINED = "As trained"


class Models:
    """The models by name: those given, then the packaged ones. One may be used by several threads.

    The first is loaded at once. Raises ``MistakeError`` where it cannot be.
    """

    def __init__(self, given: Sequence[str], *, device: str | None = None, dtype: str = "float32"):
        given = [ALIASES.get(name, name) for name in given]
        self.names = list(dict.fromkeys([*given, *packaged_models()]))
        self._device, self._dtype = device, dtype
        self._loaded: OrderedDict[str, Predictor] = OrderedDict()
        self._lock = Lock()
        for name in given or self.names[:1]:
            self.predictor(name)

    def predictor(self, name: str, scale: str = AS_TRAINED) -> Predictor:
        """The predictor of a model at one of ``SCALES``. Raises ``MistakeError`` for a model that is not offered.

        What is asked for comes from a browser: no other folder is opened, whatever its name.
        """
        if name not in self.names or scale not in SCALES:
            raise MistakeError(
                f"model {name!r}, working size {scale!r}: not offered here; choose one of the page's own"
            )
        with self._lock:
            if name not in self._loaded:
                model = MTLSINet.from_pretrained(name)
                self._loaded[name] = Predictor(model, device=self._device, dtype=self._dtype)
            self._loaded.move_to_end(name)
            while len(self._loaded) > LOADED:
                self._loaded.popitem(last=False)
            predictor = self._loaded[name]
        return _at(predictor, _scaled(predictor.model.input_size, SCALES[scale]))

    def tasks(self, name: str) -> tuple[str, ...]:
        """The tasks of a model."""
        return tuple(self.predictor(name).model.tasks)


def _at(predictor: Predictor, working_size: Size) -> Predictor:
    """The same network at another working size."""
    resized = copy.copy(predictor)
    resized.working_size = working_size
    return resized


def _scaled(size_hw: Size, factor: float) -> Size:
    return round(size_hw[0] * factor), round(size_hw[1] * factor)
