from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from full_disk import files_of_at_most
from mtlsi.cli import VERBS, main
from mtlsi.config import DataConfig, RunConfig
from mtlsi.data.datasets import open_dataset
from mtlsi.data.scenes.dataset import LABEL_SETS
from mtlsi.model.build import create_model
from mtlsi.tasks import NYUD40, PARTS7, TASK_SETS, TASKS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def model(tiny_run) -> str:
    return str(tiny_run.out)


@pytest.fixture
def photo(tmp_path) -> Path:
    rows, columns = np.mgrid[0:48, 0:80]
    Image.fromarray(np.stack([5 * rows, 3 * columns, rows + columns], -1).astype(np.uint8)).save(tmp_path / "photo.jpg")
    return tmp_path / "photo.jpg"


@pytest.fixture
def mistaken(capsys, tmp_path, monkeypatch):
    """Runs a command in an empty folder and gives its one line of complaint; nothing may be left behind."""

    def run(*arguments: str | Path) -> str:
        here = tmp_path / "here"
        here.mkdir(exist_ok=True)
        monkeypatch.chdir(here)
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # the parser's way
            code = stop.code
        lines = capsys.readouterr().err.strip().splitlines()
        assert code == 2
        assert len(lines) == 1, lines
        assert lines[0].startswith("mtlsi: ")
        assert "Traceback" not in lines[0]
        assert os.listdir(here) == []
        return lines[0]

    return run


def test_without_torch_one_line_says_so(monkeypatch, capsys, photo):
    def missing(*_):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("mtlsi.model.network.MTLSINet.from_pretrained", missing)
    assert main(["predict", str(photo)]) == 2
    assert capsys.readouterr().err == (
        "mtlsi: PyTorch is not installed; pip install torch. Exported graphs need none: --model model.onnx\n"
    )


# ---- the parser


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "subcommand"),
        (("learn",), "learn"),
        (("train", "--out", "run", "--speed", "3"), "speed"),
        (("train", "--out", "run", "--train.speed", "3"), "speed"),
        (("train", "--out", "run", "--train.iterations", "many"), "iterations"),
        (("train", "--out", "run", "--data.size_hw", "[64]"), "size_hw"),
        (("evaluate",), "model"),
        (("evaluate", "run", "--limit", "few"), "few"),
        (("evaluate", "run", "--size", "64"), "size"),
        (("predict",), "images"),
        (("demo", "--iterations", "some"), "some"),
    ],
)
def test_commands_that_cannot_be_read_are_answered_in_one_line(mistaken, arguments, told):
    assert told in mistaken(*arguments)


def test_version_and_help_are_no_mistakes(capsys):
    for argument, told in (("--version", "mtlsi "), ("--help", "predict")):
        with pytest.raises(SystemExit) as stop:
            main([argument])
        assert stop.value.code == 0
        assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("preset: tiny\ntrain: {iterations: [", "config"),
        ("preset: tiny\nspeed: 3", "speed"),
        ("train: {speed: 3}", "speed"),
        ("train: {lr: fast}", "lr"),
        ("preset: huge", "huge"),
        ("model: {width: 3}", "width"),
        ("- tiny", "config"),
        ("data: {name: kitti}", "kitti"),
    ],
    ids=["broken", "unknown key", "unknown nested key", "wrong type", "preset", "model size", "a list", "data set"],
)
def test_a_configuration_file_that_cannot_be_used(mistaken, tmp_path, text, told):
    (tmp_path / "mine.yaml").write_text(text)
    assert told in mistaken("train", "--config", tmp_path / "mine.yaml", "--out", "run")


def test_a_configuration_file_that_is_not_there(mistaken):
    assert "nowhere.yaml" in mistaken("train", "--config", "nowhere.yaml", "--out", "run")


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_and_overrides_reach_the_training_as_they_are_written(monkeypatch, recipe, tmp_path):
    import yaml

    seen: list[tuple[RunConfig, Path]] = []
    monkeypatch.setattr("mtlsi.training.loop.train", lambda config, out: seen.append((config, out)) or {})
    assert (
        main(["train", "--config", str(recipe), "--out", str(tmp_path / "run"), "--train.lr", "0.5", "--seed=9"]) == 0
    )
    ((config, out),) = seen
    assert (out, config.train.lr, config.seed) == (tmp_path / "run", 0.5, 9)
    written = yaml.safe_load(recipe.read_text())
    for part in ("data", "train"):
        for name, value in written.pop(part).items():
            found = getattr(getattr(config, part), name)
            expected = 0.5 if name == "lr" else tuple(value) if isinstance(value, list) else value
            assert (found, type(found)) == (expected, type(expected)), name
    for name, value in written.items():
        assert getattr(config, name) == (9 if name == "seed" else value)


# ---- train


def test_the_table_after_training_says_how_far_a_boundary_may_lie(monkeypatch, capsys, tmp_path):
    from mtlsi.evaluation.report import Evaluation
    from mtlsi.metrics.boundary.protocols import PROTOCOLS

    scores = Evaluation({"boundary": {"odsF": 70.0}}, boundaries=PROTOCOLS["float"].on_data(0.031))
    monkeypatch.setattr("mtlsi.training.loop.train", lambda _config, _out: scores)
    assert main(["train", "--preset", "tiny", "--out", str(tmp_path / "run")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "boundaries: float, suppressed" in text
    assert "within 0.031 of" in text


def test_train_wants_either_a_new_folder_or_an_old_one(mistaken, tmp_path):
    assert "--out" in mistaken("train", "--preset", "tiny")
    assert "--resume" in mistaken("train", "--out", "a", "--resume", "b")
    assert "nowhere" in mistaken("train", "--resume", "nowhere")
    assert "config.yaml" in mistaken("train", "--resume", "run", "--train.lr", "0.1")  # not silently left out
    (tmp_path / "empty").mkdir()
    assert "started run" in mistaken("train", "--resume", tmp_path / "empty")


def test_a_run_is_not_written_over(mistaken, tiny_run):
    before = {path: path.stat().st_mtime_ns for path in tiny_run.out.rglob("*")}
    told = mistaken("train", "--data.num_train", 2, "--data.num_workers", 0, "--out", tiny_run.out)
    assert "holds a run already" in told
    assert {path: path.stat().st_mtime_ns for path in tiny_run.out.rglob("*")} == before


def test_a_run_below_a_file_is_refused(mistaken, photo):
    assert "cannot write" in mistaken("train", "--data.num_train", 2, "--out", photo / "run")


def test_a_run_whose_state_is_damaged_cannot_be_resumed(mistaken, tiny_run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(tiny_run.out, out)
    (out / "scores.json").unlink()
    for path in (out / "state").glob("*/*"):
        path.write_bytes(path.read_bytes()[:20])
    assert str(out) in mistaken("train", "--resume", out)


# ---- evaluate


def test_evaluate_prints_a_table_and_writes_the_figures(model, tmp_path, capsys):
    arguments = ["evaluate", model, "--data", "scenes", "--limit", "3", "--json", str(tmp_path / "scores.json")]
    assert main(arguments) == 0
    stored = json.loads((tmp_path / "scores.json").read_text())
    assert stored["model"] == model
    assert (stored["data"], stored["split"], stored["images"], stored["shown_at"]) == ("scenes", "val", 3, [64, 64])
    assert stored["scores"].keys() == set(TASK_SETS["nyud"].tasks)
    said = capsys.readouterr().out
    for task, figure in (("semseg", "mIoU"), ("depth", "RMSE"), ("normals", "mErr")):
        assert figure in said
        assert f"{stored['scores'][task][figure]:.4g}" in said
    assert "the papers' row" in said
    assert f"{stored['scores']['boundary']['odsF']:.4g}" in said

    single = tmp_path / "single.json"
    doubled = {task: 2 * stored["scores"][task][TASKS[task].score] for task in ("semseg", "depth")}
    single.write_text(json.dumps(doubled))
    # half of every single-task figure: a loss of 50 % for one task, a gain of 50 % for the one where less is better; a model
    # of two steps may find no boundary at all, by which nothing can be divided
    assert main([*arguments, "--single-task", str(single), "--tasks", "semseg,depth"]) == 0
    assert json.loads((tmp_path / "scores.json").read_text())["delta_m_percent"] == pytest.approx(0, abs=1e-6)
    assert "Delta_m" in capsys.readouterr().out


@pytest.mark.parametrize("label_set", ["pascal", "all"])
def test_evaluate_knows_the_label_set_of_a_model(tmp_path, label_set):
    classes = {"semseg": NYUD40, "parsing": PARTS7} if label_set == "all" else None
    tasks, size = LABEL_SETS[label_set], (64, 64)
    network = create_model("tiny", dataset="pascal", tasks=tasks, classes=classes, input_size=size)
    network.save_pretrained(tmp_path / "model")
    path = tmp_path / "scores.json"
    assert main(["evaluate", str(tmp_path / "model"), "--data", "scenes", "--limit", "1", "--json", str(path)]) == 0
    assert set(json.loads(path.read_text())["scores"]) == set(tasks)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--data", "nyud"), "--root"),
        (("--data", "nyud", "--root", "nowhere"), "nowhere"),
        (("--data", "kitti"), "kitti"),
        (("--data", "scenes", "--limit", "1", "--split", "test"), "'test'"),
        (("--data", "scenes", "--device", "abacus"), "abacus"),
        (("--data", "scenes", "--limit", "-1"), "limit"),
        (("--data", "scenes", "--tasks", "depth,smell"), "'smell'"),
        (("--data", "scenes", "--tasks", "saliency"), "'saliency'"),
        (("--data", "scenes", "--protocol", "invpt"), "--protocol invpt"),
        (("--data", "scenes", "--depth-range", "3", "2"), "--depth-range 3 2"),
        (("--data", "scenes", "--size", "0", "64"), "--size 0 64; expected a height and a width"),
        (("--data", "scenes", "--size", "1000000", "1000000"), "--size 1000000 1000000; expected at most 16384 a side"),
        (("--data", "scenes", "--limit", "1", "--json", "nowhere/scores.json"), "nowhere/scores.json"),
        (("--data", "scenes", "--limit", "1", "--json", "."), "cannot write"),
        (("--data", "scenes", "--limit", "1", "--single-task", "nowhere.json"), "nowhere.json"),
    ],
)
def test_evaluate_refuses_in_one_line(mistaken, model, arguments, told):
    assert told in mistaken("evaluate", model, *arguments)


@pytest.mark.parametrize("verb", ["evaluate", "diagnose", "figures"])
def test_a_size_in_a_strangers_run_folder_takes_no_memory(mistaken, model, tmp_path, verb):
    run = shutil.copytree(model, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["image_hw"] = [1_000_000, 1_000_000]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    told = mistaken(verb, run, "--data", "scenes", "--limit", "1", *(["--out", tmp_path] if verb == "figures" else []))
    assert f"{run / 'config.yaml'}: data.image_hw [1000000, 1000000]; expected at most 16384 a side" in told


def test_a_folder_where_a_file_goes_is_one_line(mistaken, model, tmp_path):
    (tmp_path / "out" / "semseg.csv").mkdir(parents=True)
    told = mistaken("evaluate", model, "--data", "scenes", "--limit", "1", "--confusion", tmp_path / "out")
    assert f"cannot write {tmp_path / 'out' / 'semseg.csv'}; give a file in an existing folder" in told


@pytest.mark.parametrize("number", [errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY])
def test_a_place_where_something_else_lies_is_one_line(mistaken, monkeypatch, number):
    def refused(_):
        raise OSError(number, os.strerror(number), "place")

    monkeypatch.setitem(VERBS, "demo", (VERBS["demo"][0], refused, VERBS["demo"][2]))
    assert mistaken("demo") == f"mtlsi: place: {os.strerror(number)}; put that right and give the command again"


@pytest.mark.parametrize(
    "verb",
    [
        ("evaluate", "MODEL", "--data", "scenes", "--limit", "1", "--json"),
        ("diagnose", "MODEL", "--data", "scenes", "--limit", "1", "--json"),
        ("boundary", "maps", "truth", "--json"),
        ("boundary", "maps", "truth", "--csv"),
        ("benchmark", "--model", "MODEL", "--json"),
        ("data", "check", "nowhere", "--json"),
        ("export", "MODEL", "--out"),
    ],
    ids=lambda verb: f"{verb[0]}{verb[-1]}",
)
def test_a_pipe_in_the_place_of_a_file_is_refused_before_anything_is_measured(mistaken, model, tmp_path, verb):
    os.mkfifo(tmp_path / "pipe.onnx")
    given = [model if word == "MODEL" else word for word in verb]
    assert "pipe.onnx, a pipe, socket or device" in mistaken(*given, tmp_path / "pipe.onnx")
    assert (tmp_path / "pipe.onnx").is_fifo()


# ---- diagnose


def test_diagnose_writes_the_figures_of_every_variant(model, tmp_path, capsys):
    file = tmp_path / "parts.json"
    assert main(["diagnose", model, "--data", "scenes", "--limit", "2", "--json", str(file)]) == 0
    variants = json.loads(file.read_text())["variants"]
    said = capsys.readouterr().out
    assert next(iter(variants)) == "as_trained"
    assert all(name in said for name in variants)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--data", "nyud"), "needs its folder"),
        (("--data", "nyud", "--root", "nowhere"), "nowhere"),
        (("--data", "scenes", "--limit", "-1"), "--limit -1"),
        (("--data", "scenes", "--size", "1", "64"), "--size 1 64; expected a height and a width"),
        (
            ("--data", "scenes", "--size", "16384", "16384"),
            "--size 16384 16384; expected at most 16384 a side and 33554432",
        ),
        (("--data", "scenes", "--json", "no/folder.json"), "cannot write"),
    ],
)
def test_diagnose_refuses_in_one_line(mistaken, model, arguments, told):
    assert told in mistaken("diagnose", model, *arguments)


def test_diagnose_wants_the_parts_of_mtlsi_net(mistaken, tmp_path):
    create_model("tiny", decoder="heads_only").save_pretrained(tmp_path / "plain")
    told = mistaken("diagnose", tmp_path / "plain", "--data", "scenes", "--limit", "2")
    assert "HeadsOnlyDecoder" in told
    assert "give a model with decoder mtlsi" in told


# ---- every verb that measures or predicts


def test_a_model_that_is_not_there_is_named(mistaken, photo):
    for verb in (("evaluate",), ("diagnose",), ("predict", photo, "--model")):
        assert "no-such-model" in mistaken(*verb, "no-such-model")
        assert "nowhere/at/all" in mistaken(*verb, "nowhere/at/all")
        assert "config.json" in mistaken(*verb, photo.parent)
        assert "is a file" in mistaken(*verb, photo)


# ---- predict


def test_predict_writes_every_task(model, photo, tmp_path):
    assert main(["predict", str(photo), "--model", model, "--out", str(tmp_path / "out")]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {f"photo_{task}.npy" for task in TASK_SETS["nyud"].tasks} | {"photo_panel.png"} <= names
    assert np.load(tmp_path / "out" / "photo_depth.npy").shape == (48, 80)


def test_predict_writes_the_tasks_asked_for(model, photo, tmp_path):
    out = tmp_path / "out"
    assert main(["predict", str(photo), "--model", model, "--out", str(out), "--tasks", "normals, depth"]) == 0
    assert {path.stem for path in out.glob("*.npy")} == {"photo_normals", "photo_depth"}


def test_an_image_that_cannot_be_read_is_passed_over_and_named(model, photo, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(photo.read_bytes()[:200])
    images = [str(photo), str(tmp_path / "broken.jpg")]
    assert main(["predict", *images, "--model", model, "--out", str(tmp_path / "out"), "--tasks", "depth"]) == 1
    said = capsys.readouterr().err
    assert "broken.jpg: not a whole image" in said
    assert said.splitlines()[-1].startswith("1 image predicted: 4 files, ")
    assert said.splitlines()[-1].endswith("; 1 failed")
    assert {path.name.split("_")[0] for path in (tmp_path / "out").iterdir()} == {"photo", "manifest.jsonl"}


def test_predict_walks_a_tree_and_writes_what_is_chosen(model, photo, tmp_path, capsys):
    (tmp_path / "in" / "below").mkdir(parents=True)
    for place in ("a.jpg", "below/b.jpg"):
        (tmp_path / "in" / place).write_bytes(photo.read_bytes())
    command = ["predict", str(tmp_path / "in"), "--model", model, "--out", str(tmp_path / "out"), "--recursive"]
    for options, said in (
        ([], "2 images predicted"),
        (["--workers", "0"], "2 done before"),
        (["--overwrite"], "2 images"),
    ):
        assert main([*command, "--write", "npz,panel", *options]) == 0
        assert said in capsys.readouterr().err
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert files == {"manifest.jsonl", "a.npz", "a_panel.png", "below/b.npz", "below/b_panel.png"}


def test_predict_refuses_in_one_line_and_writes_nothing(mistaken, model, photo, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "truncated.jpg").write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "empty folder").mkdir()
    (tmp_path / "there").mkdir()
    for image in ("missing.jpg", "text.jpg", "truncated.jpg", "empty.png", "empty folder"):
        told = mistaken("predict", tmp_path / image, "--model", model, "--out", tmp_path / "there")
        assert image in told, told
        assert os.listdir(tmp_path / "there") == []
    assert "smell" in mistaken("predict", photo, "--model", model, "--tasks", "depth,smell")
    assert "expected" in mistaken("predict", photo, "--model", model, "--tasks", "")
    assert "abacus" in mistaken("predict", photo, "--model", model, "--device", "abacus")
    assert "npx" in mistaken("predict", photo, "--model", model, "--write", "npx")
    assert "workers -2" in mistaken("predict", photo, "--model", model, "--workers", "-2")
    assert "int3" in mistaken("predict", photo, "--model", model, "--dtype", "int3")
    for flag in ("--smooth", "--smooth-outputs"):
        assert f"{flag} is for videos" in mistaken("predict", photo, "--model", model, flag, "0.5")
        assert f"{flag} 1; expected" in mistaken("predict", photo, "--model", model, flag, "1")
    assert "photo.jpg" in mistaken("predict", photo, "--model", model, "--out", photo / "below")


def test_predict_writes_points_and_calibrates(model, mistaken, photo, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["predict", str(photo), "--model", model, "--out", str(out), "--tasks", "depth", "--write", "npy"]
    assert main([*command, "--points", "--fov-deg", "60"]) == 0
    assert "focal length: 69 px, --fov-deg" in capsys.readouterr().err  # 40 / tan(30 degrees)
    assert {path.name for path in out.iterdir()} == {"photo_depth.npy", "photo.ply", "photo.glb", "manifest.jsonl"}
    assert main(command) == 0
    depth = np.load(out / "photo_depth.npy")
    middle = float(np.median(depth[22:27, 38:43]))
    assert main([*command, "--calibrate", f"40,24,{3 * middle}"]) == 0
    assert "scale 3.0000 from 1 distance" in capsys.readouterr().err
    np.testing.assert_allclose(np.load(out / "photo_depth.npy"), 3 * depth, rtol=1e-4)
    assert main([*command, "--scale", "2"]) == 0
    np.testing.assert_allclose(np.load(out / "photo_depth.npy"), 2 * depth, rtol=1e-5)
    for flags, told in (
        (("--focal-px", "9", "--fov-deg", "60"), "expected one of --focal-px and --fov-deg"),
        (("--calibrate", "99,9,2"), "outside the image"),
        (("--calibrate", "9,9,2", "--scale", "2"), "expected one of them"),
        (("--scale", "0"), "scale 0; expected a number above 0"),
    ):
        assert told in mistaken(*command, *flags)
    assert "no task of distances" in mistaken(*command[:-4], "--tasks", "semseg", "--calibrate", "40,24,2")
    assert "for one image" in mistaken("predict", tmp_path, "--model", model, "--calibrate", "9,9,2")
    assert "no task of distances" in mistaken("predict", photo, "--model", model, "--tasks", "semseg", "--points")


@pytest.mark.parametrize(
    ("arguments", "num_bytes", "told"),
    [
        (("predict", "PHOTO", "--model", "MODEL"), 0, ".lock: "),
        (("predict", "PHOTO", "--model", "MODEL"), 1000, "photo_"),
        (("pack", "MODEL"), 1000, "model.safetensors: "),
        (("figures", "MODEL", "--limit", "1"), 60_000, ".png: "),
    ],
)
def test_a_full_disk_is_one_line(mistaken, model, photo, tmp_path, arguments, num_bytes, told):
    given = [{"PHOTO": photo, "MODEL": model}.get(word, word) for word in arguments]
    with files_of_at_most(num_bytes):
        line = mistaken(*given, "--out", tmp_path / "out")
    assert told in line
    assert os.strerror(errno.EFBIG) in line


def test_output_that_cannot_be_written_is_one_line():
    study = ROOT / "recipes" / "studies" / "tokens_scenes.yaml"
    if not os.path.exists("/dev/full"):
        pytest.skip("no such device there")
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "mtlsi", "study", str(study), "--out", "out", "--list"]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 2
    assert ended.stderr == f"mtlsi: {os.strerror(errno.ENOSPC)}; put that right and give the command again\n"


def test_a_working_folder_that_is_gone_is_one_line(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    code = "import os, sys; from mtlsi.cli import main; os.rmdir(os.getcwd()); sys.exit(main())"
    command = [sys.executable, "-c", code, "predict", "photo.jpg"]
    done = subprocess.run(command, cwd=gone, capture_output=True, text=True)
    assert done.stderr == "mtlsi: the working folder is gone; change to another one and give the command again\n"
    assert done.returncode == 2


def test_stopping_is_no_crash(monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("mtlsi.training.loop.resume", stop)
    assert main(["train", "--resume", "run"]) == 130
    assert capsys.readouterr().err == "mtlsi: stopped\n"


# ---- data and boundary


def test_data_check_says_what_is_there_and_its_exit_code_whether_it_is_sound(nyud_root, tmp_path, capsys):
    arguments = ["data", "check", str(nyud_root), "--workers", "0", "--json", str(tmp_path / "report.json")]
    assert main(arguments) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    (nyud_root / "depth/0003.png").write_bytes(b"")
    assert main(arguments) == 1
    assert "depth/0003.png: not a whole image" in json.loads((tmp_path / "report.json").read_text())["problems"][0]


def test_data_derive_and_prepare_make_what_training_reads(nyud_root, tmp_path, capsys):
    out = tmp_path / "labels"
    camera = ["--focal", "50", "50", "--centre", "32", "24"]
    command = ["data", "derive", str(nyud_root), "--out", str(out), "--boundary", "--normals", "--workers", "1"]
    assert main([*command, *camera, "--saliency", "wall", "floor"]) == 0
    assert {path.parent.name for path in out.rglob("*.png")} == {"boundary", "normals", "saliency"}
    assert main(["data", "prepare", str(nyud_root), "--out", str(tmp_path / "fast"), "--workers", "1"]) == 0
    assert "4 images" in capsys.readouterr().out
    assert len(open_dataset(DataConfig(name="nyud", root=str(tmp_path / "fast")), "val")) == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("data", "check", "nowhere"), "nowhere: no such folder"),
        (("data", "check", ".", "--workers", "-1"), "--workers -1; expected 0 or more"),
        (
            ("data", "derive", ".", "--out", "x", "--normals", "--focal", "1", "1"),
            "--focal and --centre belong together",
        ),
        (("data", "prepare", "."), "out"),
        (("data",), "subcommand"),
        (("boundary", "nowhere", "nowhere"), "nowhere: no such folder"),
        (("boundary", "."), "truth"),
    ],
)
def test_mistakes_in_data_and_boundary_are_one_line(mistaken, arguments, told):
    assert told in mistaken(*arguments)


def test_boundary_scores_a_perfect_map_perfectly(tmp_path, capsys):
    line = np.zeros((40, 60), np.uint8)
    line[20, 8:-8] = 255
    for folder in ("maps", "truth"):
        (tmp_path / folder).mkdir()
        Image.fromarray(line).save(tmp_path / folder / "a.png")
    folders = [str(tmp_path / "maps"), str(tmp_path / "truth")]
    assert main(["boundary", *folders, "--json", str(tmp_path / "scores.json"), "--thresholds", "9"]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores["ods"], scores["ois"]) == (1, 1)
    assert "1.0000" in capsys.readouterr().out


def test_a_reader_that_has_read_enough_is_no_mistake(tmp_path):
    study = ROOT / "recipes" / "studies" / "tokens_scenes.yaml"
    command = [sys.executable, "-m", "mtlsi", "study", str(study), "--out", str(tmp_path / "out"), "--list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert started.stderr is not None
        started.stdout.close()
        assert started.stderr.read() == ""
    assert started.returncode == 0
