from __future__ import annotations

import csv
import json
from dataclasses import replace
from io import StringIO
from math import nan
from pathlib import Path

import pytest
from rich.console import Console

from mtlsi.config import RunConfig
from mtlsi.errors import MistakeError
from mtlsi.evaluation.report import read_single_task
from mtlsi.metrics.boundary.protocols import PROTOCOLS
from mtlsi.studies.figures import (
    Labels,
    Row,
    add_delta_m,
    headline_of,
    labels_of,
    protocol_of,
    scored,
    single_task_scores,
)
from mtlsi.studies.plan import Plan, Plot, StudyRun, Variant
from mtlsi.studies.table import (
    as_csv,
    as_json,
    as_latex,
    as_markdown,
    latex,
    notes_of,
    points_of,
    print_table,
    write_all,
)


def plan_of(*names: str, baseline: dict | None = None, seeds=(0, 1), title="A & B", note="") -> Plan:
    return Plan(title, note, tuple(Variant(name, RunConfig()) for name in names), seeds, baseline or {}, ())


def row(name: str, *seeds: dict, planned: int = 2, **more) -> Row:
    mean = {task: sum(scores[task] for scores in seeds) / len(seeds) for task in seeds[0]}
    mean = {task: None if value != value else value for task, value in mean.items()}
    return Row(name, planned, dict(enumerate(seeds)), mean, dict.fromkeys(mean), [1] * len(seeds), None, **more)


def test_latex_prints_every_character_as_it_is():
    assert latex("a_b & 50% #1 $x {y} ~ ^ \\") == (
        r"a\_b \& 50\% \#1 \$x \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )
    assert latex("1 ± 2 ↑ ↓") == r"1 $\pm$ 2 $\uparrow$ $\downarrow$"
    text = as_latex(plan_of("a_b"), [row("a_b", {"semseg": 50.0}, planned=1)])
    assert r"a\_b & 1 & 50.00 \\" in text
    assert r"semseg mIoU (\%) $\uparrow$" in text
    assert text.startswith("% A & B")  # a comment needs no escapes
    body = text[text.index("\\midrule") : text.index("\\bottomrule")]
    columns = text[text.index("tabular}{") :].splitlines()[0].count("r}") and text.split("{l")[1].split("}")[0]
    assert body.splitlines()[1].count(" & ") == len(columns)


def test_delta_m_is_the_mean_signed_change_against_the_single_tasks():
    rows = [
        row("both", {"semseg": 44.0, "depth": 0.9}, {"semseg": 44.0, "depth": 0.9}),
        row("one", {"semseg": 40.0}, {"semseg": 40.0}),
        row("two", {"depth": 1.0}, {"depth": 1.0}),
        row("partly", {"semseg": 44.0, "depth": 0.9}),
        row("undefined", {"semseg": nan, "depth": 0.9}, {"semseg": 50.0, "depth": 0.9}),
        row("more", *[{"normals": 30.0, "semseg": 44.0, "depth": 1.0}] * 2),
    ]
    plan = plan_of(*(each.variant for each in rows), baseline={"semseg": "one", "depth": "two"})
    add_delta_m(plan, rows)
    assert rows[0].delta_m == pytest.approx((10 + 10) / 2)  # 10 % more mIoU, 10 % less RMSE
    assert [each.delta_m for each in rows[1:5]] == [None] * 4
    assert rows[5].delta_m == pytest.approx(5)  # over the tasks that are compared
    assert "Delta_m: against one, two." in notes_of(plan, rows)
    assert single_task_scores(plan, rows).scores == {"semseg": 40.0, "depth": 1.0}
    rows[1].num_planned = 3
    assert single_task_scores(plan, rows).scores == {}
    assert "Delta_m: none, one must finish." in notes_of(plan, rows)


@pytest.mark.parametrize(("score", "shown"), [(0.0, "0"), (nan, "undefined")])
def test_single_task_scores_that_cannot_be_divided_by_are_named(score, shown):
    rows = [row("one", {"semseg": score}, planned=1), row("two", {"depth": 1.0}, planned=1)]
    plan = plan_of("one", "two", baseline={"semseg": "one", "depth": "two"})
    assert single_task_scores(plan, rows).scores == {}
    why = f"Delta_m: none, the mIoU of one is {shown}, and a change is relative to a score above 0."
    assert why in notes_of(plan, rows)


def test_small_figures_are_not_rounded_to_nothing():
    text = as_markdown(plan_of("a"), [row("a", {"depth": 1.0}, planned=1, gflop=0.01234, ms=0.0456)])
    assert "| 0.012 | 0.046 |" in text


def test_a_title_is_printed_as_it_is_written():
    said = StringIO()
    print_table(
        plan_of("a", title="[a] of [b]tokens[/c]\x1b[2J"), [row("a", {"depth": 1.0})], Console(file=said, width=80)
    )
    assert r"[a] of [b]tokens[/c]\x1b[2J" in said.getvalue()


def test_a_protocol_out_of_a_run_is_printed_as_it_is_written():
    said = StringIO()
    measured = row("a", {"boundary": 50.0}, planned=1, boundaries={0: {"protocol": "[/]"}})
    print_table(plan_of("a"), [measured], Console(file=said, width=80))
    assert "[/])" in said.getvalue()


def test_a_score_that_is_undefined_is_nowhere_a_number():
    rows = [
        row("a", {"semseg": nan, "depth": 0.5}, {"semseg": 20.0, "depth": 0.7}),
        row("b", {"depth": 1.0}, planned=1),
    ]
    plan = plan_of("a", "b")
    assert "| a | 2 | - | 0.6000 |" in as_markdown(plan, rows)
    cells = next(csv.DictReader(StringIO(as_csv(rows))))
    assert (cells["semseg/mIoU/mean"], cells["depth/RMSE/mean"]) == ("", "0.6")
    assert json.loads(as_json(plan, rows))["variants"][0]["by_seed"]["0"] == {"semseg": None, "depth": 0.5}
    assert "NaN" not in as_json(plan, rows)


def write_run(out: Path, scores: dict, train_s: list[float], **context) -> StudyRun:
    from mtlsi.run_folder import save_config

    out.mkdir(parents=True)
    save_config(RunConfig(), out)
    (out / "scores.json").write_text(json.dumps({**context, "scores": scores}))
    lines = [{"step": step, "train_s": value} for step, value in enumerate(train_s)] + [{"step": 9, "evaluation_s": 60}]
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return StudyRun(Variant(out.parent.name, RunConfig()), int(out.name), out)


def test_figures_are_means_over_the_finished_seeds(tmp_path):
    runs = [
        write_run(tmp_path / "a/0", {"depth": {"RMSE": 0.5}, "boundary": {"odsF": 70.0}}, [10, 60]),
        write_run(tmp_path / "a/1", {"depth": {"RMSE": 0.9}, "boundary": {"odsF": None}}, [30, 120]),
    ]
    found = scored("a", runs, 3)
    assert found.mean == {"depth": pytest.approx(0.7), "boundary": None}
    assert found.spread == {"depth": pytest.approx(0.08**0.5), "boundary": None}
    assert found.train_minutes == pytest.approx(1.5)  # evaluations left out
    assert not found.is_complete
    assert "2 of 3, incomplete" in as_markdown(plan_of("a"), [found])

    (tmp_path / "a/1/metrics.jsonl").write_text('{"step": 9}\n')  # a run of before times were recorded
    assert scored("a", runs, 2).train_minutes is None
    for score in ("inf", [0.5], True, 10**400):
        (tmp_path / "a/1/scores.json").write_text(json.dumps({"scores": {"depth": {"RMSE": score}}}))
        with pytest.raises(MistakeError, match=r"a/1/scores\.json"):
            headline_of(tmp_path / "a/1")
    for broken in ("{}", '{"scores": {"depth": {}}}', '{"scores": []}'):
        (tmp_path / "a/1/scores.json").write_text(broken)
        with pytest.raises(MistakeError, match=r"a/1/scores\.json"):
            headline_of(tmp_path / "a/1")


@pytest.mark.parametrize("score", [1.7e308, -1.7e308, 2e12, 10**400])
def test_a_score_that_no_mean_or_plot_can_take_is_one_line(score, tmp_path):
    write_run(tmp_path / "a/0", {"depth": {"RMSE": score}}, [])
    with pytest.raises(
        MistakeError, match=r"a/0/scores\.json: .* is no score of a task; expected the scores"
    ) as mistake:
        headline_of(tmp_path / "a/0")
    assert "\n" not in str(mistake.value)


def test_delta_m_that_is_no_number_is_nowhere():
    both = row("both", {"depth": 1e12, "normals": 1.0}, planned=1)
    rows = [both, row("one", {"depth": 1e-300}, planned=1), row("two", {"normals": 1.0}, planned=1)]
    plan = plan_of("both", "one", "two", baseline={"depth": "one", "normals": "two"})
    add_delta_m(plan, rows)
    assert both.delta_m is None


def test_odd_times_of_a_run_are_no_times(tmp_path):
    run = write_run(tmp_path / "a/0", {"depth": {"RMSE": 0.5}}, [10, float("inf")])
    found = scored("a", [run], 1)
    assert found.train_minutes is None
    text = as_json(plan_of("a"), [replace(found, ms=nan)])
    assert json.loads(text, parse_constant=pytest.fail)["variants"][0]["ms"] is None


@pytest.mark.parametrize("name", [["float"], {"a": 1}, 3, "x\x1b[2J"])
def test_a_boundary_protocol_that_is_no_name_is_one_line(name, tmp_path):
    write_run(tmp_path / "a/0", {}, [], boundaries={"protocol": name})
    with pytest.raises(MistakeError, match=r"a/0/scores\.json: .*is no boundary protocol"):
        protocol_of(tmp_path / "a/0")


def test_over_k_what_has_no_tokens_is_a_level_and_incomplete_variants_are_nowhere():
    rows = [
        row("k8", {"depth": 1.0}, planned=1, num_tokens=8, gflop=1.0),
        row("k16", {"depth": 1.0}, planned=2, num_tokens=16, gflop=2.0),
        row("heads", {"depth": 1.0}, planned=1, gflop=0.5),
        row("other", {"depth": 1.0}, planned=1, num_tokens=32, gflop=3.0),
    ]
    points, levels = points_of(Plot("num_tokens", of="k"), rows)
    assert ([(p.name, p.x) for p in points], [p.name for p in levels]) == ([("k8", 8)], ["heads"])
    points, levels = points_of(Plot("gflop"), rows)
    assert ([p.name for p in points], levels) == (["k8", "heads", "other"], [])


def test_the_printed_table_is_never_cut_where_it_goes_to_a_file():
    said = StringIO()
    long = "a_variant_with_quite_a_long_name_" * 3
    many = {"semseg": 1.0, "depth": 1.0, "normals": 1.0, "boundary": 1.0, "saliency": 1.0, "parsing": 1.0}
    print_table(
        plan_of(long), [row(long, many, planned=1, parameters=10**6, gflop=2.0, ms=3.0)], Console(file=said, width=60)
    )
    assert long in said.getvalue()
    assert "…" not in said.getvalue()


def test_the_protocol_of_the_boundaries_stands_in_every_table(tmp_path):
    scores = {"depth": {"RMSE": 0.5}, "boundary": {"odsF": 70.0}}
    by = {name: {"boundaries": {"protocol": name}} for name in ("seism", "bsds")}
    new = scored("new", [write_run(tmp_path / f"new/{seed}", scores, [1], **by["seism"]) for seed in (0, 1)], 2)
    other = scored("other", [write_run(tmp_path / "other/0", scores, [1], **by["bsds"])], 1)
    old = scored("old", [write_run(tmp_path / "old/0", scores, [1])], 1)
    alone = scored("alone", [write_run(tmp_path / "alone/0", {"depth": scores["depth"]}, [1], **by["seism"])], 1)
    plan = plan_of("new", "other", "old", "alone")

    same = [new, alone]  # a variant without boundaries does not matter
    text = as_markdown(plan, same)
    assert "| boundary odsF (%, seism) ↑ |" in text
    assert "Boundaries: measured by the protocol seism." in text
    assert "depth RMSE (m) ↓" in text
    cells = [line["boundary_protocol"] for line in csv.DictReader(StringIO(as_csv(same)))]
    assert cells == ["seism", ""]
    stored = json.loads(as_json(plan, same))["variants"]
    assert [of["boundaries"] for of in stored] == [{"0": "seism", "1": "seism"}, {}]

    mixed = [new, other, old, alone]
    for text in (as_markdown(plan, mixed), as_latex(plan, mixed)):
        assert (
            "Boundaries do not compare, they were measured by several protocols: new by seism; other by bsds; old by "
            "unknown; unknown: from before it was written down." in text
        )
    assert "| boundary odsF (%) ↑ |" in as_markdown(plan, mixed)
    text = as_markdown(plan, [old])
    assert "| boundary odsF (%, unknown) ↑ |" in text
    assert "Boundaries: measured by an unknown protocol" in text
    assert "Boundaries" not in as_markdown(plan, [alone])
    assert "boundary_protocol" not in as_csv([alone])


# ---- what does not compare

NYUD, PASCAL = (Labels(f"scenes of {name} (4 images)") for name in ("nyud", "pascal"))
BY = {name: PROTOCOLS[name].on_data(0.011).record() for name in ("seism", "float")}


def in_classes(labels: Labels, *names: str) -> tuple[Labels]:
    return (replace(labels, classes=names),)


def test_scores_on_other_data_or_classes_are_named_and_have_no_delta_m():
    on_nyud = {"semseg": in_classes(NYUD, "wall", "floor"), "depth": (NYUD,)}
    on_pascal = {"semseg": in_classes(PASCAL, "cat", "dog", "cow"), "depth": (PASCAL,)}
    scores = {"semseg": 44.0, "depth": 0.9}
    rows = [
        row("both", scores, planned=1, labels=on_nyud),
        row("pas", scores, planned=1, labels=on_pascal),
        row("renamed", scores, planned=1, labels={**on_nyud, "semseg": in_classes(NYUD, "wall", "door")}),
        row("one", {"semseg": 40.0}, planned=1, labels={"semseg": on_nyud["semseg"]}),
        row("two", {"depth": 1.0}, planned=1, labels={"depth": on_nyud["depth"]}),
    ]
    plan = plan_of(*(each.variant for each in rows), baseline={"semseg": "one", "depth": "two"})
    add_delta_m(plan, rows)
    assert [each.delta_m for each in rows] == [pytest.approx(10), None, None, None, None]
    notes = [
        "Scores of semseg do not compare, data or classes are not the same: both, one on scenes of nyud (4 images), 2 "
        "classes of other names; pas on scenes of pascal (4 images), 3 classes; renamed on scenes of nyud (4 images), 2 "
        "classes of other names.",
        "Scores of depth do not compare, data or classes are not the same: both, renamed, two on scenes of nyud (4 images); "
        "pas on scenes of pascal (4 images).",
        "Delta_m: against one, two; none of pas: other classes or data of semseg, depth; none of renamed: other classes or "
        "data of semseg.",
    ]
    assert notes_of(plan, rows)[-3:] == notes
    for text in (as_markdown(plan, rows), as_latex(plan, rows)):
        assert all(note in text for note in notes)
    assert not any("do not compare" in note for note in notes_of(plan, [rows[0], *rows[3:]]))

    assert single_task_scores(plan, rows).classes == {"semseg": ("wall", "floor")}
    rows[3].labels["semseg"] += on_pascal["semseg"]  # the folder was changed between two seeds
    assert single_task_scores(plan, rows).scores == {}
    assert "Delta_m: none, the seeds of one were measured on different classes or data." in notes_of(plan, rows)


def test_what_scores_were_measured_against_is_read_from_the_run(tmp_path):
    classes = {"mIoU": 1.0, "IoU/wall": 1.0, "IoU/floor": None}
    runs = [
        write_run(tmp_path / "a" / str(seed), {"semseg": classes, "depth": {"RMSE": 0.5}}, [], images=images)
        for seed, images in enumerate((4, 4, 1))
    ]
    few, all_ = Labels("scenes of nyud (1 image)"), NYUD
    assert labels_of(runs[:2]) == {"semseg": in_classes(all_, "wall", "floor"), "depth": (all_,)}
    assert labels_of(runs)["depth"] == (all_, few)
    assert not (tmp_path / "D").exists()
    data = replace(RunConfig().data, name="nyud", root=str(tmp_path / "x/../D"))
    other = replace(runs[0], variant=Variant("a", replace(RunConfig(), data=data)))
    assert labels_of([other])["depth"] == (Labels(f"nyud in {(tmp_path / 'D').resolve()} (4 images)"),)
    for seed, odd in enumerate((None, [], "many")):
        run = write_run(tmp_path / f"odd/{seed}", {"depth": {"RMSE": 0.5}}, [], images=odd)
        with pytest.raises(MistakeError, match=r"scores\.json: "):
            labels_of([run])


def by(name: str | None, *more: str | None) -> dict:
    return {seed: BY[one] if one else None for seed, one in enumerate((name, *more))}


@pytest.mark.parametrize(
    ("ours", "theirs", "has_delta", "note"),
    [
        (by("seism"), by("seism"), True, "Delta_m: against one, two."),
        (by(None), by(None), True, "Delta_m: against one, two."),
        (by("float"), by("seism"), False, "Delta_m: against one, two; none of both: boundaries by another protocol."),
        (by(None), by("seism"), False, "Delta_m: against one, two; none of both: boundaries by another protocol."),
        ({0: {**BY["seism"], "unknown": "no boundary"}}, by("seism"), False, "; none of both: boundaries by another"),
        (by("seism"), by("seism", "float"), False, "Delta_m: none, the boundaries of the single-task runs were measured"),
        (by("seism"), by("seism", None), False, "Delta_m: none, the boundaries of the single-task runs were measured"),
    ],
)  # fmt: skip
def test_delta_m_is_of_boundaries_by_one_protocol(tmp_path, ours, theirs, has_delta, note):
    alone = [{"boundary": 50.0} for _ in theirs]
    rows = [
        row("both", {"boundary": 60.0, "depth": 0.9}, planned=1, boundaries=ours),
        row("one", *alone, planned=len(alone), boundaries=theirs),
        row("two", {"depth": 1.0}, planned=1),
    ]
    plan = plan_of("both", "one", "two", baseline={"boundary": "one", "depth": "two"})
    add_delta_m(plan, rows)
    assert rows[0].delta_m == (pytest.approx(15) if has_delta else None)
    assert any(note in line for line in notes_of(plan, rows))
    (tmp_path / "baseline.json").write_text("from before")
    write_all(plan, rows, tmp_path)
    if "none, " in note:
        assert not (tmp_path / "baseline.json").exists()
    else:
        assert read_single_task(tmp_path / "baseline.json") == ({"boundary": 50.0, "depth": 1.0}, theirs[0], {})


def test_a_plot_of_many_tasks_has_a_file_that_can_be_written(tmp_path):
    plan = replace(plan_of("a"), plots=(Plot("gflop", ("depth", *["normals"] * 60)), Plot("gflop")))
    write_all(plan, [row("a", {"depth": 1.0}, planned=1, gflop=1.0)], tmp_path, (".png", ".pdf"))
    drawn = [path.name for path in tmp_path.iterdir() if path.suffix in (".png", ".pdf")]
    assert len(drawn) == 4
    assert {"gflop.png", "gflop.pdf"} < {*drawn}
