"""Processes that are this one once more: what they need is imported already."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path


def free_port() -> str:
    """Where processes can meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def announce(rank: int, number: int, port: str) -> None:
    """Tell this process what torch's launcher would."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(number)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def start_forks(does: Callable[[int], None], number: int, folder: Path) -> None:
    """Call ``does`` with its rank in each of ``number`` processes, which are announced as torch's launcher does it.

    To be called in a process of its own that has computed nothing yet: threads that have worked are not forked, nor the
    locks that they hold opened. ``AssertionError`` with what they said in ``folder`` where one ends with another exit
    code than 0.
    """
    port = free_port()
    started = {}
    for rank in range(number):
        told = folder / f"{rank}.err"
        if not (process := os.fork()):
            code = 1
            try:
                os.dup2(os.open(told, os.O_CREAT | os.O_WRONLY), 2)
                announce(rank, number, port)
                does(rank)
                code = 0
            finally:
                if code:
                    told.write_text(traceback.format_exc())
                os._exit(code)  # gloo's threads now and then abort an orderly end, which says nothing about the results
        started[process] = told
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]
    assert codes == [0] * number, "\n".join(told.read_text() for told in started.values())
