from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console

from mtlsi.config import DataConfig
from mtlsi.errors import MistakeError
from mtlsi.evaluation.diagnose import AS_TRAINED, Diagnosis, diagnose, diagnose_from_command, token_table, variant_table
from mtlsi.evaluation.evaluate import evaluate, evaluate_from_command
from mtlsi.evaluation.protocols import Showing
from mtlsi.evaluation.report import headline
from mtlsi.evaluation.without_parts import VARIANTS, left_out
from mtlsi.model.build import create_model
from mtlsi.model.network import MTLSINet
from mtlsi.options.measuring import DiagnoseOptions, EvaluateOptions
from mtlsi.tasks import BUILT_IN, TASKS

CONFIG = DataConfig(image_hw=None, num_workers=0)


class Depths:
    """Images of one size or of several, of which only the depth is known."""

    tasks: tuple[str, ...] = ("depth",)
    classes, derived, left_out, boundary_tolerance = {}, (), {}, 0.01

    def __init__(self, *seeds, sizes=((64, 64),)):
        self.seeds, self.sizes = seeds, sizes

    def __len__(self):
        return len(self.seeds)

    def name(self, index):
        return str(index)

    def __getitem__(self, index):
        numbers, size = torch.Generator().manual_seed(self.seeds[index]), self.sizes[index % len(self.sizes)]
        image = torch.randint(0, 256, (3, *size), generator=numbers, dtype=torch.uint8)
        return {"image": image, "depth": 1 + torch.rand(size, generator=numbers)}


@pytest.fixture(scope="module", params=["paper", "refined"])
def network(request, active_network):
    return active_network(request.param, tasks=("normals", "depth"))


def rmse(found, name):
    return found.variants[name]["depth"]["RMSE"]


def test_as_trained_is_what_evaluate_measures_and_every_part_matters(network):
    data = Depths(0, 1, 2)
    found = diagnose(network, data, CONFIG)
    assert found.variants[AS_TRAINED] == evaluate(network, data, CONFIG)
    names = [name for name in VARIANTS if name not in left_out(network.decoder)]
    assert list(found.variants) == [AS_TRAINED, *names]
    for name in names:
        difference = rmse(found, name) - rmse(found, AS_TRAINED)
        assert found.differences[name] == {"depth": difference}
        assert abs(difference) > 1e-5, name
    assert evaluate(network, data, CONFIG) == found.variants[AS_TRAINED]  # the network is as it was


def test_figures_of_a_task_are_the_same_with_fewer_tasks_beside_it(network):
    class WithNormals(Depths):
        tasks: tuple[str, ...] = ("depth", "normals")

        def __getitem__(self, index):
            sample = super().__getitem__(index)
            up = torch.zeros(3, *sample["depth"].shape)
            up[1] = 1
            return sample | {"normals": up}

    alone, both = diagnose(network, Depths(0, 1), CONFIG), diagnose(network, WithNormals(0, 1), CONFIG)
    assert list(both.tokens) == ["normals", "depth"]  # the model's order
    assert alone.tokens == {"depth": pytest.approx(both.tokens["depth"], rel=1e-4)}
    assert alone.blocks == [{"depth": pytest.approx(both.blocks[0]["depth"], rel=1e-4)}]
    assert both.tokens["normals"] != both.tokens["depth"]
    assert alone.variants.keys() == both.variants.keys()
    for name in both.variants:
        assert rmse(alone, name) == pytest.approx(rmse(both, name), rel=1e-4)


def test_every_image_has_another_images_tokens_whatever_the_order_and_the_batches(network):
    sizes = ((64, 64), (32, 64))
    found = diagnose(network, Depths(0, 1, sizes=sizes), CONFIG)
    assert rmse(found, "tokens_of_another_image") != pytest.approx(rmse(found, AS_TRAINED), rel=1e-5)
    for other in (
        diagnose(network, Depths(0, 1, sizes=sizes), CONFIG, batch_size=1),
        diagnose(network, Depths(0, 1, sizes=sizes), CONFIG, indices=[1, 0]),
    ):
        assert headline(other.variants["tokens_of_another_image"]) == pytest.approx(
            headline(found.variants["tokens_of_another_image"]), rel=1e-5
        )


def test_another_image_that_is_the_same_changes_nothing(network):
    found = diagnose(network, Depths(3, 3), CONFIG)
    assert found.differences["tokens_of_another_image"]["depth"] == pytest.approx(0, abs=1e-6)


def test_one_image_has_no_other(network):
    found = diagnose(network, Depths(0, 1), CONFIG, indices=[1])
    assert found.left_out == left_out(network.decoder) | {"tokens_of_another_image": "one image has no other"}
    assert "tokens_of_another_image" not in found.variants


def test_some_tasks_alone_and_images_shown_in_another_way(network):
    class WithNormals(Depths):
        tasks: tuple[str, ...] = ("depth", "normals")

        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return sample | {
                "normals": torch.nn.functional.one_hot(torch.ones(64, 64).long(), 3).movedim(-1, 0).float()
            }

    data, showing = WithNormals(0, 1), Showing(pad_hw=(96, 64))
    found = diagnose(network, data, CONFIG, tasks=("depth",), showing=showing)
    assert list(found.tokens) == ["depth"]
    expected = evaluate(network, data, CONFIG, tasks=("depth",), showing=showing)
    assert found.variants[AS_TRAINED] == {"depth": pytest.approx(expected["depth"], rel=1e-5)}
    assert expected["depth"]["RMSE"] != pytest.approx(evaluate(network, data, CONFIG)["depth"]["RMSE"], rel=1e-5)
    assert found.differences["no_windows"].keys() == {"depth"}


def test_every_number_of_six_tasks_is_whole_in_80_columns():
    scores = {AS_TRAINED: 11.1111, **dict.fromkeys(VARIANTS, 22.2222)}
    variants = {name: {task: {TASKS[task].score: value} for task in BUILT_IN} for name, value in scores.items()}
    differences = {name: dict.fromkeys(BUILT_IN, -10.4321) for name in VARIANTS}
    of_tokens = dict.fromkeys(("tokens", "mean_cosine", "effective_tokens", "effective_assignment"), 0.0012344)
    of_blocks = {"change": 123.44, "through_tokens": 1.2344e-5, "through_windows": 0.0012344}
    found = Diagnosis(
        variants, differences, {}, dict.fromkeys(BUILT_IN, of_tokens), [dict.fromkeys(BUILT_IN, of_blocks)]
    )
    said = StringIO()
    for table in (variant_table(found, derived=("normals",)), token_table(found)):
        Console(file=said, width=80).print(table)
    words = said.getvalue().split()
    assert "\u2026" not in said.getvalue()
    assert [words.count(word) for word in ("-10.43", "-10.4321")] == [5 * len(VARIANTS), len(VARIANTS)]
    assert [words.count(word) for word in ("0.001234", "123.4", "1.23e-05")] == [5 * 6, 6, 6]
    assert all(name in words for name in (*scores, "derived", *BUILT_IN))


# ---- the command


def test_the_command_takes_tasks_and_a_protocol(nyud_root, tmp_path):
    classes = {"semseg": ("room", "thing")}  # others than the data's: only depth can be measured
    network = create_model("tiny", tasks=("semseg", "depth"), classes=classes, input_size=(64, 64))
    network.save_pretrained(tmp_path / "model")
    said = StringIO()
    asked = {"data": "nyud", "root": str(nyud_root), "tasks": "depth", "protocol": "mti-net", "limit": 1}
    options = DiagnoseOptions(str(tmp_path / "model"), **asked)
    found = diagnose_from_command(options, console=Console(file=said, width=120))
    assert found.variants[AS_TRAINED].keys() == {"depth"}
    assert "protocol mti-net: images resized to 480x640" in " ".join(said.getvalue().split())
    with pytest.raises(MistakeError, match="--size and --protocol both"):
        diagnose_from_command(replace(options, size_hw=(64, 64)))


@pytest.mark.slow
def test_the_command_tells_and_writes_everything(tiny_run, tmp_path):
    said, files = StringIO(), [tmp_path / "parts.json", tmp_path / "scores.json"]
    asked = {"data": "scenes", "limit": 2, "boundary_protocol": "seism", "count_unknown_boundaries": True}
    options = DiagnoseOptions(str(tiny_run.out), **asked, json_path=files[0])
    found = diagnose_from_command(options, console=Console(file=said, width=100))
    evaluate_from_command(
        EvaluateOptions(str(tiny_run.out), **asked, json_path=files[1]), console=Console(file=StringIO())
    )
    written, scores = (json.loads(path.read_text()) for path in files)
    assert written["variants"].pop(AS_TRAINED) == scores.pop("scores")
    assert scores.pop("confusion").keys() == {"semseg"}
    assert scores.pop("depth_range_m") is None
    assert scores.pop("curves").keys() == {"boundary"}
    assert {name: written[name] for name in scores} == scores  # the context is evaluate's
    assert (written["boundaries"]["protocol"], written["boundaries"]["unknown"]) == ("seism", "no boundary")
    assert "boundaries: seism, not suppressed" in " ".join(said.getvalue().split())
    assert written.keys() - scores.keys() == {"variants", "differences", "left_out", "tokens", "blocks"}
    tasks = {"semseg", "depth", "normals", "boundary"}
    assert written["variants"].keys() == written["differences"].keys() == set(VARIANTS)
    assert all(of.keys() == tasks for of in written["differences"].values())
    names = {"tokens", "mean_cosine", "effective_tokens", "effective_assignment"}
    assert {task: of.keys() for task, of in written["tokens"].items()} == dict.fromkeys(tasks, names)
    assert [block.keys() for block in written["blocks"]] == [tasks]
    assert written["blocks"][0]["depth"].keys() == {"change", "through_tokens", "through_windows"}
    for name in VARIANTS:
        difference = found.differences[name]["depth"]
        assert f"{rmse(found, name):.4f} {difference:+.4f}" in said.getvalue()
    assert f"{found.tokens['depth']['mean_cosine']:.4g}" in said.getvalue()


def test_parts_that_the_model_lacks_are_left_out_and_said_so(tmp_path):
    network: MTLSINet = create_model("tiny", tasks=("depth",), cross_window=False, input_size=(64, 64))
    network.save_pretrained(tmp_path)
    said = StringIO()
    found = diagnose_from_command(
        DiagnoseOptions(str(tmp_path), data="scenes", limit=2), console=Console(file=said, width=100)
    )
    assert list(found.variants) == [AS_TRAINED, "fusion_mean", "no_fusion", "no_coarse", "no_mix"]
    assert (found.tokens, found.blocks) == ({}, [])
    assert "left out: tokens_mean (the model has no CWIB, which reads tokens)" in said.getvalue()
