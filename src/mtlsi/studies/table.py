"""The table of a study: on the screen, as Markdown, CSV, LaTeX and JSON, with its plots and the single-task baseline."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mtlsi.device import find_device
from mtlsi.drawing.plots import Point, plot_scores
from mtlsi.errors import MistakeError, one_line
from mtlsi.evaluation.report import defined, has_boundaries, plain_cell, write_single_task
from mtlsi.io import file_names, replace_text
from mtlsi.streams import write_line
from mtlsi.studies.figures import (
    Labels,
    Row,
    has_tasks_of,
    missing_single_tasks,
    single_task_scores,
    unlike_single_tasks,
)
from mtlsi.studies.plan import Plan, Plot, name_of
from mtlsi.tasks import TASKS
from mtlsi.timing import describe_machine

NONE = "-"
UNKNOWN = "unknown"
WIDEST = 400
X_TITLES = {"num_tokens": "tokens K", "gflop": "GFLOP", "train_minutes": "training time (minutes)"}
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
}  # fmt: skip


TABLES = ("table.md", "table.csv", "table.tex", "table.json")
BASELINE = "baseline.json"


def plot_files(plan: Plan, pictures: Sequence[str]) -> dict[str, str]:
    """By name of a plot, that of its files without the ending."""
    return file_names((name_of(plot, plan.plots) for plot in plan.plots), max(map(len, pictures)))


def check_places(plan: Plan, out: Path, pictures: Sequence[str]) -> None:
    """Raises ``MistakeError`` where a folder lies where ``write_all`` would write a file."""
    plots = [name + ending for name in plot_files(plan, pictures).values() for ending in pictures]
    for name in (*TABLES, BASELINE, *plots):
        if (out / name).is_dir():
            raise MistakeError(
                f"{out / name} is a folder, where the study writes a file; move it or give another --out"
            )


def write_all(plan: Plan, rows: Sequence[Row], out: Path, pictures: Sequence[str] = (".png",)) -> None:
    """``table.md``, ``.csv``, ``.tex`` and ``.json``, the plots, and ``baseline.json`` if its runs are done.

    ``pictures``: the endings of the plots' files.
    """
    texts = (as_markdown(plan, rows), as_csv(rows), as_latex(plan, rows), as_json(plan, rows))
    for name, text in zip(TABLES, texts, strict=True):
        replace_text(out / name, text)
    single = single_task_scores(plan, rows)
    if single.scores:
        write_single_task(single, out / BASELINE)
    elif plan.baseline:  # what an earlier call wrote is of other runs
        (out / BASELINE).unlink(missing_ok=True)
    files = plot_files(plan, pictures)
    for plot in plan.plots:
        points, levels = points_of(plot, rows)
        shown = [row for row in rows if row.variant in {point.name for point in points}]
        tasks = [task for task in tasks_of(shown) if task in (plot.tasks or (task,))]
        for ending in pictures if tasks else ():
            path = out / (files[name_of(plot, plan.plots)] + ending)
            plot_scores(points, tasks, X_TITLES[plot.x], path, levels=levels, joined=plot.x == "num_tokens")


def points_of(plot: Plot, rows: Sequence[Row]) -> tuple[list[Point], list[Point]]:
    """Complete variants that have an x, and are of those the plot is of; over K, those without one as levels to compare."""
    points, levels = [], []
    for row in rows:
        value = getattr(row, plot.x)
        point = Point(row.variant, value or 0.0, row.mean, row.spread)
        if row.is_complete and value is not None and row.variant.startswith(plot.of):
            points.append(point)
        elif row.is_complete and value is None and plot.x == "num_tokens":
            levels.append(point)
    return points, levels


# ---- the cells


def tasks_of(rows: Sequence[Row]) -> list[str]:
    """The tasks that any variant has, in the order of their records."""
    return [task for task in TASKS if any(task in row.mean for row in rows)]


def columns_of(rows: Sequence[Row]) -> list[tuple[str, Callable[[Row], str]]]:
    """Title and content of every column; those in which no variant has anything are left out."""
    columns: list[tuple[str, Callable[[Row], str]]] = [("variant", lambda row: row.variant), ("seeds", _seeds)]
    for task in tasks_of(rows):
        record = TASKS[task]
        by = protocols_of(rows)[0] if has_boundaries(task) and len(protocols_of(rows)) == 1 else None
        unit = f" ({', '.join(filter(None, (record.unit, by)))})" if record.unit or by else ""
        title = f"{task} {record.score}{unit} {'↑' if record.higher_is_better else '↓'}"
        columns.append((title, lambda row, task=task: _score(row, task)))
    for title, name, form, unit in (
        ("parameters (M)", "parameters", "{:.2f}", 1e6),
        ("decoder (M)", "decoder_parameters", "{:.2f}", 1e6),
        ("GFLOP", "gflop", "{:.2f}", 1),
        ("ms", "ms", "{:.1f}", 1),
        ("training (min)", "train_minutes", "{:.1f}", 1),
        ("Delta_m (%) ↑", "delta_m", "{:+.2f}", 1),
    ):
        if any(getattr(row, name) is not None for row in rows):
            columns.append((title, lambda row, name=name, form=form, unit=unit: _number(row, name, form, unit)))
    return columns


def protocols_of(rows: Sequence[Row]) -> list[str]:
    """The protocols that the boundaries of ``rows`` were measured by, each once."""
    records = [record for row in rows for record in row.boundaries.values()]
    return list(dict.fromkeys(record["protocol"] if record else UNKNOWN for record in records))


def _seeds(row: Row) -> str:
    """How many seeds; of how many, where some are missing."""
    done = len(row.by_seed)
    return str(done) if row.is_complete else f"{done} of {row.num_planned}, incomplete"


def _score(row: Row, task: str) -> str:
    mean, spread = row.mean.get(task), row.spread.get(task)
    if mean is None:
        return NONE
    digits = 2 if TASKS[task].unit in ("%", "deg") else 4
    return f"{mean:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def _number(row: Row, name: str, form: str, unit: float) -> str:
    value = getattr(row, name)
    if value is None:
        return NONE
    return f"{value / unit:.2g}" if 0 < value / unit < 0.1 else form.format(value / unit)  # small ones are not 0.0


def notes_of(plan: Plan, rows: Sequence[Row]) -> list[str]:
    """What must be known to read the table."""
    notes = ["Scores: mean over the seeds ± standard deviation (n - 1) between them."]
    sizes = dict.fromkeys(row.size_hw for row in rows if row.size_hw is not None)
    shown = ", ".join(f"{height}x{width}" for height, width in sizes)
    notes.append(f"GFLOP: 2 x MAC of one image of {shown} pixels; training: minutes without evaluations.")
    if names := protocols_of(rows):
        notes.append(_boundary_note(rows, names))
    notes += _label_notes(rows)
    if any(row.ms is not None for row in rows):
        notes.append("ms: median of one image in float32, all variants in turn on one machine.")
    if any(not row.is_complete for row in rows):
        notes.append("Incomplete variants show the mean of the seeds that have finished, and are not comparable.")
    if plan.baseline:
        why = missing_single_tasks(plan, rows)
        notes.append(f"Delta_m: none, {why}." if why else _delta_note(plan, rows))
    return [one_line(note) for note in notes]


def _delta_note(plan: Plan, rows: Sequence[Row]) -> str:
    """What Delta_m is against, and which variants have none because they do not compare with that."""
    single, unlike = single_task_scores(plan, rows).scores, defaultdict(list)
    for row in rows:
        if has_tasks_of(single, row) and (why := unlike_single_tasks(plan, row, rows)):
            unlike[why].append(row.variant)
    none = "".join(f"; none of {', '.join(names)}: {why}" for why, names in unlike.items())
    return f"Delta_m: against {', '.join(plan.baseline.values())}{none}."


def _label_notes(rows: Sequence[Row]) -> list[str]:
    """Which tasks do not compare, since variants were measured on other data or other classes."""
    tasks_by_text: dict[str, list[str]] = defaultdict(list)
    for task in tasks_of(rows):
        variants: dict[Labels, list[str]] = defaultdict(list)
        for row in rows:
            for labels in row.labels.get(task, ()):
                variants[labels].append(row.variant)
        often = Counter(map(str, variants))
        told = "; ".join(
            f"{', '.join(names)} on {labels}{' of other names' * (often[str(labels)] > 1)}"
            for labels, names in variants.items()
        )
        if len(variants) > 1:
            tasks_by_text[told].append(task)
    return [
        f"Scores of {', '.join(tasks)} do not compare, data or classes are not the same: {told}."
        for told, tasks in tasks_by_text.items()
    ]


def _boundary_note(rows: Sequence[Row], names: Sequence[str]) -> str:
    """What boundaries were measured by, and which variants do not compare in them."""
    if len(names) == 1:
        said = UNKNOWN in names and "an unknown protocol, for these runs are from before it was written down"
        return f"Boundaries: measured by {said or f'the protocol {names[0]}'}."
    old = f"; {UNKNOWN}: from before it was written down" if UNKNOWN in names else ""
    of_variants = "; ".join(f"{row.variant} by {', '.join(protocols_of([row]))}" for row in rows if row.boundaries)
    return f"Boundaries do not compare, they were measured by several protocols: {of_variants}{old}."


# ---- the forms


def print_table(plan: Plan, rows: Sequence[Row], console: Console) -> None:
    """The table on the screen."""
    columns = columns_of(rows)
    table = Table(title=plain_cell(plan.title, "table.title"), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title, _ in columns:
        head = plain_cell(title.replace(" ", "\n"))
        table.add_column(head, justify="left" if title == "variant" else "right", overflow="fold")
    for row in rows:
        table.add_row(*(plain_cell(cell(row)) for _, cell in columns))
    # a file has no edge at which lines must break
    (console if console.is_terminal else Console(file=console.file, width=WIDEST)).print(table)
    for note in notes_of(plan, rows):
        write_line(console, note)


def as_markdown(plan: Plan, rows: Sequence[Row]) -> str:
    """A heading, the note, the table, and how to read it."""
    columns = columns_of(rows)
    lines = [f"# {plan.title}", ""]
    lines += [plan.note, ""] if plan.note else []
    lines.append("| " + " | ".join(title for title, _ in columns) + " |")
    lines.append("|---|" + "---:|" * (len(columns) - 1))
    lines += ["| " + " | ".join(cell(row) for _, cell in columns) + " |" for row in rows]
    return "\n".join([*lines, "", *notes_of(plan, rows), ""])


def as_latex(plan: Plan, rows: Sequence[Row]) -> str:
    """A tabular of the package booktabs."""
    columns = columns_of(rows)
    lines = [f"% {plan.title}; needs \\usepackage{{booktabs}}".replace("\n", " ")]
    lines += [f"% {note}" for note in notes_of(plan, rows)]
    lines += [f"\\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}", "\\toprule"]
    lines += [" & ".join(latex(title) for title, _ in columns) + r" \\", "\\midrule"]
    lines += [" & ".join(latex(cell(row)) for _, cell in columns) + r" \\" for row in rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def latex(text: str) -> str:
    """``text`` as LaTeX prints it."""
    return "".join(LATEX.get(letter, letter) for letter in text)


def as_csv(rows: Sequence[Row]) -> str:
    """Every figure unrounded; a cell is empty where there is none."""
    tasks, text = tasks_of(rows), io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ("parameters", "decoder_parameters", "gflop", "ms", "train_minutes", "delta_m", "num_tokens")
    scores = [f"{task}/{TASKS[task].score}/{what}" for task in tasks for what in ("mean", "std")]
    protocol = ["boundary_protocol"] if protocols_of(rows) else []
    writer.writerow(["variant", "seeds", "planned", *scores, *names, *protocol])
    for row in rows:
        values = [of.get(task) for task in tasks for of in (row.mean, row.spread)]
        values += [getattr(row, name) for name in names]
        values += [" ".join(protocols_of([row]))] if protocol else []
        cells = ["" if value is None else value for value in values]
        writer.writerow([row.variant, len(row.by_seed), row.num_planned, *cells])
    return text.getvalue()


def as_json(plan: Plan, rows: Sequence[Row]) -> str:
    """Everything: every seed's scores, what they were compared with, the machine that timed them."""
    variants = [
        {
            **asdict(row),
            "boundaries": {seed: record and record["protocol"] for seed, record in row.boundaries.items()},
            "is_complete": row.is_complete,
        }
        for row in rows
    ]
    report = {
        "title": plan.title,
        "note": plan.note,
        "seeds": list(plan.seeds),
        "scores": {task: TASKS[task].score for task in tasks_of(rows)},
        "baseline": plan.baseline,
        "machine": describe_machine(find_device(None)),
        "variants": variants,
    }
    return json.dumps(defined(report), indent=2) + "\n"
