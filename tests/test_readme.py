import re
import shlex
from pathlib import Path

import pytest

from mtlsi.cli import build_parser

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()
COMMANDS = [line.split("#")[0].strip() for line in TEXT.splitlines() if line.startswith("mtlsi ")]


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
