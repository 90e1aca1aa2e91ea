"""What stands around the network in an exported graph: from an image's bytes to its input, from its output to predictions.

    u = resize(image)          to the working size, antialiased and rounded, as Pillow does
    x = (u / 255 - mean) / std, padded to multiples of 32
    y = decode(resize(network(x)))      bilinear, to the image's size

Written in ONNX's own text, which has no functions of torch in it. The maps of classes, many channels, have them last here:
resizing and choosing the best then take a quarter of the time. Maps of one to three channels have them first, which takes
half or less. No operation names axes to resize or to pad: onnxruntime's optimiser moves the axes of some operations, and
the names would stay behind.
"""

from __future__ import annotations

import onnx
from onnx import ModelProto, parser

from mtlsi import kinds
from mtlsi.errors import MistakeError
from mtlsi.kinds.direction import Direction
from mtlsi.kinds.distance import Distance
from mtlsi.kinds.strength import Strength
from mtlsi.kinds.value import Value
from mtlsi.nn.normalise import MEAN, STD
from mtlsi.prediction.predictor import LONGEST_SIDE
from mtlsi.tasks import class_dtype

OPSET = 20
IR_VERSION = 10
IMAGES = "network_images"
"""The network's input."""
HEADER = f'<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>\n'
RESIZE = 'Resize <mode="linear", coordinate_transformation_mode="half_pixel">'
REDUCE = 'Resize <mode="linear", coordinate_transformation_mode="half_pixel", antialias=1, exclude_outside=1>'
"""A runtime takes four times as long for this one, which is the same where it enlarges."""


def prepare(working_size: tuple[int, int] | None) -> ModelProto:
    """image (b H W 3) uint8 -> the network's input, the size (h w) that it shows, and the batch's and the image's.

    The size has the working size's area in the image's shape, its sides multiples of 4 and at least 4; None: images are
    taken as they are.
    Choice: sides below 64 are rounded as well, where ``Predictor`` leaves them: an image 36 times as wide as high, say.
    """
    if working_size is None:
        sized = "shown_hw = Identity (image_hw)\n small = Transpose <perm=[0, 3, 1, 2]> (image)"
        area = longest = 1.0
    else:
        area, longest = float(working_size[0] * working_size[1]), float(LONGEST_SIDE * max(working_size))
        sized = f"""
            sides = Cast <to=11> (image_hw)
            pixels = ReduceProd <keepdims=1> (sides)
            ratio = Div (area, pixels)
            by_area = Sqrt (ratio)
            longer = ReduceMax <keepdims=1> (sides)
            by_longer = Div (longest, longer)
            scale = Min (by_area, by_longer)
            wanted = Mul (sides, scale)
            cells = Div (wanted, four)
            whole_cells = Round (cells)
            at_least_one = Max (whole_cells, one)
            shown_sides = Mul (at_least_one, four)
            shown_hw = Cast <to=7> (shown_sides)
            channels_first = Transpose <perm=[0, 3, 1, 2]> (image)
            shown_shape = Concat <axis=0> (batch_size, three, shown_hw)
            small = {REDUCE} (channels_first, , , shown_shape)"""
    factors = [f"{1 / (255 * deviation)!r}" for deviation in STD]
    offsets = [f"{-mean / deviation!r}" for mean, deviation in zip(MEAN, STD, strict=True)]
    return _parsed(f"""{HEADER}
        prepare (uint8[batch, height, width, 3] image)
            => (float[batch, 3, rows, columns] {IMAGES}, int64[2] shown_hw, int64[2] image_hw, int64[1] batch_size)
        <double[1] area = {{{area!r}}}, double[1] longest = {{{longest!r}}}, double[1] four = {{4.0}},
         double[1] one = {{1.0}}, int64[6] nothing = {{0, 0, 0, 0, 0, 0}},
         float[3, 1, 1] factor = {{{", ".join(factors)}}}, float[3, 1, 1] offset = {{{", ".join(offsets)}}},
         int64[1] three = {{3}}, int64[1] multiple = {{32}}>
        {{
            batch_size = Shape <start=0, end=1> (image)
            image_hw = Shape <start=1, end=3> (image)
            {sized}
            levels = Cast <to=1> (small)
            scaled = Mul (levels, factor)
            colours = Add (scaled, offset)
            below = Neg (shown_hw)
            missing = Mod (below, multiple)
            pads = Concat <axis=0> (nothing, missing)
            {IMAGES} = Pad (colours, pads)
        }}""")


def raw_name(task: str) -> str:
    """The network's output of one task."""
    return f"network_{task}"


def finish(task: str, num_channels: int) -> ModelProto:
    """A task's raw output (b c y x) -> its prediction at the image's size, as ``mtlsi.Predictor`` gives it."""
    return _parsed(f"""{HEADER}
        finish (float[batch, {num_channels}, y, x] {raw_name(task)}, int64[2] shown_hw, int64[2] image_hw,
                int64[1] batch_size)
            => ({_output_type(task, num_channels)} {task})
        <int64[1] {task}_stride = {{4}}, int64[2] {task}_start = {{0, 0}}, int64[2] {task}_axes = {{2, 3}},
         int64[1] {task}_first = {{0}}, int64[1] {task}_second = {{1}}, int64[1] {task}_third = {{2}}>
        {{
            {task}_grid = Div (shown_hw, {task}_stride)
            {task}_cut = Slice ({raw_name(task)}, {task}_start, {task}_grid, {task}_axes)
            {_decoding(task, num_channels)}
        }}""")


def _parsed(text: str) -> ModelProto:
    """The graph of ``text``, without the constants that none of its operations takes."""
    made = parser.parse_model(text)
    taken = {name for node in made.graph.node for name in node.input}
    kept = [tensor for tensor in made.graph.initializer if tensor.name in taken]
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    return made


def _decoding(task: str, num_channels: int) -> str:
    """From the raw map ``TASK_cut`` (b c y x) to the output; the same arithmetic as the kind's ``decode``."""
    kind = kinds.of(task)
    if kind.task.kind == "classes":
        return _best_class(task, num_channels)
    whole = _enlarged(task, f"{task}_cut", num_channels)
    one = f"{task}_one = Squeeze ({task}_whole, {task}_second)\n"
    last = f"{task}_last = Transpose <perm=[0, 2, 3, 1]> ({task}_whole)\n"
    if isinstance(kind, Strength):
        if num_channels == 2:
            whole = f"""
            {task}_no = Slice ({task}_cut, {task}_first, {task}_second, {task}_second)
            {task}_yes = Slice ({task}_cut, {task}_second, {task}_third, {task}_second)
            {task}_logit = Sub ({task}_yes, {task}_no)
            {_enlarged(task, f"{task}_logit", 1)}"""
        return whole + one + f"{task} = Sigmoid ({task}_one)"
    if isinstance(kind, Distance):
        return whole + one + f"{task} = Relu ({task}_one)"
    if isinstance(kind, Direction):
        return whole + last + f"{task} = LpNormalization <axis=-1, p=2> ({task}_last)"
    if isinstance(kind, Value):
        begun, values = (last, f"{task}_last") if kind.label_channels else (one, f"{task}_one")
        if kind.task.range is None:
            return whole + begun + f"{task} = Identity ({values})"
        low, high = kind.task.range
        return f"""{whole} {begun}
            {task}_low = Constant <value_float={low!r}> ()
            {task}_high = Constant <value_float={high!r}> ()
            {task} = Clip ({values}, {task}_low, {task}_high)"""
    raise MistakeError(f"{task}: of kind {kind.task.kind}, which cannot be exported; leave it out with --tasks")


def _best_class(task: str, num_channels: int) -> str:
    to = onnx.TensorProto.UINT8 if class_dtype(num_channels) == "uint8" else onnx.TensorProto.INT32
    return f"""
            {task}_cut_last = Transpose <perm=[0, 2, 3, 1]> ({task}_cut)
            {_enlarged(task, f"{task}_cut_last", num_channels, last=True)}
            {task}_best = ArgMax <axis=3, keepdims=0> ({task}_whole)
            {task} = Cast <to={to}> ({task}_best)"""


def _enlarged(task: str, source: str, num_channels: int, *, last: bool = False) -> str:
    """``TASK_whole``: the map at the image's size, antialiased where the image is smaller than the map."""
    axes = f"height, width, {num_channels}" if last else f"{num_channels}, height, width"
    sides = f"image_hw, {task}_channels" if last else f"{task}_channels, image_hw"
    branch = f"""= {task}_%s () => (float[batch, {axes}] {task}_%s_out)
        {{ {task}_%s_out = %s ({source}, , , {task}_shape) }}"""
    reduced, enlarged = (branch % (name, name, name, way) for name, way in (("less", REDUCE), ("more", RESIZE)))
    return f"""
            {task}_channels = Constant <value_ints=[{num_channels}]> ()
            {task}_shape = Concat <axis=0> (batch_size, {sides})
            {task}_asked = ReduceProd <keepdims=0> (image_hw)
            {task}_made = ReduceProd <keepdims=0> ({task}_grid)
            {task}_is_less = LessOrEqual ({task}_asked, {task}_made)
            {task}_whole = If ({task}_is_less) <then_branch {reduced}, else_branch {enlarged}>
            """


def _output_type(task: str, num_channels: int) -> str:
    kind = kinds.of(task)
    if kind.task.kind == "classes":
        return f"{class_dtype(num_channels)}[batch, height, width]"
    channels = f", {kind.label_channels}" if kind.label_channels else ""
    return f"float[batch, height, width{channels}]"
