"""Reshapes out of the way of a runtime's convolutions.

A task axis (b t c h w) is opened before an operation and closed behind it, in torch for nothing. A runtime that keeps a
memory order of its own from one convolution to the next has to leave it at every such reshape, and to come back. Each
element is treated alike by what stands between:

    f(reshape(x)) = reshape(f(x))          f by element, or a 1x1 convolution and the shape of the map
    reshape(reshape(x)) = x                where the last shape is the first

so operations move before reshapes, and reshapes that undo one another vanish. No number changes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node
from torch.fx.node import map_arg

aten: Any = torch.ops.aten
RESHAPES = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten.unflatten.int,
        aten.flatten.using_ints,
        aten.squeeze.dim,
        aten.unsqueeze.default,
    }
)
BY_ELEMENT = frozenset({aten.gelu.default, aten.add.Tensor})
TRANSPOSE = aten.transpose.int


def straighten(program: ExportedProgram) -> None:
    """Apply the rules to the program's graph, in place, until none applies."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in RESHAPES or node.target == TRANSPOSE:
            _drop_undone(node)
        elif node.target in BY_ELEMENT:
            _move_by_element(graph, node)
        elif node.target == aten.conv2d.default:
            _move_convolution(graph, node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


def _drop_undone(node: Node) -> None:
    """In place of ``node`` what it leads back to, if it does."""
    source = _source(node)
    if (
        node.target == TRANSPOSE
        and source is not None
        and source.target == TRANSPOSE
        and source.args[1:] == node.args[1:]
    ):
        node.replace_all_uses_with(source.all_input_nodes[0])
        return
    while source is not None and node.target in RESHAPES:
        if _shape(source) == _shape(node):
            node.replace_all_uses_with(source)
            return
        source = _source(source) if source.target in RESHAPES else None


def _move_by_element(graph: Graph, node: Node) -> None:
    """f(reshape(x), reshape(y)) becomes reshape(f(x, y)), where x and y are of one shape."""
    tensors = [x for x in node.args if isinstance(x, Node)]
    chains = [_chain(x) for x in tensors]
    if not tensors or len(tensors) < sum(isinstance(x, Node) for x in node.args) or not all(chains):
        return
    roots = [chain[0] for chain in chains]
    if any(_shape(x) != _shape(tensors[0]) for x in tensors) or any(_shape(x) != _shape(roots[0]) for x in roots):
        return
    moved = dict(zip(tensors, roots, strict=True))
    with graph.inserting_before(node):
        made = _call(graph, node, tuple(moved.get(x, x) if isinstance(x, Node) else x for x in node.args))
        node.replace_all_uses_with(_replay(graph, chains[0], made))


def _move_convolution(graph: Graph, node: Node) -> None:
    """A 1x1 convolution over positions as a line (b c n 1) becomes one over the map (b c h w) that they come from."""
    source, weight = node.args[0], node.args[1]
    if not isinstance(source, Node) or not isinstance(weight, Node):
        return
    chain = _chain(source)
    if not chain or tuple(_value(weight).shape[2:]) != (1, 1) or _steps_or_pads(node) or len(_shape(source)) != 4:
        return
    root = chain[0]
    if len(_shape(root)) != 4 or _shape(root)[:2] != _shape(source)[:2] or _shape(source)[3] != "1":
        return
    with graph.inserting_before(node):
        made = _call(graph, node, (root, *node.args[1:]))
        flat = _make(graph, aten.flatten.using_ints, (made, 2))
        node.replace_all_uses_with(_make(graph, aten.unsqueeze.default, (flat, 3)))


def _steps_or_pads(node: Node) -> bool:
    """Whether the convolution passes over positions or makes new ones."""
    given: Any = (*node.args[3:5], (), ())
    return any(side != 1 for side in given[0]) or any(side != 0 for side in given[1])


def _chain(node: Node) -> list[Node]:
    """From what was reshaped to ``node``, every step; empty where it is no reshape."""
    steps = [node]
    while steps[0].target in RESHAPES and (source := _source(steps[0])) is not None:
        steps.insert(0, source)
    return steps if len(steps) > 1 else []


def _replay(graph: Graph, chain: list[Node], made: Node) -> Node:
    """The reshapes of ``chain`` once more, of ``made``."""
    for step in chain[1:]:
        made = _call(graph, step, (made, *step.args[1:]))
    return made


def _source(node: Node) -> Node | None:
    return node.args[0] if node.args and isinstance(node.args[0], Node) and node.op == "call_function" else None


def _call(graph: Graph, like: Node, args: tuple[Any, ...]) -> Node:
    return _make(graph, like.target, args, dict(like.kwargs), like)


def _make(
    graph: Graph, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, like: Node | None = None
) -> Node:
    """A new call, with what tracing would have noted of its result."""
    made = graph.call_function(target, args, kwargs or {})
    first = _value(args[0])
    with first.fake_mode:
        result = target(*map_arg(args, _value), **map_arg(kwargs or {}, _value))
    made.meta = {**(like.meta if like is not None else args[0].meta), "val": result}
    return made


def _value(node: Node) -> Any:
    return node.meta["val"]


def _shape(node: Node) -> tuple[str, ...]:
    """The shape, a side that stands for any number as its formula: to compare two formulas would decide about them."""
    return tuple(map(str, _value(node).shape))
