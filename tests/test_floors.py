from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "torchvision", "timm", "accelerate", "torchmetrics", "matplotlib", "scipy", "huggingface_hub")


def heavy_modules_after(statement: str) -> list[str]:
    """The heavy libraries that a fresh Python has loaded after ``statement``."""
    program = f"import json, sys\n{statement}\nprint(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_imports_point_down_the_floors(monkeypatch, capsys):
    importlinter = pytest.importorskip("importlinter.cli", reason="import-linter is not installed: pip install .[dev]")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])  # import-linter adds the folder it runs in
    failed = importlinter.lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert not failed, capsys.readouterr().out


def test_every_module_has_its_floor():
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    floors = {name.strip() for layer in settings["contracts"][0]["layers"] for name in layer.split("|")}
    package = ROOT / "src" / "mtlsi"
    rooms = {f"mtlsi.{path.stem}" for path in package.glob("*.py")} - {"mtlsi.__init__"}
    rooms |= {f"mtlsi.{path.parent.name}" for path in package.glob("*/__init__.py")}
    assert rooms == floors


@pytest.mark.parametrize(
    "statement",
    [
        "import mtlsi",
        "import mtlsi.tasks, mtlsi.config, mtlsi.errors",
        "import mtlsi; mtlsi.RunConfig; mtlsi.MistakeError; dir(mtlsi)",
        "from mtlsi.cli import build_parser; build_parser().format_help()",
    ],
)
def test_looking_around_loads_nothing_heavy(statement):
    assert heavy_modules_after(statement) == []


@pytest.mark.parametrize(
    "verb",
    [
        [],
        ["train"],
        ["evaluate"],
        ["diagnose"],
        ["figures"],
        ["predict"],
        ["page"],
        ["demo"],
        ["data"],
        ["boundary"],
        ["benchmark"],
        ["study"],
        ["export"],
    ],
)
def test_help_is_quick_and_complete(verb):
    program = (
        "import sys; from mtlsi.cli import main\n"
        "try: main(sys.argv[1:])\n"
        f"finally: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    environment = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-c", program, *verb, "--help"], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stderr.strip()) == (0, "[]")
    assert "usage: " in done.stdout
    for promised in {
        "train": ("--resume", "--train.lr"),
        "evaluate": ("--json",),
        "diagnose": ("--limit", "--json"),
        "figures": ("--out", "--shown"),
        "study": ("--only", "--data.root"),
        "page": ("--host", "--port", "--model"),
    }.get("".join(verb), ("--help",)):
        assert promised in done.stdout


def test_the_boundary_verb_needs_no_network(tmp_path):
    line = np.zeros((20, 30), np.uint8)
    line[10, 8:-8] = 255
    for folder in ("maps", "truth"):
        (tmp_path / folder).mkdir()
        Image.fromarray(line).save(tmp_path / folder / "a.png")
    command = ["boundary", str(tmp_path / "maps"), str(tmp_path / "truth"), "--json", str(tmp_path / "scores.json")]
    loaded = heavy_modules_after(f"from mtlsi.cli import main; assert main({command}) == 0")
    assert set(loaded) <= {"scipy"}  # for the suppression's filters
    assert json.loads((tmp_path / "scores.json").read_text())["ods"] == 1


NOT_FOR_A_PHOTO = (
    "torch._dynamo", "torch._inductor", "sympy", "scipy", "matplotlib", "numba", "accelerate", "torchmetrics", "pandas",
    "h5py", "av", "gradio", "onnx", "onnxruntime", "mtlsi.training", "mtlsi.evaluation", "mtlsi.data", "mtlsi.metrics",
    "mtlsi.exporting",
)  # fmt: skip


def test_a_photo_is_predicted_with_nothing_loaded_that_it_does_not_need(tmp_path):
    Image.fromarray(np.full((96, 128, 3), 128, np.uint8)).save(tmp_path / "photo.png")
    command = ["predict", str(tmp_path / "photo.png"), "--model", "nyud-mobilenetv2", "--out", str(tmp_path / "out")]
    program = (
        f"import sys; from mtlsi.cli import main; assert main({command}) == 0\n"
        f"print([name for name in {NOT_FOR_A_PHOTO} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert (tmp_path / "out" / "photo_panel.png").is_file()


ORDERS = (
    "import mtlsi",
    "from mtlsi import train, evaluate",
    "import mtlsi.training.loop",
    "import mtlsi.evaluation.evaluate",
    "import mtlsi.training.loop, mtlsi.evaluation.evaluate; from mtlsi import evaluate, train",
    "import mtlsi; mtlsi.train; mtlsi.evaluate",
    "import mtlsi; mtlsi.evaluate; mtlsi.train",
    "from mtlsi import evaluate; import mtlsi.training.setup",
    "from mtlsi.cli import main",
)


IN_EVERY_ORDER = """
import json, sys
import mtlsi.training.loop, mtlsi.evaluation.evaluate  # other libraries are loaded once
found = {}
for first in json.loads(sys.argv[1]):
    for name in [name for name in sys.modules if name.partition(".")[0] == "mtlsi"]:
        del sys.modules[name]
    exec(first, {})
    import mtlsi
    found[first] = [callable(getattr(mtlsi, name)) for _ in range(2) for name in ("train", "evaluate")]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_train_and_evaluate_are_functions_whatever_was_imported_before():
    command = [sys.executable, "-c", IN_EVERY_ORDER, json.dumps(ORDERS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == dict.fromkeys(ORDERS, [True] * 4)


@pytest.mark.parametrize("module", ["mtlsi", "mtlsi.cli"])
def test_the_package_runs_as_a_module_and_says_nothing_else(module, tmp_path):
    command = [sys.executable, "-m", module, "boundary", str(tmp_path / "maps"), str(tmp_path / "truth")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"mtlsi: {tmp_path}/")
    assert done.stderr.count("\n") == 1


def test_every_public_name_is_there():
    import mtlsi

    for name in mtlsi.__all__:
        assert getattr(mtlsi, name) is not None
    assert set(mtlsi.__all__) <= set(dir(mtlsi))
    with pytest.raises(AttributeError, match="no attribute 'smell'"):
        _ = mtlsi.smell
