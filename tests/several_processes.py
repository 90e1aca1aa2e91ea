"""The program that ``test_two_processes.py`` starts: what one, two and four processes train and measure, into one folder.

It imports what they need once, and forks them. Everything is computed in float64 where nothing else is said.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.fsdp
import torch.distributed.tensor
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

import small_backbones  # noqa: F401 (registers them)
from forks import announce, free_port
from mtlsi import processes
from mtlsi.cli import main
from mtlsi.config import DataConfig, RunConfig, TrainConfig
from mtlsi.data.datasets import open_dataset
from mtlsi.data.sampling import RunSampler
from mtlsi.errors import MistakeError
from mtlsi.evaluation.evaluate import evaluate_from_command
from mtlsi.nn import sync_norm
from mtlsi.options.measuring import EvaluateOptions
from mtlsi.run_folder import save_config
from mtlsi.training import checkpoints, loop, not_finite, run_state, setup, sharding
from mtlsi.training.loop import batches_from, optimizer_step, train
from mtlsi.training.not_finite import Watch
from mtlsi.training.setup import TrainingRun, assemble, settle

NUM_STEPS, NUM_IMAGES, CUT_AT = 3, 16, 2
"""Steps of a run, its training images, and the step after which something happens to it."""

ONE = RunConfig(
    preset="tiny",
    model={"channels": 8, "num_tokens": 8},
    data=DataConfig(num_train=NUM_IMAGES, num_val=5, size_hw=(64, 64), image_hw=(64, 64), num_workers=0),
    train=TrainConfig(
        iterations=NUM_STEPS, batch_size=4, warmup=2, ema=0.9, precision="float32", checkpoint_every=2, evaluate_every=2,
        evaluate_images=0, final_images=1, log_every=1,
    ),
)  # fmt: skip
"""The run of one process that several take the steps of."""
VIT: dict[str, Any] = {"backbone": "vit_of_four_plain_blocks", "channels": 8, "num_tokens": 8}


def with_train(config: RunConfig, **options: Any) -> RunConfig:
    return replace(config, train=replace(config.train, **options))


TWO = with_train(ONE, batch_size=2)
SHARDED = with_train(TWO, shard=True)
OF_VIT = replace(with_train(ONE, checkpoint_every=0, evaluate_every=0), model=VIT)


# ---- data


class Poor:
    """Depth of three images of four alone; no normals in what the second of two processes sees in the first step."""

    def __init__(self, whole: Any):
        self.whole, self.tasks, self.classes, self.name = whole, whole.tasks, whole.classes, whole.name
        self.derived, self.left_out, self.boundary_tolerance = whole.derived, whole.left_out, whole.boundary_tolerance
        first = RunSampler(NUM_IMAGES, 2, seed=0, start=0, stop=1, process=1, num_processes=2)
        self.seen = [index for _, index in next(iter(first))]
        self.drawn = [whole[index] for index in range(len(whole))]

    def __len__(self):
        return len(self.drawn)

    def __getitem__(self, index):
        missing = {"depth"} if index % 4 == 0 else set()
        missing |= {"normals"} if index in self.seen else set()
        return {name: x.clone() for name, x in self.drawn[index].items() if name not in missing}


@cache
def poor(split: str) -> Any:
    """Drawn once for all processes."""
    whole: Any = open_dataset(ONE.data, split, ONE.seed)
    return Poor(whole) if split == "train" else whole


@contextmanager
def in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    setup.open_dataset = lambda _, split, __: poor(split)
    try:
        yield
    finally:
        setup.open_dataset = open_dataset
        torch.set_default_dtype(torch.float32)


# ---- training


def begun(config: RunConfig, out: Path, *, resume: bool = False) -> TrainingRun:
    run = assemble(settle(config, resume=resume), out, resume=resume)
    run.model.train()
    return run


def steps(run: TrainingRun, number: int) -> list[dict[str, float]]:
    """The mean losses of the run's next ``number`` steps."""
    batches = iter(batches_from(run.position.step, run))
    return [
        processes.means({name: float(x) for name, x in optimizer_step(run, batches).mean_losses().items()})
        for _ in range(number)
    ]


def state_of(run: TrainingRun) -> dict[str, dict[str, torch.Tensor]]:
    """Weights, average and moments, whole."""
    parts = run_state.tensors_of(run)
    return {
        name: {key: sharding.whole(x.detach()).clone() for key, x in found().items()} for name, found in parts.items()
    }


def trained(config: RunConfig, out: Path) -> dict[str, Any]:
    with in_float64():
        run = begun(config, out)
        return {"losses": steps(run, NUM_STEPS), **state_of(run)}


def trained_vit(config: RunConfig, out: Path) -> dict[str, Any]:
    """Its losses in two steps, the second of which sees weights that have moved, and some of the weights."""
    few = ("blocks.3.mlp.fc2.weight", "blocks.0.attn.qkv.weight", "pos_embed", "pyramid.to_8.weight")
    with in_float64():
        run = begun(config, out)
        losses, weights = steps(run, 2), run.network.state_dict()
        return {"losses": losses, "weights": {k: sharding.whole(x) for k, x in weights.items() if k.endswith(few)}}


def resumed(config: RunConfig, out: Path) -> dict[str, Any]:
    """What was saved after ``CUT_AT`` steps, whether a second run opens it as it was, and that one's state at the end.

    Also the share of all parameters that this process keeps.
    """
    with in_float64():
        run = begun(config, out)
        steps(run, CUT_AT)
        run_state.save(run)
        saved = state_of(run)
        run.accelerator.wait_for_everyone()
        with sees_no_checkpoint(processes.index() == 1):
            again = begun(config, out, resume=True)
        opened = state_of(again)
        steps(again, NUM_STEPS - CUT_AT)
        parameters: list[Any] = list(again.network.parameters())
        share = sum(x.to_local().numel() for x in parameters) / sum(x.numel() for x in parameters)
        as_saved = {part: alike(opened[part], tensors) for part, tensors in saved.items()}
        return {"saved": saved if processes.is_first() else {}, "as saved": as_saved, "share": share, **state_of(again)}


@contextmanager
def sees_no_checkpoint(is_so: bool) -> Iterator[None]:
    """This process finds the run folder as it was before the newest checkpoint was there."""
    found = checkpoints.saved_steps
    if is_so:
        checkpoints.saved_steps = lambda _: []
    try:
        yield
    finally:
        checkpoints.saved_steps = found


def alike(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Whether two states are the same, bit for bit."""
    return ours.keys() == theirs.keys() and all(torch.equal(x, theirs[name]) for name, x in ours.items())


def accumulated(config: RunConfig, out: Path) -> dict[str, Any]:
    """The gradients and losses of a first step on stored batch statistics, and how often gradients met in it."""
    with in_float64():
        run = begun(config, out)
        run.model.eval()
        meetings = []
        if processes.has_joined() and not run.is_sharded:
            from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

            def meet(state, bucket):
                meetings.append(bucket.is_last())
                return default_hooks.allreduce_hook(state, bucket)

            model: Any = run.model
            model.register_comm_hook(None, meet)
        (losses,) = steps(run, 1)
        named = {name: p.grad for name, p in run.network.named_parameters() if p.grad is not None}
        gradients = {name: sharding.whole(gradient).clone() for name, gradient in named.items()}
        return {"gradients": gradients, "losses": losses, "meetings": sum(meetings)}


def overflowed(config: RunConfig, out: Path) -> dict[str, Any]:
    """The verdict on a step in which the loss of the second process alone is not finite, and that process's batch."""
    with in_float64():
        run = begun(config, out)
        batches = list(itertools.islice(batches_from(0, run), config.train.accumulate))
        if processes.index() == 1:
            for batch in batches:
                batch["depth"] = torch.full_like(batch["depth"], 1e308, dtype=torch.float64)
            hold_back(not_finite, "write_batches")
        try:
            Watch(run).look(optimizer_step(run, iter(batches)))
            said = "nothing"
        except MistakeError as error:
            said = str(error)
        return {"said": said, "batches": batches, "written": sorted(os.listdir(out / not_finite.FOLDER))}


def hold_back(module: Any, name: str) -> None:
    """Have ``module``'s function ``name`` begin when the other process has had time to go on without it."""
    does = getattr(module, name)

    def does_later(*given: Any) -> Any:
        time.sleep(0.5)
        return does(*given)

    setattr(module, name, does_later)


def from_command(config: RunConfig, out: Path) -> int:
    """The exit code of ``mtlsi train``."""
    if processes.index() == 0:
        save_config(config, out.parent)
    with in_float64():
        processes.join()
        processes.gathered(None)  # the configuration is there
        return main(["train", "--config", str(out.parent / "config.yaml"), "--out", str(out)])


def in_the_second(does: Callable[[], None]) -> None:
    """After ``CUT_AT`` steps the second process does something else; the other one waits for it."""
    step = loop.optimizer_step

    def stepped(run: TrainingRun, batches: Any) -> Any:
        if run.position.step == CUT_AT and processes.index() == 1:
            does()
        return step(run, batches)

    loop.optimizer_step = stepped


# ---- batch norms


def norms() -> dict[str, Any]:
    """By name, a batch norm of 5 channels with gains and offsets of its own."""
    made = {
        "plain": nn.BatchNorm2d(5),
        "activated": BatchNormAct2d(5, act_layer=nn.ReLU),
        "counted": nn.BatchNorm2d(5, momentum=None),
        "no gain": nn.BatchNorm2d(5, affine=False),
        "of rows": nn.BatchNorm1d(5),
        "frozen": nn.BatchNorm2d(5).eval(),
    }
    draw = torch.Generator().manual_seed(1)
    for norm in made.values():
        for parameter in norm.parameters():
            parameter.data = torch.rand(5, generator=draw) + 0.5
    return made


def normed(norm: Any, name: str, part: slice, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Two batches through ``norm``: the second's results, the gradients of a sum weighted at random, the statistics."""
    draw = torch.Generator().manual_seed(2)
    shape = (4, 5) if name == "of rows" else (4, 5, 6, 7)
    whole, pull = torch.randn(2, *shape, generator=draw).double(), torch.randn(shape, generator=draw).double()
    norm = norm.to(torch.promote_types(dtype, torch.float32))
    x = torch.empty(0)
    y = torch.empty(0)
    for batch in whole * 3 + 1000:  # far from 0, where sums of squares lose their digits
        x = batch[part].to(dtype).requires_grad_()
        norm.zero_grad()
        y = norm(x)
    (y * pull[part].to(dtype)).sum().backward()
    found = {"y": y.detach(), "dx": x.grad, "mean": norm.running_mean, "variance": norm.running_var}
    gains = {parameter: p.grad for parameter, p in norm.named_parameters()}
    return {**found, "number": norm.num_batches_tracked, **gains}


def normed_in_parts() -> dict[str, Any]:
    """What this process has of uneven parts: three images in the first one, one in the other."""
    part, found = (slice(0, 3), slice(3, 4))[processes.index()], {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for name, norm in norms().items():
            sync_norm.synchronise(nn.Sequential(norm))
            found[name, dtype] = normed(norm, name, part, dtype)
    return found


# ---- what each number of processes does; the value is the exit code


def measured(model: Path, out: Path) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    asked = EvaluateOptions(
        model=str(model), data="scenes", size_hw=(64, 64), limit=5, csv_path=out / "images.csv",
        curve_path=out / "curve.png", confusion=out / "confusion", save=out / "maps", json_path=out / "scores.json",
    )  # fmt: skip
    return dict(evaluate_from_command(asked))


def one(folder: Path, keep: Callable[[str, Any], None]) -> int:
    with in_float64():
        train(ONE, folder / "whole")
    keep("accumulated", accumulated(ONE, folder / "accumulated"))
    keep("cut", accumulated(with_train(ONE, batch_size=1, accumulate=4), folder / "cut"))
    keep("scores", measured(folder / "whole", folder / "measured"))
    keep("of vit", trained_vit(OF_VIT, folder / "vit"))
    return 0


def two(folder: Path, keep: Callable[[str, Any], None]) -> int:
    processes.join()
    keep("norms", normed_in_parts())
    keep("trained", trained(TWO, folder / "trained"))
    keep("sharded", resumed(SHARDED, folder / "sharded"))
    for name, shard in (("accumulated", False), ("accumulated in shards", True)):
        keep(name, accumulated(with_train(TWO, batch_size=1, accumulate=2, shard=shard), folder / name))
    keep("overflowed", overflowed(TWO, folder / "overflowed"))
    keep("scores", measured(folder.parent / "one" / "whole", folder / "measured"))

    def fail() -> None:
        raise MistakeError("the second process cannot go on")

    in_the_second(fail)
    return from_command(with_train(TWO, checkpoint_every=0, evaluate_every=0), folder / "failing")


def killed(folder: Path, _: Any) -> int:
    processes.PATIENCE_S = 2.0  # nobody answers for the one that is gone
    in_the_second(lambda: os.kill(os.getpid(), signal.SIGKILL))
    return from_command(SHARDED, folder / "run")


def four(folder: Path, keep: Callable[[str, Any], None]) -> int:
    processes.join()
    keep("of vit", trained_vit(with_train(OF_VIT, batch_size=1, shard=True, recompute=True), folder / "vit"))
    processes.leave(0)
    return 0


GROUPS = {"one": (one, 1), "two": (two, 2), "killed": (killed, 2), "four": (four, 4)}


def start(name: str, folder: Path) -> list[int] | None:
    """Fork the group ``name`` and wait for it: its exit codes; None in each of its processes."""
    number, started, port = GROUPS[name][1], [], free_port()
    (folder / name).mkdir()
    for rank in range(number):
        if not (process := os.fork()):
            if number > 1:
                announce(rank, number, port)
            for stream, ending in ((1, "out"), (2, "err")):
                os.dup2(os.open(folder / name / f"{rank}.{ending}", os.O_CREAT | os.O_WRONLY), stream)
            return None
        started.append(process)
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]


def keep(folder: Path, what: str, value: Any) -> None:
    torch.save(value, folder / f"{what}-{processes.index()}.pt")


def run(folder: Path) -> int:
    """All groups one after the other; in a forked process what it has to do."""
    poor("train"), poor("val")
    codes = {}
    for name, (does, _) in GROUPS.items():
        codes[name] = start(name, folder)
        if codes[name] is None:
            return does(folder / name, partial(keep, folder / name))
    (folder / "codes.json").write_text(json.dumps(codes))
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(run(Path(sys.argv[1])))
