"""Several runs of a study at once, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from rich.console import Console

from mtlsi.errors import Stopped
from mtlsi.studies.plan import StudyRun

LOOK_EVERY_S = 0.2
PATIENCE_S = 60.0
"""For a run that was told to stop, which first saves its state."""
FAILED, LEFT_TO = "failed: ", "left to "
LAST_LINES = 5
"""Of what a run that failed said."""


class Job:
    """One run that is being trained in its own process."""

    def __init__(self, run: StudyRun, command: Sequence[str], threads: int, console: Console):
        self.run, self.console = run, console
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        # one thread of NumPy and torch for each core that is there for it: threads of several runs wait for one another
        settings = {"OMP_NUM_THREADS": str(threads)} | dict(os.environ) | {"PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mtlsi.cli", *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", env=settings, start_new_session=True,
        )  # fmt: skip
        # a session of its own: a terminal's Ctrl-C would be its first signal, and a second one ends it without its state
        self.reader = threading.Thread(target=self._listen, daemon=True)
        self.reader.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in map(str.rstrip, lines):
                if line.startswith(f"{self.run.name}: step "):
                    say(self.console, line)
                elif line:
                    self.last.append(line)

    def has_ended(self) -> bool:
        """Whether the process is gone and all that it said has been read."""
        if self.process.poll() is None:
            return False
        self.reader.join(PATIENCE_S)
        return True

    def outcome(self) -> str:
        """What became of the run, in its process's words: done, left to WHOM, or failed: WHY."""
        of_run = f"{self.run.name}: "
        said = [line.removeprefix(of_run).rpartition(" (")[0] for line in self.last if line.startswith(of_run)]
        if not self.process.returncode or (said and said[-1].startswith(FAILED)):
            return said[-1] if said else "done"
        return f"{FAILED}exit code {self.process.returncode}: {' / '.join(self.last)}"

    def tell_to_stop(self) -> None:
        """Its process saves its state, and ends."""
        with suppress(ProcessLookupError):
            self.process.terminate()

    def see_off(self) -> None:
        """Wait for its process, and end it where it takes too long."""
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join(PATIENCE_S)


def train_at_once(
    commands: Sequence[tuple[StudyRun, Sequence[str]]], num_jobs: int, num_runs: int, console: Console
) -> dict[str, str]:
    """Train each run by its command (the words after ``mtlsi``), ``num_jobs`` at a time.

    Gives what became of each, by name; see ``Job.outcome``. ``num_runs``: of the whole study, for what is said. Ctrl-C and
    SIGTERM end all processes, whose runs save their state first.
    """
    waiting, running, outcomes = deque(commands), list[Job](), dict[str, str]()
    threads = max(1, (os.cpu_count() or 1) // num_jobs)
    began = time.perf_counter()
    with _sigterm_raises():
        try:
            while waiting or running:
                while waiting and len(running) < num_jobs:
                    running.append(Job(*waiting.popleft(), threads, console))
                    say(console, f"{running[-1].run.name}: training, {len(running)} at once")
                for job in [job for job in running if job.has_ended()]:
                    running.remove(job)
                    name, num_left = job.run.name, len(waiting) + len(running)
                    outcomes[name] = told = job.outcome()
                    minutes = (time.perf_counter() - began) / (len(commands) - num_left) * num_left / 60
                    say(console, f"{name}: {told} ({num_runs - num_left} of {num_runs}, about {minutes:.0f} min left)")
                time.sleep(LOOK_EVERY_S)
        finally:
            for job in running:
                job.tell_to_stop()
            for job in running:
                job.see_off()
    return outcomes


def say(console: Console, text: str) -> None:
    """One line."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM raises ``Stopped`` within the context, where this is the main thread, which alone may ask for that."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Stopped(number, "stopped; the same command goes on")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
