"""A real server of ``mtlsi page`` in a process of its own, and a network for it: for the tests of the page."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mtlsi.model.build import create_model
from mtlsi.model.network import MTLSINet

LIFE_S = 600  # the server ends by itself even where the test is killed
SERVE = """
import os, sys, threading
life = threading.Timer(float(sys.argv[1]), os._exit, [3])
life.daemon = True
life.start()
def watch(event, arguments):
    if event == "socket.getaddrinfo" or event == "socket.connect":
        address = str(arguments[0] if event == "socket.getaddrinfo" else arguments[1])
        if not any(ours in address for ours in ("127.0.0.1", "localhost", "::1")):
            with open(sys.argv[2], "a") as log:
                print(event, address, file=log)
sys.addaudithook(watch)
from mtlsi.cli import main
sys.exit(main(["page", "--port", "0", "--device", "cpu", "--model", sys.argv[3]]))
"""


@torch.no_grad()
def lively_model(**settings: Any) -> MTLSINet:
    """A small network that answers to what it is shown, as a fresh one hardly does: weights moved, statistics settled."""
    torch.manual_seed(0)
    model = create_model("tiny", input_size=(96, 128), **settings).train()
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.add_(torch.randn_like(weight) * (weight.std() if weight.numel() > 1 and weight.std() > 0 else 0.1))
    for _ in range(3):
        model(torch.randn(2, 3, 96, 128))
    return model.eval()


@contextmanager
def served(model: Path, reached: Path) -> Iterator[str]:
    """The address of a page over ``model``; what its server looks for elsewhere is written to ``reached``."""
    command = [sys.executable, "-c", SERVE, str(LIFE_S), str(reached), str(model)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=settings) as server:
        assert server.stdout is not None
        try:
            said = []
            for line in server.stdout:
                said.append(line)
                if line.startswith("mtlsi page: http://127.0.0.1:"):
                    yield line.split()[2] + "/"
                    return
            pytest.fail("the page did not start: " + "".join(said))
        finally:
            server.terminate()
            server.wait(30)
