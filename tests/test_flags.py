from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentError, ArgumentParser

from mtlsi.cli import build_parser, main
from mtlsi.errors import MistakeError
from mtlsi.flags import add_flags, read_counts, read_flags, read_mapping, read_sizes
from mtlsi.options.measuring import BenchmarkOptions, BoundaryOptions, EvaluateOptions
from mtlsi.options.training import StudyOptions
from mtlsi.options.using import PageOptions, PredictOptions


@dataclass(frozen=True)
class Everything:
    """A field of every kind."""

    files: list[Path]
    """The files."""
    needed: str = field(kw_only=True)
    """A flag that must be given."""
    num_workers: int = 2
    """How many
    processes."""
    size_hw: tuple[int, int] | None = None
    """A size."""
    max_dist: float = 0.5
    """A distance."""
    thin: bool = True
    """Leave it thick."""
    loud: bool = False
    """Say more."""
    sizes: tuple[tuple[int, int], ...] = ()
    """Sizes."""
    batches: tuple[int, ...] = (1, 4)
    """Counts."""
    names: list[str] = field(default_factory=list)
    """Names."""
    changes: Mapping[str, Any] = field(default_factory=dict, metadata={"flag": "change"})
    """Changes."""
    plugin: tuple[str, ...] = field(default=(), metadata={"repeated": True})
    """Modules."""


def parse(options: type, *arguments: str) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    add_flags(parser, options)
    return read_flags(parser.parse_args(list(arguments)), options)


def test_defaults_are_those_of_the_dataclass():
    assert parse(Everything, "a.jpg", "b.jpg", "--needed", "x") == Everything(
        [Path("a.jpg"), Path("b.jpg")], needed="x"
    )


def test_every_kind_of_field_is_read():
    flags = "a --needed x --workers 3 --size 4 5 --max-dist 0.25 --no-thin --loud --sizes 6x7,8x9 --batches 2,3"
    more = ["--names", "night stand", "wall", "--change", '{"scales": [3]}', "--plugin", "a.py", "--plugin", "b"]
    assert parse(Everything, *flags.split(), *more) == Everything(
        [Path("a")], needed="x", num_workers=3, size_hw=(4, 5), max_dist=0.25, thin=False, loud=True,
        sizes=((6, 7), (8, 9)), batches=(2, 3), names=["night stand", "wall"], changes={"scales": (3,)},
        plugin=("a.py", "b"),
    )  # fmt: skip


def test_the_sentence_below_a_field_is_its_help():
    parser = ArgumentParser()
    add_flags(parser, Everything)
    told = " ".join(parser.format_help().split())
    assert "How many processes." in told
    assert "--no-thin Leave it thick. (default: False)" in told


def test_train_shows_the_sentence_of_every_setting(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        build_parser().parse_args(["train", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for sentence in (
        "The network's sizes, by name.", "Optimizer steps.", "Range of the random zoom.", "Importing runs their code.",
    ):  # fmt: skip
        assert sentence in told


@pytest.mark.parametrize("command", [["predict"], ["train"], ["data", "derive"]])
def test_the_flags_of_one_verb_are_those_among_all(command, capsys):
    told = []
    for parser in (build_parser(), build_parser(command[0])):
        with pytest.raises(SystemExit):
            parser.parse_args([*command, "--help"])
        told.append(capsys.readouterr().out)
        assert parser.format_help() == build_parser().format_help()
    assert told[0] == told[1] != ""


@pytest.mark.parametrize("tasks", ["depth,normals", "[depth,normals]", "depth, normals"])
def test_tasks_and_precision_have_two_spellings_in_every_verb(tasks):
    predict = parse(PredictOptions, "a.jpg", "--tasks", tasks, "--dtype", "bf16")
    assert (predict.tasks, predict.dtype) == (("depth", "normals"), "bfloat16")
    benchmark = parse(BenchmarkOptions, "--model", "tiny", "--tasks", tasks, "--dtype", "fp32")
    assert (benchmark.tasks, benchmark.dtype) == (("depth", "normals"), "float32")

    from mtlsi.train_command import read_run, train_parser

    run = read_run(train_parser().parse_args(["--data.tasks", tasks, "--train.precision", "bfloat16"]))
    assert (run.data.tasks, run.train.precision) == (("depth", "normals"), "bfloat16")
    assert read_run(train_parser().parse_args(["--train.precision", "bf16"])).train.precision == "bfloat16"


def test_the_flags_of_before_are_still_there():
    evaluate = (
        "run --data pascal --root R --split train --size 4 5 --limit 3 --device cpu --json a --csv b --curve c --save d"
    )
    assert parse(EvaluateOptions, *evaluate.split(), "--legacy-saliency", "--single-task", "e") == EvaluateOptions(
        "run", data="pascal", root="R", split="train", size_hw=(4, 5), limit=3, device="cpu", json_path=Path("a"),
        csv_path=Path("b"), curve_path=Path("c"), save=Path("d"), legacy_saliency=True, single_task=Path("e"),
    )  # fmt: skip
    boundary = "p t --max-dist 0.1 --thresholds 9 --no-nms --no-thin --workers 1 --json a --curve c"
    assert parse(BoundaryOptions, *boundary.split()) == BoundaryOptions(
        Path("p"), Path("t"), max_dist=0.1, num_thresholds=9, nms=False, thin=False, num_workers=1, json_path=Path("a"),
        curve_path=Path("c"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("predict a.jpg --workers x", "--workers x; expected a whole number; see mtlsi predict --help"),
        ("predict a.jpg --workers=2.5", "--workers 2.5; expected a whole number; see mtlsi predict --help"),
        ("predict a.jpg --focal-px far", "--focal-px far; expected a number; see mtlsi predict --help"),
        ("predict a.jpg --scale nan", "--scale nan; expected a number; see mtlsi predict --help"),
        ("demo --iterations some", "--iterations some; expected a whole number; see mtlsi demo --help"),
        ("evaluate run --size 64 x", "--size 64 x; expected 2 values, each a whole number; see mtlsi evaluate --help"),
        ("evaluate run --depth-range a 3", "--depth-range a 3; expected 2 values, each a number; see mtlsi evaluate --help"),
        ("data check rooms --workers y", "--workers y; expected a whole number; see mtlsi data check --help"),
        ("study s.yaml --out o --seeds x", "--seeds 'x'; expected whole numbers, such as 1,4"),
        ("train --out r --train.lr fast", "--train.lr fast; expected a number; see mtlsi train --help"),
        ("train --out r --train.freeze_norm 3", "--train.freeze_norm 3; expected true or false; see mtlsi train --help"),
        (
            "train --out r --data.image_hw [64]",
            "--data.image_hw [64]; expected a list of 2, each a whole number; see mtlsi train --help",
        ),
        ("train --out r --model 3", "--model 3; expected values by name; see mtlsi train --help"),
        ("train --out r --train 3", "--train 3; expected settings by name; see mtlsi train --help"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_told_in_plain_words_with_the_command_that_helps(command, told, capsys):
    try:
        code = main(command.split())
    except SystemExit as stop:  # the parser's way
        code = stop.code
    assert (code, capsys.readouterr().err) == (2, f"mtlsi: {told}\n")


def test_a_value_of_a_file_is_not_taken_for_the_one_that_was_typed(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("train: {lr: fast}")
    with pytest.raises(SystemExit):
        main(["train", "--config", str(tmp_path / "mine.yaml"), "--out", "r", "--train.lr", "1e-3"])
    assert capsys.readouterr().err == "mtlsi: train.lr fast; expected a number; see mtlsi train --help\n"
    (tmp_path / "study.yaml").write_text("recipe: mine.yaml\nvariants: {a: {}}")
    assert main(["study", str(tmp_path / "study.yaml"), "--out", "o", "--list"]) == 2
    assert capsys.readouterr().err == f"mtlsi: {tmp_path / 'study.yaml'}: variant a: train.lr fast; expected a number\n"


def test_sizes_counts_and_mappings_are_read():
    assert read_sizes("sizes", "224x288, 448x576") == ((224, 288), (448, 576))
    assert read_counts("batches", "1, 4,16") == (1, 4, 16)
    assert read_mapping("change", '{"a": [1], "b": 2}') == {"a": (1,), "b": 2}
    assert read_counts("seeds", str(2**64 - 1)) == (2**64 - 1,)  # the last seed
    long = "1" * 5000  # more digits than Python reads
    for read, text in (
        (read_sizes, "64"), (read_sizes, f"64x64,2x{long}"), (read_sizes, f"{long}x2"), (read_counts, "1,two"),
        (read_counts, long), (read_counts, f"1,{long}"), (read_mapping, "[1]"), (read_mapping, "a=1"),
        (read_mapping, f'{{"window": {long}}}'),
    ):  # fmt: skip
        with pytest.raises(MistakeError, match="expected"):
            read("it", text)


def test_settings_of_a_run_are_flags_and_only_those_given_are_kept_as_typed():
    assert parse(StudyOptions, "s.yaml", "--out", "o").settings == {}
    words = ["--preset", "tiny", "--train.lr", "1e-3", "--model.scales=[1, 3]", "--data.root", "null", "--seeds", "1,2"]
    study = parse(StudyOptions, "s.yaml", "--out", "o", *words, "--only", "a", "--only", "b/1", "--no-time", "--list")
    assert study.settings == {"preset": "tiny", "train.lr": "1e-3", "model.scales": "[1, 3]", "data.root": "null"}
    assert (study.seeds, study.only, study.time, study.list_commands) == ((1, 2), ("a", "b/1"), False, True)
    for flag in ("--plugins", "--train.speed"):  # plugins have a flag of their own
        with pytest.raises(ArgumentError):
            parse(StudyOptions, "s.yaml", "--out", "o", flag, "1")


def test_the_page_takes_several_models_and_stays_on_this_machine():
    assert parse(PageOptions) == PageOptions(models=(), host="127.0.0.1", port=7860, dtype="float32")
    page = parse(PageOptions, "--model", "runs/a", "--model", "nyud", "--port", "0", "--host", "::1", "--dtype", "bf16")
    assert (page.models, page.port, page.host, page.dtype) == (("runs/a", "nyud"), 0, "::1", "bfloat16")
