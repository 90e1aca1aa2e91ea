from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from indexed_work import end_at_seven, refuse_seven, square_and_process, take_a_while
from mtlsi.errors import MistakeError
from mtlsi.parallel import for_each

PARENT_WITH_THREADS = """
import sys
from rich.console import Console
from mtlsi.parallel import for_each
import torch

def total(index):
    return int(torch.ones(1 << 20).mul(2).sum()) + index

if __name__ == "__main__":
    torch.set_num_threads(2)
    expected = [total(index) for index in range(4)]
    assert list(for_each(total, 4, title="", num_workers=2, console=Console(stderr=True))) == expected
"""


SCRIPT = """
import math
from rich.console import Console
from mtlsi.parallel import for_each

assert list(for_each(math.factorial, 4, title="", num_workers=2, console=Console(stderr=True))) == [1, 1, 2, 6]
"""


KILLED = """
import math, os, signal
from rich.console import Console
from mtlsi.parallel import for_each

results = for_each(math.factorial, 20, title="", num_workers=2, console=Console(stderr=True))
next(results)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_results_come_in_order_from_as_many_processes_as_asked(num_workers):
    said = Console(file=StringIO())
    results = list(for_each(square_and_process, 30, title="squares", num_workers=num_workers, console=said))
    assert [square for square, _ in results] == [index**2 for index in range(30)]
    processes = {process for _, process in results}
    assert (processes == {os.getpid()}) if num_workers == 0 else (os.getpid() not in processes)
    assert len(processes) <= max(num_workers, 1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_mistake_is_handed_on(num_workers):
    with pytest.raises(MistakeError, match="seven"):
        list(for_each(refuse_seven, 30, title="", num_workers=num_workers, console=Console(file=StringIO())))


def test_what_is_not_asked_for_is_not_worked_out():
    results, begun = (
        for_each(take_a_while, 60, title="", num_workers=1, console=Console(file=StringIO())),
        time.monotonic(),
    )
    assert next(results) == 0
    results.close()
    assert time.monotonic() - begun < 15  # all of them take 18 seconds, those of the chunks that have begun 4


def test_a_process_that_is_killed_is_told_in_a_line():
    with pytest.raises(
        MistakeError, match=r"^reading: one of 2 worker processes ended unexpectedly.*ask for fewer, or for 0$"
    ):
        list(for_each(end_at_seven, 30, title="reading", num_workers=2, console=Console(file=StringIO())))


@pytest.mark.skipif(os.name == "nt", reason="no such signals there")
def test_nothing_is_left_of_a_command_that_is_killed(tmp_path: Path):
    (tmp_path / "script.py").write_text(KILLED)
    command = [sys.executable, tmp_path / "script.py"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    try:
        process.communicate(timeout=60)  # until the last process that could still say something is gone
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("from_a_pipe", [False, True])
def test_a_script_needs_no_guard_and_no_file(tmp_path: Path, from_a_pipe: bool):
    (tmp_path / "script.py").write_text(SCRIPT)
    given = [] if from_a_pipe else [tmp_path / "script.py"]
    subprocess.run([sys.executable, *given], input=SCRIPT, text=True, check=True, timeout=120, stderr=subprocess.PIPE)


def test_workers_compute_beside_a_parent_whose_threads_have_run(tmp_path: Path):
    """A worker that was forked from such a parent waits forever for the parent's threads."""
    (tmp_path / "parent.py").write_text(PARENT_WITH_THREADS)
    subprocess.run([sys.executable, tmp_path / "parent.py"], check=True, timeout=120, stderr=subprocess.PIPE)
