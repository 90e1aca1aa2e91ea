"""Whole runs that keep their best model and end early, against the scores that their metrics tell of."""

from __future__ import annotations

import gc
import json
import os
import shutil
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console
from safetensors.torch import load_file

from mtlsi.data.datasets import open_dataset
from mtlsi.errors import MistakeError
from mtlsi.evaluation.evaluate import evaluate
from mtlsi.model.network import MTLSINet
from mtlsi.run_folder import load_config, progress_of
from mtlsi.training import loop, validation
from mtlsi.training.loop import resume, train


class Stop(Exception):  # noqa: N818
    """The run is cut here."""


def quiet():
    return Console(file=StringIO(), width=300)


def evaluations(out):
    """(step, images, depth RMSE) of every evaluation."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        (line["step"], line["evaluation_images"], line["val/depth/RMSE"]) for line in lines if "evaluation_s" in line
    ]


def same(one, other):
    """Whether two run folders hold the same evaluations and the same models, kept and last."""
    models = ("model.safetensors", "best/model.safetensors")
    ours, theirs = ([load_file(out / name) for name in models] for out in (one, other))
    equal = all(torch.equal(x, b[name]) for a, b in zip(ours, theirs, strict=True) for name, x in a.items())
    kept = [json.loads((out / "best" / "scores.json").read_text()) for out in (one, other)]
    return equal and evaluations(one) == evaluations(other) and kept[0] == kept[1]


@pytest.fixture(scope="module")
def config(tiny_config):
    """Ten steps, five evaluations of one image; states also at steps 3, 6 and 9. Depth has a score that is never flat."""
    options = replace(
        tiny_config.train, iterations=10, checkpoint_every=3, best_by="depth.RMSE", patience=2, lr=0.02, warmup=0
    )
    data = replace(tiny_config.data, tasks=("depth", "normals"), num_val=2)
    return replace(tiny_config, data=data, train=options)


@pytest.fixture(scope="module")
def patient(config, tmp_path_factory):
    """The run that goes to its end."""
    out = tmp_path_factory.mktemp("patient") / "run"
    said = StringIO()
    train(replace(config, train=replace(config.train, patience=0)), out, console=Console(file=said, width=300))
    return out, said.getvalue()


RMSE = {2: 2.0, 4: 1.0, 6: 3.0, 8: 1.0, 10: 0.5}


@pytest.fixture(scope="module")
def unbroken(config, tmp_path_factory):
    """The run that its patience ends at step 8."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    with pytest.MonkeyPatch.context() as patched:
        with_scores(patched, RMSE)
        train(config, out, console=quiet())
    return out


def with_scores(monkeypatch, rmse_by_step):
    """Evaluations on the way give these scores of depth, whatever the weights are."""
    whole = validation.measure

    def measure(run, num_images):
        scores = whole(run, num_images)
        if num_images == 1:
            scores["depth"]["RMSE"] = rmse_by_step[run.position.step]
        return scores

    monkeypatch.setattr(validation, "measure", measure)
    drawn = []
    monkeypatch.setattr(
        validation, "plot_curves", lambda _, picture, *, best_step: drawn.append((picture.name, best_step))
    )
    monkeypatch.setattr(loop, "draw_samples", lambda *_: None)
    return drawn


def test_the_best_model_is_kept_beside_the_last_one_with_the_scores_it_has(patient, config):
    out, said = patient
    found = [(step, rmse) for step, images, rmse in evaluations(out) if images == 1]
    assert [step for step, _ in found] == [2, 4, 6, 8, 10]  # the last weights are measured on the same image, too
    assert [(step, images) for step, images, _ in evaluations(out)][-2:] == [(10, 1), (10, 2)]
    best_step, best_rmse = min(found, key=lambda pair: pair[1])
    kept = json.loads((out / "best" / "scores.json").read_text())
    assert (kept["step"], kept["best_by"], kept["value"], kept["images"]) == (best_step, "depth.RMSE", best_rmse, 1)
    assert f"best depth.RMSE {best_rmse:.4g} at step {best_step}: {out / 'best'}; give that as the model" in said
    assert "ended at step" not in said
    model = MTLSINet.from_pretrained(out / "best")
    again = evaluate(model, open_dataset(config.data, "val"), config.data, indices=[0])
    assert again["depth"]["RMSE"] == pytest.approx(best_rmse, rel=1e-5)
    assert json.loads((out / "scores.json").read_text())["images"] == 2


@pytest.mark.slow
def test_a_run_ends_when_its_patience_does_and_says_why(config, patient, tmp_path, monkeypatch):
    with_scores(monkeypatch, RMSE)
    out, said = tmp_path / "run", StringIO()
    scores = train(config, out, console=Console(file=said, width=300))
    assert "ended at step 8: 2 evaluations without a better depth.RMSE" in said.getvalue()
    assert "best depth.RMSE 1 at step 4" in said.getvalue()
    assert [(step, images) for step, images, _ in evaluations(out)] == [(2, 1), (4, 1), (6, 1), (8, 1), (8, 2)]
    stored = json.loads((out / "scores.json").read_text())  # finished as usual, with all images
    assert (stored["images"], stored["scores"]["depth"]["RMSE"]) == (2, scores["depth"]["RMSE"])
    assert {"state", "model.safetensors"} <= set(os.listdir(out))
    assert progress_of(out, load_config(out)).saved_step == 8
    with pytest.raises(MistakeError, match=r"has ended at step 8 already, for want of a better .* --train\.patience"):
        resume(out, console=quiet())
    # with more patience it goes on to its end, as the run with patience from the start
    resume(out, {"train.patience": 4}, console=quiet())
    assert [step for step, images, _ in evaluations(out) if images == 1] == [2, 4, 6, 8, 10]
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, patient[0]))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert json.loads((out / "best" / "scores.json").read_text())["step"] == 10


@pytest.mark.parametrize(
    "moment",
    ["step 5", *(pytest.param(x, marks=pytest.mark.slow) for x in ("measure 4", "keep 4", "measure 8", "final"))],
)
def test_a_run_cut_anywhere_ends_as_the_unbroken_one(config, unbroken, tmp_path, monkeypatch, moment):
    """The counters follow from the metrics, the model to keep from the saved state."""
    whole, out = unbroken, tmp_path / "run"
    with_scores(monkeypatch, RMSE)

    def cut(module, name, is_now):
        do = getattr(module, name)

        def do_or_stop(*arguments, **settings):
            if is_now(*arguments, **settings):
                raise Stop
            return do(*arguments, **settings)

        monkeypatch.setattr(module, name, do_or_stop)

    what, _, step = moment.partition(" ")
    with monkeypatch.context() as patched:
        monkeypatch = patched
        if what == "step":
            cut(loop, "optimizer_step", lambda run, _: run.position.step == int(step))
        elif what == "measure":
            cut(validation, "measure", lambda run, _: run.position.step == int(step))
        elif what == "keep":
            cut(validation, "keep", lambda *_, **context: context["step"] == int(step))
        else:
            cut(validation, "measure", lambda _, num_images: num_images == 2)
        with pytest.raises(Stop):
            train(config, out, console=quiet())
    said = StringIO()
    resume(out, console=Console(file=said, width=300))
    assert "ended at step 8" in said.getvalue()
    assert same(out, whole)


@pytest.mark.slow
def test_the_curves_are_drawn_at_every_evaluation_with_the_best_step_so_far(config, tmp_path, monkeypatch):
    drawn = with_scores(monkeypatch, RMSE)
    train(config, tmp_path / "run", console=quiet())
    assert drawn == [("curves.png", best) for best in (2, 4, 4, 4)]


def test_a_drawing_leaves_nothing_in_memory(tiny_run, tmp_path):
    shutil.copy(tiny_run.out / "metrics.jsonl", tmp_path)
    evaluated: Any = SimpleNamespace(run=SimpleNamespace(out=tmp_path), best=None)
    gc.disable()  # nothing else looks for garbage meanwhile
    try:
        validation.Validation.draw_curves(evaluated)
        assert (tmp_path / "curves.png").is_file()
        assert not [one for one in gc.get_objects() if type(one) is Figure]
    finally:
        gc.enable()


def test_a_score_that_never_was_defined_keeps_nothing(config, tmp_path, monkeypatch):
    with_scores(monkeypatch, dict.fromkeys((2, 4, 6, 8, 10), float("nan")))
    said = StringIO()
    train(config, tmp_path / "run", console=Console(file=said, width=300))
    assert "ended at step 4: 2 evaluations without a better depth.RMSE" in said.getvalue()
    assert "depth.RMSE was never defined: no model is kept" in said.getvalue()
    assert not (tmp_path / "run" / "best").exists()


@pytest.fixture
def went_on(tmp_path, config):
    """The evaluations of a run that goes on from a step; ``kept``: what best/ says of itself."""

    def at(now, by, **kept):
        values = {2: (2.0, 30.0), 4: (1.0, 20.0), 6: (3.0, 40.0)}
        lines = [
            {"step": i, "val/depth/RMSE": rmse, "val/normals/mErr": m, "evaluation_images": 1, "evaluation_s": 1.0}
            for i, (rmse, m) in values.items()
        ]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / "best").mkdir(exist_ok=True)
        (tmp_path / "best/scores.json").write_text(json.dumps({"value": 0.5, "images": 1, **kept}))
        options = replace(config.train, best_by=by, patience=0)
        run: Any = SimpleNamespace(
            out=tmp_path,
            config=replace(config, train=options),
            val_set=range(2),
            network=SimpleNamespace(classes={}, tasks=("depth", "normals")),
            position=SimpleNamespace(step=now),
            accelerator=SimpleNamespace(is_main_process=True),
            whole_average=dict,
        )
        said = StringIO()
        log: Any = SimpleNamespace(progress=SimpleNamespace(console=Console(file=said, width=300)))
        rest: Any = None
        return validation.Validation(run, log, rest, rest), said

    return at


def test_after_another_best_by_the_kept_model_is_not_announced_as_what_it_is_not(went_on, tmp_path):
    evaluated, said = went_on(7, "normals.mErr", step=6, best_by="depth.RMSE")
    told = (
        f"best normals.mErr 20 at step 4: no model of that is kept; {tmp_path / 'best'} is the best by depth.RMSE 0.5 at "
        "step 6 on 1 image"
    )
    evaluated.make_up()
    assert said.getvalue() == f"{told}\n"
    assert evaluated.farewell() == [told]
    shutil.rmtree(tmp_path / "best")
    assert evaluated.farewell() == [f"best normals.mErr 20 at step 4: no model is kept in {tmp_path / 'best'}"]


def test_the_model_of_the_present_step_is_kept_again_where_another_best_by_makes_it_the_best(went_on, monkeypatch):
    kept = []
    monkeypatch.setattr(validation, "measure", lambda *_: {"depth": {"RMSE": 1.0}})
    monkeypatch.setattr(validation, "keep", lambda *_, **context: kept.append((context["step"], context["best_by"])))
    evaluated, _ = went_on(4, "depth.RMSE", step=4, best_by="normals.mErr")
    evaluated.make_up()
    assert kept == [(4, "depth.RMSE")]
    evaluated, said = went_on(4, "depth.RMSE", step=4, best_by="depth.RMSE")
    evaluated.make_up()
    assert (len(kept), said.getvalue()) == (1, "")
    assert evaluated.farewell()[0].startswith("best depth.RMSE 1 at step 4")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"best_by": "depth.mIoU"},
            r"train\.best_by 'depth\.mIoU'; expected one of depth\.RMSE, .*normals\.mErr, .*delta",
        ),
        ({"best_by": None}, r"train\.patience 2 without train\.best_by"),
        ({"evaluate_every": 0}, r"train\.best_by depth\.RMSE and train\.evaluate_every 0"),
        ({"patience": -1}, r"train\.patience -1; expected at least 0"),
    ],
)
def test_what_cannot_be_waited_for_is_told_before_the_run_starts(config, tmp_path, changes, told):
    with pytest.raises(MistakeError, match=told):
        train(replace(config, train=replace(config.train, **changes)), tmp_path / "run", console=quiet())
    assert not (tmp_path / "run").exists()
