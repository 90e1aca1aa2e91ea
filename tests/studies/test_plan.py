from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mtlsi.errors import MistakeError
from mtlsi.studies.plan import Plot, check_plots, name_of, read_plan

BASE = {"recipe": {"preset": "tiny", "train": {"iterations": 7, "loss_weights": {"depth": 2}}}}


def plan_of(folder: Path, content: dict, **given):
    (folder / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return read_plan(folder / "study.yaml", **given)


def test_a_variant_is_its_recipe_with_its_changes(tmp_path):
    variants = {
        "plain": None,
        "dotted": {"model.num_tokens": 64, "train.loss_weights.semseg": 3, "data.tasks": "depth,normals"},
        "nested": {"model": {"scales": [1], "decoder": "mtlsi"}, "train": {"lr": "1e-4"}, "preset": "swin_tiny"},
    }
    plan = plan_of(tmp_path, {**BASE, "variants": variants, "seeds": [3, 1], "title": "T", "note": "N"})
    plain, dotted, nested = (variant.config for variant in plan.variants)
    assert (plan.title, plan.note, plan.seeds) == ("T", "N", (3, 1))
    assert (plain.preset, plain.model, plain.train.iterations) == ("tiny", {}, 7)
    assert dotted.model == {"num_tokens": 64}
    assert dotted.train.loss_weights == {"depth": 2, "semseg": 3}
    assert dotted.data.tasks == ("depth", "normals")
    assert (nested.preset, nested.train.lr, nested.train.iterations) == ("swin_tiny", 1e-4, 7)
    assert nested.model == {"scales": [1], "decoder": "mtlsi"}


def test_a_recipe_is_found_from_the_study_file(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "r.yaml").write_text("preset: mobilenetv2_100\nseed: 5\n")
    (tmp_path / "studies").mkdir()
    monkeypatch.chdir("/")
    plan = plan_of(tmp_path / "studies", {"recipe": "../recipes/r.yaml", "variants": {"a": {}}, "seeds": [2]})
    (run,) = plan.runs(tmp_path)
    assert (run.config.preset, run.config.seed, run.out) == ("mobilenetv2_100", 2, tmp_path / "a" / "2")


def test_a_grid_makes_a_variant_of_every_combination(tmp_path):
    grid = {"model.num_tokens": [8, 16], "model.scales": [[1], [1, 3]]}
    plan = plan_of(tmp_path, {**BASE, "variants": {"heads": {"model.decoder": "heads_only"}}, "grid": grid})
    assert [variant.name for variant in plan.variants] == [
        "heads", "num_tokens-8-scales-1", "num_tokens-8-scales-1_3", "num_tokens-16-scales-1", "num_tokens-16-scales-1_3",
    ]  # fmt: skip
    assert plan.variants[2].config.model == {"num_tokens": 8, "scales": [1, 3]}
    assert plan.variants[0].config.model == {"decoder": "heads_only"}


def test_settings_of_every_run_and_seeds_are_given_last(tmp_path):
    content = {**BASE, "variants": {"a": {}, "b": {"train.iterations": 9}}, "seeds": [0, 1]}
    plan = plan_of(tmp_path, content, settings={"train.iterations": 2, "data.root": "D"}, seeds=[4])
    assert [variant.config.train.iterations for variant in plan.variants] == [2, 2]
    assert {variant.config.data.root for variant in plan.variants} == {"D"}
    assert [run.name for run in plan.runs(tmp_path)] == ["a/4", "b/4"]


def test_runs_go_seed_by_seed_and_a_time_comes_after_what_it_is_measured_by(tmp_path):
    content = {**BASE, "variants": {"late": {"iterations_by_time_of": "b"}, "a": {}, "b": {}}, "seeds": [0, 1]}
    plan = plan_of(tmp_path, content)
    assert [run.name for run in plan.runs(tmp_path)] == ["a/0", "b/0", "late/0", "a/1", "b/1", "late/1"]
    assert [run.name for run in plan.runs(tmp_path, ["b", "late/1,a/0"])] == ["a/0", "b/0", "b/1", "late/1"]
    for name in ("c", "a/2", "a/"):
        with pytest.raises(MistakeError, match="no such run"):
            plan.runs(tmp_path, [name])


def test_the_baseline_is_named_task_by_task_or_by_what_its_names_begin_with(tmp_path):
    alone = {f"one_{task}": {"data.tasks": task} for task in ("depth", "normals")}
    for baseline in ("one_", {"depth": "one_depth", "normals": "one_normals"}):
        plan = plan_of(tmp_path, {**BASE, "variants": {"all": {}, **alone}, "baseline": baseline})
        assert plan.baseline == {"depth": "one_depth", "normals": "one_normals"}


def test_plots_are_those_asked_for_or_those_that_show_something(tmp_path):
    one, two = {"a": {}}, {"a": {}, "b": {"model.num_tokens": 8}}
    assert plan_of(tmp_path, {**BASE, "variants": one}).plots == (Plot("gflop"), Plot("train_minutes"))
    assert plan_of(tmp_path, {**BASE, "variants": two}).plots[0] == Plot("num_tokens")
    asked = [{"x": "gflop", "y": "depth"}, {"x": "num_tokens", "y": ["semseg", "depth"], "of": "b"}]
    assert plan_of(tmp_path, {**BASE, "variants": two, "plots": asked}).plots == (
        Plot("gflop", ("depth",)), Plot("num_tokens", ("semseg", "depth"), "b"),
    )  # fmt: skip


def test_plots_over_one_axis_have_files_of_their_own():
    plots = (Plot("gflop", of="a"), Plot("gflop"), Plot("gflop", ("depth",)), Plot("num_tokens", of="a"))
    assert [name_of(plot, plots) for plot in plots] == ["gflop_a", "gflop_all", "gflop_depth", "num_tokens"]


def test_a_plot_of_a_task_that_nobody_knows_is_told_once_the_data_is_open(tmp_path):
    plan = plan_of(tmp_path, {**OWN, "plots": [{"x": "gflop", "y": ["depth", "albedo"]}]})
    check_plots(plan, {"a": ("depth", "albedo")})
    check_plots(plan, {})  # the data may bring it
    with pytest.raises(MistakeError, match="plots: y albedo: unknown task; expected some of depth, semseg") as mistake:
        check_plots(plan, {"a": ("depth",)})
    assert "\n" not in str(mistake.value)


def alone(**tasks: str) -> dict:
    return {name: {"data.tasks": task} for name, task in tasks.items()}


OWN = {**BASE, "variants": {"a": {"data.name": "folder", "data.root": "D"}}}
"""Of a folder, which may bring tasks of its own."""


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({**BASE, "variants": {"a": {}}, "speed": 3}, "unknown key 'speed'"),
        ({**BASE}, "no variants"),
        ({"variants": {"a": {}}}, "recipe is None"),
        ({"recipe": "nowhere.yaml", "variants": {"a": {}}}, "nowhere.yaml"),
        ({**BASE, "variants": {"good": {}, "bad": {"speed": 3}}}, "variant bad: .*speed"),
        ({**BASE, "variants": {"good": {}, "bad": {"train.speed": 3}}}, "variant bad: .*speed"),
        ({**BASE, "variants": {"good": {}, "bad": {"model.width": 3}}}, "variant bad: unknown model size 'width'"),
        ({**BASE, "variants": {"good": {}, "bad": {"train.lr": "fast"}}}, "variant bad: .*train.lr.*fast"),
        ({**BASE, "variants": {"good": {}, "bad": {"train.optimizer": "sgd"}}}, "variant bad: train.optimizer 'sgd'"),
        ({**BASE, "variants": {"good": {}, "bad": {"preset": "huge"}}}, "variant bad: unknown preset 'huge'"),
        ({**BASE, "variants": {"good": {}, "bad": {"train": 3}}}, "variant bad: train is 3"),
        ({**BASE, "variants": {"good": {}, "bad": 3}}, "variant bad is 3"),
        ({**BASE, "variants": {"good": {}, "bad": {"seed": 3}}}, "variant bad: seed belongs under seeds"),
        ({**BASE, "variants": {"a/b": {}}}, "variant 'a/b'"),
        ({**BASE, "variants": {"table.md": {}}}, "variant 'table.md'"),
        ({**BASE, "variants": {"num_tokens-8": {}}, "grid": {"model.num_tokens": [8]}}, "num_tokens-8 stands in variants"),
        ({**BASE, "grid": {"model.num_tokens": [8, 8]}}, "num_tokens-8 twice"),
        ({**BASE, "grid": {"model.num_tokens": 8}}, "expected a list"),
        (
            {**BASE, "grid": {f"train.{name}": [*range(300)] for name in ("lr", "warmup", "ema", "patience", "clip_norm")}},
            "grid makes too many variants; expected at most 1000",
        ),
        ({**BASE, "grid": {"data.root": ["x" * 201], "train.lr": [*range(900)]}}, "variant 'root-xxx.*at most 200 letters"),
        ({**BASE, "variants": {"a": {}, "b": {}}, "seeds": [*range(5001)]}, "10002 runs; expected at most 10000"),
        ({**BASE, "variants": {"deep": {"model" + ".a" * 50_000: 1}}}, "expected a name of at most 40 parts"),
        ({**BASE, "variants": {"a": {}}, "seeds": 2}, "seeds"),
        ({**BASE, "variants": {"a": {}}, "seeds": [1, 1]}, "seeds"),
        ({**BASE, "variants": {"a": {}}, "seeds": [-1]}, "seeds"),
        ({**BASE, "variants": {"a": {"iterations_by_time_of": "b"}, "c": {}}}, "variant a: iterations_by_time_of 'b'"),
        ({**BASE, "variants": {"a": {"iterations_by_time_of": "a"}, "c": {}}}, "variant a: iterations_by_time_of 'a'"),
        ({**BASE, "variants": {"a": {"iterations_by_time_of": "a"}}}, "expected another variant, without .* of its own$"),
        ({**BASE, "variants": {"a": {"iterations_by_time_of": None}}}, "iterations_by_time_of None; expected the name"),
        ({**BASE, "variants": alone(a="depth"), "baseline": {"depth": ["a"]}}, "baseline depth: \\['a'\\]"),
        ({**BASE, "variants": {"a": {}}, "plots": [{"x": "gflop"}, {"x": "gflop"}]}, "2 would be the file gflop_all.png"),
        (
            {
                **BASE,
                "variants": {"depth": {}},
                "plots": [{"x": "gflop", **more} for more in ({"of": "depth"}, {}, {"y": "depth"})],
            },
            "2 would be the file gflop_depth.png; expected plots of different names",
        ),
        (
            {**BASE, "variants": {"A": {}, "a": {}}, "plots": [{"x": "gflop", "of": of} for of in ("a", "A")]},
            "2 would be the file gflop_a.png",
        ),
        *(
            ({**OWN, "plots": [{"x": "gflop", "y": ["depth", task]}]}, "plots: y.*; expected")
            for task in ("../../../ESCAPED", "a\0b", "a" * 300, "a/b", "..", "", "image", 5)
        ),
        ({**BASE, "variants": {"bad": {"data.tasks": ["../x"]}}, "plots": [{"x": "gflop", "y": "../x"}]}, "no task name"),
        *(
            ({**BASE, "variants": {"good": {}, "bad": {name: value}}}, f"variant bad: {name.split('.d')[0]} .*; expected")
            for name in ("train.lr", "train.clip_norm", "train.loss_weights.depth", "data.class_limit")
            for value in (float("inf"), float("nan"))
        ),
        ({**BASE, "variants": {"a": {}}, "baseline": "single"}, "baseline 'single'"),
        ({**BASE, "variants": {"a": {}}, "baseline": "a"}, "one task each"),
        ({**BASE, "variants": alone(one_x="depth", one_y="depth"), "baseline": "one"}, "variant one_y"),
        ({**BASE, "variants": alone(a="depth"), "baseline": {"normals": "a"}}, "baseline normals"),
        ({**BASE, "variants": {"a": {}}, "plots": [{"x": "weight"}]}, "x 'weight'"),
        ({**BASE, "variants": {"a": {}}, "plots": [{"x": "gflop", "y": "smell"}]}, "y 'smell'"),
        ({**BASE, "variants": {"a": {}}, "plots": [{"x": "gflop", "of": "b"}]}, "of 'b'"),
        ({**BASE, "variants": {"a": {}}, "title": "a\x1b[2J"}, "title: .*; expected no control characters"),
        ({**BASE, "variants": {"a": {}}, "title": "a" * 201}, "title: 201 characters; expected 200 at most"),
        ({**BASE, "variants": {"a": {}}, "note": "a\nb\x1b[2J"}, "note: .*; expected no control characters"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_told_in_one_line(tmp_path, content, told):
    with pytest.raises(MistakeError, match=told) as mistake:
        plan_of(tmp_path, content)
    assert "\n" not in str(mistake.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("recipe: {}\nvariants:\n  a: {}\n  a: {model.num_tokens: 8}\n", "a stands there twice"),
        ("recipe: {}\nvariants: {a: {train.lr: 1, train.lr: 2}}\n", "train.lr stands there twice"),
        (
            "recipe: {}\ngrid: {" + ", ".join(f"a{n}: [1, 2]" for n in range(15_000)) + "}\n",
            "grid makes too many variants",
        ),
        ("recipe: [", "not YAML in line 2"),
        ("- a", "expected settings by name"),
    ],
    ids=lambda text: text[:40],
)
def test_a_file_that_cannot_be_read_is_told_in_one_line(tmp_path, text, told):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(MistakeError, match=told) as mistake:
        read_plan(tmp_path / "study.yaml")
    assert "\n" not in str(mistake.value)
    with pytest.raises(MistakeError, match=r"missing\.yaml"):
        read_plan(tmp_path / "missing.yaml")


def test_a_note_may_be_long_and_have_lines(tmp_path):
    note = "\n\n".join(["One backbone for all [mobilenet], 5 $ an hour."] * 10)
    plan = plan_of(tmp_path, {**BASE, "variants": {"a": {}}, "title": "Küche [床]", "note": note})
    assert (plan.title, plan.note) == ("Küche [床]", note)
