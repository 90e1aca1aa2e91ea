"""The studies that ship."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtlsi.model.build import create_model
from mtlsi.model.decoders import DECODERS
from mtlsi.studies.plan import read_plan
from mtlsi.training.setup import build_criterion

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "studies"
NAMES = ("rivals", "scales", "tokens", "components", "single_task", "loss_weights", "forms", "balance")


def test_every_study_comes_for_scenes_and_for_nyud():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {
        f"{name}_{of}" for name in NAMES for of in ("scenes", "nyud")
    }


@pytest.mark.parametrize(
    "name", [name if name == "tokens" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_both_versions_compare_the_same_variants_and_every_network_can_be_built(name):
    scenes, nyud = (read_plan(FOLDER / f"{name}_{of}.yaml") for of in ("scenes", "nyud"))
    assert [variant.name for variant in scenes.variants] == [variant.name for variant in nyud.variants]
    assert scenes.seeds == nyud.seeds == (0, 1)
    assert scenes.baseline == nyud.baseline
    built: list[list] = []
    for variant in (*scenes.variants, *nyud.variants):
        config = variant.config
        if config.model_config().decoder in DECODERS and [config.preset, config.model, config.data.tasks] not in built:
            built.append([config.preset, config.model, config.data.tasks])
            network = create_model(config.preset, tasks=config.data.tasks, **config.model)
            assert build_criterion(network.tasks, config.train).tasks == network.tasks
    assert {variant.config.data.name for variant in scenes.variants} == {"scenes"}
    for variant in nyud.variants:
        config = variant.config
        assert (config.data.name, config.model["backbone"]) == ("nyud", "tf_efficientnet_lite0")
        assert (config.data.image_hw, config.data.size_hw, config.train.batch_size) == ((240, 320), (192, 256), 8)
        assert (config.train.freeze_stride, config.train.freeze_norm) == (8, True)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_head_says_what_is_asked_how_to_run_it_and_what_it_costs(path):
    head = [line for line in path.read_text().splitlines() if line.startswith("# ")]
    assert head[0].endswith(("?", "."))
    assert f"# Command: mtlsi study recipes/studies/{path.name} --out runs/{path.stem}" in head[1]
    assert head[2].startswith("# Cost")


def test_the_single_task_study_has_a_baseline_of_every_task():
    assert read_plan(FOLDER / "single_task_nyud.yaml").baseline == {
        task: f"single_{task}" for task in ("semseg", "depth", "normals", "boundary")
    }
