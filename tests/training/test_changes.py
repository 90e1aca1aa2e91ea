from __future__ import annotations

import json
import shutil
from dataclasses import replace
from io import StringIO
from operator import attrgetter

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from mtlsi.cli import main
from mtlsi.errors import MistakeError
from mtlsi.run_folder import load_config
from mtlsi.training.changes import changed
from mtlsi.training.loop import resume, train
from mtlsi.training.same_settings import FREE


def quiet():
    return Console(file=StringIO())


def test_what_changes_no_step_may_be_changed(tiny_config):
    config = replace(tiny_config, train=replace(tiny_config.train, best_by="delta"))
    numbers = [name for name in FREE if "." in name and type(attrgetter(name)(config)) is int]
    assert {"train.iterations", "train.patience", "data.num_workers"} < set(numbers)
    for i, name in enumerate(numbers, 20):
        part, _, field = name.partition(".")
        found = changed(config, {name: i})
        assert getattr(getattr(found, part), field) == i
        assert replace(found, **{part: getattr(config, part)}) == config
    assert changed(config, {"train.iterations": 9, "data.num_workers": 2}).data.num_workers == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.lr", 0.5),
        ("train.freeze", ("heads",)),
        ("data.size_hw", (64, 96)),
        ("seed", 4),
        ("preset", "swin_tiny"),
        ("model", {"channels": 32}),
    ],
)
def test_any_other_setting_is_refused_by_its_name_unless_the_run_has_it(tiny_config, name, value):
    with pytest.raises(MistakeError, match=rf"^{name} .*--resume changes .*train\.iterations, .*--init$") as caught:
        changed(tiny_config, {"train.iterations": 9, name: value})
    assert "\n" not in str(caught.value)
    part, _, field = name.rpartition(".")
    own = getattr(getattr(tiny_config, part) if part else tiny_config, field)
    assert changed(tiny_config, {name: own}) == tiny_config


def test_a_spelling_of_what_the_run_has_is_no_change(tiny_config):
    assert changed(tiny_config, {"train.precision": "fp32", "data.size_hw": (64, 64)}) == tiny_config


@pytest.fixture
def finished(tiny_config, tmp_path):
    """Three of its steps, without an evaluation on the way."""
    options = replace(tiny_config.train, iterations=3, evaluate_every=0, checkpoint_every=2, warmup=1)
    data = replace(tiny_config.data, tasks=("depth", "normals"), num_val=1)
    config = replace(tiny_config, data=data, train=options)
    train(config, tmp_path / "run", console=quiet())
    return tmp_path / "run"


def rates(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["lr"] for line in lines if "lr" in line]


def test_a_finished_run_goes_on_under_the_schedule_of_its_new_length(finished, capsys):
    before = load_file(finished / "model.safetensors")
    command = ["train", "--resume", str(finished), "--train.iterations", "5", "--train.log_every=1"]
    assert main(command) == 0
    assert load_config(finished).train.iterations == 5
    # of what the next step will use: warm-up over one step, then poly over 2 steps, and from step 3 on over 4
    assert rates(finished) == pytest.approx(
        [1e-3, 1e-3 * 0.5**0.9, 0.0, *(1e-3 * (1 - done / 4) ** 0.9 for done in (3, 4))]
    )
    after = load_file(finished / "model.safetensors")
    assert not all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert (finished / "scores.json").is_file()
    capsys.readouterr()
    assert main(command) == 2  # nothing is left to do
    assert "has ended at step 5 already, nothing is left to do; a larger --train.iterations" in capsys.readouterr().err


def test_the_first_step_after_a_change_has_the_rate_of_the_new_schedule(finished, monkeypatch):
    """A run that had ended was at rate 0: a step at it would be lost."""
    used = []

    class Rates:
        def on_step(self, step, losses, run):  # noqa: ARG002
            used.append(run.optimizer.param_groups[-1]["lr"])

    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *a, **k: (used.append(self.param_groups[-1]["lr"]), step(self, *a, **k))[1],
    )
    resume(finished, {"train.iterations": 5}, console=quiet(), callbacks=[Rates()])
    assert used[0] == pytest.approx(1e-3 * (1 - 2 / 4) ** 0.9)


def test_a_length_that_the_run_has_passed_is_refused_and_nothing_is_written(finished):
    (finished / "scores.json").unlink()
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(MistakeError, match=r"train\.iterations 2, but the run is saved at step 3; expected 3 or more"):
        resume(finished, {"train.iterations": 2}, console=quiet())
    with pytest.raises(MistakeError, match=r"train\.log_every 0; expected at least 1"):
        resume(finished, {"train.log_every": 0}, console=quiet())
    with pytest.raises(MistakeError, match=r"train\.patience 3 without train\.best_by"):
        resume(finished, {"train.patience": 3}, console=quiet())
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_default_that_is_typed_is_a_change_where_the_run_has_another_value(finished, capsys):
    """40000 is what a new run would have: typed, it must not be taken for nothing."""
    assert main(["train", "--resume", str(finished), "--train.lr", "0.001", "--train.batch_size", "8"]) == 2
    assert "train.batch_size was 2 and is 8 now" in capsys.readouterr().err
    assert main(["train", "--resume", str(finished), "--train.lr", "0.001", "--train.warmup", "100"]) == 2
    assert "train.warmup 100, but the run's own config.yaml has 1" in capsys.readouterr().err
    assert main(["train", "--resume", str(finished), "--plugin", "mine.py"]) == 2
    assert "leave out --plugin" in capsys.readouterr().err
    shutil.rmtree(finished / "state")
    assert main(["train", "--resume", str(finished), "--train.iterations", "40000"]) == 2
    assert "no state/ to resume from" in capsys.readouterr().err
    assert load_config(finished).train.iterations == 3
