from __future__ import annotations

import gc
import subprocess
import sys
import weakref

from mtlsi import garbage

OWN_PROCESS = """
import gc, sys
from mtlsi import cli
sys.argv = ["mtlsi", "predict", "missing.jpg", "--model", "missing"]
code = cli.main()
print(code, gc.isenabled(), gc.get_freeze_count() > 100_000)
"""


class Knot:
    def __init__(self) -> None:
        self.itself = self


def test_garbage_waits_for_resume(monkeypatch):
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(True))  # this process lives on
    garbage.pause()
    try:
        assert not gc.isenabled()
    finally:
        garbage.resume()
    assert gc.isenabled()
    garbage.resume()
    assert frozen == [True]

    knot = weakref.ref(Knot())
    gc.collect()
    assert knot() is None


def test_where_python_does_not_search_it_is_not_made_to():
    gc.disable()
    try:
        garbage.pause()
        garbage.resume()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_command_searches_once_its_model_is_open():
    done = subprocess.run([sys.executable, "-c", OWN_PROCESS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "True", "True"]
    assert done.stderr.startswith("mtlsi: model 'missing' is not a folder")


def test_another_programs_process_is_left_as_it_is():
    from mtlsi.cli import main

    before = gc.get_freeze_count()
    assert main(["predict", "missing.jpg", "--model", "missing"]) == 2
    assert gc.get_freeze_count() <= before  # of what conftest froze some is given up meanwhile; a freeze adds thousands
