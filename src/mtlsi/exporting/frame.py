"""What stands around the network in an exported graph: from an image's bytes to its input, from its output to predictions.

    u = resize(image)          as ``mtlsi.prediction.shown`` says, antialiased and rounded, as Pillow does
    x = (u / 255 - mean) / std, padded to multiples of 32
    y = decode(resize(network(x)))      bilinear, to the image's size

Written in ONNX's own text, which has no functions of torch in it. The maps of classes, many channels, have them last here:
resizing and choosing the best then take a quarter of the time, and most places of a photo need neither. Maps of one to three
channels have them first, which takes half or less. No operation names axes to resize or to pad: onnxruntime's optimiser
moves the axes of some operations, and the names would stay behind. Nothing divides a constant: OpenVINO 2026.4 then divides
by it, and says nothing.
"""

from __future__ import annotations

import onnx
from onnx import ModelProto, compose, parser

from mtlsi import kinds
from mtlsi.errors import MistakeError
from mtlsi.kinds.direction import Direction
from mtlsi.kinds.distance import Distance
from mtlsi.kinds.strength import Strength
from mtlsi.kinds.value import Value
from mtlsi.nn.normalise import MEAN, STD
from mtlsi.prediction.full_size import MOST_CHANGES
from mtlsi.prediction.shown import LONGEST_SIDE, Shown, Size
from mtlsi.tasks import class_dtype

OPSET = 20
IR_VERSION = 10
IMAGES = "network_images"
"""The network's input."""
Seen = tuple[Shown, Size] | None
HEADER = f'<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>\n'
RESIZE = 'Resize <mode="linear", coordinate_transformation_mode="half_pixel">'
REDUCE = 'Resize <mode="linear", coordinate_transformation_mode="half_pixel", antialias=1, exclude_outside=1>'
"""A runtime takes four times as long for this one, which is the same where it enlarges."""


def prepare(shown: Shown | None) -> ModelProto:
    """image (b H W 3) uint8 -> the network's input, the size (h w) that it shows, and the batch's and the image's.

    The size is that of ``shown``, its sides multiples of 4 and at least 4; None: images are taken as they are.
    Choice: sides below 64 are rounded as well, where ``Predictor`` leaves them: an image 36 times as wide as high, say.
    """
    if shown is None:
        sized = "shown_hw = Identity (image_hw)\n small = Transpose <perm=[0, 3, 1, 2]> (image)"
        constants = ""
    else:
        constants = _constants(shown)
        sized = f"""
            sides = Cast <to=11> (image_hw)
            {_reduced_by(shown)}
            wanted = Div (sides, reduced_by)
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
        <{constants} double[1] four = {{4.0}},
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


def _constants(shown: Shown, name: str = "") -> str:
    """What ``_reduced_by`` reads."""
    height, width = shown.working_size
    return f"""double[2] {name}working = {{{float(height)!r}, {float(width)!r}}},
         double[1] {name}area = {{{float(height * width)!r}}},
         double[1] {name}longest = {{{float(LONGEST_SIDE * max(height, width))!r}}},"""


def _reduced_by(shown: Shown, name: str = "") -> str:
    """``reduced_by``: what the ``sides`` of an image are divided by to be ``shown``; all names begin with ``name``."""
    by_shape = f"""
            {name}pixels = ReduceProd <keepdims=1> (sides)
            {name}ratio = Div ({name}pixels, {name}area)
            {name}by_shape = Sqrt ({name}ratio)"""
    if shown.resize == "keep_ratio":
        by_shape = f"""
            {name}ratios = Div (sides, {name}working)
            {name}by_shape = ReduceMax <keepdims=1> ({name}ratios)"""
    return f"""{by_shape}
            {name}longer = ReduceMax <keepdims=1> (sides)
            {name}by_longer = Div ({name}longer, {name}longest)
            {name}reduced_by = Max ({name}by_shape, {name}by_longer)"""


def raw_name(task: str) -> str:
    """The network's output of one task."""
    return f"network_{task}"


def finish(task: str, num_channels: int, *, seen: Seen = None, plain: bool = False) -> ModelProto:
    """A task's raw output (b c y x) -> its prediction at the image's size, as ``mtlsi.Predictor`` gives it.

    ``seen``: how images are shown, and the size at which they were in training: distances are multiplied by ``Shown.share``.
    ``plain``: by few and common operations, without branches and shapes that depend on data, for images larger than the map.
    """
    constants = "".join(_constants(each, name) for name, each in _both(seen).items())
    made = _parsed(f"""{HEADER}
        finish (float[batch, {num_channels}, y, x] {raw_name(task)}, int64[2] shown_hw, int64[2] image_hw,
                int64[1] batch_size)
            => ({_output_type(task, num_channels)} {task})
        <{constants} int64[1] {task}_stride = {{4}}, int64[2] {task}_start = {{0, 0}}, int64[2] {task}_axes = {{2, 3}},
         int64[1] {task}_first = {{0}}, int64[1] {task}_second = {{1}}, int64[1] {task}_third = {{2}}>
        {{
            {task}_grid = Div (shown_hw, {task}_stride)
            {task}_cut = Slice ({raw_name(task)}, {task}_start, {task}_grid, {task}_axes)
            {_decoding(task, num_channels, seen, plain)}
        }}""")
    # no task's name has a slash: without one, hand_left could be a task or an inner result of hand
    return compose.add_prefix(made, f"{task}/", rename_inputs=False, rename_outputs=False)


def _parsed(text: str) -> ModelProto:
    """The graph of ``text``, without the constants that none of its operations takes."""
    made = parser.parse_model(text)
    taken = {name for node in made.graph.node for name in node.input}
    kept = [tensor for tensor in made.graph.initializer if tensor.name in taken]
    del made.graph.initializer[:]
    made.graph.initializer.extend(kept)
    return made


def _both(seen: Seen) -> dict[str, Shown]:
    """How images are shown, and how they would be at the size of training, by what the names of each begin with."""
    return {} if seen is None else {"here_": seen[0], "trained_": Shown(seen[1], seen[0].resize)}


def _share(task: str, shown: Shown, trained_size: Size) -> str:
    """``TASK_share``: what distances are multiplied by, one number for every image where both sizes have one shape."""
    if shown.working_size[0] * trained_size[1] == shown.working_size[1] * trained_size[0]:
        return f"{task}_share = Constant <value_float={shown.share(trained_size, trained_size)!r}> ()"
    return f"""
            sides = Cast <to=11> (image_hw)
            {"".join(_reduced_by(each, name) for name, each in _both((shown, trained_size)).items())}
            {task}_ratio = Div (trained_reduced_by, here_reduced_by)
            {task}_share = Cast <to=1> ({task}_ratio)"""


def _decoding(task: str, num_channels: int, seen: Seen, plain: bool) -> str:
    """From the raw map ``TASK_cut`` (b c y x) to the output; the same arithmetic as the kind's ``decode``."""
    kind = kinds.of(task)
    if kind.task.kind == "classes":
        return _best_class(task, num_channels, plain)
    whole = _enlarged(task, f"{task}_cut", num_channels, plain=plain)
    one = f"{task}_one = Squeeze ({task}_whole, {task}_second)\n"
    last = f"{task}_last = Transpose <perm=[0, 2, 3, 1]> ({task}_whole)\n"
    if isinstance(kind, Strength):
        if num_channels == 2:
            whole = f"""
            {task}_no = Slice ({task}_cut, {task}_first, {task}_second, {task}_second)
            {task}_yes = Slice ({task}_cut, {task}_second, {task}_third, {task}_second)
            {task}_logit = Sub ({task}_yes, {task}_no)
            {_enlarged(task, f"{task}_logit", 1, plain=plain)}"""
        return whole + one + f"{task} = Sigmoid ({task}_one)"
    if isinstance(kind, Distance):
        if seen is None or seen[0].working_size == seen[1]:
            return whole + one + f"{task} = Relu ({task}_one)"
        return f"""{whole} {one}
            {task}_seen = Relu ({task}_one)
            {_share(task, *seen)}
            {task} = Mul ({task}_seen, {task}_share)"""
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


def _best_class(task: str, num_channels: int, plain: bool) -> str:
    to = onnx.TensorProto.UINT8 if class_dtype(num_channels) == "uint8" else onnx.TensorProto.INT32
    if plain:
        chosen = f"""
            {_enlarged(task, f"{task}_scores", num_channels, last=True, plain=True)}
            {task}_best = ArgMax <axis=3, keepdims=0> ({task}_whole)"""
    else:
        chosen = _best_between(task, num_channels)
    return f"""
            {task}_scores = Transpose <perm=[0, 2, 3, 1]> ({task}_cut)
            {chosen}
            {task} = Cast <to={to}> ({task}_best)"""


def _best_between(task: str, num_channels: int) -> str:
    """As ``mtlsi.prediction.full_size``: scores are worked out only between places of different classes.

    Not where the image is smaller than the map, nor where the class changes often (``MOST_CHANGES``): that takes longer.
    """
    all_scores = f"""= {task}_all () => (int64[batch, height, width] {task}_all_best)
        {{
            {_enlarged(task, f"{task}_scores", num_channels, last=True)}
            {task}_all_best = ArgMax <axis=3, keepdims=0> ({task}_whole)
        }}"""
    some_scores = f"""= {task}_some () => (int64[batch, height, width] {task}_some_best)
        {{
            {_neighbours(task, "row", 0)}
            {_neighbours(task, "column", 1)}
            {task}_left = Gather <axis=2> ({task}_own, {task}_column_low)
            {task}_right = Gather <axis=2> ({task}_own, {task}_column_high)
            {task}_across = Equal ({task}_left, {task}_right)
            {task}_upper = Gather <axis=1> ({task}_left, {task}_row_low)
            {task}_lower = Gather <axis=1> ({task}_left, {task}_row_high)
            {task}_down = Equal ({task}_upper, {task}_lower)
            {task}_upper_across = Gather <axis=1> ({task}_across, {task}_row_low)
            {task}_lower_across = Gather <axis=1> ({task}_across, {task}_row_high)
            {task}_both_across = And ({task}_upper_across, {task}_lower_across)
            {task}_agree = And ({task}_down, {task}_both_across)
            {task}_differ = Not ({task}_agree)
            {task}_found = NonZero ({task}_differ)
            {task}_places = Transpose <perm=[1, 0]> ({task}_found)
            {task}_of_image, {task}_of_row, {task}_of_column = Split <axis=1, num_outputs=3> ({task}_places)
            {task}_above = Gather ({task}_row_low, {task}_of_row)
            {task}_below = Gather ({task}_row_high, {task}_of_row)
            {task}_at_above = Concat <axis=1> ({task}_of_image, {task}_above, {task}_of_column)
            {task}_at_below = Concat <axis=1> ({task}_of_image, {task}_below, {task}_of_column)
            {task}_num_channels = Constant <value_ints=[{num_channels}]> ()
            {task}_wide_shape = Concat <axis=0> (batch_size, {task}_row_count, {task}_column_side, {task}_num_channels)
            {task}_wide = {RESIZE} ({task}_scores, , , {task}_wide_shape)
            {task}_scores_above = GatherND ({task}_wide, {task}_at_above)
            {task}_scores_below = GatherND ({task}_wide, {task}_at_below)
            {task}_weight = Gather ({task}_row_weight, {task}_of_row)
            {task}_step = Sub ({task}_scores_below, {task}_scores_above)
            {task}_part = Mul ({task}_step, {task}_weight)
            {task}_between = Add ({task}_scores_above, {task}_part)
            {task}_chosen = ArgMax <axis=1, keepdims=0> ({task}_between)
            {task}_some_best = ScatterND ({task}_upper, {task}_places, {task}_chosen)
        }}"""
    return f"""
            {task}_own = ArgMax <axis=3, keepdims=0> ({task}_scores)
            {_changes(task, "rows", 0)}
            {_changes(task, "columns", 1)}
            {task}_changes = Add ({task}_rows_changes, {task}_columns_changes)
            {task}_most_changes = Constant <value_float={MOST_CHANGES}> ()
            {task}_changes_often = GreaterOrEqual ({task}_changes, {task}_most_changes)
            {task}_image_pixels = ReduceProd <keepdims=0> (image_hw)
            {task}_map_places = ReduceProd <keepdims=0> ({task}_grid)
            {task}_image_is_less = LessOrEqual ({task}_image_pixels, {task}_map_places)
            {task}_is_for_all = Or ({task}_changes_often, {task}_image_is_less)
            {task}_best = If ({task}_is_for_all) <then_branch {all_scores}, else_branch {some_scores}>"""


def _changes(task: str, axis: str, number: int) -> str:
    """In which share of the map's places the class is another one in the next row or column."""
    name = f"{task}_{axis}"
    return f"""
            {name}_number = Constant <value_int={number}> ()
            {name}_first = Constant <value_int=0> ()
            {name}_one = Constant <value_int=1> ()
            {name}_count = Gather ({task}_grid, {name}_number)
            {name}_last = Sub ({name}_count, {name}_one)
            {name}_places = Range ({name}_first, {name}_count, {name}_one)
            {name}_after = Add ({name}_places, {name}_one)
            {name}_next = Min ({name}_after, {name}_last)
            {name}_neighbours = Gather <axis={number + 1}> ({task}_own, {name}_next)
            {name}_same = Equal ({task}_own, {name}_neighbours)
            {name}_other = Not ({name}_same)
            {name}_ones = Cast <to=1> ({name}_other)
            {name}_changes = ReduceMean <keepdims=0> ({name}_ones)"""


def _neighbours(task: str, axis: str, number: int) -> str:
    """For every row or column of the image, the two of the map between which it lies, and the weight of the second."""
    name = f"{task}_{axis}"
    return f"""
            {name}_number = Constant <value_ints=[{number}]> ()
            {name}_zero = Constant <value_int=0> ()
            {name}_one = Constant <value_int=1> ()
            {name}_half = Constant <value_float=0.5> ()
            {name}_side = Gather (image_hw, {name}_number)
            {name}_count = Gather ({task}_grid, {name}_number)
            {name}_stop = Squeeze ({name}_side)
            {name}_indices = Range ({name}_zero, {name}_stop, {name}_one)
            {name}_last = Sub ({name}_count, {name}_one)
            {name}_counted = Cast <to=1> ({name}_count)
            {name}_sided = Cast <to=1> ({name}_side)
            {name}_ratio = Div ({name}_counted, {name}_sided)
            {name}_floats = Cast <to=1> ({name}_indices)
            {name}_centres = Add ({name}_floats, {name}_half)
            {name}_scaled = Mul ({name}_centres, {name}_ratio)
            {name}_moved = Sub ({name}_scaled, {name}_half)
            {name}_within = Relu ({name}_moved)
            {name}_floor = Floor ({name}_within)
            {name}_weight = Sub ({name}_within, {name}_floor)
            {name}_whole = Cast <to=7> ({name}_floor)
            {name}_low = Min ({name}_whole, {name}_last)
            {name}_next = Add ({name}_low, {name}_one)
            {name}_high = Min ({name}_next, {name}_last)"""


def _enlarged(task: str, source: str, num_channels: int, *, last: bool = False, plain: bool = False) -> str:
    """``TASK_whole``: the map at the image's size; unless ``plain``, antialiased where the image is smaller than the map."""
    axes = f"height, width, {num_channels}" if last else f"{num_channels}, height, width"
    sides = f"image_hw, {task}_channels" if last else f"{task}_channels, image_hw"
    branch = f"""= {task}_%s () => (float[batch, {axes}] {task}_%s_out)
        {{ {task}_%s_out = %s ({source}, , , {task}_shape) }}"""
    reduced, enlarged = (branch % (name, name, name, way) for name, way in (("less", REDUCE), ("more", RESIZE)))
    shape = f"""
            {task}_channels = Constant <value_ints=[{num_channels}]> ()
            {task}_shape = Concat <axis=0> (batch_size, {sides})"""
    if plain:
        return f"""{shape}
            {task}_whole = {RESIZE} ({source}, , , {task}_shape)
            """
    return f"""{shape}
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
