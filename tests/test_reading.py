"""JSON that strangers gave or that was damaged: one line, whoever reads it."""

from __future__ import annotations

import json
import os

import pytest

from mtlsi import reading, run_folder
from mtlsi.drawing.plots import plot_curves
from mtlsi.errors import MistakeError
from mtlsi.evaluation.report import read_single_task
from mtlsi.lock import held
from mtlsi.prediction.manifest import Manifest, Source
from mtlsi.reading import MOST_VALUES, parse_json, read_json
from mtlsi.run_folder import kept_step
from mtlsi.studies.figures import headline_of
from mtlsi.training import class_weights

SCORES = {"depth": {"RMSE": 0.5}}
WRONG = {
    "deep": b"[" * 100_000, "deep objects": b'{"a":' * 100_000, "twice": b'{"scores": {}, "scores": {}}', "empty": b"",
    "NaN": b'{"scores": {"depth": {"RMSE": NaN}}, "depth": NaN}', "latin": '{"scores": "é"}'.encode("latin-1"),
    "too large": b'{"scores": {"depth": {"RMSE": 1e999}}, "depth": 1e999}', "digits": b'{"depth": ' + b"9" * 5000 + b"}",
    "list": b"[1]", "text": b'{"scores": "x", "depth": "x"}', "null": b"null",
    "number": b'{"scores": 3, "depth": [3], "semseg": 3}', "nested": b'{"scores": {"depth": 3}, "depth": {}, "semseg": []}',
}  # fmt: skip


def place(path, wrong):
    """Puts something into the place of a file of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if wrong == "folder":
        path.mkdir()
    elif wrong == "pipe":
        os.mkfifo(path)
    elif wrong == "a gigabyte":
        with path.open("wb") as file:
            file.truncate(2**30)  # takes no room on the disk
    else:
        path.write_bytes(WRONG[wrong])


READERS = {
    "single_task": ("single.json", read_single_task),
    "class_weights": ("class_weights.json", lambda path: class_weights.load(path, {"semseg": ("wall", "floor")})),
    "scores": ("scores.json", lambda path: headline_of(path.parent)),
    "object": ("a.json", lambda path: read_json(path, "an object")["depth"] + 1),
}


@pytest.mark.parametrize("wrong", [*WRONG, "folder", "pipe", "a gigabyte", "missing"])
@pytest.mark.parametrize("reader", READERS)
def test_whoever_reads_json_refuses_in_one_line_what_is_none(reader, wrong, tmp_path):
    name, read = READERS[reader]
    if wrong != "missing":
        place(tmp_path / name, wrong)
    if reader == "object" and wrong in ("text", "number", "nested"):
        pytest.skip("an object it is")
    with pytest.raises(MistakeError) as found:
        read(tmp_path / name)
    assert name in str(found.value)
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 1000


@pytest.mark.parametrize("wrong", WRONG)
def test_damaged_lines_are_passed_over_by_readers_of_lines(wrong, tmp_path):
    good = [{"step": 1, "loss": 2.0, "val/depth/RMSE": 0.5}, {"step": 2, "loss": 1.0}]
    bad = WRONG[wrong] + b'\n{"step": 1e999}\n{"step": ' + b"9" * 400 + b'}\n{"step": 3, "val/depth/RMSE": "x"}\n'
    (tmp_path / "metrics.jsonl").write_bytes(bad + "\n".join(map(json.dumps, good)).encode() + b"\n")
    assert run_folder.read_metrics(tmp_path)[0] == good
    assert plot_curves(tmp_path / "metrics.jsonl", tmp_path / "a.svg").stat().st_size > 0 if wrong != "latin" else True
    Manifest(tmp_path).append("a", Source("/photos/a.jpg", 7, 3), 5, {})
    with (tmp_path / "manifest.jsonl").open("ab") as file:
        file.write(bad + b'{"results": "a", "state": "-1"}\n{"results": "b", "state": "' + b"f" * 99 + b'"}\n')
    Manifest(tmp_path).append("c", Source("/photos/c.jpg", 9, 4), 6, {})
    again = Manifest(tmp_path)
    assert [(line.state, line.changed, line.content) for line in map(again.last, "ac") if line] == [
        (7, 3, 5),
        (9, 4, 6),
    ]
    assert again.last("b") is None


def test_lines_of_more_values_than_a_run_has_are_a_mistake(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MOST_IN_LINES", 60)
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n' * 10)  # 4 + 2 each
    assert len(run_folder.read_metrics(tmp_path)[0]) == 10
    for more in ('{"step": 1}\n', "\n", '{"step": 1, "a": [[], [], {}]}'):
        path.write_text('{"step": 1, "loss": 2.0}\n' * 10 + more)
        with pytest.raises(MistakeError, match=r"metrics\.jsonl: more than 60 values; expected the lines of one run"):
            run_folder.read_metrics(tmp_path)
        with pytest.raises(MistakeError, match="more than 60 values"):
            plot_curves(path, tmp_path / "a.svg")


@pytest.mark.parametrize("wrong", ["folder", "pipe", "a gigabyte"])
def test_what_is_no_plain_file_in_the_place_of_lines_or_of_a_lock_is_a_mistake(wrong, tmp_path):
    for name in ("metrics.jsonl", ".lock"):
        place(tmp_path / name, wrong)
    if wrong != "a gigabyte":
        place(tmp_path / "manifest.jsonl", wrong)
        with pytest.raises(MistakeError, match="expected a plain file"):
            Manifest(tmp_path).last("a")
    with pytest.raises(MistakeError, match=r"metrics\.jsonl"):
        run_folder.read_metrics(tmp_path)
    with pytest.raises(MistakeError, match=r"metrics\.jsonl"):
        plot_curves(tmp_path / "metrics.jsonl", tmp_path / "a.svg")
    with pytest.raises(MistakeError, match=r"\.lock"), held(tmp_path / ".lock"):
        pass


@pytest.mark.parametrize("wrong", [*WRONG, "folder", "pipe", "missing"])
def test_without_scores_there_is_no_step_of_the_best_model(wrong, tmp_path):
    if wrong != "missing":
        place(tmp_path / "best" / "scores.json", wrong)
    assert kept_step(tmp_path) is None


def test_what_json_may_say(tmp_path):
    (tmp_path / "a.json").write_text('\ufeff{"a": [1, 2.5, null, "x"], "b": {"a": true}}', encoding="utf-8")
    assert read_json(tmp_path / "a.json", "an object") == {"a": [1, 2.5, None, "x"], "b": {"a": True}}
    assert parse_json("[" * 30 + "]" * 30)
    assert str(parse_json('{"loss": NaN}', finite=False)) == "{'loss': nan}"
    with pytest.raises(ValueError, match="more than"):
        parse_json("[" + "0," * MOST_VALUES + "0]")
