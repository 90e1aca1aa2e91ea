from __future__ import annotations

import csv
import json
import os
import re
from io import StringIO

import pytest
import torch
from rich.console import Console
from rich.table import Table

from mtlsi.data.readers.nyud import NYUD
from mtlsi.errors import MistakeError
from mtlsi.evaluation.report import (
    OF_READINGS,
    Evaluation,
    SingleTask,
    headline,
    introduce,
    paper_row,
    plain_cell,
    read_single_task,
    reading_table,
    same_boundaries,
    score_table,
    tables,
    unlike_boundaries,
    write_images,
    write_scores,
    write_single_task,
)
from mtlsi.metrics import DepthError
from mtlsi.metrics.boundary.protocols import PROTOCOLS
from mtlsi.metrics.delta import delta_m
from mtlsi.tasks import TASKS, Task

SCORES = {"semseg": {"mIoU": 40.0, "pixel_acc": 70.0}, "depth": {"RMSE": 0.6, "abs_rel": float("nan")}}


def test_scores_are_written_whole_with_what_they_were_measured_on(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("from before")
    write_scores(SCORES, path, data="scenes", images=3)
    expected = {"semseg": SCORES["semseg"], "depth": {"RMSE": 0.6, "abs_rel": None}}
    assert json.loads(path.read_text()) == {"data": "scenes", "images": 3, "scores": expected}
    assert os.listdir(tmp_path) == ["scores.json"]


def test_tables_say_the_very_protocol_that_the_file_holds(tmp_path):
    protocol = PROTOCOLS["seism"].on_data(0.023)
    scores = Evaluation({**SCORES, "boundary": {"odsF": 70.0}}, boundaries=protocol)
    said = StringIO()
    for table in tables(scores, "images as stored", (), None, None):
        Console(file=said, width=160).print(table)
    write_scores(scores, tmp_path / "scores.json")
    stored = json.loads((tmp_path / "scores.json").read_text())["boundaries"]
    assert (stored["protocol"], stored["max_dist"]) == ("seism", 0.023)
    text = " ".join(said.getvalue().split())
    assert "boundaries: seism, not suppressed" in text
    assert "within 0.023 of the diagonal" in text


def test_scores_that_cannot_be_written_are_a_mistake_and_leave_nothing(tmp_path):
    (tmp_path / "a file").touch()
    (tmp_path / "a folder").mkdir()
    before = sorted(os.listdir(tmp_path))
    for path in (tmp_path / "a file" / "scores.json", tmp_path / "nowhere" / "scores.json", tmp_path / "a folder"):
        with pytest.raises(MistakeError, match="cannot write"):
            write_scores(SCORES, path)
        assert sorted(os.listdir(tmp_path)) == before, path


def test_delta_m_reads_plain_figures_and_the_files_of_write_scores(tmp_path):
    expected = 100 * ((40 - 50) / 50 - (0.6 - 0.8) / 0.8) / 2  # depth: lower is better
    plain, written = tmp_path / "plain.json", tmp_path / "written.json"
    plain.write_text('{"semseg": 50, "depth": 0.8}')
    write_scores({"semseg": {"mIoU": 50.0}, "depth": {"RMSE": 0.8}}, written, data="scenes")
    for path in (plain, written):
        assert delta_m(headline(SCORES), read_single_task(path).scores) == pytest.approx(expected)


BY_SEISM = PROTOCOLS["seism"].on_data(0.011).record()


def test_single_task_scores_say_what_their_boundaries_were_measured_by(tmp_path):
    path, scores = tmp_path / "single.json", {"boundary": 70.0, "depth": 0.6}
    write_single_task(SingleTask(scores, BY_SEISM), path)
    assert read_single_task(path) == SingleTask(scores, BY_SEISM)
    write_single_task(SingleTask(scores), path)
    assert json.loads(path.read_text()) == scores  # the form of before there were several protocols
    assert read_single_task(path) == SingleTask(scores)
    for task, measured_by in (("boundary", BY_SEISM), ("depth", None)):  # every file of scores names a protocol
        write_scores({task: {TASKS[task].score: 0.5}}, path, boundaries=BY_SEISM)
        assert read_single_task(path) == SingleTask({task: 0.5}, measured_by)


def test_single_task_scores_say_of_which_classes_they_are(tmp_path):
    path, classes = tmp_path / "single.json", {"semseg": ("wall", "floor")}
    for measured_by in (None, BY_SEISM):
        single = SingleTask({"semseg": 40.0, "boundary": 60.0}, measured_by, classes)
        write_single_task(single, path)
        assert read_single_task(path) == single
    write_scores({"semseg": {"mIoU": 40.0, "IoU/wall": 50.0, "IoU/floor": float("nan")}}, path)
    assert read_single_task(path).classes == classes
    for text in ('{"semseg": 5}', '{"semseg": [5]}', "[]"):
        path.write_text(f'{{"classes": {text}, "scores": {{"semseg": {{"mIoU": 40}}}}}}')
        with pytest.raises(MistakeError, match=r"single\.json: "):
            read_single_task(path)


@pytest.mark.parametrize(
    "record", [None, 5, "seism", {}, {"protocol": 5}, {"protocol": "x\x1b[2J"}, {**BY_SEISM, "nms": []}]
)
def test_what_is_no_boundary_protocol_in_single_task_scores_is_a_mistake(tmp_path, record):
    path = tmp_path / "single.json"
    path.write_text(json.dumps({"boundaries": record, "scores": {"boundary": {"odsF": 70.0}}}))
    with pytest.raises(MistakeError, match=r"single\.json: ") as caught:
        read_single_task(path)
    assert caught.value.args[0].isprintable()


def test_protocols_differ_where_both_say_different_things():
    older = {name: value for name, value in BY_SEISM.items() if name != "unknown"}
    assert unlike_boundaries(older, BY_SEISM) == ""
    other = {**BY_SEISM, "protocol": "bsds", "max_dist": 0.0075}
    assert unlike_boundaries(other, BY_SEISM) == "protocol bsds there, seism here, max_dist 0.0075 there, 0.011 here"
    for one, compares in ((None, False), (older, True), (other, False)):
        assert same_boundaries(one, BY_SEISM) == compares
    assert same_boundaries(None, None)


@pytest.mark.parametrize(
    "text",
    [
        "", "[1, 2]", "7", '{"semseg": "much", "depth": 1}', '{"semseg": 40}', '{"semseg": 40, "depth": 0}', "\x00",
        '{"scores": {"semseg": {"acc": 1}}}', '{"scores": {"smell": {"mIoU": 1}}}', '{"semseg": null, "depth": 1}',
    ],
)  # fmt: skip
def test_single_task_scores_that_cannot_be_used_are_a_mistake_in_one_line(tmp_path, text):
    (tmp_path / "single.json").write_text(text)
    with pytest.raises(MistakeError) as caught:
        delta_m(headline(SCORES), read_single_task(tmp_path / "single.json").scores)
    assert "\n" not in str(caught.value)


def test_a_file_of_single_task_scores_that_is_not_there_is_a_mistake(tmp_path):
    with pytest.raises(MistakeError, match=r"single\.json"):
        read_single_task(tmp_path / "single.json")


def test_the_table_has_every_figure_its_unit_and_the_columns_to_compare(tmp_path):
    others = {"constant": {"depth": {"RMSE": 1.25}}}
    scores = {**SCORES, "semseg": {**SCORES["semseg"], "IoU/wall": 77.77}}
    with (tmp_path / "table").open("w") as file:
        Console(file=file, width=120).print(score_table(scores, derived=("depth",), others=others))
    lines = {line.split("│")[2].strip(): line for line in (tmp_path / "table").read_text().splitlines() if "│" in line}
    assert lines.keys() == {"mIoU ^ %", "pixel_acc", "RMSE v m", "abs_rel"}
    assert "semantic segmentation" in lines["mIoU ^ %"]
    assert "40" in lines["mIoU ^ %"]
    assert "depth (derived labels)" in lines["RMSE v m"]
    assert "0.6" in lines["RMSE v m"]
    assert "1.25" in lines["RMSE v m"]


def test_the_papers_row_has_one_figure_per_task_and_says_what_is_derived():
    said = StringIO()
    Console(file=said, width=120).print(paper_row(SCORES, derived=("depth",), delta_percent=-1.25))
    text = said.getvalue()
    assert "semseg mIoU (%)" in text
    assert "derived labels" in text
    cells = [cell.strip() for cell in text.splitlines()[-2].strip("│").split("│")]
    assert cells == ["40.00", "0.6000", "-1.25"]


def test_depth_has_a_row_for_every_reading():
    draw, metric = torch.Generator().manual_seed(0), DepthError((0.5, 1.5))
    label = 1 + torch.rand(2, 24, 32, generator=draw)
    metric.update(label + 0.1, label, label > 0)
    scores = {"depth": {name: float(value) for name, value in metric.compute().items()}}
    said = StringIO()
    Console(file=said, width=100).print(reading_table(scores, (0.5, 1.5)))
    lines = said.getvalue().splitlines()[3:13]
    rows = [re.split(r" {2,}", line.strip()) for line in lines]
    names = ("", "capped", "eigen", "median", "scale_shift")
    expected = [name for reading in names for name in (reading, f"{reading}_per_image".lstrip("_"))]
    assert [row[0] for row in rows] == [(name or "pooled").replace("_", " ") for name in expected]
    for row, name in zip(rows, expected, strict=True):
        figures = (scores["depth"][f"{name}/{x}".lstrip("/")] for x in OF_READINGS)
        assert row[1:] == [f"{value:.4g}" for value in figures]
    assert "0.5 to 1.5 m" in said.getvalue()


def test_every_table_says_how_the_images_were_shown():
    said = StringIO()
    for table in tables(SCORES, "images resized to 8x9", (), None, None):
        Console(file=said, width=120).print(table)
    assert " ".join(said.getvalue().split()).count("images resized to 8x9") == 2


def test_images_are_written_line_by_line_with_undefined_figures_empty(tmp_path):
    other = {"semseg": {"mIoU": 12.5, "pixel_acc": 1 / 3}, "depth": {"RMSE": 2.0, "abs_rel": 0.25}}
    first = {**SCORES, "depth": {**SCORES["depth"], "per_image/RMSE": 0.6}}  # says nothing new of one image
    write_images([("0001", first), ("0, 2", other)], tmp_path / "images.csv")
    rows = list(csv.reader((tmp_path / "images.csv").read_text().splitlines()))
    assert rows == [
        ["image", "semseg/mIoU", "semseg/pixel_acc", "depth/RMSE", "depth/abs_rel"],
        ["0001", "40", "70", "0.6", ""],
        ["0, 2", "12.5", "0.333333", "2", "0.25"],
    ]
    assert os.listdir(tmp_path) == ["images.csv"]


def test_a_data_set_is_introduced_with_its_layout_and_what_it_lacks(nyud_root):
    for path in (nyud_root / "segmentation").iterdir():
        path.unlink()
    said = StringIO()
    introduce(NYUD(nyud_root, "val"), Console(file=said, width=300))
    first, *others = said.getvalue().splitlines()
    assert first == (
        "data: NYUDv2 with 8-bit depth (normals and boundaries derived), 2 images of val, derived labels: normals"
    )
    assert [line.split("(")[0] for line in others] == ["left out: semseg ", "left out: boundary "]


MARKUP = ("[/]", "floor [wood]", "[link=https://a.example]wall[/link]", "[red]wall", ":car:", "床 [b]")


@pytest.mark.parametrize("written", MARKUP)
def test_titles_units_and_names_stand_in_tables_as_they_are_written(monkeypatch, written):
    monkeypatch.setitem(TASKS, "cost", Task("cost", kind="value", title=written, unit=written))
    said = StringIO()
    console = Console(file=said, width=200, force_terminal=True, color_system="truecolor")
    scores = {"cost": {"RMSE": 1.0, written: 2.0}}
    for table in (score_table(scores, others={written: scores}), paper_row(scores)):
        console.print(table)
    # title, unit, column, the papers' row, and the figure, which with a slash is for the JSON file
    assert said.getvalue().count(written) == 4 + ("/" not in written)
    assert "\x1b]8" not in said.getvalue()


def test_a_plain_cell_steers_no_terminal_and_keeps_its_lines():
    said = StringIO()
    table = Table(title=plain_cell("a\x1b[2J", "table.title"))
    table.add_column(plain_cell("first\nsecond\r\x07\udcff"))
    Console(file=said, width=80).print(table)
    assert re.search(r"a\\x1b\[2J +\n.*\n┃ first +┃\n┃ second \\x07\\udcff ┃", said.getvalue())
