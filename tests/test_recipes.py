"""The recipes that ship, and the script that trains each of them two steps."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mtlsi.config import RunConfig
from mtlsi.data.scenes.dataset import LABEL_SETS
from mtlsi.model.build import create_model
from mtlsi.sizes import PRESETS
from mtlsi.tasks import TASK_SETS

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
OF_THE_BENCHMARKS = (
    "swin_tiny", "swin_large", "hrnet_w18", "vit_large", "convnext_tiny", "dinov3_vits16", "dinov2_vitb14",
)  # fmt: skip


def head_of(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    return lines[: next(i for i, line in enumerate(lines) if not line.startswith("# "))]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("step_recipes", ROOT / "benchmarks" / "step_recipes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["step_recipes"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def configs(script) -> dict[str, RunConfig]:
    return {path.stem: script.read_recipe(path) for path in RECIPES}


def has_a_twin(path: Path) -> bool:
    """Whether another recipe has the same network, of the other benchmark's tasks or all of it trained.

    Of those of PASCAL-Context one, of a small network, runs all the same.
    """
    of_pascal = path.stem.startswith("pascal_") and path.stem != "pascal_convnext_tiny"
    return of_pascal or path.stem.endswith("_frozen")


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if has_a_twin(path) else []) for path in RECIPES],
)
def test_a_recipes_network_runs_at_its_crop_size(path, configs, script):
    """On the meta device: every operation runs, none computes."""
    config = configs[path.stem]
    with torch.device("meta"):
        output = script.network_of(config)(torch.zeros(1, 3, *config.data.size_hw))
    assert tuple(output.final) == LABEL_SETS[script.label_set(config)]
    assert {x.shape[2:] for x in output.final.values()} == {config.data.size_hw}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_head_says_how_to_run_it_what_it_costs_and_what_it_scores(path):
    head = head_of(path)
    assert head[0].endswith(".")
    assert f"# Command: mtlsi train --config recipes/{path.name} " in head[1]
    text = "\n".join(head[2:])
    assert re.search(r"^# Cost\b.*:", text, re.MULTILINE)
    assert re.search(r"\b[Ss]core\b.*:", text)


def test_every_preset_of_the_network_has_a_recipe_and_the_large_ones_have_one_for_each_benchmark(configs):
    own = {name for name, sizes in PRESETS.items() if sizes.decoder == "mtlsi"}
    assert own == {config.preset for config in configs.values()}
    for preset in OF_THE_BENCHMARKS:
        for data in ("nyud", "pascal"):
            config = configs[f"{data}_{preset}"]
            assert (config.preset, config.data.name) == (preset, data)
            assert config.data.size_hw == TASK_SETS[data].size_hw
            assert config.backbone_weights == "pretrained"


@pytest.mark.parametrize("data", ["nyud", pytest.param("pascal", marks=pytest.mark.slow)])
def test_a_frozen_backbone_keeps_timms_weights_and_trains_the_rest(data, configs, script):
    frozen, trained = (script.count(configs[f"{data}_dinov2_vitb14{end}"]) for end in ("_frozen", ""))
    with torch.device("meta"):
        body = create_model("dinov2_vitb14", dataset=data).backbone.body
    assert trained.trained == trained.parameters == frozen.parameters
    assert frozen.parameters - frozen.trained == sum(p.numel() for p in body.parameters())
    assert frozen.kept_bytes < trained.kept_bytes
    assert frozen.step_flops < trained.step_flops == 3 * trained.flops


def test_recipes_of_one_network_differ_between_the_benchmarks_in_their_data_alone():
    for preset in OF_THE_BENCHMARKS:
        nyud, pascal = (
            {line for line in (ROOT / "recipes" / f"{data}_{preset}.yaml").read_text().splitlines() if line[0] != "#"}
            for data in ("nyud", "pascal")
        )
        assert nyud ^ pascal == {
            "  name: nyud", "  size_hw: [448, 576]", "  name: pascal", "  size_hw: [512, 512]",
        }  # fmt: skip


def test_what_is_kept_for_the_backward_pass_is_counted_once_and_without_weights(script):
    class Squares(torch.nn.Linear):
        """Keeps its input for the weight's gradient, and the product twice: once as a view."""

        def forward(self, images, *, full_size):
            assert full_size
            y = super().forward(images)
            z = (y * y.view_as(y)).sum()
            return type("Output", (), {"final": {"a": z}, "coarse": {"a": z}})

    with torch.device("meta"):
        kept = script.kept_bytes(Squares(8, 16, bias=False), torch.zeros(10, 8), full_size=True)
    assert kept == 4 * (10 * 8 + 10 * 16)


def test_the_script_steps_a_recipe_and_names_those_that_fail(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["step_recipes.py", "--only", "scenes_small", "nyud_mobilenetv2_100"])
    steps = script.two_steps

    def broken(config: RunConfig) -> list[float]:
        if config.preset == "mobilenetv2_100":
            raise RuntimeError("no\nmemory")
        return steps(config)

    monkeypatch.setattr(script, "two_steps", broken)
    assert script.main() == 1
    said = capsys.readouterr()
    small, mobilenet = said.out.splitlines()
    assert re.fullmatch(r"scenes_small: 0\.37 M parameters; .*losses [\d.]+, [\d.]+ \(finite\) in \d+ s", small)
    assert mobilenet == "nyud_mobilenetv2_100: FAILED: no memory"
    assert said.err == "failed: nyud_mobilenetv2_100\n"
