"""Several runs of a study at once, each in a process of its own."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import yaml
from rich.console import Console

from mtlsi.errors import Stopped, message_of
from mtlsi.io import plain
from mtlsi.options.values import num_cpus
from mtlsi.streams import write_line
from mtlsi.studies.plan import StudyRun

LOOK_EVERY_S = 0.2
PATIENCE_S = 60.0
"""For runs that were told to stop, which first save their state."""
DONE, FAILED, LEFT_TO = "done", "failed: ", "left to "
LAST_LINES = 5
"""Of what a run that failed said."""
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Job:
    """One run that is being trained in its own process."""

    def __init__(self, run: StudyRun, out: Path, folder: Path, threads: int):
        """``folder``: where the run is described, as it is now; an edit of the study's file changes nothing any more.

        Raises ``OSError`` where no process can be started.
        """
        self.run = run
        self.said: list[str] = []
        """What its process says of the run, without its name."""
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        """The other lines."""
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        command = [*_command(run, folder), "--out", str(out.absolute())]
        # the threads of several runs wait for one another where there are more than cores
        settings = {"OMP_NUM_THREADS": str(threads)} | dict(os.environ)
        settings |= {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        settings |= {"NO_COLOR": "1", "TTY_COMPATIBLE": "0", "TERM": "dumb"}  # lines to be read by ``Job``
        settings.pop("FORCE_COLOR", None)
        # a session of its own: a terminal's Ctrl-C would be its first signal, and a second one ends it without its state
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", env=settings, start_new_session=True,
        )  # fmt: skip
        self.reader = threading.Thread(target=self._listen, daemon=True)
        self.reader.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.lines.put(line.rstrip())

    def steps(self) -> Iterator[str]:
        """The lines about steps that have come since the last call; the others are kept."""
        own = f"{self.run.name}: "
        with suppress(queue.Empty):
            while True:
                line = self.lines.get_nowait()
                if line.startswith(f"{own}step "):
                    yield line
                elif line.startswith(own):
                    self.said.append(line.removeprefix(own).rpartition(" (")[0])
                elif line:
                    self.last.append(line)

    def has_ended(self) -> bool:
        """Whether the process is gone."""
        if self.process.poll() is None:
            return False
        self.reader.join(2.0)  # unless something that it started still has its output
        return True

    def outcome(self, is_finished: bool) -> str:
        """What became of the run that ended: done, left to WHOM, or failed: WHY."""
        if is_finished:
            return DONE
        said, code = self.said[-1] if self.said else "", self.process.returncode
        if said.startswith((FAILED, LEFT_TO)):
            return said
        if code < 0:
            return f"{FAILED}its process was killed by {signal.Signals(-code).name}"
        told = [line.removeprefix("mtlsi: ") for line in self.last if line.startswith("mtlsi: ")]
        return f"{FAILED}{told[-1] if told else f'exit code {code}: ' + ' / '.join(self.last)}"

    def send(self, number: int) -> None:
        """A signal to its process, or, to kill it, to all that it has started."""
        with suppress(ProcessLookupError):
            if number == signal.SIGTERM:
                self.process.terminate()
            else:
                os.killpg(self.process.pid, number)


def _command(run: StudyRun, folder: Path) -> list[str]:
    """The command that trains ``run`` alone, described by a study's file of its own."""
    config = replace(run.config, plugins=())
    recipe = {name: value for name, value in plain(asdict(config)).items() if name not in ("seed", "plugins")}
    file = folder / f"{run.variant.name}_{run.seed}.yaml"
    content = {"recipe": recipe, "variants": {run.variant.name: {}}, "seeds": [run.seed]}
    file.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
    plugins = [word for name in run.config.plugins for word in ("--plugin", name)]
    # -P: a file queue.py in the working directory is not Python's
    return [sys.executable, "-P", "-m", "mtlsi.cli", "study", str(file), "--only", run.name, *plugins]


def train_at_once(
    runs: Sequence[StudyRun], out: Path, num_jobs: int, *, num_ended: int, num_runs: int, console: Console
) -> dict[str, str]:
    """Train ``runs`` in processes of their own, ``num_jobs`` at a time.

    Gives what became of each, by name; see ``Job.outcome``. ``num_ended`` of the study's ``num_runs`` have ended before.
    Ctrl-C, SIGTERM and SIGHUP raise ``Stopped`` after all runs have saved their state, a second one without.
    """
    waiting, running, outcomes = deque(runs), list[Job](), dict[str, str]()
    threads = max(1, num_cpus() // max(1, min(num_jobs, len(runs))))
    began = time.perf_counter()
    with TemporaryDirectory(prefix="mtlsi-study-") as folder, _noted_signals() as signals:
        try:
            while waiting or running:
                while waiting and len(running) < num_jobs and not signals:
                    run = waiting.popleft()
                    try:
                        running.append(Job(run, out, Path(folder), threads))
                        say(console, f"{run.name}: training, {len(running)} at once")
                    except OSError as error:
                        outcomes[run.name] = f"{FAILED}no process can be started: {message_of(error)}"
                        say(console, f"{run.name}: {outcomes[run.name]}")
                for job in list(running):
                    has_ended = job.has_ended()
                    for line in job.steps():
                        say(console, line)
                    if has_ended:
                        running.remove(job)
                        told = outcomes[job.run.name] = job.outcome((job.run.out / "scores.json").exists())
                        num_left = len(waiting) + len(running)
                        minutes = (time.perf_counter() - began) / len(outcomes) * num_left / 60
                        left = f", about {minutes:.0f} min left" if num_left else ""
                        say(console, f"{job.run.name}: {told} ({num_ended + len(outcomes)} of {num_runs}{left})")
                if signals:
                    raise Stopped(signals[0], "stopped; the same command goes on")
                time.sleep(LOOK_EVERY_S)
        finally:
            _end(running, signals, console)
    return outcomes


def _end(jobs: Sequence[Job], signals: Sequence[int], console: Console) -> None:
    """Let the processes save their states and end; after a second signal, or where it takes too long, kill them."""
    for job in jobs:
        job.send(signal.SIGTERM)
    if jobs:
        say(console, f"stopping: {len(jobs)} runs save their state")
    end = time.monotonic() + PATIENCE_S
    while any(not job.has_ended() for job in jobs):
        if time.monotonic() > end or len(signals) > 1:
            for job in jobs:
                job.send(getattr(signal, "SIGKILL", signal.SIGTERM))
            for job in jobs:
                job.process.wait()
        time.sleep(LOOK_EVERY_S)


def say(console: Console, text: str) -> None:
    """One line; where nobody reads it any more, or it cannot be written, the runs go on."""
    with suppress(OSError, UnicodeError):
        write_line(console, text)


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """The signals that come within the context, where this is the main thread, which alone may ask for them."""
    noted: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        noted.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
