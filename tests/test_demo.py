from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from mtlsi import demo
from mtlsi.data.datasets import constant_predictions, open_dataset
from mtlsi.errors import MistakeError
from mtlsi.evaluation.constant import Constant
from mtlsi.evaluation.evaluate import evaluate
from mtlsi.evaluation.report import headline
from mtlsi.evaluation.subject import data_config
from mtlsi.kinds import decode
from mtlsi.model.network import MTLSINet
from mtlsi.options.measuring import EvaluateOptions
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
def test_demo_compares_three_models_and_writes_what_it_promises(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "SHOWN", ())
    scores = demo.run_demo(tmp_path / "out", iterations=2)
    assert list(scores) == ["trained", "untrained", "constant"]
    for of_model in scores.values():
        assert set(headline(of_model)) == set(TASK_SETS["nyud"].tasks)
    for name in ("demo.json", "curves.png", "config.yaml", "config.json", "model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    assert len(list((tmp_path / "out" / "samples").glob("*.png"))) == 3
    with pytest.raises(MistakeError, match="holds a run already"):
        demo.run_demo(tmp_path / "out", iterations=2)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_the_packaged_models_come_first_and_nothing_need_be_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "NUM_ROOMS", 2)
    said = StringIO()
    assert demo.run_demo(tmp_path / "out", iterations=0, console=Console(file=said, width=100)) == {}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(f"{name}.png" for name in demo.SHOWN)
    for name in demo.SHOWN:
        network = MTLSINet.from_pretrained(name)
        config = replace(data_config(EvaluateOptions(name, data="scenes"), network), num_val=2)
        scores = headline(evaluate(network, open_dataset(config, "val"), config))
        for value in scores.values():
            assert f"{value:.4g}" in said.getvalue()
        with Image.open(tmp_path / "out" / f"{name}.png") as sheet:
            assert min(sheet.size) > 300


def test_what_cannot_be_is_refused_before_anything_is_done(tmp_path):
    with pytest.raises(MistakeError, match="expected 0, to train nothing, or more"):
        demo.run_demo(tmp_path / "out", iterations=-1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "iterations"), [(f"{demo.SHOWN[-1]}.png", 0), ("demo.json", 2)])
def test_a_folder_where_a_file_goes_is_refused_before_anything_is_measured(tmp_path, monkeypatch, name, iterations):
    def measured(*_):
        raise AssertionError

    monkeypatch.setattr(demo, "show_packaged", measured)
    (tmp_path / name).mkdir()
    with pytest.raises(MistakeError, match=f"{name} is a folder, where a file is to be written"):
        demo.run_demo(tmp_path, iterations=iterations)
