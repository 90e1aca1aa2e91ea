"""One labelled image as a picture needs it: itself, what a network predicts for it, and its labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mtlsi.config import DataConfig
from mtlsi.data.batches import evaluation_batches
from mtlsi.data.datasets import LabelledImages
from mtlsi.evaluation.evaluate import shared_tasks
from mtlsi.evaluation.protocols import cut_back, padded, showing_by
from mtlsi.kinds import decode
from mtlsi.model.network import MTLSINet
from mtlsi.nn.layout import resize_maps


@dataclass(frozen=True)
class OneImage:
    """Maps by task, those of both dictionaries at the labels' size."""

    photo: np.ndarray
    """(H W 3) uint8."""
    predicted: dict[str, np.ndarray]
    truth: dict[str, np.ndarray]


@torch.no_grad()
def predict_image(network: MTLSINet, dataset: LabelledImages, config: DataConfig, index: int) -> OneImage:
    """The image ``index``, shown to ``network`` (in evaluation mode) as ``evaluate`` shows it; the tasks that both know."""
    tasks, device = shared_tasks(network, dataset), next(network.parameters()).device
    ((sample,),) = evaluation_batches(dataset, config, [index])
    image, box = padded(sample["image"], showing_by(config).pad_hw, f"{index}")
    raw = {task: cut_back(x, box) for task, x in network(image[None].to(device), tasks).final.items()}
    return OneImage(
        dataset[index]["image"].permute(1, 2, 0).numpy(),
        {t: decode(t, resize_maps(x.float(), sample[t].shape[-2:]))[0].cpu().numpy() for t, x in raw.items()},
        {task: sample[task].numpy() for task in tasks},
    )
