from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mtlsi.config import DataConfig, RunConfig
from mtlsi.data.datasets import note_on_blur, open_dataset
from mtlsi.training.setup import assemble, settle


def images_of(size_hw, tasks=("semseg", "depth")) -> Any:
    class Images(list):
        pass

    images: Any = Images([{"image": torch.zeros(3, *size_hw, dtype=torch.uint8)}])
    images.tasks = tasks
    return images


@pytest.mark.parametrize(
    ("stored", "shown", "zoom", "told"),
    [
        (
            (240, 320),
            (240, 320),
            (0.7, 1.8),
            ["240x320 up to 1.8 times", "of 432x576 with --data.image_hw '[240, 320]'"],
        ),
        ((240, 320), None, (0.5, 2.0), ["240x320 up to 2 times", "of 480x640 with --data.image_hw '[240, 320]'"]),
        ((120, 160), (240, 320), (0.3, 1.0), ["120x160 up to 2 times", "of 240x320 with --data.image_hw '[240, 320]'"]),
        ((432, 576), (240, 320), (0.7, 1.8), None),  # what the first note asks for
        ((480, 640), (336, 448), (0.7, 1.8), None),  # 1.26 times
        ((240, 320), (240, 320), (0.5, 1.0), None),
        ((240, 320), (240, 320), (1.2, 1.8), None),  # everything is enlarged
    ],
)
def test_a_zoom_that_enlarges_some_images_and_not_others_is_told(stored, shown, zoom, told):
    config = DataConfig(name="folder", image_hw=shown, zoom=zoom)
    notes = note_on_blur(images_of(stored), config)
    assert len(notes) == (told is not None)
    for words in told or ():
        assert words in notes[0]
    assert note_on_blur(images_of(stored, ("semseg", "normals")), config) == ()  # which no zoom changes


@pytest.mark.parametrize(("zoom", "num_notes"), [((0.5, 2.0), 1), ((0.5, 1.0), 0)])
def test_a_run_tells_it_at_its_start(nyud_root, tiny_config, tmp_path, zoom, num_notes):
    data = DataConfig(name="nyud", root=str(nyud_root), size_hw=(32, 32), zoom=zoom, num_workers=0)
    run = assemble(settle(replace(tiny_config, data=data)), tmp_path / "run", resume=False)
    assert sum("their blur tells the zoom" in note for note in run.notes) == num_notes


def test_no_scene_to_evaluate_on_is_trained_on_however_many_there_are():
    most = DataConfig(num_train=1_000_000, num_val=1_000_000)
    RunConfig(data=most).check()
    train, val = open_dataset(most, "train"), open_dataset(most, "val")
    assert {train.name(index) for index in range(999_000, len(train))}.isdisjoint(map(val.name, range(1000)))
