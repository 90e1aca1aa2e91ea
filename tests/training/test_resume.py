"""How a run goes on: to the very weights of an unbroken one, or not at all and in one line."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from mtlsi.config import RunConfig
from mtlsi.errors import MistakeError
from mtlsi.lock import OF_FOLDER
from mtlsi.run_folder import load_config, save_config
from mtlsi.training import checkpoints
from mtlsi.training.loop import resume, train


class Stop:
    """As if the process was killed just after a checkpoint."""

    def on_save(self, *_):
        raise KeyboardInterrupt


def with_train(config: RunConfig, **settings) -> RunConfig:
    return replace(config, train=replace(config.train, **settings))


def quiet() -> Console:
    return Console(file=StringIO())


def metrics_of(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    clock = ("images_per_s", "train_s", "evaluation_s")
    return [{name: value for name, value in line.items() if name not in clock} for line in lines]


def state_of(out, step):
    """Every tensor of a checkpoint."""
    files = sorted((out / "state" / f"step_{step:06d}").glob("*.safetensors"))
    assert len(files) == 4
    return {f"{path.stem}/{name}": x for path in files for name, x in load_file(path).items()}


def same_state(one, other, step):
    ours, theirs = state_of(one, step), state_of(other, step)
    return ours.keys() == theirs.keys() and all(torch.equal(x, theirs[name]) for name, x in ours.items())


@pytest.fixture(scope="module")
def three_steps(tiny_config) -> RunConfig:
    """Two tasks and few images, for the sake of time."""
    data = replace(tiny_config.data, tasks=("depth", "normals"), num_val=1)
    return with_train(replace(tiny_config, data=data), iterations=3, evaluate_every=0, checkpoint_every=1)


@pytest.fixture(scope="module")
def whole(three_steps, tmp_path_factory):
    """A run without a break. Read it, never write into it."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(three_steps, out, console=quiet())
    return out


@pytest.fixture(scope="module")
def cut_once(three_steps, tmp_path_factory):
    out = tmp_path_factory.mktemp("cut") / "run"
    with pytest.raises(KeyboardInterrupt):
        train(three_steps, out, console=quiet(), callbacks=[Stop()])
    return out


@pytest.fixture
def cut(cut_once, tmp_path):
    """A run that was cut after its first checkpoint."""
    shutil.copytree(cut_once, tmp_path / "cut")
    return tmp_path / "cut"


@pytest.mark.parametrize(
    "settings",
    [{"accumulate": 2, "precision": "bfloat16", "ema": 0.0}],
    ids=str,
)
def test_all_of_the_state_is_that_of_an_unbroken_run(settings, three_steps, tmp_path):
    config = with_train(three_steps, **settings)
    train(config, tmp_path / "whole", console=quiet())
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "cut", console=quiet(), callbacks=[Stop()])
    resume(tmp_path / "cut", console=quiet())
    assert same_state(tmp_path / "whole", tmp_path / "cut", 3)
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "cut")


@pytest.mark.slow
def test_another_number_of_loader_processes_gives_the_same_weights(three_steps, cut, whole):
    save_config(replace(load_config(cut), data=replace(three_steps.data, num_workers=2)), cut)
    resume(cut, console=quiet())
    assert same_state(whole, cut, 3)


def test_damage_is_told_and_the_run_still_ends_as_an_unbroken_one(whole, tmp_path):
    out, said = tmp_path / "hurt", StringIO()
    shutil.copytree(whole, out)
    (out / "scores.json").unlink()
    for path in (out / "state/step_000003/optimizer.safetensors", out / "model.safetensors"):
        raw = bytearray(path.read_bytes())
        raw[-9] ^= 64
        path.write_bytes(raw)
    resume(out, console=Console(file=said, width=400))
    assert (
        "state/step_000003 is damaged (optimizer.safetensors has another content than was written)" in said.getvalue()
    )
    assert "model.safetensors is damaged" in said.getvalue()
    assert same_state(whole, out, 3)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


# ---- what must be as it was


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        ("train.batch_size", 3, "train.batch_size was 2 and is 3 now"),
        ("train.precision", "bfloat16", "train.precision was float32 and is bfloat16 now"),
        ("train.lr", 0.5, "train.lr was 0.001 and is 0.5 now"),
        ("train.loss_weights", {"depth": 2.0}, "train.loss_weights.depth was None and is 2.0 now"),
        ("seed", 4, "seed was 0 and is 4 now"),
        ("model", {"channels": 32}, "model.channels was None and is 32 now"),
        ("data.size_hw", (64, 96), r"data.size_hw was \[64, 64\] and is \[64, 96\] now"),
        ("data.tasks", ("depth",), r"data.tasks was \['depth', 'normals'\] and is \['depth'\] now"),
        ("data.num_train", 5, "data.num_train was 6 and is 5 now"),
    ],
)
def test_an_edited_setting_is_named_and_refused(cut, where, value, told):
    config = load_config(cut)
    part, _, name = where.rpartition(".")
    changed = replace(getattr(config, part), **{name: value}) if part else value
    save_config(replace(config, **{part or name: changed}), cut)
    before = sorted(cut.rglob("*"))
    with pytest.raises(MistakeError, match=f"cannot resume .* under other settings: {told}; .*config.yaml.*--init"):
        resume(cut, console=quiet())
    assert sorted(cut.rglob("*")) == before


def test_what_changes_no_step_may_be_edited(cut):
    free = {"checkpoint_every": 2, "evaluate_every": 2, "final_images": 2, "log_every": 2, "keep_checkpoints": 1}
    save_config(with_train(load_config(cut), **free, iterations=2), cut)
    resume(cut, console=quiet())
    assert os.listdir(cut / "state") == ["step_000002"]


def test_the_setting_of_an_older_state_that_knew_it_not_had_its_default(cut):
    with_facts(cut, lambda facts: facts["settings"].pop("train.ema"))  # 0.9 in the run, 0.999 by default
    with pytest.raises(MistakeError, match=r"train\.ema was 0\.999 and is 0\.9 now"):
        resume(cut, console=quiet())


def with_facts(out, change):
    """Rewrite the facts of the only checkpoint, checksum and all, as whoever made the folder could."""
    (folder,) = (out / "state").iterdir()
    facts = json.loads((folder / "state.json").read_text())
    change(facts)
    (folder / "state.json").write_text(json.dumps(facts))
    signed(folder)


def signed(folder):
    import hashlib

    names = [name for name in os.listdir(folder) if name != "manifest.json"]
    files = {
        name: {
            "bytes": (folder / name).stat().st_size,
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
        }
        for name in names
    }
    (folder / "manifest.json").write_text(json.dumps({"files": files}))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda facts: facts.update(processes=2),
            r"a step was of 4 images .* of 2 .*start 2, or give --train\.batch_size 4$",
        ),
        (lambda facts: facts.update(processes=3), r"a step was of 6 images .*start 3, or give --train\.batch_size 6$"),
        (lambda facts: facts.update(processes="2"), "does not say what a step was"),
        (lambda facts: facts.update(processes=10**4000), "does not say what a step was"),
        (
            lambda facts: facts.update(own_parts=["x" * 10**6]),
            r"parts of your own, \['xxx.{0,250} would go on with none",
        ),
        (lambda facts: facts.update(class_weights={"semseg": [1]}), r"class_weights\.json: other class weights"),
        (lambda facts: facts["images"].update(names="0" * 64), "are not the same ones"),
        (lambda facts: facts.pop("settings"), "does not say what settings"),
        (lambda facts: facts.update(position=[]), "expected the facts of a run"),
        (lambda facts: facts.update(position={"step": "x", "seconds": 0, "skipped": 0}), "expected the facts of a run"),
        (lambda facts: facts.update(images=7), "expected the facts of a run"),
        (lambda facts: facts.pop("average_updates"), "average_updates.* is missing"),
        (lambda facts: facts.clear(), "does not say what settings"),
        (lambda facts: facts["position"].update(step=math.inf), "Infinity in place of a number"),
        (lambda facts: facts["position"].update(step=-5), "step -5; expected a whole number"),
        (lambda facts: facts["position"].update(step=True), "step True; expected a whole number"),
        (lambda facts: facts["position"].update(step=2.0), "step 2.0; expected a whole number"),
        (lambda facts: facts["position"].update(step=2), "step 2, in step_000001; expected step_000002"),
        (lambda facts: facts["position"].update(skipped=3), "skipped 3; expected a whole number from 0 to 1"),
        (lambda facts: facts["position"].update(seconds=-1), "seconds -1; expected a number of at least 0"),
        (lambda facts: facts["position"].update(seconds=10**400), "seconds 1000.*; expected a number"),
        (lambda facts: facts.update(average_updates=-5), "average_updates -5; expected a whole number"),
        (lambda facts: facts.update(average_updates=3), "average_updates 3; expected a whole number from 0 to 1"),
    ],
)
def test_facts_of_another_run_or_of_none_are_refused(cut, change, told):
    with_facts(cut, change)
    with pytest.raises(MistakeError, match=told):
        resume(cut, console=quiet())


@pytest.mark.parametrize("file", checkpoints.TENSORS)
def test_tensors_of_another_network_are_refused(cut, file):
    (folder,) = (cut / "state").iterdir()
    path = folder / f"{file}.safetensors"
    save_file({**load_file(path), "not.mine": torch.zeros(2)}, path)
    signed(folder)
    with pytest.raises(
        MistakeError, match=rf"{file}\.safetensors holds not\.mine; expected the state of this very network"
    ):
        resume(cut, console=quiet())


# ---- starting again, and two at once


def test_a_run_that_was_cut_before_its_first_checkpoint_starts_again_either_way(three_steps, whole, tmp_path):
    class StopAtOnce:
        def on_step(self, *_):
            raise KeyboardInterrupt

    config = with_train(three_steps, checkpoint_every=0)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "again", console=quiet(), callbacks=[StopAtOnce()])
    shutil.copytree(tmp_path / "again", tmp_path / "resumed")
    with pytest.raises(
        MistakeError, match=r"before its first checkpoint, under other settings: train\.lr was 0\.001 and is 1"
    ):
        train(with_train(config, lr=1.0), tmp_path / "again", console=quiet())
    train(config, tmp_path / "again", console=quiet())
    resume(tmp_path / "resumed", console=quiet())
    for name in ("again", "resumed"):
        assert same_state(whole, tmp_path / name, 3)
        assert metrics_of(whole) == metrics_of(tmp_path / name)


def test_a_folder_in_use_is_refused_and_a_stale_lock_is_not(three_steps, cut, tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    new = tmp_path / "new"
    new.mkdir()
    lock = {"pid": os.getppid(), "host": socket.gethostname(), "since": 0}
    for out, start in (
        (new, lambda: train(three_steps, new, console=quiet())),
        (cut, lambda: resume(cut, console=quiet())),
    ):
        (out / OF_FOLDER).write_text(json.dumps(lock))
        with pytest.raises(MistakeError, match=f"is being trained by process {os.getppid()} on .* since"):
            start()
        assert json.loads((out / OF_FOLDER).read_text()) == lock
    (new / OF_FOLDER).unlink()
    (new / OF_FOLDER).symlink_to(OF_FOLDER)  # a loop
    with pytest.raises(MistakeError, match=re.escape(os.strerror(errno.ELOOP))):
        train(three_steps, new, console=quiet())
    (cut / OF_FOLDER).write_text(json.dumps({**lock, "pid": ended.pid}))
    resume(cut, console=quiet())
    assert not (cut / OF_FOLDER).exists()


@pytest.mark.slow
def test_scores_that_a_killed_run_did_not_write_are_made_up_for(three_steps, tmp_path):
    config = with_train(three_steps, evaluate_every=1, checkpoint_every=2)
    train(config, tmp_path / "whole", console=quiet())
    for name, last in (("middle", 2), ("end", 3)):  # killed between the checkpoint and the scores of its step
        out = tmp_path / name
        with pytest.raises(KeyboardInterrupt):
            train(config, out, console=quiet(), callbacks=[StopAt(last)])
        assert not any("val/depth/RMSE" in line for line in metrics_of(out) if line["step"] == last)
        resume(out, console=quiet())
        assert metrics_of(out) == metrics_of(tmp_path / "whole")


class StopAt:
    def __init__(self, step):
        self.step = step

    def on_save(self, step, *_):
        if step == self.step:
            raise KeyboardInterrupt
