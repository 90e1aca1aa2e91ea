from dataclasses import replace

import numpy as np
import pytest
import torch

from mtlsi import demo
from mtlsi.data.datasets import constant_predictions, open_dataset
from mtlsi.errors import MistakeError
from mtlsi.evaluation.constant import Constant
from mtlsi.evaluation.report import headline
from mtlsi.kinds import decode
from mtlsi.tasks import TASK_SETS


@pytest.fixture
def small(monkeypatch):
    """The demo with a handful of scenes."""

    def config(iterations: int):
        whole = original(iterations)
        data = replace(whole.data, num_train=8, num_val=3, num_workers=0)
        return replace(whole, data=data, train=replace(whole.train, batch_size=2))

    original = demo.demo_config
    monkeypatch.setattr(demo, "demo_config", config)


@pytest.mark.usefixtures("small")
def test_constant_model_predicts_the_constants():
    dataset = open_dataset(demo.demo_config(1).data, "train")
    model, expected = Constant(dataset), constant_predictions(dataset)
    out = model(torch.zeros(2, 3, 8, 8), dataset.tasks)
    assert set(out.final) == set(TASK_SETS["nyud"].tasks)
    for task, raw in out.final.items():
        decoded = decode(task, raw)[1, ..., 0, 0]
        np.testing.assert_allclose(decoded.double(), expected[task].double(), atol=1e-5)


@pytest.mark.usefixtures("small")
def test_demo_compares_three_models_and_writes_what_it_promises(tmp_path):
    scores = demo.run_demo(tmp_path / "out", iterations=2)
    assert list(scores) == ["trained", "untrained", "constant"]
    for of_model in scores.values():
        assert set(headline(of_model)) == set(TASK_SETS["nyud"].tasks)
    for name in ("demo.json", "curves.png", "config.yaml", "config.json", "model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    assert len(list((tmp_path / "out" / "samples").glob("*.png"))) == 3
    with pytest.raises(MistakeError, match="holds a run already"):
        demo.run_demo(tmp_path / "out", iterations=2)


def test_no_iterations_is_refused(tmp_path):
    with pytest.raises(MistakeError, match="at least 1"):
        demo.run_demo(tmp_path / "out", iterations=0)
    assert not (tmp_path / "out").exists()
