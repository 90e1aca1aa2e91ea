from __future__ import annotations

import numpy as np
import pytest

from mtlsi.errors import MistakeError
from mtlsi.prediction import graph_file
from mtlsi.prediction.graph import GraphPredictor
from mtlsi.prediction.graph_file import INSIDE, names_other_files

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install .[export]")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install .[export]")
helper, TensorProto = onnx.helper, onnx.TensorProto


def elsewhere():
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1, 2, 2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="secret.bin")
    return tensor


def model(nodes, weights=(), outputs=("depth",)):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("image", 2, [1, None, None, 3])], values, weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def constant(tensor):
    return helper.make_node("Constant", [], ["depth"], value=tensor)


def in_branch():
    branch = helper.make_graph([constant(elsewhere())], "b", [], [helper.make_tensor_value_info("depth", 1, None)])
    return helper.make_node("If", ["yes"], ["depth"], then_branch=branch, else_branch=branch)


def in_function():
    made = model([helper.make_node("F", [], ["depth"], domain="own")])
    made.functions.append(
        helper.make_function("own", "F", [], ["depth"], [constant(elsewhere())], [helper.make_opsetid("", 17)])
    )
    return made


def lengthened(content, message="model"):
    """The same message, its lengths as numbers of five bytes."""
    made, at = b"", 0
    while at < len(content):
        start = at
        key, at = number(content, at)
        value, at = number(content, at)
        if key & 7 == 2:
            body = content[at : at + value]
            at += value
            inner = INSIDE.get(message, {}).get(key >> 3) or {("tensor", 13): "entry"}.get((message, key >> 3))
            body = lengthened(body, inner) if inner else body
            long = bytes([len(body) >> shift & 127 | 128 for shift in (0, 7, 14, 21)]) + bytes([len(body) >> 28])
            made += bytes([*content[start : start + 1 + (key > 127)]]) + long + body
        else:
            assert key & 7 == 0
            made += content[start:at]
    return made


def number(content, at):
    value = shift = 0
    while True:
        byte = content[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


@pytest.mark.parametrize(
    "made",
    [
        model([helper.make_node("Identity", ["w"], ["depth"])], [elsewhere()]),
        model([constant(elsewhere())]),
        model([in_branch()]),
        in_function(),
    ],
    ids=["weight", "constant", "branch", "function"],
)
def test_weights_in_other_files_are_found_however_lengths_are_written(made, tmp_path, monkeypatch):
    (tmp_path / "secret.bin").write_bytes(np.ones(4, np.float32).tobytes())
    monkeypatch.chdir(tmp_path)  # where onnxruntime looks for the other files of a model from memory
    plain = made.SerializeToString()
    overlong = lengthened(plain)
    assert onnx.load_model_from_string(overlong) == made
    assert b"\x0a\x08location" in plain
    assert b"\x0a\x08location" not in overlong
    for content in (plain, overlong):
        assert names_other_files(content)
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(MistakeError, match="weights in other files, which are not followed"):
            GraphPredictor(tmp_path / "m.onnx")


def test_whole_files_are_let_through_also_with_the_words_of_others():
    weights = helper.make_tensor("location", TensorProto.FLOAT, [2], [1.0, 2.0])
    made = model([helper.make_node("Identity", ["location"], ["depth"], doc_string="\x0a\x08location")], [weights])
    assert not names_other_files(made.SerializeToString())
    assert not names_other_files(lengthened(made.SerializeToString()))


@pytest.mark.parametrize("field", [b"\x0a\x00", b"\x08\x00"], ids=["nodes", "numbers"])
def test_very_many_fields_are_refused_one_after_another(field, monkeypatch):
    monkeypatch.setattr(graph_file, "MOST_FIELDS", 1000)
    graph = field * 999
    content = b"\x3a" + bytes([len(graph) & 127 | 128, len(graph) >> 7]) + graph
    assert not names_other_files(content)
    with pytest.raises(ValueError, match="more than 1000 fields"):
        names_other_files(content + b"\x08\x00")


@pytest.mark.parametrize("content", [b"hello", b"\0" * 9, b"\x3b\x3c", b"\x3a\x7f", b"\x3a", b"\xff" * 12])
def test_what_is_no_protobuf_is_refused_in_one_line(content, tmp_path):
    with pytest.raises(ValueError, match="no ONNX"):
        names_other_files(content)
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(MistakeError, match=r"m.onnx: onnxruntime cannot read it \(no ONNX"):
        GraphPredictor(tmp_path / "m.onnx")


@pytest.mark.parametrize("threads", ["x", 1.5, 10**12, -1, 0, True])
def test_threads_that_are_no_number_are_refused(threads, tmp_path):
    (tmp_path / "m.onnx").write_bytes(model([constant(helper.make_tensor("w", 1, [1], [1.0]))]).SerializeToString())
    with pytest.raises(MistakeError, match=r"num_threads .*; expected 1\.\.1024, or None"):
        GraphPredictor(tmp_path / "m.onnx", num_threads=threads)
