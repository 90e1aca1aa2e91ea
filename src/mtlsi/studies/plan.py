"""The study file: variants of one recipe, seeds, and what is compared. Read and checked before anything is trained.

``recipe``: the path of a run's recipe, relative to the study file, or its settings themselves. ``variants``: by name, the
settings that differ, as dotted names (``model.num_tokens: 64``) or nested; mappings are merged, anything else replaces.
``grid``: by dotted name, a list of values; every combination is one more variant. ``seeds``, ``baseline``, ``plots``,
``title``, ``note``.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from math import prod
from pathlib import Path
from typing import Any

from mtlsi.config import LARGEST_SEED, RunConfig
from mtlsi.errors import MistakeError
from mtlsi.options.training import StudyOptions
from mtlsi.reading import shortened
from mtlsi.studies.settings import config_of, merged, nested, read_mapping, read_values
from mtlsi.tasks import BUILT_IN, LONGEST_TEXT, TASKS, check_name, check_printed

X_AXES = ("num_tokens", "gflop", "train_minutes")
"""What scores are drawn over."""
KEYS = ("title", "note", "recipe", "variants", "grid", "seeds", "baseline", "plots")
TIME_OF = "iterations_by_time_of"
ENDINGS = (".md", ".csv", ".tex", ".json", ".png", ".pdf", ".lock")
"""Of the files that lie beside the variants' folders."""
MOST_VARIANTS = 1000
"""Of a grid: each takes about 20 ms to check, before anything is trained."""
MOST_RUNS = 10_000
"""Variants times seeds."""
LONGEST_NAME = 200
"""Bytes of a variant's name, which names a folder and, with a seed and an ending, files."""


@dataclass(frozen=True)
class Variant:
    """A recipe with some changes."""

    name: str
    config: RunConfig
    """With seed 0."""
    time_of: str | None = None
    """Its iterations are to take as long as the training of this variant."""


@dataclass(frozen=True)
class Plot:
    """Scores over ``x``, one panel per task."""

    x: str
    """One of ``X_AXES``."""
    tasks: tuple[str, ...] = ()
    """(): all."""
    of: str = ""
    """What the names of the variants begin with that are drawn."""


@dataclass(frozen=True)
class Plan:
    """A study, checked as far as it can be without data."""

    title: str
    note: str
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    baseline: dict[str, str]
    """By task, the variant that learns it alone; {} where the study has none."""
    plots: tuple[Plot, ...]

    def runs(self, out: Path, only: Iterable[str] = ()) -> tuple[StudyRun, ...]:
        """The runs in their order: all variants with the first seed, then with the next; a time's source before its user.

        ``only``: names of variants or runs (VARIANT/SEED); raises ``MistakeError`` for one that the study lacks.
        """
        ordered = sorted(self.variants, key=lambda variant: variant.time_of is not None)
        runs = [StudyRun(variant, seed, out / variant.name / str(seed)) for seed in self.seeds for variant in ordered]
        wanted = {name.strip() for given in only for name in given.split(",")}
        for name in sorted(wanted - {known for run in runs for known in (run.name, run.variant.name)}):
            raise MistakeError(
                f"--only {name}: no such run; expected VARIANT or VARIANT/SEED of the variants "
                f"{', '.join(variant.name for variant in self.variants)} and the seeds {', '.join(map(str, self.seeds))}"
            )
        return tuple(run for run in runs if not wanted or wanted & {run.name, run.variant.name})


@dataclass(frozen=True)
class StudyRun:
    """One variant with one seed."""

    variant: Variant
    seed: int
    out: Path
    """Its run folder."""

    @property
    def name(self) -> str:
        """VARIANT/SEED."""
        return f"{self.variant.name}/{self.seed}"

    @property
    def config(self) -> RunConfig:
        """What it trains with."""
        return replace(self.variant.config, seed=self.seed)


def read_plan(
    file: Path, *, settings: Mapping[str, Any] | None = None, seeds: Sequence[int] = (), plugins: Sequence[str] = ()
) -> Plan:
    """The study that ``file`` describes; ``settings`` by dotted name are set in every run, ``seeds`` replace the file's.

    Raises a one-line ``MistakeError`` that names the variant for anything that is not known or cannot be.
    """
    content = read_mapping(file)
    _check_keys(f"{file}", content, KEYS)
    base = _recipe(file, content.get("recipe"))
    changes = _variants(file, content)
    common = nested(f"{file}: settings", settings or {})
    variants = []
    for name, change in changes.items():
        where = f"{file}: variant {name}"
        time_of = change.get(TIME_OF)
        if TIME_OF in change and not isinstance(time_of, str):
            raise MistakeError(f"{where}: {TIME_OF} {time_of!r}; expected the name of another variant")
        given = nested(where, {key: value for key, value in change.items() if key != TIME_OF})
        if "seed" in given:
            raise MistakeError(f"{where}: seed belongs under seeds, for all variants")
        config = config_of(where, merged(merged(base, given), common)).with_plugins(plugins)
        variants.append(Variant(name, config, time_of))
    _check_times(file, variants)
    seeds = _seeds(f"{file}: seeds", list(seeds) or content.get("seeds", [0]))
    if (count := len(variants) * len(seeds)) > MOST_RUNS:
        raise MistakeError(f"{file}: {count} runs; expected at most {MOST_RUNS}, variants times seeds: split the study")
    return Plan(
        title=_text(file, content, "title", file.stem),
        note=_text(file, content, "note", "", most=None),
        variants=tuple(variants),
        seeds=seeds,
        baseline=_baseline(file, content.get("baseline"), variants),
        plots=_plots(file, content.get("plots"), variants),
    )


def commands(options: StudyOptions) -> list[str]:
    """One shell command per run of ``mtlsi study --list``, each with the settings that were given."""
    plan = read_plan(options.file, settings=read_values(options.settings), seeds=options.seeds, plugins=options.plugin)
    given = [word for name in options.plugin for word in ("--plugin", name)]
    given += [f"--{name}={text}" for name, text in options.settings.items()]
    if options.seeds:
        given += ["--seeds", ",".join(map(str, options.seeds))]
    start = ["mtlsi", "study", str(options.file), "--out", str(options.out), "--only"]
    return [shlex.join([*start, run.name, *given]) for run in plan.runs(options.out, options.only)]


# ---- the parts of the file


def _recipe(file: Path, recipe: Any) -> dict[str, Any]:
    if isinstance(recipe, str):
        path = file.parent / recipe
        return nested(str(path), read_mapping(path))
    if not isinstance(recipe, dict):
        raise MistakeError(f"{file}: recipe is {recipe!r}; expected the path of a run's recipe, or its settings")
    return nested(f"{file}: recipe", recipe)


def _variants(file: Path, content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The changes of every variant by name, those of the grid after those that are named."""
    named, grid = content.get("variants") or {}, content.get("grid") or {}
    if not isinstance(named, dict) or not isinstance(grid, dict) or not (named or grid):
        raise MistakeError(f"{file}: no variants; expected variants: {{NAME: {{model.num_tokens: 64}}}}, or grid")
    found: dict[str, dict[str, Any]] = {}
    for name, change in chain(named.items(), _grid(file, grid)):
        is_good = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name) and not name.endswith(ENDINGS)
        if not is_good or len(name.encode()) > LONGEST_NAME:
            raise MistakeError(
                f"{file}: variant {shortened(name)}; expected at most {LONGEST_NAME} letters, digits, . _ + -, such as "
                "tokens-64: it names a folder"
            )
        if name in found:
            raise MistakeError(f"{file}: variant {name} stands in variants and comes from grid too; rename the former")
        if not isinstance(change or {}, dict):
            raise MistakeError(f"{file}: variant {name} is {change!r}; expected settings by name, or nothing")
        found[name] = change or {}
    return found


def _grid(file: Path, grid: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every combination of the values, named after them: num_tokens-64, scales-1_3.

    One after the other: a name is as long as its values, and is checked before the next is made.
    """
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise MistakeError(f"{file}: grid {key} is {values!r}; expected a list of values")
    if prod(len(values) for values in grid.values()) > MOST_VARIANTS:  # maybe of more digits than Python prints
        raise MistakeError(f"{file}: grid makes too many variants; expected at most {MOST_VARIANTS}: split the study")
    found = set()
    for values in product(*grid.values()) if grid else ():
        change = dict(zip(grid, values, strict=True))
        name = "-".join(f"{str(key).rpartition('.')[2]}-{_in_a_name(value)}" for key, value in change.items())
        if name in found:
            raise MistakeError(f"{file}: grid makes the variant {name} twice; expected different values")
        found.add(name)
        yield name, change


def _in_a_name(value: Any) -> str:
    return "_".join(map(_in_a_name, value)) if isinstance(value, list) else str(value)


def _check_times(file: Path, variants: Sequence[Variant]) -> None:
    """A variant's time can only be that of another one that has a number of iterations."""
    fixed = [variant.name for variant in variants if variant.time_of is None]
    for variant in variants:
        if variant.time_of is not None and variant.time_of not in fixed:
            raise MistakeError(
                f"{file}: variant {variant.name}: {TIME_OF} {variant.time_of!r}; expected another variant, without "
                f"{TIME_OF} of its own{': ' if fixed else ''}{', '.join(fixed)}"
            )


def _seeds(where: str, seeds: Any) -> tuple[int, ...]:
    is_list = isinstance(seeds, list) and seeds
    if not is_list or any(type(seed) is not int or seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise MistakeError(f"{where}: {seeds!r}; expected different whole numbers, such as [0, 1]")
    if max(seeds) > LARGEST_SEED:
        raise MistakeError(f"{where}: {shortened(max(seeds))}; expected 0 to {LARGEST_SEED}")
    return tuple(seeds)


def _baseline(file: Path, baseline: Any, variants: Sequence[Variant]) -> dict[str, str]:
    """By task, the variant that learns it alone: given so, or by what the variants' names begin with."""
    tasks_of = {variant.name: tuple(variant.config.data.tasks or ()) for variant in variants}
    if baseline is None:
        return {}
    if isinstance(baseline, dict):
        for task, name in baseline.items():
            if not isinstance(name, str) or tasks_of.get(name) != (task,):
                raise MistakeError(
                    f"{file}: baseline {task}: {name!r}; expected a variant whose data.tasks is [{task}]"
                )
        return dict(baseline)
    found: dict[str, str] = {}
    for name, tasks in tasks_of.items():
        if not name.startswith(str(baseline)):
            continue
        if len(tasks) != 1 or tasks[0] in found:
            raise MistakeError(
                f"{file}: baseline {baseline}: variant {name} has data.tasks {list(tasks)}; expected one task each, "
                "each in one variant"
            )
        found[tasks[0]] = name
    if not found:
        raise MistakeError(f"{file}: baseline {baseline!r}; expected what the names of some variants begin with")
    return found


def _plots(file: Path, plots: Any, variants: Sequence[Variant]) -> tuple[Plot, ...]:
    """The plots asked for; by default those over operations and time, and over K where it differs."""
    if plots is None:
        counts = {variant.config.model_config().num_tokens for variant in variants}
        return tuple(Plot(x) for x in X_AXES if x != "num_tokens" or len(counts) > 1)
    found = []
    for plot in plots if isinstance(plots, list) else [plots]:
        if not isinstance(plot, dict):
            raise MistakeError(f"{file}: plot {plot!r}; expected such as {{x: gflop, y: depth}}")
        _check_keys(f"{file}: plots", plot, ("x", "y", "of"))
        if plot.get("x") not in X_AXES:
            raise MistakeError(f"{file}: plots: x {plot.get('x')!r}; expected one of {', '.join(X_AXES)}")
        y, of = plot.get("y") or [], plot.get("of", "")
        tasks = tuple(y) if isinstance(y, list) else (y,)
        known = {*TASKS, *(task for variant in variants for task in variant.config.data.tasks or ())}
        own = any(variant.config.data.name not in ("scenes", "nyud", "pascal") for variant in variants)
        for task in tasks:  # a data set of one's own may bring tasks of its own
            if not isinstance(task, str) or (task not in known and not own):
                raise MistakeError(f"{file}: plots: y {shortened(task)}; expected tasks, such as {', '.join(TASKS)}")
            _check_task(f"{file}: plots: y", task)
        if not any(variant.name.startswith(str(of)) for variant in variants):
            raise MistakeError(f"{file}: plots: of {of!r}; expected what the names of some variants begin with")
        found.append(Plot(plot["x"], tasks, str(of)))
    often = Counter(name_of(plot, found).casefold() for plot in found)
    for plot in found:
        if often[(name := name_of(plot, found)).casefold()] > 1:
            raise MistakeError(
                f"{file}: plots: {often[name.casefold()]} would be the file {name}.png; expected plots of different names: "
                "remove one, or draw other tasks or variants in it"
            )
    return tuple(found)


def name_of(plot: Plot, plots: Sequence[Plot]) -> str:
    """What the plot's file is called; of which variants it is where another of ``plots`` has the same axis and tasks."""
    alike = [other for other in plots if (other.x, other.tasks) == (plot.x, plot.tasks)]
    return "_".join([plot.x, *plot.tasks, *((plot.of or "all",) if len(alike) > 1 else ())])


def check_plots(plan: Plan, tasks: Mapping[str, Sequence[str]]) -> None:
    """Raises ``MistakeError`` where a plot is of an unknown task. To be asked when data, which may bring its own, is open.

    ``tasks``: those of every variant by name; while those of one are missing, nothing is refused.
    """
    if all(variant.name in tasks for variant in plan.variants):
        known = tuple(dict.fromkeys(chain(*tasks.values(), TASKS)))
        for task in chain.from_iterable(plot.tasks for plot in plan.plots):
            if task not in known:
                raise MistakeError(f"plots: y {task}: unknown task; expected some of {', '.join(known)}")


def _check_task(where: str, task: str) -> None:
    """A task's name becomes part of a file's, so that what no task can be called is refused before any data is open."""
    if task not in BUILT_IN:
        try:
            check_name(task)
        except MistakeError as error:
            raise MistakeError(f"{where}: {error}") from error


def _check_keys(where: str, content: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in content:
        if key not in known:
            raise MistakeError(f"{where}: unknown key {key!r}; expected some of {', '.join(known)}")


def _text(file: Path, content: Mapping[str, Any], key: str, default: str, most: int | None = LONGEST_TEXT) -> str:
    if key not in content:
        return default
    text = content[key]
    if not isinstance(text, str):
        raise MistakeError(f"{file}: {key} is {shortened(text)}; expected text")
    text = text.strip()
    check_printed(f"{file}: {key}", text.replace("\n", " "), most)
    return text
