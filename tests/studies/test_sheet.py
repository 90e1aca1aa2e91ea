"""The sheets of a study as files."""

from __future__ import annotations

import os
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from mtlsi.config import DataConfig, RunConfig
from mtlsi.errors import MistakeError
from mtlsi.evaluation.one_image import OneImage
from mtlsi.studies import sheet
from mtlsi.studies.plan import Plan, StudyRun, Variant
from mtlsi.studies.sheet import check_names, draw_sheet, write_sheets


def test_sheets_of_long_and_of_like_names_are_files_of_their_own(tmp_path, monkeypatch):
    run = SimpleNamespace(variant=SimpleNamespace(name="heads"), seed=0)
    plan: Any = SimpleNamespace(runs=lambda _: [run], seeds=(0,), baseline={})
    monkeypatch.setattr(sheet, "state_of", lambda _: sheet.FINISHED)
    monkeypatch.setattr(sheet, "draw_sheet", lambda *_: np.zeros((2, 2, 3), np.uint8))
    deep = "/".join(["camera_2024-05-01T12-33-11_of_the_long_corridor"] * 7)
    names, said = [f"{deep}/1", f"{deep}/2", "a/b", "a_b", "scene/1", "scene/1"], StringIO()
    write_sheets(plan, tmp_path, names, Console(file=said, width=1000), (".png", ".pdf"))
    files = sorted(os.listdir(tmp_path))
    assert len(files) == 2 * 5
    assert {"sheet_scene_1.png", "sheet_scene_1.pdf"} <= {*files}
    assert all(f"sheet: {tmp_path / file}" in said.getvalue().splitlines() for file in files)


def classes_of(*names: str) -> dict:
    return {"classes": {"semseg": names}, "colours": {}}


NYUD, PASCAL = classes_of("wall", "floor"), classes_of("cat", "dog")
RECOLOURED = NYUD | {"colours": {"semseg": ((1, 2, 3), (4, 5, 6))}}


@pytest.mark.parametrize(
    ("networks", "blocks"),
    [
        ({"a": ("nyud", NYUD), "b": ("nyud", NYUD)}, ["a, b"]),
        ({"a": ("nyud", NYUD), "b": ("pascal", PASCAL), "c": ("nyud", NYUD)}, ["a, c", "b"]),
        ({"a": ("nyud", NYUD), "b": ("nyud", PASCAL)}, ["a", "b"]),
        ({"a": ("nyud", NYUD), "b": ("nyud", RECOLOURED)}, ["a", "b"]),
        ({"a": ("nyud", NYUD), "b": ("pascal", NYUD)}, ["a", "b"]),
        ({"a": ("nyud", NYUD), "large": ("nyud", NYUD)}, ["a", "large"]),
    ],
)
def test_every_row_has_its_own_names_colours_and_labels(monkeypatch, networks, blocks):
    """Of variants that differ in any of them, each stands below labels of its own."""
    runs, drawn, headings = {}, {}, []
    for value, (name, (label_set, _)) in enumerate(networks.items()):
        config = RunConfig(data=DataConfig(label_set=label_set))
        runs[name] = StudyRun(Variant(name, config), value, Path(name))

    def predict(network, dataset, config, index):  # noqa: ARG001
        side, label = (4, 2)[network.name != "large"], (0, 7)[config.label_set == "pascal"]
        maps = {"semseg": np.full((side, side), label, np.uint8)}
        return OneImage(
            np.zeros((side, side, 3), np.uint8), {"semseg": np.full((side, side), ord(network.name[0]))}, maps
        )

    def rows_panel(photo, rows, classes, *, scale_of, colours):
        names = [name for name in rows if name != scale_of]
        for name in names:
            assert rows[name]["semseg"][0, 0] == ord(name[0])
            drawn[name] = (classes, colours, rows[scale_of]["semseg"], photo.shape[0])
        return np.zeros((8, 80, 3), np.uint8)

    def below_one_another(parts):
        headings.extend(parts)
        return np.concatenate([part for (part,) in parts.values()])

    def opened(out):
        network = SimpleNamespace(name=out.name, **networks[out.name][1])
        network.to = network.eval = lambda *_: network
        return network

    monkeypatch.setattr(sheet, "predict_image", predict)
    monkeypatch.setattr(sheet, "index_of", lambda *_: 0)
    monkeypatch.setattr(sheet.MTLSINet, "from_pretrained", opened)
    monkeypatch.setattr(sheet.panels, "rows_panel", rows_panel)
    monkeypatch.setattr(sheet.panels, "sheet", below_one_another)
    assert draw_sheet(runs, "x").shape == (8 * len(blocks), 80, 3)
    for name, (label_set, facts) in networks.items():
        classes, colours, truth, side = drawn[name]
        assert (classes, colours) == (facts["classes"], facts["colours"])
        assert truth.shape[0] == side == (4, 2)[name != "large"]
        assert truth[0, 0] == (0, 7)[label_set == "pascal"]
    assert [heading.partition(":")[0] for heading in headings] == (blocks if len(blocks) > 1 else [])


def test_a_name_that_is_missing_in_the_data_of_any_variant_is_told_first():
    variants = tuple(Variant(str(n), RunConfig(data=DataConfig(num_val=n))) for n in (3, 2))
    plan = Plan("", "", variants, (0,), {}, ())
    check_names(plan, ["scene_0_1000001"])
    with pytest.raises(MistakeError, match="--sheet scene_0_1000002: no such validation image"):
        check_names(plan, ["scene_0_1000002"])
