"""From a preset's name to a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mtlsi.config import RESIZES
from mtlsi.errors import MistakeError
from mtlsi.model.forms import spelt_out
from mtlsi.model.network import MTLSINet
from mtlsi.sizes import sizes_of
from mtlsi.tasks import TASK_SETS, check_tasks, own_records


def create_model(
    preset: str,
    *,
    dataset: str = "nyud",
    tasks: Sequence[str] | str | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
    input_size: Sequence[int] | None = None,
    pretrained_backbone: bool = False,
    colours: Mapping[str, Sequence[Sequence[int]]] | None = None,
    camera: Mapping[str, Any] | None = None,
    resize: str = RESIZES[0],
    **sizes: Any,
) -> MTLSINet:
    """A network with the sizes of ``preset`` for the tasks and classes of ``dataset`` (nyud or pascal).

    ``tasks`` and ``classes`` override the data set's; ``sizes`` are fields of ``ModelConfig`` that differ from the
    preset's, ``decoder="heads_only"`` among them. ``pretrained_backbone`` downloads timm's weights. ``colours``: an RGB
    colour per class, by task, to draw in. ``camera``: of the training images, ``focal_px`` in pixels of an image of
    ``size_hw``. ``resize``: how training brings images to ``input_size``, stretch or keep_ratio. Raises ``MistakeError``
    for unknown names.
    """
    if dataset not in TASK_SETS:
        raise MistakeError(f"unknown dataset {dataset!r}; expected one of {', '.join(TASK_SETS)}")
    task_set = TASK_SETS[dataset]
    chosen: dict[str, Any] = {}  # what is not given is not written into config.json
    if colours:
        chosen["colours"] = {task: [list(colour) for colour in row] for task, row in colours.items()}
    if camera:
        chosen["camera"] = {**camera}
    if resize != RESIZES[0]:
        chosen["resize"] = resize
    network = MTLSINet(
        list(task_set.tasks if tasks is None else check_tasks(tasks)),
        {task: list(names) for task, names in (classes or task_set.classes).items()},
        list(input_size or task_set.size_hw),
        own_tasks=own_records(task_set.tasks if tasks is None else check_tasks(tasks)),
        **chosen,
        **asdict(spelt_out(sizes_of(preset, sizes))),
    )
    if pretrained_backbone:
        network.backbone.download()
    return network
