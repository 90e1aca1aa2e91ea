from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from mtlsi.cli import main
from mtlsi.errors import MistakeError
from mtlsi.prediction.graph import GraphPredictor

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install .[export]")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install .[export]")
helper = onnx.helper

FACTS = {
    "mtlsi_version": "0",
    "tasks": [{"name": "depth", "kind": "distance", "title": "depth", "unit": "metres"}],
    "working_size": [64, 96],
    "own_tasks": [],
}


def graph(path, nodes, **changes):
    """A model of depth that ``nodes`` make; gives ``path``."""
    inputs = [helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["b", "h", "w", 3])]
    output = onnx.ValueInfoProto(name="depth")  # of any type
    made = helper.make_model(
        helper.make_graph(nodes, "g", inputs, [output]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    facts = FACTS | changes
    helper.set_model_props(made, {name: json.dumps(value) for name, value in facts.items()})
    path.write_bytes(made.SerializeToString())
    return path


def constant(values, name="depth"):
    return helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(np.asarray(values)))


@pytest.fixture
def image(tmp_path):
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def refused(model, image, capsys):
    """What ``mtlsi predict`` says, having written nothing."""
    out = image.parent / "out"
    assert main(["predict", "--model", str(model), str(image), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(model) in said
    assert not [path for path in out.rglob("*") if path.is_file()]
    return said


@pytest.mark.parametrize(
    ("nodes", "came"),
    [
        ([constant(np.ones((1, 5, 6), np.float32))], "depth came as float32 (1, 5, 6); expected float32 (1, 4, 6)"),
        ([constant(np.ones((2, 4, 6), np.float32))], "depth came as float32 (2, 4, 6)"),
        ([constant(np.float32(1))], "depth came as float32 ()"),
        ([constant(np.ones((1, 4, 6), np.int8))], "depth came as int8 (1, 4, 6)"),
        ([constant(np.full((1, 4, 6), "x", object))], "depth came as object (1, 4, 6)"),
        ([constant(np.full((1, 4, 6), 3e38, np.float32))], "depth came as 3e+38..3e+38; expected -1e+06..1e+06"),
        (
            [
                constant(np.ones((1, 4, 6), np.float32), "one"),
                helper.make_node("SequenceConstruct", ["one"], ["depth"]),
            ],
            "depth came as a list",
        ),
    ],
)
def test_results_that_are_no_prediction_are_refused_before_anything_is_written(nodes, came, image, capsys):
    said = refused(graph(image.parent / "m.onnx", nodes), image, capsys)
    assert came in said
    assert said.rstrip().endswith("export the model again with mtlsi export")


def test_broken_metadata_are_refused_in_one_line(image, capsys):
    nodes = [constant(np.ones((1, 4, 6), np.float32))]
    for changes, message in (
        ({"working_size": [0, 0]}, "working_size: [0, 0]"),
        ({"tasks": [{"name": "normals"}]}, "tasks ['normals'], outputs ['depth']"),
        ({"camera": {"focal_px": 1e-9, "size_hw": [64, 96]}}, "focal length 1e-09"),
    ):
        said = refused(graph(image.parent / "m.onnx", nodes, **changes), image, capsys)
        assert f"its metadata is broken ({message}" in said
        assert said.rstrip().endswith("export the model again with mtlsi export")


def test_half_precision_comes_as_float32(image):
    predictor = GraphPredictor(graph(image.parent / "m.onnx", [constant(np.full((1, 4, 6), 2, np.float16))]))
    assert predictor(image)["depth"].dtype == np.float32


@pytest.mark.parametrize("tasks", [5, [5], b"depth", "smell"])
def test_tasks_that_are_none_are_refused(tasks, image):
    predictor = GraphPredictor(graph(image.parent / "m.onnx", [constant(np.ones((1, 4, 6), np.float32))]))
    with pytest.raises(MistakeError, match="expected some of depth"):
        predictor(image, tasks)
