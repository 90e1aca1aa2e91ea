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
TEXT = (ROOT / "README.md").read_text()
COMMANDS = [line.split("#")[0].strip() for line in TEXT.splitlines() if line.startswith("mtlsi ")]
WITH_PYTHON = ("README.md", "docs/index.md", "docs/own_backbone.md", "docs/own_dataset.md")


def test_readme_has_commands():
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_is_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)  # recipes are named relative to the repository
    verb, *rest = shlex.split(command)[1:]
    assert build_parser().parse_args([verb, *rest])["subcommand"] == verb


def test_every_link_of_the_readme_leads_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_blocks_run_in_the_order_in_which_they_are_read(page, tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(tmp_path / "photo.jpg")
    (tmp_path / "page.py").write_text("\n".join(blocks))
    # a process of its own: what a page registers is not seen by other tests
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
