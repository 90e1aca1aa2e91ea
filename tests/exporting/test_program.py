from __future__ import annotations

from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch
from rich.console import Console

from full_disk import files_of_at_most
from mtlsi import decode, normalise
from mtlsi.errors import MistakeError
from mtlsi.exporting.export import export
from mtlsi.model.build import create_model
from mtlsi.options.using import ExportOptions


@pytest.mark.slow
def test_a_program_runs_at_other_sizes(tmp_path):
    """A network without interaction on timm's smallest backbone, which is traced in seconds."""
    torch.manual_seed(0)
    sizes = {"decoder": "heads_only", "backbone": "test_efficientnet"}
    model = create_model("tiny", dataset="nyud", input_size=(64, 96), **sizes).eval()
    model.save_pretrained(tmp_path / "model")
    options = ExportOptions(str(tmp_path / "model"), out=tmp_path / "m.pt2", format="program")
    export(options, console=Console(file=StringIO()))
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 96, 64, 3), np.uint8))
    found = torch.export.load(tmp_path / "m.pt2").module()(images)
    with torch.no_grad():
        raw = model(normalise(images.permute(0, 3, 1, 2))).final
    assert tuple(found) == model.tasks
    for task, x in raw.items():
        expected = decode(task, x)
        expected = expected.permute(0, 2, 3, 1) if expected.dim() == 4 else expected
        torch.testing.assert_close(found[task], expected, atol=1e-4, rtol=1e-4)
    full = replace(options, out=tmp_path / "full.pt2")
    with files_of_at_most(10_000), pytest.raises(MistakeError, match=r"cannot write .*full\.pt2"):
        export(full, console=Console(file=StringIO()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pt2", "model"]
