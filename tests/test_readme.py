from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtlsi.cli import build_parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
WITH_PYTHON = ("README.md", "docs/own_backbone.md", "docs/own_dataset.md", "docs/own_decoder.md")


def blocks_of(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands_of(page: Path) -> list[str]:
    lines = [line for block in blocks_of(page, "bash") for line in block.splitlines()]
    return [line.split("#")[0].strip() for line in lines if line.startswith("mtlsi ")]


def test_readme_has_commands():
    assert len(commands_of(ROOT / "README.md")) >= 5


@pytest.mark.parametrize("command", dict.fromkeys(command for page in PAGES for command in commands_of(page)))
def test_every_command_of_the_docs_is_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)  # recipes are named relative to the repository
    verb, *rest = shlex.split(command)[1:]
    assert build_parser().parse_args([verb, *rest])["subcommand"] == verb


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
