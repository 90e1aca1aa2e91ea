from __future__ import annotations

import atexit
import gc
import inspect
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial, wraps
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["MTLSI_CACHE"] = tempfile.mkdtemp(prefix="mtlsi-tests-")
atexit.register(shutil.rmtree, os.environ["MTLSI_CACHE"], ignore_errors=True)
os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported: no test reaches for the network
os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes that tests start would wait for each other's threads

import jaxtyping

jaxtyping.install_import_hook(
    ("mtlsi.model", "mtlsi.nn", "mtlsi.kernels"), "beartype.beartype"
)  # shapes in signatures are checked

import pytest
import torch
from rich.console import Console

from mtlsi import cli
from mtlsi.config import DataConfig, RunConfig, TrainConfig
from mtlsi.tasks import TASKS

if TYPE_CHECKING:
    from mtlsi.evaluation.report import Scores

torch.set_num_threads(1)  # one order of summation, here and in the processes that tests start


def pytest_collection_finish() -> None:
    """All modules and tests stay to the end: searches for garbage, some in every training, took a third of the time."""
    import hypothesis  # noqa: F401 (pytest's plugin does it in the end; it asks who refers to some object, frozen or not)

    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def own_tasks_end_with_the_module():
    known = dict(TASKS)
    yield
    TASKS.clear()
    TASKS.update(known)


@pytest.fixture(scope="session", autouse=True)
def one_parser():
    """The command line's parser is built once, not for each of some hundred commands; reading leaves it as it is."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cli, "build_parser", cache(cli.build_parser))
        yield


@pytest.fixture(scope="session", autouse=True)
def rooms_are_rendered_once():
    """Trainings and evaluations see the same few rooms again and again; the tests of rooms themselves render each anew."""
    from mtlsi.data.scenes import dataset

    rendered = lru_cache(256)(dataset.render_scene)

    @wraps(dataset.render_scene)
    def render_scene(*which: Any, **how: Any) -> dict[str, Any]:
        return {name: values.copy() for name, values in rendered(*which, **how).items()}

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dataset, "render_scene", render_scene)
        yield


@dataclass
class Run:
    """A finished training."""

    config: RunConfig
    out: Path
    scores: Scores
    said: str
    """What it printed."""


@pytest.fixture(scope="session")
def tiny_config() -> RunConfig:
    """The smallest run that does everything: two epochs, three checkpoints, an evaluation on the way."""
    return RunConfig(
        preset="tiny",
        data=DataConfig(num_train=6, num_val=3, size_hw=(64, 64), image_hw=(64, 64), num_workers=0),
        train=TrainConfig(
            iterations=6,
            batch_size=2,
            warmup=2,
            ema=0.9,
            precision="float32",
            checkpoint_every=2,
            evaluate_every=2,
            evaluate_images=1,
            log_every=1,
        ),
    )


@pytest.fixture(scope="session")
def tiny_run(tiny_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """``tiny_config``, trained without a break. Read it, never write into it."""
    from mtlsi.training import loop, validation

    out, said = tmp_path_factory.mktemp("tiny") / "run", StringIO()
    with pytest.MonkeyPatch.context() as patched:  # drawn, whatever the module that asks for it first leaves out
        patched.setattr(validation, "plot_curves", inspect.unwrap(validation.plot_curves))
        patched.setattr(loop, "draw_samples", inspect.unwrap(loop.draw_samples))
        scores = loop.train(tiny_config, out, console=Console(file=said, width=200))
    return Run(tiny_config, out, scores, said.getvalue())


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch):
    """The inode numbers of what is brought to the disk, in order; None where a file or folder is renamed in between."""
    calls: list[int | None] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append(os.fstat(handle).st_ino), fsync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda *given: (calls.append(None), replace(*given))[1])
    return calls


@pytest.fixture(scope="module")
def undrawn():
    """Runs leave empty files for their curves and samples, which take more than half of a tiny run's time.

    ``tiny_run`` draws them all the same.
    """
    from mtlsi.training import loop, validation

    @wraps(inspect.unwrap(validation.plot_curves))
    def plot_curves(metrics: Path, out_png: Path, *, best_step: int | None = None) -> Path:  # noqa: ARG001
        assert metrics.is_file()
        out_png.touch()
        return out_png

    @wraps(inspect.unwrap(loop.draw_samples))
    def draw_samples(network: object, dataset: object, config: object, folder: Path) -> None:  # noqa: ARG001
        folder.mkdir(exist_ok=True)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(validation, "plot_curves", plot_curves)
        patched.setattr(loop, "draw_samples", draw_samples)
        yield


@pytest.fixture(scope="module")
def small_rates():
    """Benchmarks measure what the machine can do on small matrices and copies: any figure will do."""
    from mtlsi import timing
    from mtlsi.benchmarking import runs

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(timing, "MATRIX_SIDES", (32, 64))
        patched.setattr(runs, "copy_rate", partial(timing.copy_rate, num_bytes=2**20))
        yield


@pytest.fixture
def two_steps(tiny_config: RunConfig) -> RunConfig:
    """As short as a training gets."""
    train = replace(tiny_config.train, iterations=2, evaluate_every=0, checkpoint_every=0)
    return replace(tiny_config, data=replace(tiny_config.data, num_val=1), train=train)


@pytest.fixture(autouse=True)
def any_precision():
    """accelerate keeps one precision per process; no test is to inherit another's."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state()


@pytest.fixture
def nyud_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four small images of NYUDv2 in the 8-bit layout, two to train and two to test on, and a cache beside them."""
    import numpy as np
    from PIL import Image

    monkeypatch.setenv("MTLSI_CACHE", str(tmp_path / "cache"))
    root, numbers = tmp_path / "nyud", np.random.default_rng(0)
    for folder in ("images", "depth", "segmentation", "gt_sets"):
        (root / folder).mkdir(parents=True)
    for name in ("0001", "0002", "0003", "0004"):
        coarse = {
            "images": numbers.integers(0, 256, (6, 8, 3)),
            "depth": 40 + numbers.integers(0, 100, (6, 8)),
            "segmentation": (numbers.permutation(48) % 41).reshape(6, 8),  # all classes, and unlabelled
        }
        for folder, values in coarse.items():
            image = Image.fromarray(values.repeat(8, 0).repeat(8, 1).astype(np.uint8))
            image.save(root / folder / (name + (".jpg" if folder == "images" else ".png")), quality=98)
    (root / "gt_sets/train.txt").write_text("0001\n0002\n")
    (root / "gt_sets/val.txt").write_text("0003\n0004\n")
    return root


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` with its content: for asking whether anything was changed."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def untouched(nyud_root: Path):
    """Fails at the end if anything was written into ``nyud_root`` after the test called it."""
    before: list[dict[str, bytes]] = []
    yield lambda: before.append(files_in(nyud_root))
    assert not before or files_in(nyud_root) == before[0]


@pytest.fixture
def unchecked_shapes():
    """Signatures are not checked: a compiler cannot trace the checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
