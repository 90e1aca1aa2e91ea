from __future__ import annotations

import json
import sys

import pytest
import yaml

from mtlsi.cli import main
from mtlsi.data import datasets
from mtlsi.errors import MistakeError
from mtlsi.plugins import import_plugins, settle_plugins
from mtlsi.run_folder import load_config

DATA = """
import mtlsi
from mtlsi.config import DataConfig
from mtlsi.data.datasets import open_dataset

def rooms(root, split, tasks=None):
    config = DataConfig(num_train=3, num_val=2, size_hw=(64, 64), image_hw=(64, 64), tasks=tasks)
    return open_dataset(config, split)

mtlsi.register_dataset("mine_for_tests", rooms, signs=("rooms.txt",))
"""


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """What a test imports and registers is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(datasets, "READERS", {**datasets.READERS})
    monkeypatch.setattr(datasets, "SIGNS", {**datasets.SIGNS})
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("plugin_"):
            del sys.modules[name]


def test_a_file_and_a_dotted_name_are_imported_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "plugin_one.py").write_text("print('one')")
    (tmp_path / "plugin_pack").mkdir()
    (tmp_path / "plugin_pack/part.py").write_text("print('part')")
    import_plugins([str(tmp_path / "plugin_one.py"), "plugin_pack.part", str(tmp_path / "plugin_one.py")])
    assert capsys.readouterr().out.split() == ["one", "part"]
    monkeypatch.chdir(tmp_path)
    assert settle_plugins(["plugin_one.py", "plugin_pack.part"]) == (
        str(tmp_path / "plugin_one.py"),
        "plugin_pack.part",
    )


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("plugin_none.py", None, "plugin .*plugin_none.py: no such file"),
        ("plugin_broken.py", "def", "SyntaxError"),
        ("plugin_fails.py", "1 / 0", "ZeroDivisionError"),
        ("json.py", "", "another module is called json already; rename"),
    ],
)
def test_a_module_that_is_missing_or_fails_is_a_mistake_in_one_line(tmp_path, file, text, told):
    if text is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(MistakeError, match=told) as caught:
        import_plugins([str(tmp_path / file)])
    assert "\n" not in str(caught.value)


def test_a_dotted_name_that_is_not_there_is_a_mistake():
    with pytest.raises(MistakeError, match=r"plugin no_such\.module cannot be imported"):
        import_plugins(["no_such.module"])


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--out", "run"],
        ["evaluate", "nyud-mobilenetv2"],
        ["predict", "photo.jpg"],
        ["benchmark", "--model", "tiny"],
    ],
)
def test_every_verb_that_takes_plugins_refuses_a_missing_one_in_one_line(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--plugin", "nowhere.py"]) == 2
    assert capsys.readouterr().err.startswith("mtlsi: plugin nowhere.py: no such file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("undrawn")
def test_a_data_set_of_a_plugin_is_trained_and_measured_on(tmp_path, capsys):
    plugin, out = tmp_path / "plugin_data.py", tmp_path / "run"
    plugin.write_text(DATA)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/rooms.txt").touch()
    options = {
        "data": {"name": "mine_for_tests", "root": str(tmp_path / "data"), "tasks": "depth,normals", "num_workers": 0},
        "train": {"iterations": 1, "batch_size": 2, "precision": "fp32"},
    }
    options["data"] |= {"size_hw": [64, 64], "image_hw": [64, 64]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(options))
    assert main(["train", "--config", str(tmp_path / "mine.yaml"), "--plugin", str(plugin), "--out", str(out)]) == 0
    assert datasets.recognise(tmp_path / "data") == "mine_for_tests"
    config = load_config(out)
    assert config.plugins == (str(plugin),)
    assert (config.data.tasks, config.train.precision) == (("depth", "normals"), "float32")

    del sys.modules["plugin_data"]  # a new process knows nothing of it
    del datasets.READERS["mine_for_tests"]
    capsys.readouterr()
    scores = tmp_path / "scores.json"
    command = [
        "evaluate",
        str(out),
        "--data",
        "mine_for_tests",
        "--root",
        str(tmp_path / "data"),
        "--json",
        str(scores),
    ]
    assert main(command) == 2
    assert "plugin_data" not in sys.modules  # a run folder alone runs no code
    assert f"give --plugin {plugin} to run its code" in capsys.readouterr().err.replace("\n", "")
    assert main([*command, "--plugin", str(plugin)]) == 0
    assert json.loads(scores.read_text())["images"] == 2


def test_built_in_data_sets_are_not_replaced():
    for name in ("scenes", "nyud"):
        with pytest.raises(MistakeError, match="built in"):
            datasets.register_dataset(name, lambda *_, **__: None)  # type: ignore[arg-type]


DECODER = """
from torch import nn

import mtlsi


class OneConvolution(nn.Module):
    def __init__(self, spec):
        super().__init__()
        channels = spec.map_channels[0]
        self.of_task = nn.ModuleDict({task: nn.Conv2d(channels, out, 1) for task, out in spec.outputs.items()})

    def forward(self, maps):
        return {task: layer(maps[0]) for task, layer in self.of_task.items()}, {}


mtlsi.register_decoder("one_convolution_of_a_plugin", OneConvolution)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("small_rates")
def test_a_decoder_of_a_plugin_is_benchmarked_also_in_a_process_of_its_own(tmp_path, capsys):
    plugin, out = tmp_path / "plugin_decoder.py", tmp_path / "report.json"
    plugin.write_text(DECODER)
    command = [
        "benchmark",
        "--model",
        "tiny",
        "--change",
        '{"decoder": "one_convolution_of_a_plugin", "backbone": "test_efficientnet"}',
        "--size",
        "64",
        "64",
    ]
    command += ["--batches", "1", "--repeats", "1", "--modes", "eager,exported", "--train", "--plugin", str(plugin)]
    assert main([*command, "--json", str(out)]) == 0, capsys.readouterr().err
    report = json.loads(out.read_text())
    assert report["failed"] == []
    assert [part["part"] for part in report["parts"]] == ["backbone", "of_task", "resizing and rest"]
    assert report["parts"][1]["gflop"] > 0
