"""The one reader of YAML: settings of runs and studies, and ``dataset.yaml``.

A few hundred bytes of aliases can stand for gigabytes, and a few thousand brackets exhaust a recursive reader: both are
counted before anything is built.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from mtlsi.errors import MistakeError, message_of
from mtlsi.reading import DEEPEST, read_text, shortened

MOST_YAML = 4 * 2**20
"""Characters of settings in YAML."""
MOST_VALUES = 200_000
"""Values in a YAML file, each counted as often as an alias repeats it."""
MOST_DIGITS = 64
"""Characters of a number."""
MOST_BITS = 64
"""Of a whole number."""
_BASE = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_BASE):  # pyright: ignore[reportGeneralTypeIssues]: one of two
    """Plain values only: texts, numbers, truths, null, lists, mappings. A name may stand only once in a mapping.

    Numbers are read as YAML 1.2 has them, 1e-3 too, and dates stay texts.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; raises ``ConstructorError`` for a name that stands there twice, of which YAML would keep the last."""
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise _refusal("a list or mapping as a name", key)
                if (key.tag, key.value) in seen:
                    raise _refusal(f"{key.value[:60]} stands there twice", node)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)

    def number(self, node: yaml.ScalarNode) -> int | float:
        """A number that can be reckoned with."""
        kind = "int" if node.tag.endswith("int") else "float"
        if len(getattr(node, "value", "")) > MOST_DIGITS:
            raise _refusal(f"a number of more than {MOST_DIGITS} digits", node)
        try:
            value = self.construct_yaml_int(node) if kind == "int" else self.construct_yaml_float(node)
        except (ValueError, OverflowError, IndexError) as error:
            raise _refusal(f"{shortened(node.value)} is no number", node) from error
        if isinstance(value, int) and value.bit_length() > MOST_BITS:
            raise _refusal(f"{shortened(node.value)}: a number of more than {MOST_BITS} bits", node)
        return value

    def truth(self, node: yaml.ScalarNode) -> bool:
        """true or false."""
        try:
            return self.construct_yaml_bool(node)
        except KeyError as error:
            raise _refusal(f"{shortened(node.value)} is neither true nor false", node) from error


def _refusal(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


_TAG = "tag:yaml.org,2002:"
_Loader.yaml_constructors = {
    tag: make
    for tag, make in _BASE.yaml_constructors.items()
    if tag not in {_TAG + kind for kind in ("timestamp", "binary", "set", "omap", "pairs")}
}
_Loader.add_constructor(_TAG + "int", _Loader.number)
_Loader.add_constructor(_TAG + "float", _Loader.number)
_Loader.add_constructor(_TAG + "bool", _Loader.truth)
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, form) for tag, form in forms if tag not in (_TAG + "timestamp", _TAG + "float", _TAG + "value")]
    for letter, forms in _BASE.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _TAG + "float",
    re.compile(
        r"[-+]?(?:[0-9][0-9_]*)?\.[0-9_]+(?:[eE][-+]?[0-9]+)?$|[-+]?[0-9][0-9_]*\.?(?:[eE][-+]?[0-9]+)$"
        r"|[-+]?[0-9][0-9_]*\.$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def parse_yaml(text: str) -> Any:
    """What YAML says. Raises ``yaml.YAMLError`` where it is none, or holds more than settings do.

    Aliases are taken, as long as all that they repeat stays within ``MOST_VALUES``; a part of itself is refused.
    """
    if len(text) > MOST_YAML:
        raise yaml.YAMLError(f"more than {MOST_YAML} characters")
    _check_events(text)
    try:
        return yaml.load(text, _Loader)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise yaml.YAMLError(f"cannot be read ({message_of(error, 100)})") from error


def _check_events(text: str) -> None:
    """Counts before anything is built; raises ``yaml.YAMLError``."""
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []
    total = 0
    try:
        for event in yaml.parse(text, _BASE):
            if isinstance(event, yaml.AliasEvent):
                if event.anchor not in sizes:
                    raise yaml.MarkedYAMLError(None, None, f"*{event.anchor[:40]}: no such anchor", event.start_mark)
                total += sizes[event.anchor]
            elif isinstance(event, yaml.ScalarEvent):
                total += 1
                if event.anchor:
                    sizes[event.anchor] = 1
            elif isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, total))
                total += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, before = open_nodes.pop()
                if anchor:
                    sizes[anchor] = total - before
            if total > MOST_VALUES or len(open_nodes) > DEEPEST:
                problem = (
                    f"deeper than {DEEPEST} levels"
                    if len(open_nodes) > DEEPEST
                    else f"more than {MOST_VALUES} values, aliases counted as often as they stand"
                )
                raise yaml.MarkedYAMLError(None, None, problem, event.start_mark)
    except (ValueError, RecursionError) as error:
        raise yaml.YAMLError(f"cannot be read ({message_of(error, 100)})") from error


def where_in_yaml(error: yaml.YAMLError) -> str:
    """What is wrong with YAML, and in which line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = "" if mark is None else f" in line {mark.line + 1}"
    return f"not YAML{where} ({' '.join(str(problem or error or 'broken').split())[:200]})"


def read_yaml(path: Path) -> Any:
    """What a YAML file says. Raises ``MistakeError`` naming file and line, and ``OSError`` where it cannot be opened."""
    try:
        return parse_yaml(read_text(path, MOST_YAML))
    except UnicodeDecodeError as error:
        raise MistakeError(f"{path}: not text in UTF-8 (byte {error.start + 1}); save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise MistakeError(f"{path}: {where_in_yaml(error)}; correct it") from error
