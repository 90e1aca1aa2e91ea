from __future__ import annotations

import json
import os
import sys
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from mtlsi import kinds
from mtlsi.benchmarking import runs as benchmark_runs
from mtlsi.benchmarking.benchmark import benchmark, draw
from mtlsi.benchmarking.runs import Measured, random_labels
from mtlsi.cli import main
from mtlsi.errors import MistakeError
from mtlsi.losses import MultiTaskLoss
from mtlsi.model import pretrained
from mtlsi.model.build import create_model
from mtlsi.model.network import MTLSINet
from mtlsi.options.measuring import BenchmarkOptions

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("small_rates")
QUICK = {"device": "cpu", "repeats": 1, "batches": (1,)}


def measured(model: MTLSINet, dtype: str = "float32", tasks: tuple[str, ...] | None = None) -> Measured:
    return Measured(model, "tiny", None, tasks, dtype, CPU, 1)


@pytest.fixture
def no_memory(monkeypatch):
    """Memory is measured in a process of its own, which takes seconds."""
    monkeypatch.setattr(benchmark_runs, "peak_memory", lambda *_: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_rates):  # noqa: ARG001
    """One benchmark with everything in it, save that memory is made up: 500 bytes a pixel, and 10^6."""
    out, said, asked = tmp_path_factory.mktemp("benchmark"), StringIO(), []

    def made_up(prepare, _):
        asked.append(size := prepare.args[2])
        return 500 * size[0] * size[1] + 10**6

    request = BenchmarkOptions(
        model="tiny", size_hw=(96, 128), batches=(2,), sizes=((96, 128), (64, 96)), train=True,
        repeats=3, device="cpu", json_path=out / "report.json", plot_path=out / "growth.png",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark_runs, "peak_memory", made_up)
        report = benchmark(request, console=Console(file=said, width=80))
    return SimpleNamespace(report=report, out=out, said=said.getvalue(), asked=asked)


def test_the_file_holds_all_that_was_measured(finished):
    assert {path.name for path in finished.out.iterdir()} == {"report.json", "growth.png"}
    assert json.loads((finished.out / "report.json").read_text()) == finished.report
    assert set(finished.report) == {
        "model", "changes", "tasks", "size_hw", "dtype", "repeats", "machine", "rates", "parts", "peak_memory_mb", "whole",
        "scaling", "training", "totals", "failed", "weights",
    }  # fmt: skip
    assert finished.report["failed"] == []


def test_parameters_and_operations_are_those_of_the_network(finished):
    model = create_model("tiny")
    parameters = finished.report["totals"]["parameters"]
    assert parameters["total"] == sum(p.numel() for p in model.parameters())
    assert parameters["backbone"] == sum(p.numel() for p in model.backbone.parameters())
    assert parameters["total"] == parameters["backbone"] + parameters["decoder"]
    gflop = finished.report["totals"]["gflop"]
    assert gflop["total"] == pytest.approx(sum(part["gflop"] for part in finished.report["parts"]))
    assert 0 < gflop["backbone"] < gflop["total"]


def test_the_whole_is_compared_with_its_backbone(finished):
    (row,) = finished.report["whole"]
    assert (row["mode"], row["batch"]) == ("eager", 2)
    assert row["ratio"] == pytest.approx(row["whole_ms"]["median"] / row["backbone_ms"]["median"])
    assert row["images_per_s"] == pytest.approx(2000 / row["whole_ms"]["median"])


def test_growth_is_told_from_the_smallest_size(finished):
    scaling = finished.report["scaling"]
    assert [row["pixels"] for row in scaling["sizes"]] == [64 * 96, 96 * 128]
    small, large = scaling["sizes"]
    assert large["decoder_ms"] == pytest.approx(large["whole_ms"]["median"] - large["backbone_ms"]["median"])
    assert finished.report["peak_memory_mb"] == large["peak_memory_mb"] == (500 * 96 * 128 + 10**6) / 1e6
    assert finished.asked == [(96, 128), (64, 96)]  # the same size is measured once
    for name in ("decoder_ms", "peak_memory_mb"):
        doublings = np.log2(large[name] / small[name])
        assert scaling[f"{name}_fit"]["exponent"] == pytest.approx(doublings)


@pytest.mark.slow
def test_memory_holds_at_least_the_predictions():
    found = measured(create_model("tiny")).memory_mb((192, 256))
    if found is None:
        pytest.skip("memory cannot be measured on this system")
    predictions_mb = (40 + 1 + 3 + 1) * 192 * 256 * 4 / 1e6  # the final ones, at the image's size
    assert predictions_mb < found < 12 * predictions_mb


def test_a_training_step_is_timed_at_half_the_size(finished):
    training = finished.report["training"]
    assert (training["batch"], training["size_hw"]) == (2, [48, 64])
    assert training["images_per_s"] == pytest.approx(2000 / training["step_ms"]["median"])


def test_a_person_sees_three_tables_that_fit_a_screen(finished):
    for heading in ("tiny at 96x128, float32", "parts, one image", "growth with the size"):
        assert finished.said.count(heading) == 1
    for name in ("backbone", "MT-MQLFB", "CWIB", "resizing and rest", "eager", "96x128", "training step, batch 2"):
        assert name in finished.said
    assert "…" not in finished.said
    with Image.open(finished.out / "growth.png") as image:
        assert np.asarray(image.convert("RGB")).std() > 5


def test_a_plot_of_nothing_is_refused(tmp_path):
    with pytest.raises(MistakeError, match="nothing to draw"):
        draw({"sizes": [], "decoder_ms_fit": None, "peak_memory_mb_fit": None}, tmp_path / "growth.png")
    assert os.listdir(tmp_path) == []


def test_an_exported_network_predicts_as_the_eager_one_does():
    small = {"tasks": ("depth", "boundary"), "backbone": "test_efficientnet"}  # traced quickly
    run = measured(create_model("tiny", **small).eval())
    (_, eager), (_, exported) = (run.in_mode(mode, 1, (64, 64)) for mode in ("eager", "exported"))
    torch.testing.assert_close(exported(), eager().final)


class Broken(nn.Module):
    """A network in which torch.compile must stop once."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, 2, 1)

    def forward(self, images, tasks=None):  # noqa: ARG002
        x = self.backbone(images)
        torch._dynamo.graph_break()
        return {"depth": x + 1}

    def for_tasks(self, tasks):  # noqa: ARG002
        return self


def test_every_mode_and_batch_has_its_row_and_graph_breaks_are_counted(monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network, **options: compile_(network, backend="eager", **options))
    rows = measured(Broken().eval()).whole((32, 32), ["eager", "compiled"], [2, 1])  # pyright: ignore
    assert [(row["mode"], row["batch"], len(row.get("graph_breaks", []))) for row in rows] == [
        ("eager", 2, 0), ("compiled", 2, 1), ("eager", 1, 0), ("compiled", 1, 1),
    ]  # fmt: skip


def test_modes_that_fail_are_reported_and_the_rest_goes_on(monkeypatch, capsys, no_memory):  # noqa: ARG001
    def no_compiler(*_, **__):
        raise RuntimeError("no C++\n   compiler")

    def no_export(*_):
        print("a graph of a thousand lines", file=sys.stderr)
        raise ValueError("data-dependent")

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr(torch.export, "export", no_export)
    said = StringIO()
    request = BenchmarkOptions(model="tiny", size_hw=(64, 64), modes=("compiled", "exported", "eager"), **QUICK)
    report = benchmark(request, console=Console(file=said, width=80))
    assert report["failed"] == [
        {"mode": "compiled", "batch": 1, "reason": "RuntimeError: no C++ compiler"},
        {"mode": "exported", "batch": 1, "reason": "ValueError: data-dependent"},
    ]
    assert capsys.readouterr().err == ""
    assert [row["mode"] for row in report["whole"]] == ["eager"]
    assert "compiled, batch 1: did not work here (RuntimeError: no C++ compiler)" in said.getvalue()
    assert "peak activation memory: not measured" in said.getvalue()


def test_fewer_tasks_and_half_the_precision_are_what_is_measured(no_memory):  # noqa: ARG001
    size = {"size_hw": (64, 64), **QUICK}
    trained = "nyud-mobilenetv2"
    every = benchmark(BenchmarkOptions(model=trained, **size), console=Console(file=StringIO()))
    depth = BenchmarkOptions(model=trained, tasks="depth", dtype="bf16", **size)
    one = benchmark(depth, console=Console(file=StringIO()))
    assert every["tasks"] == ["semseg", "depth", "normals", "boundary"]
    assert one["tasks"] == ["depth"]
    assert one["totals"]["gflop"]["decoder"] < every["totals"]["gflop"]["decoder"]
    network = MTLSINet.from_pretrained(trained).for_tasks(("depth",))
    assert one["totals"]["parameters"]["total"] == sum(p.numel() for p in network.parameters())
    assert one["totals"]["parameters"]["decoder"] < every["totals"]["parameters"]["decoder"]
    assert set(one["rates"]["matrix_gflop_per_s"]) == {"float32", "bfloat16"}
    output = measured(create_model("tiny").eval(), "bfloat16", ("depth",)).in_mode("eager", 1, (64, 64))[1]()
    assert {task: x.dtype for task, x in output.padded_coarse.items()} == {"depth": torch.bfloat16}
    assert output.final["depth"].dtype == torch.float32  # upsampled


@pytest.mark.parametrize("dataset", ["nyud", "pascal"])
def test_random_labels_are_labels(dataset):
    model = create_model("tiny", dataset=dataset)
    labels = random_labels(model, 2, (32, 32), CPU)
    for task in model.tasks:
        assert kinds.of(task).valid(labels[task]).all()
    output = model(torch.randn(2, 3, 32, 32), full_size=False)
    loss, of_tasks = MultiTaskLoss(model.tasks)(output.final, output.coarse, labels)
    assert torch.isfinite(loss)
    assert min(value.item() for value in of_tasks.values()) > 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "required: benchmark.model"),
        (("--model", "swin_giant"), "unknown model 'swin_giant'; expected a preset (swin_large, swin_tiny"),
        (("--model", "tiny", "--dataset", "coco"), "unknown dataset 'coco'"),
        (("--model", "nyud-mobilenetv2", "--dataset", "nyud"), "leave it out"),
        (("--model", "tiny", "--tasks", "depth,smell"), "unknown task 'smell'; expected some of semseg, depth"),
        (("--model", "tiny", "--tasks", "saliency"), "unknown task 'saliency'"),
        (("--model", "tiny", "--size", "0", "96"), "size 0x96"),
        (("--model", "tiny", "--size", "96"), "size"),
        (("--model", "tiny", "--size", "1000000", "1000000"), "size 1000000x1000000; expected at most 16384 a side"),
        (("--model", "tiny", "--size", "9" * 20, "2"), f"size {'9' * 20}x2; expected at most 16384 a side"),
        (
            ("--model", "tiny", "--sizes", "64x64,16384x16384"),
            "size 16384x16384; expected at most 16384 a side and 33554432",
        ),
        (("--model", "tiny", "--tasks", "depth", "--train"), "give --train without --tasks"),
        (("--model", "tiny", "--dtype", "int8"), "unknown dtype 'int8'; expected one of float32, bfloat16"),
        (
            ("--model", "tiny", "--modes", "eager,fast"),
            "unknown mode 'fast'; expected some of eager, compiled, cudagraphs, exported",
        ),
        (("--model", "tiny", "--device", "cpu", "--modes", "cudagraphs"), "cudagraphs on cpu; expected a CUDA device"),
        (("--model", "tiny", "--change", "decoder_stride=4"), "expected JSON such as"),
        (("--model", "tiny", "--change", '{"stride": 4}'), "unknown model size 'stride'"),
        (("--model", "tiny", "--change", '{"dataset": "pascal"}'), "unknown model size 'dataset'"),
        (("--model", "tiny", "--change", '{"preset": "swin_tiny"}'), "unknown model size 'preset'"),
        (("--model", "tiny", "--change", '{"tasks": 5}'), "unknown model size 'tasks'"),
        (("--model", "tiny", "--change", '{"pretrained_backbone": true}'), "unknown model size 'pretrained_backbone'"),
        (("--model", "nyud-mobilenetv2", "--change", '{"window": 4}'), "only a preset's sizes can be changed"),
        (("--model", "tiny", "--device", "abacus"), "device 'abacus'"),
        (("--model", "tiny", "--batches", "1,two"), "batches '1,two'"),
        (("--model", "tiny", "--batches", "0"), "batches: 0; expected 1 or more"),
        (("--model", "tiny", "--repeats", "0"), "repeats: 0; expected 1 or more"),
        (("--model", "tiny", "--sizes", "64"), "sizes '64'"),
        (("--model", "tiny", "--sizes", "64x96,96x64"), "expected two sizes or more"),
        (("--model", "tiny", "--sizes", "64x0,96x64"), "size 64x0"),
        (("--model", "tiny", "--plot", "growth.png"), "give sizes too"),
        (("--model", "tiny", "--json", "nowhere/report.json"), "cannot write nowhere/report.json"),
    ],
)
def test_mistakes_are_answered_in_one_line(capsys, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["benchmark", *arguments])
    except SystemExit as stop:  # the parser's way
        code = stop.code
    lines = capsys.readouterr().err.strip().splitlines()
    assert (code, len(lines)) == (2, 1)
    assert told in lines[0]
    assert os.listdir(tmp_path) == []


def test_the_command_measures_and_writes(capsys, tmp_path, no_memory):  # noqa: ARG001
    path: Path = tmp_path / "report.json"
    small = ["--size", "64", "64", "--batches", "2,1", "--repeats", "1", "--device", "cpu"]
    assert main(["benchmark", "--model", "tiny", "--dataset", "pascal", *small, "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert report["tasks"] == list(create_model("tiny", dataset="pascal").tasks)
    assert [row["batch"] for row in report["whole"]] == [2, 1]
    assert report["scaling"] is report["training"] is None
    assert "whole" in capsys.readouterr().out


def test_changed_sizes_are_what_is_measured(tmp_path, no_memory):  # noqa: ARG001
    options = ["benchmark", "--model", "tiny", "--size", "96", "128", "--repeats", "1", "--batches", "1"]
    stride_of = {}
    for change in ("{}", '{"decoder_stride": 4, "scales": [3]}'):
        assert main([*options, "--change", change, "--json", str(tmp_path / "report.json")]) == 0
        report = json.loads((tmp_path / "report.json").read_text())
        stride_of[change] = report["totals"]["gflop"]["decoder"], report["changes"]
    (at_8, unchanged), (at_4, changed) = stride_of.values()
    assert at_4 > 2 * at_8
    assert unchanged == {}
    assert changed == {"decoder_stride": 4, "scales": [3]}


def test_it_says_which_of_two_models_of_one_name_it_measures(tmp_path, monkeypatch, no_memory):  # noqa: ARG001
    for folder in ("package", "here"):
        create_model("tiny", tasks=["depth"], input_size=(64, 64)).save_pretrained(tmp_path / folder / "scenes")
    monkeypatch.setattr(pretrained, "PACKAGED", tmp_path / "package")
    monkeypatch.chdir(tmp_path / "here")
    for name, is_told in (("scenes", True), ("./scenes", False)):
        said = StringIO()
        benchmark(BenchmarkOptions(model=name, **QUICK), console=Console(file=said, width=200))
        assert ("in the folder of that name here give ./scenes" in said.getvalue()) is is_told
