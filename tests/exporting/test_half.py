from __future__ import annotations

from io import StringIO

import numpy as np
import pytest
import torch
from rich.console import Console

from mtlsi.errors import MistakeError
from mtlsi.exporting.export import export
from mtlsi.model.build import create_model
from mtlsi.options.using import ExportOptions
from mtlsi.prediction.graph import GraphPredictor


@pytest.mark.slow
def test_half_precision_of_some_tasks_at_the_networks_own_size(tmp_path):
    """A network without interaction on timm's smallest backbone, which is traced in seconds."""
    torch.manual_seed(0)
    sizes = {"decoder": "heads_only", "backbone": "test_efficientnet"}
    model = create_model("tiny", dataset="nyud", input_size=(64, 96), **sizes).eval()
    model.save_pretrained(tmp_path / "model")
    options = ExportOptions(
        str(tmp_path / "model"), out=tmp_path / "m.onnx", tasks="semseg,depth", dtype="fp16", resize=False
    )
    export(options, console=Console(file=StringIO()))
    reader = GraphPredictor(tmp_path / "m.onnx")
    assert reader.tasks == ("semseg", "depth")
    found = reader(np.zeros((64, 100, 3), np.uint8))
    assert found["depth"].shape == (64, 100)
    assert found["depth"].dtype == np.float32
    with pytest.raises(MistakeError, match="an image of 63x100; expected sides that are multiples of 4"):
        reader(np.zeros((63, 100, 3), np.uint8))
