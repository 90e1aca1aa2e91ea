"""What each part of a trained MTLSI-Net contributes: its scores with one part taken out at a time, and its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mtlsi.config import DataConfig
from mtlsi.data.datasets import LabelledImages
from mtlsi.evaluation.evaluate import evaluate, measurable_tasks, shared_tasks
from mtlsi.evaluation.protocols import Showing
from mtlsi.evaluation.report import Scores, decimals, headline, plain_cell, write_figures
from mtlsi.evaluation.subject import check_options, context_of, open_subject, protocol_of, tasks_of
from mtlsi.evaluation.token_figures import TaskFigures, Watch
from mtlsi.evaluation.without_parts import VARIANTS, changed, decoder_of, left_out, tokens_of_another_image
from mtlsi.metrics.boundary.protocols import Protocol
from mtlsi.model.network import MTLSINet
from mtlsi.options.measuring import DiagnoseOptions
from mtlsi.streams import write_line
from mtlsi.tasks import BOUNDARY_PROTOCOL, TASKS

AS_TRAINED = "as_trained"
"""The name of the network with all its parts."""


@dataclass(frozen=True)
class Diagnosis:
    """What ``diagnose`` measured."""

    variants: dict[str, Scores]
    """Every figure of the network ``as_trained`` and then of each variant."""
    differences: dict[str, dict[str, float]]
    """By variant and task, the headline figure less that of ``as_trained``."""
    left_out: dict[str, str]
    """Variants that could not be made, and why."""
    tokens: TaskFigures
    """By task: ``tokens`` k, their ``mean_cosine``, ``effective_tokens``, ``effective_assignment``; {} without a CWIB."""
    blocks: list[TaskFigures]
    """By CWIB and task: its ``change``, and what of it comes ``through_tokens`` and ``through_windows``."""


def diagnose(
    model: MTLSINet,
    dataset: LabelledImages,
    config: DataConfig,
    *,
    tasks: Sequence[str] | None = None,
    indices: Sequence[int] | None = None,
    batch_size: int = 4,
    boundary_protocol: str | Protocol = BOUNDARY_PROTOCOL,
    showing: Showing | None = None,
    device: torch.device | str = "cpu",
    console: Console | None = None,
) -> Diagnosis:
    """Take each part out of ``model``, one at a time, and measure what is left as ``evaluate`` does, on the same images.

    The variants are those of ``without_parts.VARIANTS``; the figures of tokens and blocks are those of
    ``token_figures``, means over the images. ``model`` is not changed. Arguments are those of ``evaluate``, and what they
    raise is the same; a model whose decoder is not MTLSI-Net's raises ``MistakeError``, too.
    """
    chosen = list(range(len(dataset)) if indices is None else indices)
    decoder, watch = decoder_of(model), Watch()
    missing = left_out(decoder)
    if len(chosen) < 2:
        missing.setdefault(tokens_of_another_image.__name__, "one image has no other")
    changes = {AS_TRAINED: watch.put_on} | {name: do for name, do in VARIANTS.items() if name not in missing}
    tasks, scores = shared_tasks(model, dataset, tasks), dict[str, Scores]()
    settings: dict[str, Any] = {"tasks": tasks, "batch_size": batch_size, "showing": showing, "device": device}
    settings["boundary_protocol"] = boundary_protocol
    for i, (name, change) in enumerate(changes.items()):
        if console is not None:
            console.print(f"measuring {name} ({i + 1} of {len(changes)})", highlight=False)
        variant = changed(model, change)
        if change is tokens_of_another_image:  # the first image takes the last one's
            evaluate(variant, dataset, config, indices=chosen[-1:], **settings)
        scores[name] = evaluate(variant, dataset, config, indices=chosen, console=console, **settings)
    whole = headline(scores[AS_TRAINED])
    return Diagnosis(
        scores,
        {
            name: {task: value - whole[task] for task, value in headline(of).items()}
            for name, of in scores.items()
            if name != AS_TRAINED
        },
        missing,
        watch.tokens.means(tasks, model.tasks),
        [figures.means(tasks, model.tasks) for figures in watch.blocks],
    )


def diagnose_from_command(options: DiagnoseOptions, *, console: Console | None = None) -> Diagnosis:
    """Load, measure, print, write: ``mtlsi diagnose``."""
    console = console or Console()
    subject = open_subject(options, console, showing=check_options(options))
    found = diagnose(
        subject.network,
        subject.dataset,
        subject.config,
        tasks=tasks_of(options) or measurable_tasks(subject.network, subject.dataset, console),
        indices=subject.indices,
        boundary_protocol=protocol_of(options),
        showing=subject.showing,
        device=subject.device,
        console=console,
    )
    captions = [str(subject.showing)]
    if any(TASKS[task].metric == "boundary_f" for task in found.variants[AS_TRAINED]):
        captions += [f"boundaries: {protocol_of(options).on_data(subject.dataset.boundary_tolerance)}"]
    console.print(variant_table(found, derived=subject.dataset.derived, caption="; ".join(captions)))
    for name, reason in found.left_out.items():
        write_line(console, f"left out: {name} ({reason})")
    if found.tokens:
        console.print(token_table(found))
    if options.json_path is not None:
        write_figures(context_of(options, subject) | asdict(found), options.json_path)
    return found


def variant_table(found: Diagnosis, *, derived: Sequence[str] = (), caption: str | None = None) -> Table:
    """The headline figure of every variant and task, and how far it is from that of the network as trained.

    ``caption``: how the images were shown and boundaries measured.
    """
    table = _narrow_table("with one part taken out: score, difference from as_trained", caption)
    table.add_column("variant", no_wrap=True)
    for task in found.variants[AS_TRAINED]:
        record, note = TASKS[task], "\nderived labels" if task in derived else ""
        arrow = "^" if record.higher_is_better else "v"
        head = plain_cell(f"{task}\n{record.score} {arrow} {record.unit}{note}")
        table.add_column(head, justify="right", overflow="fold")
    for name, scores in found.variants.items():
        cells = [f"{value:.{decimals(task)}f}" for task, value in headline(scores).items()]
        for i, (task, difference) in enumerate(found.differences.get(name, {}).items()):
            cells[i] += f" {difference:+.{decimals(task)}f}"
        table.add_row(name, *cells, style="bold" if name == AS_TRAINED else None)
    return table


def token_table(found: Diagnosis) -> Table:
    """The figures of the tokens and of every CWIB, one column per task."""
    table = _narrow_table("tokens and blocks, mean over the images")
    table.add_column("figure", no_wrap=True)
    for task in found.tokens:
        table.add_column(plain_cell(task), justify="right", overflow="fold")
    groups = [("", found.tokens), *((f"block {i}: ", figures) for i, figures in enumerate(found.blocks, 1))]
    for prefix, figures in groups:
        of_task = list(figures.values())
        for name in of_task[0]:
            table.add_row(prefix + name, *(_short(values[name]) for values in of_task))
    return table


def _short(value: float) -> str:
    """Four digits, three where an exponent stands beside them."""
    shown = f"{value:.4g}"
    return f"{value:.3g}" if "e" in shown else shown


def _narrow_table(title: str, caption: str | None = None) -> Table:
    """A table without lines between its columns: six tasks fit into 80 signs, and a cell breaks before it is cut."""
    return Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False)
