"""Ctrl-C while modules are imported: a person has mistyped a command."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys
from mtlsi.__main__ import run

module, becomes = sys.argv[1:]
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it is ignored

class Finder:
    def find_spec(self, name, *_):
        if name == module:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt as error:
                raise {"itself": error, "another": RecursionError()}[becomes] from None

sys.meta_path.insert(0, Finder())
sys.argv = ["mtlsi", "train", "--resume", "none"]
sys.exit(run())
"""


@pytest.mark.skipif(os.name == "nt", reason="no such signals there")
@pytest.mark.parametrize("module", ["jsonargparse", "torch"])
@pytest.mark.parametrize("becomes", ["itself", "another"])
def test_ctrl_c_while_modules_are_imported_is_one_line(module, becomes):
    ended = subprocess.run([sys.executable, "-c", PROGRAM, module, becomes], capture_output=True, text=True)
    assert ended.stderr == "mtlsi: stopped\n"
    assert ended.returncode == 130


def test_what_comes_without_ctrl_c_is_shown():
    program = PROGRAM.replace("os.kill(os.getpid(), signal.SIGINT)", "raise RuntimeError('ours')")
    ended = subprocess.run([sys.executable, "-c", program, "jsonargparse", "itself"], capture_output=True, text=True)
    assert "RuntimeError: ours" in ended.stderr
    assert ended.returncode == 1
