"""Packing a run: the folder is a model, and its card says what was measured and how the run was trained."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from dataclasses import fields, replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

from mtlsi.cli import build_parser, main
from mtlsi.config import DataConfig, RunConfig, TrainConfig
from mtlsi.data.datasets import open_dataset
from mtlsi.data.scenes import dataset
from mtlsi.errors import MistakeError
from mtlsi.evaluation.evaluate import evaluate_from_command
from mtlsi.flags import read_flags
from mtlsi.model import hub, pretrained
from mtlsi.model.build import create_model
from mtlsi.model.network import MTLSINet
from mtlsi.options.measuring import EvaluateOptions, MeasureOptions, PackOptions
from mtlsi.packing import pack
from mtlsi.packing.card import Measured, Trained, card, scores_text, training_text
from mtlsi.packing.pack import NOT_OF_SCORES, flags_of, pack_from_command
from mtlsi.run_folder import Progress
from mtlsi.training.best import Kept, keep

QUIET = Console(file=StringIO())


@pytest.fixture(autouse=True)
def rooms_of_cards_are_rendered_once(monkeypatch):
    """By what data sets of rooms render theirs with in tests, which keeps them."""
    monkeypatch.setattr(pack, "render_scene", dataset.render_scene)


def command_of(card: str) -> EvaluateOptions:
    """What the card's command asks for."""
    (line,) = re.findall(r"^mtlsi evaluate .*$", card, re.MULTILINE)
    parsed = build_parser("evaluate").parse_args(shlex.split(line)[1:])
    return read_flags(parsed["evaluate"], EvaluateOptions)


def test_the_packed_folder_is_the_model_and_its_card_has_the_scores_of_its_own_command(tiny_run, tmp_path, monkeypatch):
    notes = tmp_path / "notes.md"
    notes.write_text("## What it is not good at\n- Anything: it was trained for six steps.\n")
    out = pack_from_command(
        PackOptions(str(tiny_run.out), data="scenes", limit=3, out=tmp_path / "rooms-tiny", notes_path=notes),
        console=QUIET,
    )
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors", "rooms.jpg"]
    run, packed = (MTLSINet.from_pretrained(folder).state_dict() for folder in (tiny_run.out, out))
    for name, value in run.items():
        torch.testing.assert_close(packed[name], value.half().float() if value.dim() > 1 else value, atol=0, rtol=0)
    card = (out / "README.md").read_text()
    front, text = card.split("---\n", 2)[1:]
    monkeypatch.chdir(tmp_path)
    scores = evaluate_from_command(command_of(text), console=QUIET)
    assert yaml.safe_load(front)["license"] == "mit"
    assert {"semantic-segmentation", "depth-estimation"} <= set(yaml.safe_load(front)["tags"])
    assert "# rooms-tiny" in text
    assert "mtlsi evaluate rooms-tiny --data scenes --limit 3\n" in text
    assert f"mIoU {scores['semseg']['mIoU']:.2f} %" in text
    assert f"RMSE {scores['depth']['RMSE']:.4f} m" in text
    assert f"mErr {scores['normals']['mErr']:.2f} deg" in text
    assert "3 images of the split val, shown at 64x64" in text
    assert "Trained on generated rooms: 6 images, rendered at 64x64 times 0.5 to 2, crops of 64x64." in text
    assert "It starts from random weights." in text
    assert "(preset `tiny`)" in text
    assert re.search(r"6 steps of 2 images in \d+ minutes: adamw, learning rate 0\.001", text)
    assert text.endswith("it was trained for six steps.\n")
    parameters = sum(x.numel() for x in MTLSINet.from_pretrained(out).parameters())
    assert f"{parameters / 1e6:.2f} M parameters" in text
    with Image.open(out / "rooms.jpg") as picture:
        assert min(picture.size) > 500


def test_the_cards_command_asks_for_all_that_was_asked_for():
    options = PackOptions(
        "m", data="my set", root="/home/somebody/set", split="train", size_hw=(64, 96), resize="keep_ratio",
        protocol="invpt", tasks=("depth", "normals"), boundary_protocol="float", count_unknown_boundaries=True, limit=2,
        device="cpu", json_path=Path("a.json"), plugin=("/home/somebody/my part.py", "a.b"), out=Path("x"),
    )  # fmt: skip
    assert [f.name for f in fields(MeasureOptions) if f.name != "model" and getattr(options, f.name) == f.default] == []
    measured = Measured({}, {}, "my set", "rooms", 2, "train", "", flags=flags_of(options))
    name = 'my model; rm -rf "x"'
    found = command_of(scores_text(name, measured))
    same = {field.name: getattr(options, field.name) for field in fields(MeasureOptions)}
    left_out = {field.name: field.default for field in fields(MeasureOptions) if field.name in NOT_OF_SCORES}
    expected = {**same, **left_out, "model": name, "data": "my set", "root": "FOLDER", "plugin": ("my part.py", "a.b")}
    assert found == EvaluateOptions(**expected)


def test_the_cards_command_takes_the_packed_folder_and_not_the_packaged_model_of_its_name(
    tiny_run, tmp_path, monkeypatch
):
    monkeypatch.setattr(pretrained, "PACKAGED", tmp_path / "package")
    create_model("tiny", tasks=["normals"]).save_pretrained(tmp_path / "package" / "mine")
    options = PackOptions(str(tiny_run.out), data="scenes", limit=1, tasks="depth", out=tmp_path / "mine")
    text = (pack_from_command(options, console=QUIET) / "README.md").read_text()
    assert command_of(text).model == "./mine"


def test_a_packaged_model_has_no_run_whatever_lies_in_a_folder_of_its_name(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrained, "PACKAGED", tmp_path / "package")
    create_model("tiny", tasks=["depth"], input_size=(64, 64)).save_pretrained(tmp_path / "package" / "rooms")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "rooms").symlink_to(tiny_run.out)
    monkeypatch.chdir(tmp_path / "here")
    asked = ["--data", "scenes", "--limit", "1", "--tasks", "depth", "--out"]
    assert main(["pack", "rooms", *asked, "packaged"]) == 0
    assert "for the model in the folder of that name here give ./rooms" in " ".join(capsys.readouterr().out.split())
    assert "How it was trained is not known" in Path("packaged/README.md").read_text()
    assert MTLSINet.from_pretrained("packaged").tasks == ("depth",)
    for name in ("./rooms", "rooms/"):
        out = f"own{len(name)}{name[0]}"
        assert main(["pack", name, *asked, out.replace(".", "x")]) == 0
        assert "Trained on generated rooms: 6 images" in Path(out.replace(".", "x"), "README.md").read_text()


@pytest.fixture
def own_folders(tmp_path, two_steps):
    """A run on the folder ``alpha``, of 3 training images, beside ``beta``, of 6, both data sets of one's own."""
    from mtlsi.training.loop import train

    for name, number, val in (("alpha", 4, ["0"]), ("beta", 8, ["0", "1"])):
        for kind, pixels in (
            ("images", np.zeros((64, 64, 3), np.uint8)),
            ("depth", np.full((64, 64), 2000, np.uint16)),
        ):
            (tmp_path / name / kind).mkdir(parents=True)
            for index in range(number):
                Image.fromarray(pixels).save(tmp_path / name / kind / f"{index}.png")
        (tmp_path / name / "dataset.yaml").write_text(
            f"name: {name}\nsplits: {{val: {val}}}\ntasks: {{depth: {{unit: mm}}}}\n"
        )
    data = replace(two_steps.data, name="folder", root=str(tmp_path / "alpha"), tasks=("depth",))
    train(replace(two_steps, data=data), tmp_path / "run", console=QUIET)
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_the_card_names_the_images_of_the_run_and_not_those_that_are_measured_on(own_folders):
    asked = {"data": "folder", "root": str(own_folders / "beta")}
    out = pack_from_command(PackOptions(str(own_folders / "run"), **asked, out=own_folders / "a"), console=QUIET)
    text = (out / "README.md").read_text()
    assert "On your own data (beta): 2 images" in text
    assert "Trained on your own data (alpha): 3 images, " in text
    (own_folders / "alpha").rename(own_folders / "elsewhere")
    out = pack_from_command(PackOptions(str(own_folders / "run"), **asked, out=own_folders / "b"), console=QUIET)
    assert "Trained on folder (not found here, nor counted): resized to 64x64" in (out / "README.md").read_text()


def test_what_a_strangers_configuration_says_is_text(tiny_run):
    hostile = "adamw\n# Free models\n<img src=x>[a](b)"
    train = replace(
        tiny_run.config.train, optimizer=hostile, precision=hostile, balance=hostile, loss_weights={hostile: 1.0},
        class_weights={hostile: {"wall": 2.0}}, freeze=(hostile,),
    )  # fmt: skip
    shown = "`adamw # Free models <img src=x>[a](b)`"
    for named in ({"init": f"/runs/{hostile}"}, {"init": hostile}, {"backbone_weights": f"/{hostile}"}):
        config, best = replace(tiny_run.config, train=train, **named), Kept(4, hostile, 1.0, 2)
        text = training_text(Trained(config, hostile, 6, "whole", Progress(6, 60.0), best))
        assert [line[:2] for line in text.split("\n")] == ["- "] * 4
        assert text.count(shown) == 9
        assert "<img" not in text.replace(shown, "")


def test_a_matrix_beyond_float16_is_told_of(tiny_run, tmp_path):
    run = tmp_path / "run"
    network = MTLSINet.from_pretrained(tiny_run.out)
    name = next(name for name, tensor in network.state_dict().items() if tensor.dim() > 1)
    with torch.no_grad():
        network.state_dict()[name].view(-1)[0] = 1e5
    network.save_pretrained(run)
    options = PackOptions(str(run), data="scenes", limit=1, tasks="depth", out=tmp_path / "packed")
    text = (pack_from_command(options, console=QUIET) / "README.md").read_text()
    assert "MB on disk (matrices in float16 but 1, whose numbers it does not reach)" in text
    assert MTLSINet.from_pretrained(tmp_path / "packed").state_dict()[name].max() == 1e5


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_damaged_weights_are_refused_by_the_name_that_was_given(tiny_run, tmp_path, capsys, damage):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "config.json", "model.safetensors"):
        (run / name).write_bytes((tiny_run.out / name).read_bytes())
    content = bytearray((run / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (run / "model.safetensors").write_bytes({"flipped": content, "cut": content[:-9], "empty": b""}[damage])
    assert main(["pack", str(run), "--data", "scenes", "--out", str(tmp_path / "new")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mtlsi: model {run}: {run}/model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_term_leaves_nothing(tiny_run, tmp_path, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGTERM)

    def measure(*_):
        assert len(list(tmp_path.iterdir())) == 1
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it went on")

    monkeypatch.setattr(pack, "measure", measure)
    assert main(["pack", str(tiny_run.out), "--data", "scenes", "--out", str(tmp_path / "new")]) == 143
    assert capsys.readouterr().err == "mtlsi: stopped\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("given", ["nope/..", "link", "a\nb", "--license=mit\nevil: [1"])
def test_a_name_or_licence_that_cannot_be_is_refused_before_anything_is_measured(
    tiny_run, tmp_path, monkeypatch, capsys, given
):
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("nothing")
    monkeypatch.setattr(pack, "measure", lambda *_: pytest.fail("it was measured"))
    asked = ["--out=new", given] if given.startswith("--") else [f"--out={given}"]
    assert main(["pack", str(tiny_run.out), "--data", "scenes", *asked]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is there already; give a new folder" in line or "expected no control characters" in line
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_the_card_names_the_parts_that_were_frozen(tiny_run):
    config, progress = tiny_run.config, Progress(6, 60.0)
    for freeze, said, rate in (
        (("backbone",), "Frozen: backbone.\n", "learning rate 0.001, float32"),
        (
            ("preliminary", "heads"),
            "Frozen: preliminary, heads. Frozen of the backbone: all batch statistics.\n",
            "for the backb",
        ),
        ((), "Frozen of the backbone: all batch statistics.\n", " of it for the backbone)"),
    ):
        options = replace(config.train, freeze=freeze, freeze_norm=True, lr=0.001)
        text = training_text(Trained(replace(config, train=options), "rooms", 6, "whole", progress))
        assert said in text
        assert rate in text
        assert "6 steps of 2 images in 1 minute:" in text


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_the_card_says_what_a_run_started_from_and_what_was_frozen(tiny_run, two_steps, tmp_path):
    from mtlsi.training.loop import train

    options = replace(two_steps.train, freeze_stride=4, freeze_norm=True, loss_weights={"depth": 2.0}, balance="dwa")
    data = replace(two_steps.data, tasks=("depth", "normals"))
    run = tmp_path / "run"
    train(replace(two_steps, init=str(tiny_run.out), train=options, data=data), run, console=QUIET)
    options = PackOptions(str(run), data="scenes", limit=2, size_hw=(32, 64), out=tmp_path / "two")
    text = (pack_from_command(options, console=QUIET) / "README.md").read_text()
    assert f"It starts from the model `{tiny_run.out.name}`." in text
    assert "Frozen of the backbone: everything up to stride 4 and all batch statistics." in text
    assert "losses balanced by dwa" in text
    assert "Loss weights: depth 2." in text
    assert "depth in m and surface normals out" in text
    assert "--data scenes --size 32 64 --limit 2\n" in text


def test_the_card_of_a_stopped_run_says_whose_weights_these_are(tiny_run, tmp_path):
    """Stopped at step 5 of 6, where the last saved weights were those of step 4."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "config.json", "model.safetensors"):
        (run / name).write_bytes((tiny_run.out / name).read_bytes())
    lines = (tiny_run.out / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] < 6]
    (run / "metrics.jsonl").write_text("".join(kept) + '{"step": 6, "lo')
    options = PackOptions(str(run), data="scenes", limit=2, out=tmp_path / "packed")
    text = (pack_from_command(options, console=QUIET) / "README.md").read_text()
    assert re.search(r"4 steps of 2 images in \d+ minutes \(stopped; its schedule was made for 6\): adamw", text)


@pytest.fixture
def run_with_best(tiny_run, tmp_path):
    """A copy of the run whose best model, kept after step 4 of 6, says zero where the last one says something."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "config.json", "model.safetensors", "metrics.jsonl", "scores.json"):
        (run / name).write_bytes((tiny_run.out / name).read_bytes())
    network = MTLSINet.from_pretrained(run)
    zeros = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    found = {"images": 2, "step": 4, "best_by": "delta", "value": 1.25}
    keep(network, zeros, {"depth": {"RMSE": 1.0}}, run, data="scenes", split="val", **found)
    return run


@pytest.mark.slow
def test_the_best_model_of_a_run_is_packed_with_its_runs_settings(run_with_best, tmp_path, capsys):
    arguments = ["--data", "scenes", "--limit", "1", "--tasks", "depth", "--out"]
    assert main(["pack", str(run_with_best / "best"), *arguments, str(tmp_path / "kept")]) == 0
    assert "has the run's last weights" not in capsys.readouterr().out
    text = (tmp_path / "kept" / "README.md").read_text()
    assert all((value == 0).all() for value in MTLSINet.from_pretrained(tmp_path / "kept").state_dict().values())
    assert re.search(r"- 4 steps of 2 images in \d+ minutes \(of a schedule made for 6\): adamw, ", text)
    assert "The best weights of the run by delta (1.25 on 2 validation images, after step 4), not the last." in text
    assert "Trained on generated rooms: 6 images" in text

    assert main(["pack", str(run_with_best), *arguments, str(tmp_path / "last")]) == 0
    assert f"the best, of step 4: {run_with_best / 'best'}" in capsys.readouterr().out
    text = (tmp_path / "last" / "README.md").read_text()
    assert "The last weights, not the best." in text
    assert "- 6 steps of 2 images" in text


def test_a_best_model_that_does_not_say_its_step_is_refused(run_with_best, tmp_path, capsys):
    (run_with_best / "best" / "scores.json").write_text('{"step": "four"}')
    assert main(["pack", str(run_with_best / "best"), "--data", "scenes", "--out", str(tmp_path / "new")]) == 2
    assert "scores.json: step 'four'; expected a whole number" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_model_without_its_run_is_packed_and_its_card_says_that_its_training_is_unknown(tiny_run, tmp_path):
    model = tmp_path / "model"
    MTLSINet.from_pretrained(tiny_run.out).save_pretrained(model)
    options = PackOptions(str(model), data="scenes", limit=1, tasks="depth", out=tmp_path / "packed")
    text = (pack_from_command(options, console=QUIET) / "README.md").read_text()
    assert (
        "## Data and training\nHow it was trained is not known: the model was packed without its run folder.\n" in text
    )
    assert "preset" not in text
    assert "steps" not in text


def test_the_card_names_no_preset_whose_sizes_are_others(run_with_best, tmp_path):
    """A run with --init writes down so what of the model that it starts from differs."""
    config = (run_with_best / "config.yaml").read_text()
    (run_with_best / "config.yaml").write_text(config.replace("model: {}", "model: {num_tokens: 16}"))
    options = PackOptions(str(run_with_best), data="scenes", limit=1, tasks="depth", out=tmp_path / "packed")
    assert "preset" not in (pack_from_command(options, console=QUIET) / "README.md").read_text()


def test_tasks_of_other_classes_are_left_out_of_the_card(nyud_root, tmp_path):
    network = create_model(
        "tiny", tasks=("semseg", "depth"), classes={"semseg": ("room", "thing")}, input_size=(64, 64)
    )
    network.save_pretrained(tmp_path / "model")
    said = StringIO()
    options = PackOptions(str(tmp_path / "model"), data="nyud", root=str(nyud_root), limit=1, out=tmp_path / "packed")
    text = (pack_from_command(options, console=Console(file=said, width=200)) / "README.md").read_text()
    assert "left out: semseg (the model has 2 classes, the data 40 or other names)" in said.getvalue()
    assert re.findall(r"^\| (\w+) ", text, re.MULTILINE) == ["task", "depth"]


def test_mistakes_leave_nothing(tiny_run, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    for arguments, told in (
        (["nowhere", "--data", "scenes", "--out", "new"], "is not a folder, not packaged"),
        ([str(tiny_run.out), "--data", "scenes", "--out", "there"], "there is there already; give a new folder"),
        ([str(tiny_run.out), "--data", "nyud", "--out", "new"], "needs its folder"),
        ([str(tiny_run.out), "--data", "scenes", "--notes", "none.md", "--out", "new"], "expected a Markdown file"),
    ):
        given = [str(tmp_path / x) if x in ("new", "there", "none.md") else x for x in arguments]
        assert main(["pack", *given]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line
        assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_folder_that_appears_meanwhile_is_left_alone_and_the_finished_one_kept(
    tiny_run, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "new"

    def card_of_another(*given, **facts):
        out.mkdir()
        (out / "theirs").touch()
        return card(*given, **facts)

    monkeypatch.setattr("mtlsi.packing.pack.card", card_of_another)
    assert main(["pack", str(tiny_run.out), "--data", "scenes", "--limit", "1", "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--out {out} cannot be written any more" in line
    assert [path.name for path in out.iterdir()] == ["theirs"]
    (finished,) = (path for path in tmp_path.iterdir() if path != out)
    assert f"the finished folder is {finished}: move it" in line
    assert {"README.md", "config.json", "model.safetensors"} <= {path.name for path in finished.iterdir()}


def test_a_model_of_a_damaged_run_is_refused(tiny_run, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "model.safetensors"):
        (run / name).write_bytes((tiny_run.out / name).read_bytes())
    (run / "config.json").write_text(json.dumps({"tasks": ["depth"]}))
    with pytest.raises(MistakeError):
        pack_from_command(PackOptions(str(run), data="scenes", out=tmp_path / "new"), console=QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_the_card_names_the_protocol_of_the_boundaries(tiny_run, tmp_path):
    asked = {"data": "scenes", "limit": 1, "tasks": "boundary"}
    out = pack_from_command(PackOptions(str(tiny_run.out), **asked, out=tmp_path / "a"), console=QUIET)
    stored = json.loads((tiny_run.out / "scores.json").read_text())["boundaries"]
    assert f"Boundaries are measured by the protocol {stored['protocol']}, " in (out / "README.md").read_text()
    other = PackOptions(str(tiny_run.out), **asked, boundary_protocol="float", out=tmp_path / "b")
    card = (pack_from_command(other, console=QUIET) / "README.md").read_text()
    assert "Boundaries are measured by the protocol float, suppressed, maps as they are, " in card
    assert " --tasks boundary --boundary-protocol float --limit 1\n" in card
    by = EvaluateOptions(str(out), **asked, boundary_protocol="float")
    assert f"| odsF {evaluate_from_command(by, console=QUIET)['boundary']['odsF']:.2f} % |" in card


def depth_row(card: str) -> tuple[float, float]:
    """The RMSE of the model and of the constant."""
    found = re.search(r"\| depth \| RMSE ([\d.]+) m \| ([\d.]+) \|", card)
    assert found is not None
    return float(found[1]), float(found[2])


def mean_angle(card: str) -> float:
    """The model's mean error of normals, in degrees."""
    found = re.search(r"\| surface normals[^|]*\| mErr ([\d.]+) deg \|", card)
    assert found is not None
    return float(found[1])


@pytest.mark.slow
def test_a_card_of_some_tasks_gives_the_command_that_measures_them_and_how_images_are_shown(nyud_root, tmp_path):
    from mtlsi.training.loop import train

    config = RunConfig(
        data=DataConfig(
            name="nyud", root=str(nyud_root), tasks="depth,normals", size_hw=(64, 64), image_hw=(64, 64),
            resize="keep_ratio", num_workers=0,
        ),
        train=TrainConfig(iterations=1, batch_size=1, precision="float32"),
    )  # fmt: skip
    kept = train(config, tmp_path / "run", console=QUIET)["normals"]
    asked = {"data": "nyud", "root": str(nyud_root), "tasks": "normals"}
    out = pack_from_command(PackOptions(str(tmp_path / "run"), **asked, out=tmp_path / "kept"), console=QUIET)
    card = (out / "README.md").read_text()
    assert "mtlsi evaluate kept --data nyud --root FOLDER --tasks normals\n" in card  # the model says how
    assert "shown as follows: images resized by one factor into 64x64, padded to 64x64; compared" in card
    assert "resized by one factor into 64x64 times 0.5 to 2" in card
    assert mean_angle(card) == pytest.approx(kept["mErr"], rel=0.02)  # as the run itself, but for half precision
    again = evaluate_from_command(EvaluateOptions(str(out), **asked), console=QUIET)["normals"]
    other = EvaluateOptions(str(out), **asked, resize="stretch")
    stretched = evaluate_from_command(other, console=QUIET)["normals"]["mErr"]
    assert mean_angle(card) == pytest.approx(again["mErr"], abs=0.01) != pytest.approx(stretched, abs=0.01)
    assert "| depth |" not in card
    assert "Boundaries are" not in card

    for folder, suffix in (("images", "jpg"), ("depth", "png"), ("segmentation", "png")):  # the size of the protocol
        for path in (nyud_root / folder).glob(f"*.{suffix}"):
            with Image.open(path) as image:
                image.resize((560, 425), Image.Resampling.NEAREST).save(path)
    asked["tasks"] = "depth"
    out = pack_from_command(
        PackOptions(str(tmp_path / "run"), **asked, protocol="invpt", out=tmp_path / "padded"), console=QUIET
    )
    card = (out / "README.md").read_text()
    assert "mtlsi evaluate padded --data nyud --root FOLDER --protocol invpt --tasks depth\n" in card
    assert "shown as follows: protocol invpt: images as stored, 480x640 cut to 425x560, padded to 448x576; " in card
    shown = evaluate_from_command(EvaluateOptions(str(out), **asked, protocol="invpt"), console=QUIET)["depth"]
    assert depth_row(card)[0] == pytest.approx(shown["RMSE"], abs=1e-4)
    truth = np.concatenate([open_dataset(config.data, "val")[i]["depth"].numpy().ravel() for i in (0, 1)])
    known = np.concatenate([open_dataset(config.data, "train")[i]["depth"].numpy().ravel() for i in (0, 1)])
    median = np.sort(known)[(len(known) - 1) // 2]  # of two in the middle the lower, as torch has it
    assert depth_row(card)[1] == pytest.approx(np.sqrt(np.mean((truth - median) ** 2)), abs=1e-4)


class Recorded:
    """The hub's library, as far as it is asked to push a folder."""

    endpoint = "https://hub.example"

    def __init__(self, token=None):
        self.token = token

    def create_repo(self, name, *, private, exist_ok):
        assert exist_ok
        CALLS.append(("made", name, private))
        return SimpleNamespace(repo_id=name)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        assert commit_message
        CALLS.append(("uploaded", repo_id, {path.name: path.read_bytes() for path in folder_path.iterdir()}))


class Refusing(Recorded):
    def upload_folder(self, **_):
        raise ConnectionResetError("peer")


CALLS: list[tuple] = []


@pytest.fixture
def recorded(monkeypatch):
    CALLS.clear()
    monkeypatch.setenv("HF_TOKEN", "hf_somebody")
    monkeypatch.setattr(hub, "HfApi", Recorded)
    return CALLS


def test_a_packed_folder_is_pushed_with_its_card(tiny_run, tmp_path, recorded, capsys):
    arguments = ["pack", str(tiny_run.out), "--data", "scenes", "--limit", "1", "--tasks", "depth", "--out"]
    assert main([*arguments, str(tmp_path / "rooms"), "--push", "me/rooms-depth", "--private"]) == 0
    made, (_, name, files) = recorded
    assert made == ("made", "me/rooms-depth", True)
    assert name == "me/rooms-depth"
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "rooms").iterdir()}
    card = files["README.md"].decode()
    assert "# rooms-depth\n" in card
    assert 'MTLSINet.from_pretrained("me/rooms-depth")' in card
    assert "mtlsi evaluate me/rooms-depth --data scenes" in card
    assert "on the hub: https://hub.example/me/rooms-depth" in capsys.readouterr().out


def test_a_push_that_fails_leaves_the_folder_and_says_how_to_go_on(tiny_run, tmp_path, recorded, monkeypatch, capsys):
    monkeypatch.setattr(hub, "HfApi", Refusing)
    out = tmp_path / "rooms"
    arguments = ["pack", str(tiny_run.out), "--data", "scenes", "--limit", "1", "--tasks", "depth", "--out", str(out)]
    assert main([*arguments, "--push", "me/rooms"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert recorded == [("made", "me/rooms", False)]
    assert "the hub cannot be reached" in line
    assert line.endswith(f"{out} is complete: hf upload me/rooms {out} tries again")
    assert MTLSINet.from_pretrained(out).tasks


@pytest.mark.parametrize(
    ("name", "token", "told"),
    [
        ("me//rooms", "hf_somebody", "expected OWNER/MODEL"),
        ("me/rooms", "", "nobody is logged in"),
    ],
)
def test_a_push_that_cannot_be_is_refused_before_anything_is_measured(
    tiny_run, tmp_path, monkeypatch, capsys, name, token, told
):
    monkeypatch.setattr(hub, "get_token", lambda: token or None)
    arguments = ["pack", str(tiny_run.out), "--data", "scenes", "--out", str(tmp_path / "rooms"), "--push", name]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert list(tmp_path.iterdir()) == []
