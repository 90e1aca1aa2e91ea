from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from mtlsi.config import RunConfig, TrainConfig
from mtlsi.run_folder import save_config
from mtlsi.studies import progress
from mtlsi.studies.plan import StudyRun, Variant
from mtlsi.studies.progress import StudyProgress


def run_of(folder: Path, name: str, seed: int, *, steps: int, seconds: float | None = None) -> StudyRun:
    """A run of so many steps; finished, with the seconds that it took, where they are given."""
    config = RunConfig(train=TrainConfig(iterations=steps))
    run = StudyRun(Variant(name, config), seed, folder / name / str(seed))
    if seconds is not None:
        run.out.mkdir(parents=True)
        save_config(config, run.out)
        (run.out / "scores.json").write_text("{}")
        lines = [{"step": steps, "train_s": 0.75 * seconds}, {"step": steps, "evaluation_s": 0.25 * seconds}]
        (run.out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_the_time_left_is_measured_from_the_runs_that_have_finished(tmp_path):
    fast, slow = (run_of(tmp_path, name, 0, steps=10, seconds=s) for name, s in (("fast", 20.0), ("slow", 60.0)))
    waiting = [
        run_of(tmp_path, "fast", 1, steps=10),
        run_of(tmp_path, "slow", 1, steps=100),
        run_of(tmp_path, "new", 0, steps=10),
    ]
    found = StudyProgress([fast, slow, *waiting], [fast, slow], Console(file=StringIO()))
    # 2 s and 6 s a step; of what is new, as much as the mean of both
    assert found.seconds_left() == pytest.approx(10 * 2 + 100 * 6 + 10 * 4)
    assert StudyProgress(waiting, [], Console(file=StringIO())).seconds_left() is None


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), -1.0, 1.7e308])
def test_odd_times_of_a_run_that_has_finished_stop_no_other_run(tmp_path, seconds):
    odd, waiting = run_of(tmp_path, "a", 0, steps=10, seconds=seconds), run_of(tmp_path, "b", 0, steps=10)
    said = StringIO()
    with StudyProgress([odd, waiting], [odd], Console(file=said)) as found:
        found.start(waiting)
    assert said.getvalue() == "b/0: training (2 of 2)\n"


def test_a_run_of_no_steps_has_no_time_of_a_step(tmp_path):
    found = run_of(tmp_path, "a", 0, steps=0, seconds=5.0)
    assert StudyProgress([found], [found], Console(file=StringIO())).seconds_left() is None


def test_without_a_terminal_there_is_a_line_when_a_run_starts_and_ends_and_every_minute(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock.now)
    runs, said = [run_of(tmp_path, "a", seed, steps=200) for seed in (0, 1)], StringIO()
    with StudyProgress(runs, [], Console(file=said, width=200)) as found:
        found.start(runs[0])
        for step in range(1, 201):
            clock.now += 1.0
            found.on_step(step, {"loss": torch.tensor(2.5)}, SimpleNamespace(config=runs[0].config))
        found.end(runs[0], "failed: it was wild")
    lines = said.getvalue().splitlines()
    assert lines[0] == "a/0: training (1 of 2)"
    assert lines[-1] == "a/0: failed: it was wild (1 of 2)"
    assert [line.split(",")[0] for line in lines[1:-1]] == ["a/0: step 61", "a/0: step 122", "a/0: step 183"]
    assert "loss 2.500, 1.00 steps/s, about 6 min left" in lines[1]  # 139 steps of this run and 200 of the next
