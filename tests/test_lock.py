from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from full_disk import files_of_at_most
from mtlsi import lock
from mtlsi.errors import MistakeError
from mtlsi.lock import SILENT_S, HeldError, held


def lock_of(path, pid, host=None, **more):
    path.write_text(json.dumps({"pid": pid, "host": host or socket.gethostname(), "since": 0, **more}))


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


HOLD = """
import sys
from pathlib import Path
from mtlsi.lock import held
with held(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.readline()
"""


CONTEND = """
import sys, time
from pathlib import Path
from mtlsi.lock import HeldError, held
print("ready", flush=True)
sys.stdin.readline()
try:
    with held(Path(sys.argv[1])):
        time.sleep(1)
        print("mine")
except HeldError:
    print("held")
"""

needs_marks = pytest.mark.skipif(
    not os.path.exists("/proc/self/ns/pid"), reason="the system does not tell its containers apart"
)


@contextmanager
def holding(path):
    """Another process, which has the lock."""
    command = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        yield process
    finally:
        process.communicate("\n")


def test_a_lock_says_who_has_it_and_is_gone_afterwards(tmp_path):
    path = tmp_path / "new" / "0.lock"
    with held(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        assert json.loads(path.read_text())["host"] == socket.gethostname()
    assert list(path.parent.iterdir()) == []


def test_a_lock_is_released_by_whatever_ends_the_run(tmp_path):
    with pytest.raises(KeyboardInterrupt), held(tmp_path / "0.lock"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", [None, "another-machine"])
def test_a_lock_of_a_process_that_lives_is_respected(tmp_path, host):
    path = tmp_path / "0.lock"
    lock_of(path, os.getppid(), host)
    with pytest.raises(HeldError, match=str(os.getppid())), held(path):
        pass
    assert json.loads(path.read_text())["pid"] == os.getppid()


@pytest.mark.parametrize("since", ["x", None, {}, [], 1e300, -1e18, 10**400, "NaN"])
def test_a_lock_that_says_no_time_is_respected(tmp_path, since):
    content = json.dumps({"pid": os.getppid(), "host": socket.gethostname(), "since": since})
    (tmp_path / "0.lock").write_text(content)
    with (
        pytest.raises(HeldError, match=f"process {os.getppid()} on .* since an unknown time"),
        held(tmp_path / "0.lock"),
    ):
        pass
    assert (tmp_path / "0.lock").read_text() == content


def test_a_lock_that_is_being_written_is_respected(tmp_path):
    (tmp_path / "0.lock").touch()
    with pytest.raises(HeldError, match="another process"), held(tmp_path / "0.lock"):
        pass


WRITE_AND_BE_KILLED = """
import resource, signal, sys
from pathlib import Path
from mtlsi.lock import held
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the first byte that it writes ends it
with held(Path(sys.argv[1])):
    pass
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits there")
def test_a_process_that_is_killed_while_it_writes_its_lock_blocks_nobody(tmp_path):
    ended = subprocess.run([sys.executable, "-c", WRITE_AND_BE_KILLED, str(tmp_path / "0.lock")])
    assert ended.returncode == -signal.SIGXFSZ
    with held(tmp_path / "0.lock"):
        pass


def test_a_file_system_without_hard_links_has_locks_too(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(lock.os, "link", link)
    path = tmp_path / "0.lock"
    with held(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        assert list(tmp_path.iterdir()) == [path]
    assert list(tmp_path.iterdir()) == []
    lock_of(path, os.getppid())
    with pytest.raises(HeldError, match=str(os.getppid())), held(path):
        pass
    with files_of_at_most(0), pytest.raises(OSError, match=r"1\.lock"), held(tmp_path / "1.lock"):
        pass
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_for_which_the_disk_has_no_room_is_not_left_half_written(tmp_path):
    with files_of_at_most(0), pytest.raises(OSError, match=r"0\.lock"), held(tmp_path / "0.lock"):
        pass
    with held(tmp_path / "0.lock"):
        pass


def test_a_lock_whose_process_is_gone_is_taken_over(tmp_path):
    path = tmp_path / "0.lock"
    for pid in (ended_process(), os.getpid()):  # the second: an earlier process had the number that is ours now
        lock_of(path, pid)
        with held(path):
            assert json.loads(path.read_text())["since"] > 0
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("age_s", [SILENT_S + 60, -SILENT_S - 60, -1e9])
def test_a_lock_that_gives_no_sign_of_life_is_taken_over(tmp_path, age_s):
    path = tmp_path / "0.lock"
    lock_of(path, 1, "another-machine")
    then = path.stat().st_mtime - age_s
    os.utime(path, (then, then))
    with held(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("age_s", [SILENT_S + 60, -SILENT_S - 60])
@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="the system does not say when a process began")
def test_a_lock_of_a_process_that_was_stopped_or_whose_clock_jumped_is_respected(tmp_path, age_s):
    path = tmp_path / "0.lock"
    with holding(path) as process:
        then = path.stat().st_mtime - age_s
        os.utime(path, (then, then))
        with pytest.raises(HeldError, match=f"process {process.pid} on"), held(path):
            pass


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="the system does not say when a process began")
def test_a_lock_of_an_earlier_process_whose_number_another_one_has_is_taken_over(tmp_path):
    path = tmp_path / "0.lock"
    with holding(path) as process:
        facts = json.loads(path.read_text())
        assert facts["pid"] == process.pid
        path.write_text(json.dumps({**facts, "began": facts["began"] - 1}))
        with held(path):
            assert json.loads(path.read_text())["pid"] == os.getpid()


@needs_marks
@pytest.mark.parametrize("mark", ["boot", "pids"])
def test_a_lock_of_another_container_or_of_a_machine_with_the_same_name_is_taken_over_by_its_silence_alone(
    tmp_path, mark
):
    path = tmp_path / "0.lock"
    with holding(path):
        facts = json.loads(path.read_text())
    assert isinstance(facts[mark], str)
    gone = {**facts, "machine": "another", mark: "another"}  # a process of that number is gone here, and may live there
    path.write_text(json.dumps(gone))
    with pytest.raises(HeldError, match=f"process {gone['pid']} on"), held(path):
        pass
    assert json.loads(path.read_text()) == gone
    then = path.stat().st_mtime - SILENT_S - 60
    os.utime(path, (then, then))
    with held(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


@needs_marks
def test_a_lock_from_before_this_machine_was_started_is_taken_over(tmp_path):
    path = tmp_path / "0.lock"
    with holding(path):
        facts = json.loads(path.read_text())
    if facts["machine"] is None:
        pytest.skip("this machine has no /etc/machine-id")
    path.write_text(json.dumps({**facts, "boot": "another", "pid": os.getppid()}))  # another process has its number
    with held(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


@needs_marks
@pytest.mark.skipif(shutil.which("unshare") is None, reason="no way to a container of its own")
def test_a_living_lock_is_respected_in_another_container(tmp_path):
    path = tmp_path / "0.lock"
    inside = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("no containers within this one")
    with holding(path) as process:
        command = [*inside, sys.executable, "-c", CONTEND, str(path)]
        ended = subprocess.run(command, input="\n", capture_output=True, text=True)
        assert (ended.stdout, ended.stderr) == ("ready\nheld\n", "")
        assert json.loads(path.read_text())["pid"] == process.pid


@pytest.mark.parametrize("ahead_s", [SILENT_S + 60, -SILENT_S - 60])
def test_a_lock_of_another_machine_is_respected_where_the_clock_of_this_one_is_wrong(tmp_path, monkeypatch, ahead_s):
    """The clock that dates the lock is that of the machine that has the files."""
    path, now = tmp_path / "0.lock", time.time()
    lock_of(path, 1, "another-machine")
    monkeypatch.setattr(lock.time, "time", lambda: now + ahead_s)
    with pytest.raises(HeldError, match="another-machine"), held(path):
        pass


def test_a_lock_by_a_clock_that_is_a_little_ahead_is_respected(tmp_path):
    path = tmp_path / "0.lock"
    lock_of(path, 1, "another-machine")
    ahead = path.stat().st_mtime + 120
    os.utime(path, (ahead, ahead))
    with pytest.raises(HeldError, match="another-machine"), held(path):
        pass


def test_something_else_in_the_place_of_the_folder_of_locks_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "pipe", "link"):
        with pytest.raises(MistakeError, match=f"{name}: is no folder; remove it"), held(tmp_path / name / "0.lock"):
            pass


def test_a_lock_that_was_taken_over_is_not_removed_by_its_former_holder(tmp_path):
    path = tmp_path / "0.lock"
    with held(path):
        lock_of(path, 1, "another-machine")  # as if this process had been asleep for an hour
    assert json.loads(path.read_text())["host"] == "another-machine"


@pytest.mark.parametrize("times", [1, 1000])
def test_a_folder_of_locks_that_another_process_removes_as_empty_just_then_is_made_again(tmp_path, monkeypatch, times):
    path, make, removed = tmp_path / "claims" / "0.lock", lock.Path.mkdir, []

    def mkdir(folder, **options):
        make(folder, **options)
        if len(removed) < times:
            removed.append(folder.rmdir())

    monkeypatch.setattr(lock.Path, "mkdir", mkdir)
    if times > 1:
        with pytest.raises(MistakeError, match="is removed as often as it is made"), held(path):
            pass
        return
    with held(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_lock_that_another_has_taken_over_meanwhile_is_left_where_it_is(tmp_path, monkeypatch):
    """For a moment without it a third one could have it, too."""
    path, moved, looked_at = tmp_path / "0.lock", [], lock._is_stale

    def taken_over(*given):
        verdict = looked_at(*given)
        lock_of(path, os.getppid())
        return verdict

    lock_of(path, ended_process())
    monkeypatch.setattr(lock, "_is_stale", taken_over)
    monkeypatch.setattr(lock.os, "rename", lambda *names: moved.append(names))
    with pytest.raises(HeldError, match=f"process {os.getppid()} on"), held(path):
        pass
    assert moved == []


@pytest.mark.skipif(sys.platform == "win32", reason="has no locks of folders")
@pytest.mark.parametrize("is_let_go", [True, False])
def test_one_process_at_a_time_removes_locks_unless_it_does_not_go_on(tmp_path, monkeypatch, is_let_go):
    import fcntl

    handle, slept = os.open(tmp_path, os.O_RDONLY), []

    def sleep(_):
        slept.append((tmp_path / "0.lock").exists())
        if is_let_go:
            fcntl.flock(handle, fcntl.LOCK_UN)

    fcntl.flock(handle, fcntl.LOCK_EX)
    monkeypatch.setattr(lock.time, "sleep", sleep)
    monkeypatch.setattr(lock, "MOST_TRIES", 3)
    try:
        with held(tmp_path / "0.lock"):
            pass
    finally:
        os.close(handle)
    assert slept == [True] * (1 if is_let_go else 3)
    assert list(tmp_path.iterdir()) == []


def test_of_two_processes_at_once_one_has_the_lock(tmp_path):
    lock_of(tmp_path / "0.lock", ended_process())  # both must first get rid of a stale one
    command = [sys.executable, "-c", CONTEND, str(tmp_path / "0.lock")]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    said = []
    for process in both:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    for process in both:
        said.append(process.communicate()[0].strip())
    assert sorted(said) == ["held", "mine"]
