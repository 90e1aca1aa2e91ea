from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from mtlsi import processes
from mtlsi.cli import main
from mtlsi.errors import MistakeError


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Nothing in the environment announces processes."""
    launched = (*processes.SIZES, *processes.RANKS, *processes.SHARDED)
    for name in (*launched, "LOCAL_RANK", "ACCELERATE_USE_CPU", "MASTER_ADDR", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", processes.SIZES)
def test_launchers_announce_their_processes(monkeypatch, name):
    assert processes.announced() == 1
    monkeypatch.setenv(name, "3")
    assert processes.announced() == 3
    for text in ("many", "²", "٣", "-1", ""):
        monkeypatch.setenv(name, text)
        with pytest.raises(MistakeError, match=f"{name}={text} in"):
            processes.announced()


@pytest.mark.parametrize("name", processes.RANKS)
def test_a_rank_that_is_no_number_is_passed_over(monkeypatch, name):
    monkeypatch.setenv(name, "²")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "²")
    assert processes.index() == 0
    processes.check_tasks_of_slurm()


def test_what_one_process_has_is_what_all_have(monkeypatch):
    processes.join()
    assert not processes.has_joined()
    assert processes.is_first()
    assert (processes.number(), processes.own_device()) == (1, None)
    assert processes.share(range(5), 2) == [0, 1, 2, 3, 4]
    assert processes.gathered("x") == ["x"]
    assert processes.of_first("x") == "x"
    monkeypatch.setenv("RANK", "1")
    assert not processes.is_first()


def told(capsys, *command: str) -> str:
    """The one line with which the command is refused."""
    assert main([*command]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_what_is_wrong_is_said_where_the_process_that_keeps_the_store_was_killed(monkeypatch, capsys):
    def add(*_):
        raise RuntimeError("Broken pipe")

    monkeypatch.setattr(processes, "_watch", SimpleNamespace(store=SimpleNamespace(add=add)))
    processes.say(f"mtlsi: {processes.LOST}")
    assert capsys.readouterr().err == f"mtlsi: {processes.LOST}\n"


LEAVE = """
import os, signal, time
from types import SimpleNamespace
from mtlsi import processes

def wait_for_the_others(code):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it is ignored
processes._watch = SimpleNamespace(leave=wait_for_the_others)
processes.leave(2)
"""


@pytest.mark.skipif(os.name == "nt", reason="no such signals there")
def test_ctrl_c_while_the_others_are_waited_for_at_the_end_shows_no_traceback():
    ended = subprocess.run([sys.executable, "-c", LEAVE], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, "")


WAIT_IN_THE_STORE = """
import threading
import torch.distributed as dist
from mtlsi import processes

dist.init_process_group("gloo", store=dist.TCPStore("127.0.0.1", 0, is_master=True), rank=0, world_size=1)
store = dist.distributed_c10d._get_default_store()
if not hasattr(store, "clone"):
    raise SystemExit(3)  # this torch has one connection for all threads
another, watch = store.clone(), processes._Watch()
threading.Timer(0.5, another.set, ("mtlsi/ended", "3")).start()
store.get("what nobody will ever set")
"""


@pytest.mark.skipif(os.name == "nt", reason="gloo may lack there")
def test_the_end_of_another_process_is_seen_while_the_main_thread_waits_for_an_answer():
    ended = subprocess.run([sys.executable, "-c", WAIT_IN_THE_STORE], timeout=60)
    assert ended.returncode == 3


END_BESIDE_ANOTHER = """
import os, signal, sys, time
import torch.distributed as dist
from mtlsi import processes

rank, how = int(sys.argv[2]), sys.argv[3]
os.environ.update(RANK=str(rank))
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
processes.POLL_S, processes.SILENCE_S, processes.PATIENCE_S = 0.1, 2.0, 1.0
processes._watch = processes._Watch()
dist.barrier()
if rank and how == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if rank:
    time.sleep(4)  # longer than the silence that is allowed
processes.leave(0)
print("left")
"""


@pytest.mark.skipif(os.name == "nt", reason="gloo may lack there")
@pytest.mark.parametrize(
    ("how", "code", "said"),
    [("killed", 1, f"mtlsi: {processes.LOST}\n"), pytest.param("late", 0, "", marks=pytest.mark.slow)],
)
def test_the_first_process_waits_at_its_end_for_those_that_live(how, code, said, tmp_path):
    command = [sys.executable, "-c", END_BESIDE_ANOTHER, str(tmp_path / "store")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first, other = (subprocess.Popen([*command, str(rank), how], **pipes) for rank in range(2))
    out, err = first.communicate(timeout=90)
    _, others_err = other.communicate(timeout=90)
    assert (first.returncode, err) == (code, said)
    assert (other.returncode, others_err) == ((0, "") if how == "late" else (-9, ""))
    assert out == "left\n"


@pytest.mark.parametrize("verb", [("train", "--out", "x"), ("evaluate", "scenes", "--data", "scenes")])
def test_processes_that_a_launcher_did_not_start_are_a_mistake(monkeypatch, capsys, verb):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")  # as accelerate launch --cpu --num_processes 2 leaves it
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert "started one" in told(capsys, *verb)
    monkeypatch.delenv("MASTER_ADDR")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert "srun started 4 tasks that do not know of one another" in told(capsys, *verb)


@pytest.mark.parametrize(("variable", "engine"), processes.SHARDED.items())
def test_engines_that_shard_a_network_are_refused(monkeypatch, capsys, tmp_path, variable, engine):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(variable, "true")
    said = told(capsys, "train", "--out", str(tmp_path / "run"))
    assert f"asks for {engine}, which shards a network" in said
    assert "--train.shard true" in said
    assert not (tmp_path / "run").exists()


def test_other_verbs_work_in_one_process(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert "mtlsi demo works in one process, and the environment announces 2" in told(capsys, "demo", "--out", "x")
    monkeypatch.setenv("RANK", "1")
    assert main(["demo", "--out", "x"]) == 2
    assert capsys.readouterr().err == ""  # the first process has said it
    assert main(["predict", str(tmp_path / "missing.jpg"), "--out", str(tmp_path)]) != 0  # shares images out by itself
