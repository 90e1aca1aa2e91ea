"""Train the runs of a study one after the other, leave out what is done, and compare."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from mtlsi.device import prepare_process
from mtlsi.errors import MistakeError
from mtlsi.lock import HeldError, held
from mtlsi.options.training import StudyOptions
from mtlsi.plugins import import_plugins
from mtlsi.run_folder import check_may_write
from mtlsi.streams import write_line
from mtlsi.studies.figures import measure, tasks_of_run
from mtlsi.studies.jobs import DONE, FAILED, LEFT_TO, train_at_once
from mtlsi.studies.plan import Plan, StudyRun, check_plots, read_plan
from mtlsi.studies.progress import StudyProgress
from mtlsi.studies.runs import FAILURES, FINISHED, check_runs, one_line, state_of, train_run
from mtlsi.studies.settings import read_values
from mtlsi.studies.sheet import check_names, write_sheets
from mtlsi.studies.table import check_places, print_table, write_all


@dataclass
class Outcome:
    """What became of the runs of a study."""

    finished: list[str] = field(default_factory=list)
    """VARIANT/SEED of the runs that have their scores, whoever trained them."""
    failed: dict[str, str] = field(default_factory=dict)
    """By run, why it failed."""
    held: dict[str, str] = field(default_factory=dict)
    """By run, which other process is training it."""

    def note(self, name: str, told: str) -> None:
        """That the run ``name`` has ended as ``told`` says: done, left to WHOM, or failed: WHY."""
        if told.startswith(FAILED):
            self.failed[name] = told.removeprefix(FAILED)
        elif told.startswith(LEFT_TO):
            self.held[name] = told.removeprefix(LEFT_TO)
        else:
            self.finished.append(name)


def study(
    file: Path | str,
    out: Path | str,
    *,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    settings: Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (),
    jobs: int = 1,
    table_only: bool = False,
    time: bool = True,
    sheet: Sequence[str] = (),
    pdf: bool = False,
    console: Console | None = None,
) -> Outcome:
    """Train every variant of the study ``file`` with every seed, each in the run folder ``out/VARIANT/SEED``; compare them.

    Runs that have finished are left out and runs that were cut are resumed. A run that fails is named and the others go on;
    one that another process trains is left to it. Then ``table.md``, ``table.csv``, ``table.tex`` and ``table.json``, the
    plots and, for a study with single-task runs, ``baseline.json`` are written into ``out``.

    ``only``: train these alone (VARIANT or VARIANT/SEED), and make no table. ``seeds``: instead of the file's.
    ``settings``: by dotted name, such as ``{"data.root": "nyud"}``, set in every run. ``plugins``: modules to import first.
    ``jobs``: train so many runs at once, each in a process of its own; those whose times are compared come last, by
    themselves. ``table_only``: train nothing. ``time``: measure ms per image. ``sheet``: names of validation images to draw
    as every variant sees them. ``pdf``: write plots and sheets as PDF, too. Raises a one-line ``MistakeError``, before
    anything is trained, for a file, a variant or a run folder that cannot be used.
    """
    console, out = console or Console(), Path(out)
    prepare_process()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise MistakeError(
            "mtlsi study trains in one process; share the runs with --list, and start each command alone"
        )
    if only and (sheet or pdf):
        raise MistakeError("give one of --only, which makes no table and draws nothing, and --sheet or --pdf")
    if out.exists() and not out.is_dir():
        raise MistakeError(f"--out {out} is a file; give the study's folder")
    check_may_write(out)
    if only and table_only:
        raise MistakeError("give one of --only, which makes no table, and --table, which makes it of all runs")
    if jobs < 1:
        raise MistakeError(f"--jobs {jobs}; expected the number of runs to train at once, 1 or more")
    if jobs > 1 and table_only:
        raise MistakeError("give one of --jobs, which trains, and --table, which does not")
    plan = read_plan(Path(file), settings=settings, seeds=seeds, plugins=plugins)
    import_plugins(dict.fromkeys(name for variant in plan.variants for name in variant.config.plugins))
    runs = plan.runs(out, only)
    finished = [run for run in runs if state_of(run) == FINISHED]
    check_names(plan, sheet)
    pictures = (".png", ".pdf") if pdf else (".png",)
    if not only:
        check_places(plan, out, pictures)
    outcome = Outcome()
    if table_only:
        check_plots(plan, {run.variant.name: tasks_of_run(run.out) for run in finished})
        outcome.finished = [run.name for run in finished]
    else:
        outcome = _train_all(plan, runs, finished, out, jobs, console)
    if not only and (outcome.finished or table_only):
        compare(plan, out, time=time, sheet=sheet, pictures=pictures, console=console)
    return outcome


def study_from_command(options: StudyOptions) -> Outcome:
    """``mtlsi study`` without --list."""
    return study(
        options.file,
        options.out,
        only=options.only,
        seeds=options.seeds,
        settings=read_values(options.settings),
        plugins=options.plugin,
        jobs=options.jobs,
        table_only=options.table,
        time=options.time,
        sheet=options.sheet or (),
        pdf=options.pdf,
    )


def _train_all(
    plan: Plan, runs: Sequence[StudyRun], finished: Sequence[StudyRun], out: Path, jobs: int, console: Console
) -> Outcome:
    """Every run that is not finished: ``jobs`` at once, and in turn where that is one, or where times are compared."""
    outcome = Outcome(finished=[run.name for run in finished])
    in_turn = waiting = [run for run in runs if run not in finished]
    check_plots(plan, {run.variant.name: tasks_of_run(run.out) for run in finished} | check_runs(waiting, console))
    if jobs > 1:
        by_time = {name for run in runs if run.variant.time_of for name in (run.variant.name, run.variant.time_of)}
        in_turn = [run for run in waiting if run.variant.name in by_time]
        at_once = [run for run in waiting if run.variant.name not in by_time]
        counts = {"num_ended": len(finished), "num_runs": len(runs)}
        for name, told in train_at_once(at_once, out, jobs, **counts, console=console).items():
            outcome.note(name, told)
    if not in_turn:
        return outcome
    by_name = {run.name: run for run in plan.runs(out)}
    with StudyProgress(runs, [run for run in runs if run not in in_turn], console) as progress:
        for run in in_turn:
            try:
                with held(run.out.parent / f"{run.seed}.lock"):
                    progress.start(run)
                    if state_of(run) != FINISHED:  # another process may have trained it since
                        train_run(run, by_name, [progress])
                told = DONE
            except HeldError as holder:
                told = f"{LEFT_TO}{holder}"
            except FAILURES as error:
                told = f"{FAILED}{one_line(error)}"
            outcome.note(run.name, told)
            progress.end(run, told)
            gc.collect()  # the network of a run that failed, and its loader processes
    return outcome


def compare(
    plan: Plan, out: Path, *, time: bool, sheet: Sequence[str], pictures: Sequence[str], console: Console
) -> None:
    """The table, the plots and the sheet of the runs in ``out`` that have finished; ``MistakeError`` where none has."""
    rows = measure(plan, out, time=time, console=console)
    write_all(plan, rows, out, pictures)
    print_table(plan, rows, console)
    if sheet:
        write_sheets(plan, out, sheet, console, pictures)
    write_line(console, f"table and plots: {out}")
