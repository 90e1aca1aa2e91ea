"""MTLSI-Net: one RGB image in; semantic segmentation, depth, normals, boundaries, saliency and human parts out.

``import mtlsi`` is light: a public name is imported from its module on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mtlsi.version import __version__ as __version__

if TYPE_CHECKING:
    from mtlsi.config import RunConfig
    from mtlsi.data.datasets import register_dataset
    from mtlsi.errors import MistakeError
    from mtlsi.evaluation.diagnose import diagnose
    from mtlsi.evaluation.evaluate import evaluate
    from mtlsi.kinds import decode
    from mtlsi.model.build import create_model
    from mtlsi.model.decoders import register_decoder
    from mtlsi.model.network import MTLSINet
    from mtlsi.nn.normalise import normalise
    from mtlsi.prediction.predictor import Predictor
    from mtlsi.sizes import ModelConfig
    from mtlsi.studies.study import study
    from mtlsi.tasks import Task, register_task
    from mtlsi.training.loop import train

_HOMES = {
    "MTLSINet": "mtlsi.model.network",
    "create_model": "mtlsi.model.build",
    "decode": "mtlsi.kinds",
    "Task": "mtlsi.tasks",
    "register_task": "mtlsi.tasks",
    "register_decoder": "mtlsi.model.decoders",
    "Predictor": "mtlsi.prediction.predictor",
    "ModelConfig": "mtlsi.config",
    "RunConfig": "mtlsi.config",
    "MistakeError": "mtlsi.errors",
    "train": "mtlsi.training.loop",
    "study": "mtlsi.studies.study",
    "evaluate": "mtlsi.evaluation.evaluate",
    "diagnose": "mtlsi.evaluation.diagnose",
    "normalise": "mtlsi.nn.normalise",
    "register_dataset": "mtlsi.data.datasets",
}
"""The module of every public name."""

__all__ = [
    "MTLSINet",
    "MistakeError",
    "ModelConfig",
    "Predictor",
    "RunConfig",
    "Task",
    "create_model",
    "decode",
    "diagnose",
    "evaluate",
    "normalise",
    "register_dataset",
    "register_decoder",
    "register_task",
    "study",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mtlsi' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
