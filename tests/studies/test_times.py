from __future__ import annotations

import time
from dataclasses import replace

import pytest

from mtlsi.studies import times
from mtlsi.studies.times import RunTimes, seconds_per_step, times_of


def test_the_times_of_a_run_are_the_last_of_training_and_the_sum_of_evaluations(tmp_path):
    assert times_of(tmp_path) is None
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "train_s": 2.0}\n{"step": 1, "evaluation_s": 5.0}\n{"step": 2, "train_s": 3.5}\n'
        '{"step": 2, "evaluation_s": 6.0}\n'
    )
    assert times_of(tmp_path) == RunTimes(3.5, 11.0)


@pytest.mark.parametrize("odd", ["Infinity", "NaN", "-1", "1e11"])
@pytest.mark.parametrize("name", ["train_s", "evaluation_s"])
def test_what_can_be_no_time_is_none(tmp_path, odd, name):
    lines = ['{"step": 1, "train_s": 2.0}', f'{{"step": 2, "{name}": {odd}}}', '{"step": 3, "train_s": 4.0}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert times_of(tmp_path) is None


def test_steps_are_timed_without_a_trace(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(times, "WARM_UP_STEPS", 1)
    monkeypatch.setattr(times, "TIMED_STEPS", 2)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    start = time.perf_counter()
    found = seconds_per_step(replace(tiny_config, data=replace(tiny_config.data, tasks=("depth",))))
    assert 0 < 2 * found < time.perf_counter() - start
    assert list(tmp_path.iterdir()) == []
