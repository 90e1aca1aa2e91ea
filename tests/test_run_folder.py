from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from mtlsi import run_folder
from mtlsi.config import DataConfig, RunConfig, TrainConfig
from mtlsi.errors import MistakeError
from mtlsi.evaluation.subject import data_config
from mtlsi.model import pretrained
from mtlsi.model.build import create_model
from mtlsi.model.network import MTLSINet
from mtlsi.options.measuring import EvaluateOptions
from mtlsi.run_folder import (
    MovingAverage,
    Position,
    append_metrics,
    check_usable,
    forget_metrics_after,
    load_config,
    pack_model,
    prepare_run_folder,
    save_config,
    was_evaluated,
)


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def randomise(module):
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape) if tensor.is_floating_point() else tensor + 1)


# ---- the moving average


@pytest.mark.parametrize("decay", [0.9, 0.3, 0.0])
def test_the_moving_average_is_that_of_a_loop_over_numbers(decay):
    module = small_network()
    average = MovingAverage(module, decay)
    expected = {name: tensor.double().tolist() for name, tensor in module.state_dict().items()}
    for update in range(1, 15):
        randomise(module)
        average.update(module)
        share = min(decay, (1 + update) / (10 + update)) if decay else 0
        for name, tensor in module.state_dict().items():
            new = tensor.double()
            old = torch.tensor(expected[name], dtype=torch.float64)
            expected[name] = (share * old + (1 - share) * new if tensor.is_floating_point() else new).tolist()
    for name, tensor in average.state.items():
        target = torch.tensor(expected[name], dtype=torch.float64)
        torch.testing.assert_close(tensor.double(), target, rtol=0, atol=0 if decay == 0 else 1e-6)
    assert average.state["1.num_batches_tracked"] == 14


def test_averaged_weights_are_lent_and_returned_even_after_an_error():
    module = small_network()
    average = MovingAverage(module, 0.5)
    averaged = {name: tensor.clone() for name, tensor in average.state.items()}
    randomise(module)
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    parameters = list(module.parameters())

    def check(expected):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())

    def fail():
        with average.lent_to(module):
            check(averaged)
            raise RuntimeError("the evaluation failed")

    with pytest.raises(RuntimeError, match="the evaluation failed"):
        fail()
    check(own)
    assert all(a is b for a, b in zip(parameters, module.parameters(), strict=True))  # the optimizer's own


def test_the_position_continues_from_its_state_and_from_nothing_else():
    position, restored = Position(), Position()
    position.step, position.seconds, position.skipped = 3, 1.5, 1
    restored.load_state_dict(json.loads(json.dumps(position.state_dict())))
    assert (restored.step, restored.seconds, restored.skipped) == (3, 1.5, 1)
    for state in ({}, {"step": 3}, {"step": "x", "seconds": 0, "skipped": 0}, {"step": [], "seconds": 0, "skipped": 0}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            restored.load_state_dict(state)


# ---- metrics


def test_the_metrics_of_steps_to_come_are_forgotten(tmp_path):
    lines = [{"step": step, "loss": step / 7} for step in (1, 2, 2, 3, 4)]
    for line in lines:
        append_metrics(tmp_path, line)
    forget_metrics_after(tmp_path, 2)
    stored = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert stored == lines[:3]
    append_metrics(tmp_path, {"step": 3})
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1]) == {"step": 3}
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_without_metrics_there_is_nothing_to_forget(tmp_path):
    forget_metrics_after(tmp_path, 2)
    assert os.listdir(tmp_path) == []


def test_a_line_that_was_cut_off_is_forgotten(tmp_path):
    append_metrics(tmp_path, {"step": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')  # the disk was full, or the power went
    forget_metrics_after(tmp_path, 5)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


@pytest.mark.parametrize(
    "line",
    ["[1, 2]", "7", '"step"', "null", '{"loss": 1}', '{"step": "three"}', '{"step": null}', '{"step": -1}', "\x00",
     "[" * 99999, '{"step": true}', '{"step": 1e400}'],
)  # fmt: skip
def test_what_is_no_line_of_metrics_is_left_out_with_a_note(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + line + '\n{"step": 2}\n')
    (note,) = forget_metrics_after(tmp_path, 5)
    assert "1 lines that were no metrics" in note
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    assert forget_metrics_after(tmp_path, 5) == ()


def test_metrics_of_other_bytes_than_text_and_a_folder_in_their_place(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe\x81\n')
    assert len(forget_metrics_after(tmp_path, 5)) == 1
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(MistakeError, match=r"metrics\.jsonl is no file"):
        forget_metrics_after(tmp_path, 5)


def test_an_evaluation_is_known_by_its_line(tmp_path):
    assert not was_evaluated(tmp_path, 2)
    append_metrics(tmp_path, {"step": 2, "loss": 1.0})
    assert not was_evaluated(tmp_path, 2)
    append_metrics(tmp_path, {"step": 2, "val/depth/RMSE": 1.0, "evaluation_s": 0.1})
    assert was_evaluated(tmp_path, 2)
    assert not was_evaluated(tmp_path, 3)


# ---- the run folder


def test_a_new_folder_is_made_with_its_parents_and_left_empty(tmp_path):
    prepare_run_folder(tmp_path / "runs" / "new", resume=False)
    assert os.listdir(tmp_path / "runs" / "new") == []


def test_many_processes_may_look_at_one_folder_at_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda _: prepare_run_folder(tmp_path, resume=True), range(400)):
            pass
    assert os.listdir(tmp_path) == []


def test_a_folder_with_other_things_in_it_may_be_used(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    prepare_run_folder(tmp_path, resume=False)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_without_a_checkpoint_may_be_started_again_and_resumed(tmp_path):
    save_config(RunConfig(), tmp_path)
    (tmp_path / "state" / ".step_000002.new").mkdir(parents=True)  # killed while it wrote its first one
    for resume in (False, True):
        prepare_run_folder(tmp_path, resume=resume)


def test_folders_that_cannot_be_used_are_mistakes(tmp_path, monkeypatch):
    save_config(RunConfig(), tmp_path)
    (tmp_path / "model.safetensors").touch()
    for resume in (False, True):
        with pytest.raises(MistakeError, match=r"holds a model and no state/ .* --init"):
            prepare_run_folder(tmp_path, resume=resume)
    (tmp_path / "state" / "step_000002").mkdir(parents=True)
    prepare_run_folder(tmp_path, resume=True)
    with pytest.raises(MistakeError, match=r"holds a run already.* --resume"):
        prepare_run_folder(tmp_path, resume=False)
    for left in ("model.safetensors", "config.yaml"):  # the first checkpoint of a new run would remove the others
        content = (tmp_path / left).read_bytes()
        (tmp_path / left).unlink()
        with pytest.raises(MistakeError, match=r"holds a run already; give another --out, or .*--resume"):
            prepare_run_folder(tmp_path, resume=False)
        told = "restore its config.yaml" if left == "config.yaml" else "or continue"
        with pytest.raises(MistakeError, match=told):
            check_usable(tmp_path)
        (tmp_path / left).write_bytes(content)
    with pytest.raises(MistakeError, match="cannot write"):
        prepare_run_folder(tmp_path / "config.yaml" / "below", resume=False)
    with pytest.raises(MistakeError, match="cannot write"):
        prepare_run_folder(tmp_path / "config.yaml", resume=False)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(run_folder.tempfile, "TemporaryFile", refuse)  # root may write anywhere: play it
    with pytest.raises(MistakeError, match="Permission denied"):
        prepare_run_folder(tmp_path / "new", resume=False)


# ---- the configuration


def test_a_configuration_comes_back_the_same(tmp_path):
    config = RunConfig(
        preset="mobilenetv2_100",
        model={"channels": 32, "fusion": False},
        backbone_weights="weights.safetensors",
        seed=7,
        data=DataConfig(root="somewhere", tasks=("depth", "normals"), image_hw=(96, 128), zoom=(0.8, 1.25)),
        train=TrainConfig(lr=1e-5, loss_weights={"depth": 2.0}, tracker="tensorboard"),
    )
    for one in (config, RunConfig(), replace(config, data=replace(config.data, tasks=None))):
        save_config(one, tmp_path)
        assert load_config(tmp_path) == one
    assert os.listdir(tmp_path) == ["config.yaml"]
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["data"]["image_hw"] == [96, 128]


@pytest.mark.parametrize(
    "text",
    ["", "- 1", "a: [", "preset: tiny", "data: {}\ntrain: {speed: 1}", "data: 3\ntrain: {}", "\x00"],
    ids=["empty", "a list", "no YAML", "too little", "unknown key", "wrong kind", "not text"],
)
def test_a_damaged_configuration_is_a_mistake(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(MistakeError, match=r"config\.yaml.*expected the folder of a started run"):
        load_config(tmp_path)


def test_a_configuration_of_other_bytes_than_text_is_a_mistake(tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(MistakeError, match=r"config\.yaml"):
        load_config(tmp_path)


def test_a_folder_without_a_configuration_is_a_mistake(tmp_path):
    with pytest.raises(MistakeError, match=r"config\.yaml"):
        load_config(tmp_path / "nowhere")


def test_a_run_folder_of_before_the_settings_were_renamed_still_loads(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "preset: tiny\nmodel: {}\nbackbone_weights: null\nseed: 3\n"
        "data: {name: scenes, tasks: [depth], picture_hw: [96, 128], zoom: [0.9, 1.4]}\n"
        "train: {iterations: 7, precision: bf16, evaluate_pictures: 25}\n"
    )
    config = load_config(tmp_path)
    assert (config.data.image_hw, config.data.tasks, config.data.zoom) == ((96, 128), ("depth",), (0.9, 1.4))
    assert (config.train.evaluate_images, config.train.precision, config.seed) == (25, "bfloat16", 3)
    assert config.plugins == ()


# ---- packing


def test_a_packed_model_is_half_as_large_and_keeps_its_vectors_exactly(tiny_run, tmp_path):
    pack_model(tiny_run.out, tmp_path / "packed")
    whole, packed = (load_file(folder / "model.safetensors") for folder in (tiny_run.out, tmp_path / "packed"))
    assert whole.keys() == packed.keys()
    for name, tensor in whole.items():
        assert torch.equal(packed[name], tensor.half() if tensor.dim() >= 2 else tensor), name
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tiny_run.out, tmp_path / "packed")]
    assert sizes[1] < 0.6 * sizes[0]
    assert (tmp_path / "packed" / "config.json").read_text() == (tiny_run.out / "config.json").read_text()


def test_numbers_beyond_float16_stay_what_they_are(tmp_path):
    network = create_model("tiny", tasks=["depth"])
    state = network.state_dict()
    names = [name for name, tensor in state.items() if tensor.dim() > 1][:2]
    state[names[0]].view(-1)[0] = 1e5
    run_folder.save_model(network, state, tmp_path / "model")
    assert pack_model(tmp_path / "model", tmp_path / "packed") == (names[0],)
    packed = load_file(tmp_path / "packed" / "model.safetensors")
    assert torch.equal(packed[names[0]], state[names[0]])
    assert packed[names[1]].dtype == torch.float16


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "noise", "huge settings"])
def test_damaged_files_are_not_signed_anew(tiny_run, tmp_path, damage):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).write_bytes((tiny_run.out / name).read_bytes())
    weights = model / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    written = {"flipped": content, "cut": content[:-1000], "empty": b"", "noise": b"noise" * 1000}
    if damage in written:
        weights.write_bytes(written[damage])
    else:
        with (model / "config.json").open("r+b") as file:
            file.truncate(3 * 2**30)
    with pytest.raises(MistakeError, match=r"^model .*/model: ") as error:
        pack_model(model, tmp_path / "packed")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "packed").exists()


# ---- what a name stands for


@pytest.fixture
def runs_here(tiny_run, tmp_path, monkeypatch):
    """The working folder, with a run in ``scenes`` that keeps a best model; ``scenes`` is a packaged model, too."""
    package, run = tmp_path / "package", tmp_path / "here" / "scenes"
    (run / "best").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        for folder in (run, run / "best"):
            (folder / name).write_bytes((tiny_run.out / name).read_bytes())
    save_config(replace(tiny_run.config, plugins=("mine.py",)), run)
    (run / "best" / "scores.json").write_text('{"step": 4}')
    create_model("tiny", tasks=["depth"], input_size=(32, 64)).save_pretrained(package / "scenes")
    monkeypatch.setattr(pretrained, "PACKAGED", package)
    monkeypatch.chdir(run.parent)
    return run.parent


@pytest.mark.usefixtures("runs_here")
def test_a_packaged_model_is_from_no_run_whatever_lies_in_a_folder_of_its_name():
    assert run_folder.run_of("scenes") is None
    assert not run_folder.is_run("scenes")
    assert "scenes is the packaged model; " in (run_folder.note_of_best("scenes") or "")
    run_folder.import_named_plugins((), "scenes")
    options = EvaluateOptions("scenes", data="scenes")
    assert data_config(options, MTLSINet.from_pretrained("scenes")).image_hw == (32, 64)


@pytest.mark.usefixtures("runs_here")
@pytest.mark.parametrize("name", ["./scenes", "scenes/", "../here/scenes"])
def test_any_other_name_is_the_run_in_that_folder(name):
    assert run_folder.run_of(name) == run_folder.run_of(Path(name)) == Path(name)
    assert run_folder.is_run(name)
    assert "the best, of step 4" in (run_folder.note_of_best(name) or "")
    with pytest.raises(MistakeError, match=r"was trained with the plugin mine\.py"):
        run_folder.import_named_plugins((), name)
    options = EvaluateOptions(name, data="scenes")
    assert data_config(options, MTLSINet.from_pretrained(name)).image_hw == (64, 64)


def test_a_run_is_known_from_within(runs_here, monkeypatch):
    run = runs_here / "scenes"
    for name in ("./scenes/best", "scenes/best/"):
        assert run_folder.run_of(name) == Path("scenes")
        assert not run_folder.is_run(name)
        assert run_folder.note_of_best(name) is None
    monkeypatch.chdir(run)
    assert run_folder.run_of(".") == run
    assert run_folder.is_run(".")
    assert "the best, of step 4" in (run_folder.note_of_best(".") or "")
    monkeypatch.chdir(run / "best")
    assert run_folder.run_of(".") == run_folder.run_of("..") == run
    assert not run_folder.is_run(".")
    assert run_folder.is_run("..")


# ---- permissions


def test_whoever_may_read_new_files_may_read_those_of_a_run(tiny_run):
    (tiny_run.out.parent / "new").touch()
    usual = (tiny_run.out.parent / "new").stat().st_mode
    files = [path for path in tiny_run.out.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"config.json", "config.yaml", "model.safetensors", "metrics.jsonl"}
    assert [path for path in files if path.stat().st_mode != usual] == []


@pytest.mark.parametrize("odd", ["Infinity", "NaN", "-1", "1e11", "null"])
def test_what_can_be_no_time_counts_for_nothing(tmp_path, odd):
    lines = ['{"step": 1, "train_s": 2.0}', f'{{"step": 2, "train_s": {odd}}}', '{"step": 3, "train_s": 4.0}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert run_folder.seconds_until(tmp_path, 2) == 2.0
    assert run_folder.progress_of(tmp_path, RunConfig()).seconds == 4.0
