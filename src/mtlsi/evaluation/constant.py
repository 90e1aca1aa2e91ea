"""The best that can be said without looking: the same prediction for every image."""

from __future__ import annotations

from torch import Tensor, nn

from mtlsi import kinds
from mtlsi.data.datasets import LabelledImages, constant_predictions
from mtlsi.model.network import Output
from mtlsi.tasks import num_channels


class Constant(nn.Module):
    """A model that ignores the image: raw predictions that decode to each task's best constant in ``dataset``."""

    def __init__(self, dataset: LabelledImages):
        super().__init__()
        self.tasks, self.classes = dataset.tasks, dataset.classes
        self.constants = constant_predictions(dataset)

    def forward(self, images: Tensor, tasks: tuple[str, ...], *, full_size: bool = True) -> Output:
        """Constant raw predictions: (b channels H W) with ``full_size``, else (b channels 1 1), which fit any size."""
        size = images.shape[-2:] if full_size else (1, 1)
        return Output({task: self.raw(task).expand(len(images), -1, *size) for task in tasks}, {})

    def raw(self, task: str) -> Tensor:
        """The constant of ``task`` as raw channels (1 channels 1 1)."""
        raw = kinds.of(task).raw_constant(self.constants[task], num_channels(task, self.classes))
        return raw.view(1, -1, 1, 1)
