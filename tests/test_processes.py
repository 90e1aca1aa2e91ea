from __future__ import annotations

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
