"""A trained network as one ONNX graph, from an image's bytes to finished predictions, which says what it is."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import onnx
import torch
from onnx import ModelProto, helper

from mtlsi import kernels, kinds
from mtlsi.exporting import frame
from mtlsi.exporting.network import EXAMPLE, raw_network, trace
from mtlsi.exporting.straighten import straighten
from mtlsi.kinds.palette import palette
from mtlsi.model.network import MTLSINet
from mtlsi.prediction.shown import Shown, Size
from mtlsi.tasks import TASKS, num_channels, own_records
from mtlsi.version import __version__


def network_graph(model: MTLSINet, tasks: Sequence[str], dtype: torch.dtype) -> ModelProto:
    """The network alone: normalised images, sides multiples of 32, to each task's raw prediction, all float32.

    Inside it computes in ``dtype``. Raises ``MistakeError`` for a network that cannot be traced.
    """
    network = raw_network(model, tasks).to(dtype)
    with kernels.use("graph"), warnings.catch_warnings(), quiet("torch.onnx", "onnxscript", "onnx_ir"):
        warnings.simplefilter("ignore")  # the exporter's remarks on its own parts
        traced = trace(network, torch.zeros(EXAMPLE))
        straighten(traced)
        program = torch.onnx.export(
            traced,
            dynamo=True,
            opset_version=frame.OPSET,
            input_names=[frame.IMAGES],
            output_names=[frame.raw_name(task) for task in tasks],
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    del graph.graph.value_info[:]  # names of sizes in it, which a runtime works out itself, need not agree
    for node in graph.graph.node:
        del node.metadata_props[:]  # places in source files
        node.doc_string = ""
    return graph


def whole_graph(
    network: ModelProto,
    tasks: Sequence[str],
    channels: Sequence[int],
    shown: Shown | None,
    trained_size: Size | None = None,
) -> ModelProto:
    """``network`` between the two parts of ``frame``; see there."""
    before = frame.prepare(shown)
    plain = shown is None  # for runtimes of few operations
    seen = None if shown is None or trained_size is None else (shown, trained_size)
    after = [frame.finish(task, count, seen=seen, plain=plain) for task, count in zip(tasks, channels, strict=True)]
    parts = [before.graph, network.graph, *(part.graph for part in after)]
    graph = helper.make_graph(
        [node for part in parts for node in part.node],
        "mtlsi",
        list(before.graph.input),
        [output for part in after for output in part.graph.output],
        [tensor for part in parts for tensor in part.initializer],
    )
    domains = {item.domain: item for item in network.opset_import}
    made = helper.make_model(
        graph, opset_imports=list(domains.values()), ir_version=frame.IR_VERSION, producer_name="mtlsi"
    )
    made.functions.extend(network.functions)
    return made


def describe(made: ModelProto, model: MTLSINet, tasks: Sequence[str], shown: Shown | None, dtype: str) -> None:
    """Write into ``metadata_props`` what a caller must know, every value but the version as JSON."""
    camera = model.camera if shown and model.camera else None
    facts = {
        "mtlsi_version": __version__,
        "tasks": json.dumps([task_facts(task, model) for task in tasks]),
        "working_size": json.dumps(shown and shown.working_size),
        "resize": json.dumps(model.resize),
        "dtype": json.dumps(dtype),
        "own_tasks": json.dumps(own_records(tasks)),
        "camera": json.dumps(camera and {**camera, "input_size": model.input_size}),
    }
    helper.set_model_props(made, facts)
    made.doc_string = "image (batch, height, width, 3), RGB, 8 bits, to a prediction of every task at the image's size"


def task_facts(task: str, model: MTLSINet) -> dict[str, Any]:
    """What the numbers of one output mean."""
    record = TASKS[task]
    facts: dict[str, Any] = {"name": task, "kind": record.kind, "title": record.title}
    if record.kind == "classes":
        names = list(model.classes[task])
        colours = palette(len(names), model.colours.get(task))
        return facts | {"classes": names, "colours": [list(colour) for colour in colours]}
    meaning = {
        "distance": "metres",
        "direction": "unit vectors: x right, y up, z to the camera",
        "strength": "probability",
    }.get(record.kind, record.unit or "")
    return facts | {"unit": meaning, "range": list(record.range) if record.range else None}


def raw_channels(model: MTLSINet, tasks: Sequence[str]) -> list[int]:
    """How many channels the raw prediction of each task has."""
    return [num_channels(task, model.classes) for task in tasks]


def check_kinds(tasks: Sequence[str]) -> None:
    """Raises ``MistakeError`` for a task that no graph can decode."""
    for task in tasks:
        frame.finish(task, max(1, kinds.of(task).label_channels, TASKS[task].channels or 2))


def check_graph(made: ModelProto) -> None:
    """Let ONNX's own checker look at the graph."""
    onnx.checker.check_model(made, full_check=False)


@contextlib.contextmanager
def quiet(*names: str):
    """Within the context these libraries print nothing and log only errors."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
