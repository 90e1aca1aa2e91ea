"""The sheets of a study as files."""

from __future__ import annotations

import os
from io import StringIO
from types import SimpleNamespace
from typing import Any

import numpy as np
from rich.console import Console

from mtlsi.studies import sheet
from mtlsi.studies.sheet import write_sheets


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
