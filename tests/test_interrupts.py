"""Ctrl-C while modules are imported, and where Python drops what it raises."""

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


WHERE_IT_IS_DROPPED = {
    "a weak reference's callback": "held = {1}\nweakref.finalize(held, press)\ndel held",
    "__del__": "class Ends:\n    def __del__(self):\n        press()\nEnds()",
    "a process that is forked": (
        "os.register_at_fork(after_in_parent=press)\n"
        "process = multiprocessing.get_context('fork').Process(target=int)\nprocess.start()\nprocess.join()"
    ),
    "logging, which holds a lock": (
        "logging.root.handlers.append(logging.Handler())\n"
        "logging.root.handlers[0].emit = lambda record: press()\nlogging.warning('')"
    ),
}


@pytest.mark.skipif(os.name == "nt", reason="no such signals there")
@pytest.mark.parametrize("place", WHERE_IT_IS_DROPPED)
def test_ctrl_c_waits_where_python_would_drop_it(place):
    program = (
        "import logging, multiprocessing, os, signal, sys, time, weakref\nfrom mtlsi import interrupts\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\ninterrupts.note()\n"
        "def press():\n    os.kill(os.getpid(), signal.SIGINT)\n"
        f"try:\n    exec({WHERE_IT_IS_DROPPED[place]!r})\n    print('went on', flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('stopped', interrupts.have_come())\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("went on\nstopped True\n", "", 0)
