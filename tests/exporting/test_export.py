from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from io import StringIO

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from rich.console import Console

from mtlsi.cli import main
from mtlsi.config import RESIZES
from mtlsi.errors import MistakeError
from mtlsi.exporting import compare
from mtlsi.exporting import onnx as graphs
from mtlsi.exporting.export import export
from mtlsi.exporting.int8 import Calibration, in_8_bits
from mtlsi.options.using import ExportOptions
from mtlsi.prediction.graph import GraphPredictor
from mtlsi.prediction.predictor import Predictor
from mtlsi.prediction.shown import Shown

TASKS = ("depth", "semseg")


def photo(height, width, seed=0):
    """Smooth and full of colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module", params=["heads_only", pytest.param("mtlsi", marks=pytest.mark.slow)])
def tiny(small, request):
    """The quick case is traced in a quarter of the time."""
    return small(request.param)


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """The model as people have it."""
    path = tmp_path_factory.mktemp("model")
    tiny.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def network(tiny):
    """The network alone as a graph: tracing takes most of the time."""
    return graphs.network_graph(tiny, tiny.tasks, torch.float32)


@pytest.fixture(scope="module")
def exported(folder, network, tmp_path_factory):
    """The whole, written as people do it, and what was printed."""
    out, said = tmp_path_factory.mktemp("exported") / "model.onnx", StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "network_graph", lambda *_: network)
        export(ExportOptions(str(folder), out=out), console=Console(file=said, width=120))
    return out, said.getvalue()


@pytest.mark.slow
def test_any_batch_and_size_is_predicted_as_the_predictor_does(tiny, exported):
    session = onnxruntime.InferenceSession(exported[0])
    predictor = Predictor(tiny, device="cpu")
    for batch, height, width in ((1, 96, 128), (3, 97, 131), (2, 70, 71), (1, 13, 17), (1, 200, 120)):
        images = np.stack([photo(height, width, seed) for seed in range(batch)])
        results = dict(zip(tiny.tasks, session.run(list(tiny.tasks), {"image": images}), strict=True))
        for i, expected in enumerate(predictor(list(images))):
            for task, array in expected.items():
                found = results[task][i]
                assert (found.shape, found.dtype) == (array.shape, array.dtype)
                assert compare.difference(task, found, array)[0] < 5e-3, (task, images.shape)


def test_what_was_measured_is_printed_and_nothing_else_is_left(tiny, exported):
    out, said = exported
    assert [path.name for path in out.parent.iterdir()] == ["model.onnx"]
    rows = [[cell.strip() for cell in line.split("│")] for line in said.splitlines() if line.startswith("│")]
    assert [row[1] for row in rows] == list(tiny.tasks)
    assert all(0 <= float(row[2]) < 0.01 and float(row[2]) <= float(row[3]) for row in rows), said
    assert "at three sizes" in said


def test_the_file_says_what_its_numbers_mean(tiny, exported):
    facts = {item.key: item.value for item in onnx.load(exported[0]).metadata_props}
    tasks = {fact["name"]: fact for fact in json.loads(facts["tasks"])}
    assert tuple(tasks) == tiny.tasks
    assert tasks["semseg"]["classes"] == list(tiny.classes["semseg"])
    assert tasks["semseg"]["colours"] == [list(colour) for colour in tiny.colours["semseg"]]
    assert tasks["depth"]["unit"] == "metres"
    assert json.loads(facts["working_size"]) == [96, 128]
    assert facts["mtlsi_version"]
    assert "site-packages" not in str(onnx.load(exported[0]).graph.node)  # nobody's paths


def test_the_reader_gives_what_the_predictor_gives(tiny, exported, tmp_path):
    Image.fromarray(photo(60, 81)).save(tmp_path / "a.png")
    reader = GraphPredictor(exported[0], num_threads=1)
    assert (reader.tasks, dict(reader.classes)) == (tiny.tasks, tiny.classes)
    assert reader.colours == tiny.colours
    found, expected = reader(tmp_path / "a.png", "normals,depth"), Predictor(tiny, device="cpu")(tmp_path / "a.png")
    assert list(found) == ["normals", "depth"]
    np.testing.assert_allclose(np.linalg.norm(found["normals"], axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(found["depth"], expected["depth"], atol=2e-2)
    one, other = reader([tmp_path / "a.png", photo(40, 52)], "depth")  # a list of images, as Predictor takes it
    np.testing.assert_array_equal(one["depth"], found["depth"])
    assert (list(other), other["depth"].shape) == (["depth"], (40, 52))
    with pytest.raises(MistakeError, match="None: not there; expected a file that mtlsi export wrote"):
        GraphPredictor(None)
    with pytest.raises(MistakeError, match="unknown task 'parsing'; expected some of semseg, depth"):
        reader(tmp_path / "a.png", "parsing")


@pytest.mark.parametrize("resize", RESIZES)
def test_metres_are_the_same_at_another_working_size(folder, network, tmp_path, monkeypatch, resize):
    monkeypatch.setattr(graphs, "network_graph", lambda *_: network)
    model, out = tmp_path / "model", tmp_path / "m.onnx"
    shutil.copytree(folder, model)
    config = json.loads((model / "config.json").read_text())
    camera = {"focal_px": 100.0, "size_hw": [96, 128]}
    (model / "config.json").write_text(json.dumps(config | {"resize": resize, "camera": camera}))
    export(ExportOptions(str(model), out=out, size_hw=(64, 96)), console=Console(file=StringIO(), width=120))
    reader, plain = GraphPredictor(out, num_threads=1), Predictor(model, device="cpu", working_size=(64, 96))
    assert reader.training_camera == plain.training_camera
    image = photo(60, 150)
    found, expected = reader(image, "depth")["depth"], plain(image, "depth")["depth"]
    seen = compare.under_pytorch(plain.model, image[None], ["depth"], plain.shown.fit((60, 150)))["depth"][0]
    share = {"stretch": 0.5**0.5, "keep_ratio": 96 / 128}[resize]
    np.testing.assert_allclose(expected.mean(), seen.mean() * share, rtol=1e-3)
    np.testing.assert_allclose(found, expected, atol=2e-2)


def test_metres_of_a_file_from_before_graphs_corrected_them(exported, tmp_path):
    old = onnx.load(exported[0])
    facts = {item.key: item.value for item in old.metadata_props} | {
        "camera": json.dumps({"focal_px": 100.0, "size_hw": [96, 128], "shown_share": 0.5})
    }
    del facts["resize"]
    onnx.helper.set_model_props(old, facts)
    onnx.save(old, tmp_path / "old.onnx")
    was, now = GraphPredictor(tmp_path / "old.onnx", num_threads=1), GraphPredictor(exported[0], num_threads=1)
    image = photo(60, 81)
    np.testing.assert_array_equal(was(image)["depth"], now(image)["depth"] * np.float32(0.5))
    np.testing.assert_array_equal(was(image)["normals"], now(image)["normals"])
    assert was.training_camera.focal_of((192, 256)) == pytest.approx(200.0)


def test_predict_runs_it_without_torch(exported, tmp_path):
    Image.fromarray(photo(40, 50)).save(tmp_path / "a.png")
    model = tmp_path / "M.ONNX"  # endings in any letter case
    model.symlink_to(exported[0])
    command = ["predict", "--model", str(model), str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]
    program = f"import sys; from mtlsi.cli import main; assert main({command}) == 0; assert 'torch' not in sys.modules"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "out" / "a_semseg.npy").shape == (40, 50)
    assert (tmp_path / "out" / "a_panel.png").is_file()


def test_predict_runs_it_on_a_video_without_torch(exported, tmp_path):
    from small_clips import decoded, grey_levels, write_clip  # skips where PyAV is not installed

    clip = write_clip(tmp_path / "a.mkv", grey_levels(3, 40, 50))
    command = ["predict", "--model", str(exported[0]), str(clip), "--out", str(tmp_path / "b.mp4"), "--tasks", "depth"]
    program = f"import sys; from mtlsi.cli import main; assert main({command}) == 0; assert 'torch' not in sys.modules"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert [pixels.shape for _, pixels in decoded(tmp_path / "b.mp4")] == 3 * [(40, 50, 3)]


def test_8_bits_stay_near(tiny, network):
    images = [photo(64, 96, seed) for seed in range(6)]
    quantised = in_8_bits(network, Calibration(images, Shown((96, 128))), tiny.tasks)
    kinds = [node.op_type for node in quantised.graph.node]
    assert kinds.count("DequantizeLinear") > 60
    made = graphs.whole_graph(quantised, tiny.tasks, graphs.raw_channels(tiny, tiny.tasks), Shown((96, 128)))
    assert len(quantised.SerializeToString()) < 0.7 * len(network.SerializeToString())
    session = onnxruntime.InferenceSession(made.SerializeToString())
    image = photo(90, 120, 9)
    depth, normals = session.run(["depth", "normals"], {"image": image[None]})
    expected = Predictor(tiny, device="cpu")(image)
    assert compare.difference("depth", depth[0], expected["depth"])[0] < 0.3
    assert compare.difference("normals", normals[0], expected["normals"])[0] < 0.3


def test_8_bits_are_compared_on_the_images_that_they_are_for(folder, network, tmp_path, monkeypatch):
    from mtlsi.exporting import int8

    monkeypatch.setattr(graphs, "network_graph", lambda *_: network)
    monkeypatch.setattr(int8, "in_8_bits", lambda network, **_: network)
    for name in ("a", "b"):
        Image.fromarray(photo(64, 96, ord(name))).save(tmp_path / f"{name}.png")
    out, said, compared = tmp_path / "m.onnx", StringIO(), []
    plain = compare.under_pytorch
    monkeypatch.setattr(
        compare, "under_pytorch", lambda model, images, *how: compared.append(images) or plain(model, images, *how)
    )
    options = ExportOptions(str(folder), out=out, dtype="int8", images=[tmp_path / "a.png", tmp_path / "b.png"])
    export(options, console=Console(file=said, width=120))
    assert "on images given" in said.getvalue()
    assert "the scales of 8 bits come from 2 images; give 16 or more like those to be predicted" in said.getvalue()
    assert [images.shape[0] for images in compared] == [1, 2, 1]
    for image, name in zip([x for images in compared for x in images], "abab", strict=True):
        small = Image.fromarray(photo(64, 96, ord(name))).resize(
            (image.shape[1], image.shape[0]), Image.Resampling.BILINEAR
        )
        np.testing.assert_array_equal(image, np.asarray(small))


def test_a_graph_that_differs_is_not_written(folder, network, tmp_path, monkeypatch):
    network = copy.deepcopy(network)
    for tensor in network.graph.initializer:
        if tensor.name.endswith("weight") and len(tensor.dims) == 4:
            values = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values * 1.5, tensor.name))
    monkeypatch.setattr(graphs, "network_graph", lambda *_: network)
    out = tmp_path / "model.onnx"
    with pytest.raises(MistakeError, match=r"from PyTorch on average, more than 0\.01; nothing was written"):
        export(ExportOptions(str(folder), out=out), console=Console(file=StringIO()))
    assert not list(tmp_path.iterdir())


def test_a_graph_that_is_held_to_one_size_is_not_written(folder, network, tmp_path, monkeypatch):
    network = copy.deepcopy(network)
    for node in network.graph.node:
        node.input[:] = ["held" if name == "network_images" else name for name in node.input]
    nodes = [onnx.helper.make_node("Reshape", ["network_images", "one_size"], ["held"]), *network.graph.node]
    del network.graph.node[:]
    network.graph.node.extend(nodes)
    network.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 3, 96, 128]), "one_size"))
    monkeypatch.setattr(graphs, "network_graph", lambda *_: network)
    with pytest.raises(MistakeError, match=r"does not run for images \(2, .*; nothing was written"):
        export(ExportOptions(str(folder), out=tmp_path / "model.onnx"), console=Console(file=StringIO()))
    assert not list(tmp_path.iterdir())


def test_images_for_8_bits_are_read_before_anything_is_traced(folder, tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_text("hello")
    monkeypatch.setattr(graphs, "network_graph", lambda *_: pytest.fail("traced"))
    options = ExportOptions(str(folder), out=tmp_path / "m.onnx", dtype="int8", images=[tmp_path / "a.jpg"])
    with pytest.raises(MistakeError, match=r"a\.jpg: not a whole image"):
        export(options, console=Console(file=StringIO()))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "m.pt2"], "--out m.pt2; expected a name that ends in .onnx"),
        (["--out", "m.onnx", "--format", "trt"], "--format trt; expected onnx or program"),
        (["--out", "m.onnx", "--dtype", "int4"], "--dtype int4; expected float32, float16 or int8"),
        (["--out", "m.onnx", "--dtype", "int8"], "--dtype int8 and --images belong together"),
        (["--out", "m.onnx", "--no-resize", "--size", "96", "128"], "leave --size out"),
        (["--out", "m.pt2", "--format", "program", "--dtype", "fp16"], "--format program takes no --dtype"),
        (["--out", "m.onnx", "--size", "4", "4"], "--size 4 4; expected 32 pixels or more"),
        (["--out", "m.onnx", "--size", "20000", "64"], "--size 20000 64; expected at most 16384 a side"),
        (["--out", "no/m.onnx"], "cannot write no/m.onnx"),
        (["--out", "m.onnx", "--tasks", "smell"], "unknown task 'smell'; expected some of semseg"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "scenes", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_files_that_are_no_exported_model_are_refused_in_one_line(tmp_path, capsys):
    text, other, image = tmp_path / "text.onnx", tmp_path / "other.onnx", tmp_path / "a.png"
    text.write_text("hello")
    onnx.save(
        onnx.parser.parse_model('<ir_version: 9, opset_import: ["" : 20]> g (float x) => (float y) {y = Neg(x)}'), other
    )
    Image.fromarray(photo(20, 30)).save(image)
    for model, flags, message in (
        (tmp_path / "missing.onnx", [], "not there"),
        (text, [], "onnxruntime cannot read it"),
        (other, [], "not written by mtlsi export"),
        (other, ["--dtype", "bf16"], "--dtype with"),
    ):
        assert main(["predict", "--model", str(model), str(image), "--out", str(tmp_path / "out"), *flags]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
