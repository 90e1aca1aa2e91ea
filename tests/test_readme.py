from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtlsi import cli
from mtlsi.cli import main

ROOT = Path(__file__).resolve().parents[1]


def load_script(path: Path):
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DOCS = load_script(ROOT / "docs/run_commands.py")
PAGES, blocks_of, commands_of = DOCS.PAGES, DOCS.blocks_of, DOCS.commands_of
WITH_PYTHON = (
    *(pytest.param(page, marks=pytest.mark.slow) for page in ("README.md", "docs/own_backbone.md")),
    "docs/own_dataset.md",
    "docs/own_decoder.md",
)


def test_readme_has_commands():
    assert len(commands_of(ROOT / "README.md")) >= 5


@pytest.mark.parametrize("command", dict.fromkeys(command for page in PAGES for command in commands_of(page)))
def test_every_command_of_the_docs_is_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)  # recipes are named relative to the repository
    verb, *rest = shlex.split(command)[1:]
    assert cli.build_parser().parse_args([verb, *rest])["subcommand"] == verb


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_blocks_run_in_the_order_in_which_they_are_read(page, tmp_path):
    blocks = blocks_of(ROOT / page, "python")
    assert blocks
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(tmp_path / "photo.jpg")
    (tmp_path / "page.py").write_text("\n".join(blocks))
    # a process of its own: what a page registers is not seen by other tests
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs") / "work"
    DOCS.prepare(folder, num_rooms=2)
    return folder


QUICK = [
    command
    for command in dict.fromkeys(commands_of(ROOT / "README.md"))
    if re.match(r"mtlsi (predict|data|boundary)\b", command) and not re.search(r"holiday|clip\.", command)
]


def test_the_quick_commands_are_among_those_of_the_readme():
    assert len(QUICK) >= 5


@pytest.mark.parametrize("command", QUICK)
def test_a_quick_command_of_the_readme_does_its_work(command, stand_ins, monkeypatch):
    monkeypatch.chdir(stand_ins)
    assert main(DOCS.shortened(command)) == 0


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("mtlsi predict photo.jpg --points", "predict photo.jpg --points"),
        ("mtlsi train --resume runs/a", "train --resume runs/a --train.iterations 3"),
        (
            "mtlsi benchmark --model swin_tiny --sizes 224x288,448x576,640x832",
            "benchmark --model tiny --sizes 56x72,112x144 --repeats 2",
        ),
        ("mtlsi study FILE --out DIR --table", "study recipes/studies/rivals_scenes.yaml --out DIR --table --seeds 0"),
    ],
)
def test_what_is_long_is_shortened(command, expected):
    arguments = DOCS.shortened(command)
    assert arguments[: len(expected.split())] == expected.split()
    assert cli.build_parser().parse_args(arguments)["subcommand"] == arguments[0]
