"""What happens to a run from outside: signals, a full disk, a lost loader process, numbers that are none."""

from __future__ import annotations

import errno
import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from full_disk import files_of_at_most
from mtlsi.cli import main
from mtlsi.config import RunConfig
from mtlsi.data.datasets import open_dataset
from mtlsi.data.transforms import TrainTransform
from mtlsi.errors import MistakeError, Stopped, message_of
from mtlsi.model.network import MTLSINet
from mtlsi.training import stopping, validation
from mtlsi.training.loop import resume, train
from mtlsi.training.stopping import StopRequest

needs_signals = pytest.mark.skipif(os.name == "nt", reason="no such signals there")


def quiet() -> Console:
    return Console(file=StringIO())


@pytest.fixture(scope="module")
def three_steps(tiny_config) -> RunConfig:
    """Two tasks, plain heads and few images, for the sake of time."""
    data = replace(tiny_config.data, tasks=("depth", "normals"), num_val=1)
    options = replace(tiny_config.train, iterations=3, evaluate_every=0, checkpoint_every=0)
    return replace(tiny_config, model={"decoder": "heads_only"}, data=data, train=options)


@pytest.fixture(scope="module")
def whole(three_steps, tmp_path_factory):
    """A run without a break. Read it, never write into it."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(three_steps, out, console=quiet())
    return out


def with_train(config: RunConfig, **settings) -> RunConfig:
    return replace(config, train=replace(config.train, **settings))


def same_state(one, other):
    paths = sorted((one / "state/step_000003").glob("*.safetensors"))
    assert len(paths) == 4
    pairs = [(load_file(path), load_file(other / "state/step_000003" / path.name)) for path in paths]
    return all(ours.keys() == theirs.keys() for ours, theirs in pairs) and all(
        torch.equal(tensor, theirs[name]) for ours, theirs in pairs for name, tensor in ours.items()
    )


class After:
    """Does something after a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step(self, step, *_):
        if step == self.step:
            self.action()


# ---- signals


@needs_signals
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_writes_a_checkpoint_after_the_step_in_hand(number, code, three_steps, whole, tmp_path):
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as caught:
        train(
            three_steps, tmp_path / "run", console=quiet(), callbacks=[After(2, lambda: os.kill(os.getpid(), number))]
        )
    assert caught.value.exit_code == code
    assert str(caught.value) == f"stopped after step 2; go on with mtlsi train --resume {tmp_path / 'run'}"
    assert signal.getsignal(number) is before
    assert os.listdir(tmp_path / "run/state") == ["step_000002"]
    resume(tmp_path / "run", console=quiet())
    assert same_state(tmp_path / "run", whole)


@needs_signals
def test_a_signal_cuts_an_evaluation_and_its_scores_are_made_up_for(three_steps, whole, tmp_path, monkeypatch):
    config, seen = with_train(three_steps, evaluate_every=2, evaluate_images=0), []
    config = replace(config, data=replace(config.data, num_val=20))
    draw = MTLSINet.forward

    def forward(self, images, *given, **named):
        if not self.training:
            seen.append(len(images))
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self, images, *given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(MTLSINet, "forward", forward)
        with pytest.raises(Stopped, match="stopped after step 2"):
            train(config, tmp_path / "run", console=quiet())
    assert sum(seen) < 20
    resume(tmp_path / "run", console=quiet())
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "evaluation_s" in line] == [2, 3]
    assert same_state(tmp_path / "run", whole)


@needs_signals
def test_the_command_gives_the_codes_that_a_shell_gives(monkeypatch, capsys):
    def stop(*_):
        raise Stopped(signal.SIGTERM, "stopped after step 7; go on with mtlsi train --resume run")

    monkeypatch.setattr("mtlsi.training.loop.resume", stop)
    assert main(["train", "--resume", "run"]) == 143
    assert capsys.readouterr().err == "mtlsi: stopped after step 7; go on with mtlsi train --resume run\n"


def ends_at_once(program: str, *, said: str, code: int) -> None:
    """A process that ``program`` runs in ends with ``code``, ``said`` on its standard output and one line on the other."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, said)
    assert done.stderr == "mtlsi: stopped at once, without a checkpoint of the last steps\n"


@needs_signals
@pytest.mark.parametrize(
    ("first", "second"), [("INT", "INT"), ("TERM", "TERM"), pytest.param("TERM", "INT", marks=pytest.mark.slow)]
)
def test_a_second_signal_ends_at_once(first, second):
    program = (
        "import os, signal, time\nfrom mtlsi.training import stopping\n"
        "with stopping.StopRequest() as stop, stop.deferred():\n"
        f"    os.kill(os.getpid(), signal.SIG{first})\n    print(stop.signal, flush=True)\n"
        f"    if '{first}' == '{second}' == 'TERM':\n"
        "        later = time.monotonic() + stopping.ONE_S\n        time.monotonic = lambda: later\n"
        f"    os.kill(os.getpid(), signal.SIG{second})\n    time.sleep(60)\n"
    )
    number = signal.Signals[f"SIG{first}"].value
    ends_at_once(program, said=f"{number}\n", code=128 + signal.Signals[f"SIG{second}"])


@needs_signals
@pytest.mark.parametrize("is_deferred", [True, False])
def test_a_sigterm_that_a_launcher_passes_on_beside_the_one_to_all_processes_is_the_same(monkeypatch, is_deferred):
    """torchrun passes on to its processes what a scheduler, or ``pkill``, has sent to them, too."""
    stopped = []
    monkeypatch.setattr(stopping, "end_at_once", lambda _: stopped.append("at once"))
    with StopRequest() as stop:
        try:
            with stop.deferred() if is_deferred else nullcontext():
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.01)  # the handler has run
        except Stopped:
            stopped.append("raised")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        with pytest.raises(Stopped):
            stop.raise_if_asked()
    assert stopped == ([] if is_deferred else ["raised"])


@needs_signals
def test_a_signal_that_another_process_was_told_of_first_does_not_end_this_one_at_once():
    """A scheduler's signal comes to one machine later than to another, in the middle of the checkpoint that it asked for."""
    program = (
        "import os, signal, time, torch\nfrom types import SimpleNamespace\n"
        "from mtlsi.training.stopping import StopRequest\n"
        "another = SimpleNamespace(num_processes=2, device='cpu', reduce=lambda mine, **_: mine + 15)\n"
        "with StopRequest() as stop, stop.deferred():\n"
        "    print(stop.asked(another), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    print('saved', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(60)\n"
    )
    ends_at_once(program, said="True\nsaved\n", code=130)


@needs_signals
def test_a_signal_that_comes_while_the_others_are_waited_for_is_not_yet_this_ones_answer():
    """They were told that nobody was asked to stop, and take another step: who stopped alone would wait without end."""
    meetings = []

    def reduce(mine, **_):
        meetings.append(float(mine))
        if len(meetings) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)  # the handler has run
        return mine

    two = SimpleNamespace(num_processes=2, device="cpu", reduce=reduce)
    with StopRequest() as stop, stop.deferred():
        assert [stop.asked(two), stop.asked(two)] == [False, True]
    assert meetings == [0, signal.SIGTERM]


@pytest.mark.slow
@needs_signals
def test_a_run_that_is_killed_at_random_moments_ends_as_an_unbroken_one(tmp_path):
    path = Path(__file__).parents[2] / "benchmarks" / "faults.py"
    spec = importlib.util.spec_from_file_location("faults", path)
    assert spec is not None
    assert spec.loader is not None
    faults = importlib.util.module_from_spec(spec)
    sys.modules["faults"] = faults  # dataclasses look their module up
    spec.loader.exec_module(faults)
    summary = faults.kill_often(tmp_path, 2, seed=1, steps=3, said=lambda _: None)
    assert summary.faults == []
    assert sum(summary.kills.values()) == 2
    assert summary.runs >= 1


# ---- the disk, the loaders


@pytest.mark.parametrize(
    ("num_bytes", "at"), [(0, ""), (100_000, "model.safetensors: "), (2_000_000, "optimizer.safetensors: ")]
)
def test_a_full_disk_is_one_line_and_costs_no_checkpoint(three_steps, whole, tmp_path, num_bytes, at):
    out, config = tmp_path / "run", with_train(three_steps, checkpoint_every=1)
    with ExitStack() as limits:
        fill = After(2, lambda: limits.enter_context(files_of_at_most(num_bytes)))
        with pytest.raises(MistakeError) as caught:
            train(config, out, console=quiet(), callbacks=[fill])
    said = str(caught.value)
    assert f"{at}{os.strerror(errno.EFBIG)}; the checkpoint of step 1 is whole" in said
    assert f"put that right and go on with mtlsi train --resume {out}" in said
    assert "\n" not in said
    assert os.listdir(out / "state") == ["step_000001"]
    resume(out, console=quiet())
    assert same_state(out, whole)


def gone(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("name", "change", "number"),
    [
        ("", gone, errno.ENOENT),
        ("state", gone, None),  # it is made again
        ("state", lambda path: (gone(path), path.symlink_to("state")), errno.EEXIST),
        ("metrics.jsonl", lambda path: (gone(path), path.mkdir()), errno.EISDIR),
        ("model.safetensors", lambda path: (gone(path), path.mkdir()), errno.EISDIR),
    ],
)
def test_a_run_folder_that_somebody_changes_meanwhile_is_one_line(three_steps, tmp_path, name, change, number):
    out, config = tmp_path / "run", with_train(three_steps, checkpoint_every=1, log_every=1)
    act = After(2, lambda: change(out / name))
    if number is None:
        train(config, out, console=quiet(), callbacks=[act])
        return
    with pytest.raises(MistakeError) as caught:
        train(config, out, console=quiet(), callbacks=[act])
    assert str(caught.value).startswith(f"{out / name}")
    assert message_of(OSError(number, os.strerror(number))) in str(caught.value)
    assert f"go on with mtlsi train --resume {out}" in str(caught.value)


def test_a_file_elsewhere_that_is_not_there_is_a_fault_of_the_program(three_steps, tmp_path):
    with pytest.raises(FileNotFoundError):
        train(three_steps, tmp_path / "run", console=quiet(), callbacks=[After(1, (tmp_path / "none").read_text)])


@needs_signals
def test_a_killed_loader_process_is_one_line(three_steps, tmp_path):
    def kill_loader():
        (loader,) = multiprocessing.active_children()
        assert loader.pid is not None
        os.kill(loader.pid, signal.SIGKILL)
        loader.join()

    config = replace(three_steps, data=replace(three_steps.data, num_workers=1))
    config = with_train(config, iterations=50, checkpoint_every=1)
    with pytest.raises(MistakeError, match=r"a loader process ended unexpectedly .*data\.num_workers") as caught:
        train(config, tmp_path / "run", console=quiet(), callbacks=[After(2, kill_loader)])
    assert "\n" not in str(caught.value)
    assert "is whole" in str(caught.value)
    del caught  # with it the frames that hold the loader
    assert (tmp_path / "run/state/step_000001").is_dir()


# ---- numbers


class DepthOverflows:
    """The field's augmentation, but for depths of the second step that add up to more than float32 holds."""

    def __init__(self, config):
        self.field, self.calls = TrainTransform(config.data.size_hw, config.data.image_hw), 0

    def __call__(self, sample, generator):
        self.calls += 1
        made = self.field(sample, generator)
        if self.calls in (3, 4):
            made["depth"] = torch.full_like(made["depth"], 3e38)
        return made


def test_a_loss_that_is_not_finite_names_step_task_and_images_and_leaves_the_batch(three_steps, tmp_path):
    out = tmp_path / "run"
    config = with_train(three_steps, checkpoint_every=1)
    with pytest.raises(MistakeError) as caught:
        train(config, out, console=quiet(), train_transform=DepthOverflows(config))
    said = str(caught.value)
    assert said.startswith("the loss of depth is not finite at step 2, on the images ")
    assert "--train.skip_not_finite" in said
    facts = json.loads((out / "not_finite/step_000002.json").read_text())
    assert (facts["step"], facts["tasks"]) == (2, ["depth"])
    dataset = open_dataset(config.data, "train", config.seed)
    (images,) = facts["images"]
    assert all(name in said for name in images)
    batch = load_file(out / "not_finite/step_000002.safetensors")
    assert batch["0/image"].shape == (2, 3, 64, 64)
    assert (batch["0/depth"] > 1e38).all()
    names = [dataset.name(index) for index in range(len(dataset))]
    assert len(set(images)) == 2
    assert set(images) <= set(names)
    assert os.listdir(out / "state") == ["step_000001"]  # nothing of the broken step was saved


def test_steps_that_are_not_finite_can_be_passed_over_and_are_counted(three_steps, tmp_path):
    out = tmp_path / "run"
    config = with_train(three_steps, checkpoint_every=1, keep_checkpoints=3, skip_not_finite=1, log_every=1)
    train(config, out, console=quiet(), train_transform=DepthOverflows(config))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line for line in lines if "skipped" in line] == [{"step": 2, "skipped": 1}]
    assert [line["step"] for line in lines if "loss" in line] == [1, 3]
    one, two, three = (out / f"state/step_00000{step}" for step in (1, 2, 3))
    for name in ("model", "average", "optimizer"):  # statistics of batches, too
        before, after = load_file(one / f"{name}.safetensors"), load_file(two / f"{name}.safetensors")
        assert all(torch.equal(tensor, after[key]) for key, tensor in before.items()), name
    last = load_file(three / "model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in last.values())
    assert json.loads((three / "state.json").read_text())["position"]["skipped"] == 1
    with pytest.raises(MistakeError, match=r"at step 2.*--train\.skip_not_finite"):
        train(with_train(config, skip_not_finite=0), tmp_path / "other", console=quiet(),
              train_transform=DepthOverflows(config))  # fmt: skip


def test_a_deterministic_run_is_one_from_its_first_step_to_its_last(three_steps, whole, tmp_path):
    seen = []
    note = After(2, lambda: seen.append(torch.are_deterministic_algorithms_enabled()))
    train(with_train(three_steps, deterministic=True), tmp_path / "run", console=quiet(), callbacks=[note])
    assert seen == [True]
    assert not torch.are_deterministic_algorithms_enabled()
    assert same_state(tmp_path / "run", whole)  # on a CPU the two are one


class SlopeOverflows(torch.autograd.Function):
    """x, with a gradient of infinity."""

    @staticmethod
    def forward(ctx, x):  # noqa: ARG004
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):  # noqa: ARG004
        return gradient * float("inf")


def test_a_gradient_that_is_not_finite_names_its_task(three_steps, tmp_path, monkeypatch):
    from mtlsi.losses import MultiTaskLoss

    whole = MultiTaskLoss.per_task

    def per_task(self, *given):
        losses = whole(self, *given)
        return {**losses, "normals": SlopeOverflows.apply(losses["normals"])}

    monkeypatch.setattr(MultiTaskLoss, "per_task", per_task)
    with pytest.raises(MistakeError, match="the gradient of normals is not finite at step 1"):
        train(three_steps, tmp_path / "run", console=quiet())


@needs_signals
def test_a_signal_waits_where_python_would_drop_what_it_raises():
    """In the callback of a weak reference, which may run at any moment, with a traceback and without a stop."""
    with StopRequest() as stop:
        kept = set()
        weakref.finalize(kept, signal.raise_signal, signal.SIGTERM)
        del kept
        with pytest.raises(Stopped):
            stop.raise_if_asked()


class Signals:
    """Is a signal to this process where it is looked up, in whatever Python code looks."""

    __hash__ = partial(signal.raise_signal, signal.SIGTERM)  # type: ignore[assignment]


@needs_signals
def test_a_signal_that_had_to_wait_while_curves_are_drawn_is_not_lost(three_steps, whole, tmp_path, monkeypatch):
    def plot_curves(*_, **__):
        with suppress(TypeError):  # no hash is no number
            weakref.WeakValueDictionary()[Signals()] = three_steps

    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(validation, "plot_curves", plot_curves)
        with pytest.raises(Stopped, match="stopped after step 3"):
            train(three_steps, out, console=quiet())
    assert not (out / "scores.json").exists()
    resume(out, console=quiet())
    assert (out / "scores.json").exists()
    assert same_state(out, whole)
