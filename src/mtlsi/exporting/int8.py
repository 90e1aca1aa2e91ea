"""A network's graph in 8 bits, its scales found on a person's own images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from mtlsi.exporting import frame
from mtlsi.prediction.shown import Shown

QUANTISED = ("Conv",)
"""Choice: convolutions alone, which hold nine tenths of the operations. Norms, softmaxes and sums stay float32."""
FIRST = 5
"""Convolutions at the graph's start that stay float32.

Choice: measured on ``nyud``. With the first five in 8 bits too, depth moves eight times as far and four times as many pixels
change class: what they lose at the finest maps, every later one sees.
"""


class Calibration(CalibrationDataReader):
    """The network's input for each image (H W 3) uint8, as the frame makes it; all are read at once, and kept small."""

    def __init__(self, images: Iterable[np.ndarray], shown: Shown | None):
        before = frame.prepare(shown).SerializeToString()
        session = onnxruntime.InferenceSession(before, providers=["CPUExecutionProvider"])
        made = [np.asarray(session.run([frame.IMAGES], {"image": pixels[None]})[0]) for pixels in images]
        self.inputs = iter([{frame.IMAGES: pixels} for pixels in made])

    def get_next(self) -> dict[str, np.ndarray] | None:  # type: ignore[override]
        return next(self.inputs, None)


def in_8_bits(network: ModelProto, calibration: CalibrationDataReader, tasks: Sequence[str]) -> ModelProto:
    """``network`` with its convolutions in 8 bits: weights by channel with a sign, activations by tensor without one.

    Choice: the last convolutions, from features to predictions, stay float32: metres and normals are read from them. So do
    the first ones, see ``FIRST``.
    """
    with tempfile.TemporaryDirectory() as folder:
        plain, folded, made = (Path(folder) / f"{name}.onnx" for name in ("plain", "folded", "made"))
        onnx.save(network, plain)
        quant_pre_process(plain, folded, skip_symbolic_shape=True)
        quantize_static(
            folded,
            made,
            calibration,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=exempt(onnx.load(folded), tasks),
            extra_options={"ActivationSymmetric": False},
        )
        quantised = onnx.load(made)
    del quantised.graph.value_info[:]
    return quantised


def exempt(network: ModelProto, tasks: Sequence[str]) -> list[str]:
    """The names of the convolutions that stay float32: the first ones, and those that make the predictions."""
    convolutions = [node.name for node in network.graph.node if node.op_type == "Conv"]
    return [*convolutions[:FIRST], *last_convolutions(network, tasks)]


def last_convolutions(network: ModelProto, tasks: Sequence[str]) -> list[str]:
    """The names of the convolutions that the outputs come from, with no other between."""
    makers = {output: node for node in network.graph.node for output in node.output}
    waiting, seen, found = [frame.raw_name(task) for task in tasks], set(), []
    while waiting:
        node = makers.get(waiting.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if node.op_type == "Conv":
            found.append(node.name)
        else:
            waiting.extend(node.input)
    return found
