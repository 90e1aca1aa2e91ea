"""Which relation joins which pair of tasks in ATRC: the published findings of its search, and one's own tables.

Rows are targets, columns sources, in the order of the tasks: G global, L local, T T-label, S S-label, - none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtlsi.errors import MistakeError
from mtlsi.reading import shortened

RELATIONS = {"G": "global", "L": "local", "T": "t_label", "S": "s_label", "-": "none"}
"""By letter."""
KINDS = tuple(RELATIONS.values())
NYUD = ("semseg", "depth", "normals", "boundary")
PASCAL = ("semseg", "parsing", "saliency", "normals", "boundary")

PUBLISHED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "nyud_hrnet18": (NYUD, ("TTSS", "STSS", "STTS", "TTGT")),
    "nyud_hrnet48": (NYUD, ("T--S", "SGGS", "SGGS", "TTTT")),
    "pascal_hrnet18": (PASCAL, ("TTS-S", "TTSTS", "TTTST", "TTTTS", "TTTGT")),
}
"""Tasks and rows, as the authors' repository (brdav/atrc, ``genotypes/``) has them."""

Genotype = dict[str, dict[str, str]]
"""{target: {source: relation}}, every pair but those of no relation."""


def read_genotype(given: Any, tasks: Sequence[str]) -> Genotype:
    """The relations of every pair of ``tasks``.

    ``given``: None, the published table that knows the most of these tasks, the first of equals; a name in ``PUBLISHED``;
    one of ``KINDS`` for every pair; or a table of one's own, {target: {source: relation}}, of every pair.
    Choice: a pair that a published table does not know takes what the search found most often: T-label within a task,
    S-label between two. Raises ``MistakeError`` for anything else.
    """
    if given is None:
        given = max(PUBLISHED, key=lambda name: len(set(tasks) & set(PUBLISHED[name][0])))  # the first of equals
    if not isinstance(given, str | Mapping):
        raise MistakeError(
            f"genotype {shortened(given)}; expected a name, or a table: a relation by target and by source"
        )
    if not isinstance(given, str):
        return {target: _own_row(given, target, tasks) for target in tasks}
    if given in KINDS:
        return _without_none({target: dict.fromkeys(tasks, given) for target in tasks})
    if given not in PUBLISHED:
        raise MistakeError(f"genotype {given!r}; expected one of {', '.join((*PUBLISHED, *KINDS))}, or a table")
    names, rows = PUBLISHED[given]
    known = {
        (target, source): RELATIONS[letter]
        for target, row in zip(names, rows, strict=True)
        for source, letter in zip(names, row, strict=True)
    }
    usual = {(target, source): "t_label" if target == source else "s_label" for target in tasks for source in tasks}
    return _without_none({t: {s: known.get((t, s), usual[t, s]) for s in tasks} for t in tasks})


def _own_row(table: Mapping[str, Any], target: str, tasks: Sequence[str]) -> dict[str, str]:
    row = table.get(target)
    if not isinstance(row, Mapping) or set(row) != set(tasks) or set(table) != set(tasks):
        raise MistakeError(f"genotype for {target}: {row}; expected a relation to each of {', '.join(tasks)}")
    for source, kind in row.items():
        if not isinstance(kind, str) or kind not in KINDS:
            raise MistakeError(f"genotype {target} from {source}: {kind!r}; expected one of {', '.join(KINDS)}")
    return _without_none({target: {source: row[source] for source in tasks}})[target]


def _without_none(genotype: Genotype) -> Genotype:
    return {t: {s: kind for s, kind in row.items() if kind != "none"} for t, row in genotype.items()}
