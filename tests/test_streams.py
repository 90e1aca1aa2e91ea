"""The command in a shell that closes or breaks its standard output or error."""

from __future__ import annotations

import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from mtlsi import streams

STUDY = Path(__file__).resolve().parents[1] / "recipes" / "studies" / "tokens_scenes.yaml"
FULL = pytest.param(
    "2>/dev/full", marks=pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device there")
)


def in_a_shell(command: str, redirection: str, tmp_path: Path) -> tuple[int, str, str]:
    """Exit code, standard output and error; ``{}`` in ``redirection`` is the command."""
    line = redirection.format(f"{sys.executable} -m mtlsi {command}")
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_a_closed_output_is_no_mistake(tmp_path):
    assert in_a_shell(f"study {STUDY} --out x --list", "{} >&-", tmp_path) == (0, "", "")


LONG = """
import sys
from rich.console import Console
from mtlsi import streams
streams.prepare()
for number in range(20_000):
    Console().print(number) if number % 100 == 0 else print(number)
sys.stdout.flush()
open("ended", "w").close()
"""


def test_work_goes_on_where_the_reader_of_its_output_has_read_enough(tmp_path):
    (tmp_path / "long.py").write_text(LONG)
    line = f"set -o pipefail; {sys.executable} long.py | head -n 2"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n1\n", "")
    assert (tmp_path / "ended").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device there")
def test_an_output_that_finds_no_room_is_a_mistake(tmp_path):
    code, _, errors = in_a_shell(f"study {STUDY} --out x --list", "{} >/dev/full", tmp_path)
    assert code == 2
    assert "No space left on device" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    "redirection", ["{} 2>&-", "set -o pipefail; {} 2>&1 >/dev/null | true", FULL], ids=["closed", "broken", "full"]
)
def test_a_mistake_that_nobody_can_read_is_still_one(redirection, tmp_path):
    line = redirection if "{}" in redirection else f"{{}} {redirection}"
    assert in_a_shell("predict --zz", line, tmp_path) == (2, "", "")


NOTES = """
import sys
from rich.console import Console
from mtlsi import streams
streams.prepare()
Console(stderr=True).print("2 images predicted")
print("mtlsi: a note", file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize("kind", ["pipe", "full"])
def test_a_note_that_nobody_can_read_changes_no_exit_code(kind, tmp_path):
    if kind == "full" and not os.path.exists("/dev/full"):
        pytest.skip("no such device there")
    if kind == "pipe":
        reader, target = os.pipe()
        os.close(reader)
    else:
        target = os.open("/dev/full", os.O_WRONLY)
    done = subprocess.run([sys.executable, "-c", NOTES], stderr=target, cwd=tmp_path)
    os.close(target)
    assert done.returncode == 0


def test_a_line_is_shown_as_it_is_and_steers_no_terminal():
    console = Console(file=StringIO(), force_terminal=True, width=20)
    streams.write_line(console, "[red]a  room[/] \x1b]0;title\x07\n\n  of 12.5 m, much wider than the terminal is")
    told = "[red]a  room[/] \\x1b]0;title\\x07 of 12.5 m, much wider than the terminal is\n"
    assert console.file.getvalue() == told


def test_names_of_any_bytes_are_shown(tmp_path):
    code = (
        "import sys; from mtlsi import streams; streams.prepare(); print('\\udcff'); print('\\udcff', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\\udcff\n", "\\udcff\n")
