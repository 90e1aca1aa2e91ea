from __future__ import annotations

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mtlsi.config import DataConfig, RunConfig, TrainConfig
from mtlsi.data.datasets import camera_of, open_dataset
from mtlsi.errors import MistakeError
from mtlsi.model import pretrained
from mtlsi.model.build import create_model
from mtlsi.model.network import MTLSINet
from mtlsi.model.pretrained import is_packaged
from mtlsi.training import setup
from mtlsi.training.setup import (
    assemble,
    build_criterion,
    build_model,
    build_optimizer,
    learning_rate_factor,
    set_first_weights,
    settle,
)

NYUD = ("semseg", "depth", "normals", "boundary")


# ---- the learning rate and the optimizer


def test_the_learning_rate_rises_linearly_then_falls_to_zero():
    poly = TrainConfig(iterations=110, warmup=10)
    cosine = replace(poly, schedule="cosine")
    for options in (poly, cosine):
        assert [learning_rate_factor(step, options) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
        assert learning_rate_factor(10, options) == 1
        assert learning_rate_factor(110, options) == pytest.approx(0, abs=1e-12)
        assert learning_rate_factor(200, options) == pytest.approx(0, abs=1e-12)
    assert learning_rate_factor(35, poly) == pytest.approx(0.75**0.9)
    assert learning_rate_factor(60, poly) == pytest.approx(math.exp(0.9 * math.log(0.5)))
    assert learning_rate_factor(60, cosine) == pytest.approx(0.5)
    assert learning_rate_factor(10 + 25, cosine) == pytest.approx(math.cos(math.pi / 8) ** 2)
    assert learning_rate_factor(0, replace(poly, warmup=0)) == 1


def test_a_warm_up_longer_than_the_run_is_no_division_by_zero():
    assert learning_rate_factor(5, TrainConfig(iterations=5, warmup=10)) == pytest.approx(0.6)
    assert learning_rate_factor(10, TrainConfig(iterations=10, warmup=10)) == 1


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_the_optimizer_treats_backbone_and_vectors_in_their_own_way(name):
    network = create_model("tiny")
    network.backbone.freeze(8, norm=True)
    options = TrainConfig(optimizer=name, lr=0.02, backbone_lr_factor=0.25, weight_decay=0.03)
    optimizer = build_optimizer(network, options)
    assert type(optimizer) is {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[name]
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(found)  # none of them twice

    norms = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
    vectors = {id(p) for module in network.modules() for p in module.parameters(recurse=False)
               if isinstance(module, norms) or type(module).__name__.endswith("Norm")}  # fmt: skip
    vectors |= {id(p) for name, p in network.named_parameters() if name.endswith("bias") or p.dim() < 2}
    for parameter_name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in found, parameter_name
            continue
        group = found[id(parameter)]
        in_backbone = parameter_name.startswith("backbone.")
        assert group["lr"] == pytest.approx(0.005 if in_backbone else 0.02), parameter_name
        assert group["weight_decay"] == (0 if id(parameter) in vectors else 0.03), parameter_name
    frozen = [n for n, p in network.named_parameters() if not p.requires_grad]
    assert frozen
    assert all(n.startswith("backbone.") for n in frozen)


# ---- building


def test_depth_begins_at_the_middle_of_the_labels(tiny_config):
    dataset = open_dataset(tiny_config.data, "train")
    torch.manual_seed(0)
    network = build_model(tiny_config, dataset).eval()
    assert set_first_weights(network, tiny_config, dataset) == {}
    median = np.median(np.concatenate([dataset[i]["depth"].numpy().ravel() for i in range(6)]))
    with torch.no_grad():
        out = network(torch.randn(1, 3, 64, 64))
    for prediction in (out.final["depth"], out.coarse["depth"]):
        assert prediction.mean() == pytest.approx(median, abs=0.5)
    assert network.input_size == (64, 64)
    assert network.tasks == NYUD


@pytest.mark.parametrize("intrinsics", ["", ", intrinsics: {focal: [60, 60], centre: [32, 32]}"])
def test_depth_of_an_own_folder_without_a_camera_is_noted_before_the_first_step(tiny_config, tmp_path, intrinsics):
    root = tmp_path / "rooms"
    for folder, pixels in (
        ("images", np.full((64, 64, 3), 90, np.uint8)),
        ("depth", np.full((64, 64), 2000, np.uint16)),
    ):
        (root / folder).mkdir(parents=True)
        for name in "ab":
            Image.fromarray(pixels).save(root / folder / f"{name}.png")
    (root / "dataset.yaml").write_text(f"splits: {{val: [b]}}\ntasks: {{depth: {{unit: mm{intrinsics}}}}}\n")
    data = replace(tiny_config.data, name="folder", root=str(root), zoom=(0.5, 1.0))
    run = assemble(settle(replace(tiny_config, data=data)), tmp_path / "run", resume=False)
    assert bool(run.network.camera) == bool(intrinsics)
    told = [note for note in run.notes if "names no camera" in note]
    assert len(told) == (not intrinsics)
    assert all("give tasks.depth.intrinsics: {focal: [fx, fy], centre: [cx, cy]}" in note for note in told)


def test_settling_writes_out_the_precision_and_whole_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(setup, "choose_precision", {"auto": "float32"}.__getitem__)
    config = RunConfig(
        backbone_weights="weights.safetensors", data=DataConfig(root="set"), plugins=("mine.py", "my.pack")
    )
    settled = settle(config)
    assert settled.train.precision == "float32"
    assert settled.data.root == str(tmp_path / "set")
    assert settled.plugins == (str(tmp_path / "mine.py"), "my.pack")
    assert settled.backbone_weights == str(tmp_path / "weights.safetensors")
    assert settle(RunConfig(backbone_weights="pretrained")).backbone_weights == "pretrained"
    assert settle(RunConfig()).data.root is None


def test_a_packaged_name_stays_one_whatever_lies_in_a_folder_of_that_name(monkeypatch, tmp_path, two_steps):
    create_model("tiny", tasks=["depth"]).save_pretrained(tmp_path / "package" / "scenes")
    own = tmp_path / "here" / "scenes"
    create_model("tiny", tasks=["normals"], channels=32).save_pretrained(own)
    monkeypatch.setattr(pretrained, "PACKAGED", tmp_path / "package")
    monkeypatch.chdir(own.parent)
    packaged = settle(replace(two_steps, init="scenes"))
    assert (packaged.init, packaged.model.get("channels")) == ("scenes", None)
    for name in ("./scenes", "scenes/", "../here/scenes"):
        settled = settle(replace(two_steps, init=name))
        assert (settled.init, settled.model["channels"]) == (str(own), 32)
        assert settle(replace(two_steps, backbone_weights=name)).backbone_weights == str(own)
    notes = assemble(packaged, tmp_path / "a", resume=False).notes
    assert "scenes is the packaged model; for the model in the folder of that name here give ./scenes" in notes
    assert not any("packaged" in note for note in assemble(settled, tmp_path / "b", resume=False).notes)
    (own / "config.json").unlink()  # a folder of data
    assert settle(replace(two_steps, init="scenes")).init == "scenes"


def begun(config, train_set):
    network = build_model(config, train_set)
    set_first_weights(network, config, train_set)
    return network


def test_a_run_starts_from_the_backbone_of_a_model_folder(tiny_run, two_steps):
    train_set = open_dataset(two_steps.data, "train")
    network = begun(replace(two_steps, backbone_weights=str(tiny_run.out)), train_set)
    donor = MTLSINet.from_pretrained(tiny_run.out).backbone.state_dict()
    assert all(torch.equal(value, donor[name]) for name, value in network.backbone.state_dict().items())
    with pytest.raises(MistakeError, match="of mobilenetv2_035; expected those of mobilenetv2_100"):
        begun(replace(two_steps, preset="mobilenetv2_100", backbone_weights=str(tiny_run.out)), train_set)
    assert settle(replace(two_steps, backbone_weights="nyud-mobilenetv2")).backbone_weights == "nyud-mobilenetv2"


def test_the_network_knows_how_its_images_are_brought_to_its_size(two_steps, tmp_path):
    train_set = open_dataset(two_steps.data, "train")
    for resize, image_hw, known in (("keep_ratio", (64, 64), "keep_ratio"), ("keep_ratio", None, "stretch")):
        config = replace(two_steps, data=replace(two_steps.data, resize=resize, image_hw=image_hw))
        build_model(config, train_set).save_pretrained(tmp_path)
        assert MTLSINet.from_pretrained(tmp_path).resize == known


def test_a_run_starts_from_a_whole_model_and_takes_its_sizes(two_steps, tmp_path):
    train_set = open_dataset(two_steps.data, "train")
    donor = create_model(
        "tiny", classes=train_set.classes, input_size=(64, 64), camera=camera_of(train_set), channels=16
    )
    donor.save_pretrained(tmp_path)
    asked = replace(two_steps, model={"drop_path": 0.1}, init=str(tmp_path))
    config = settle(asked)
    network = build_model(config, train_set)
    assert network.sizes == replace(donor.sizes, drop_path=0.1)
    assert set_first_weights(network, config, train_set) == dict.fromkeys(NYUD, "all")
    theirs = donor.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in network.state_dict().items())
    with pytest.raises(MistakeError, match="has channels 16, the run 32"):
        begun(settle(replace(asked, model={"channels": 32})), train_set)
    with pytest.raises(
        MistakeError, match="has backbone mobilenetv2_035, the run mobilenetv2_100; leave the run's pre"
    ):
        settle(replace(asked, preset="mobilenetv2_100"))
    assert settle(replace(config, preset="mobilenetv2_100", model=asdict(donor.sizes))).preset == "mobilenetv2_100"
    with pytest.raises(MistakeError, match="give one of init"):
        replace(asked, backbone_weights="pretrained").check()


@pytest.mark.parametrize("setting", ["init", "backbone_weights"])
def test_weights_that_are_not_finite_are_no_start(tiny_run, two_steps, tmp_path, setting):
    donor = MTLSINet.from_pretrained(tiny_run.out)
    first = next(donor.backbone.parameters())
    with torch.no_grad():
        first[0] = torch.nan
    donor.save_pretrained(tmp_path)
    config, train_set = replace(two_steps, **{setting: str(tmp_path)}), open_dataset(two_steps.data, "train")
    with pytest.raises(
        MistakeError, match=rf"^the weights of {tmp_path} are not finite \(backbone.*damaged; start from"
    ):
        begun(config, train_set)


@pytest.mark.parametrize("name", ["nyud", "nyud-mobilenetv2", "scenes"])
def test_a_run_starts_from_a_packaged_model_by_its_name(name, two_steps):
    if not is_packaged(name):
        pytest.skip("no weights are packaged in this checkout")
    config, train_set = settle(replace(two_steps, init=name)), open_dataset(two_steps.data, "train")
    network = build_model(config, train_set)
    donor = MTLSINet.from_pretrained(name)
    found, shown = set_first_weights(network, config, train_set), zip(network.input_size, donor.input_size, strict=True)
    assert max(ours / theirs for ours, theirs in shown) < 0.5  # so metres are less for what looks as large
    assert found.pop("depth").startswith("all, its distances times 0.")
    assert found == dict.fromkeys(set(NYUD) - {"depth"}, "all")
    theirs = donor.for_tasks(NYUD).backbone.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in network.backbone.state_dict().items())


def test_only_a_new_depth_begins_at_the_middle_of_the_labels(two_steps, tmp_path):
    config = replace(two_steps, data=replace(two_steps.data, tasks=("depth", "normals")))
    train_set = open_dataset(config.data, "train")
    for tasks, brought in ((("normals",), "new"), (("depth", "normals"), "all")):
        donor = create_model("tiny", tasks=tasks, input_size=(64, 64), camera=camera_of(train_set))
        donor.save_pretrained(tmp_path / brought)
        own = replace(config, init=str(tmp_path / brought))
        network = build_model(own, train_set)
        assert set_first_weights(network, own, train_set) == {"depth": brought, "normals": "all"}
        bias = network.decoder.preliminary.predict.of_task["depth"].bias.item()
        assert (bias > 1) == (brought == "new")


# ---- the criterion


def test_a_recipes_loss_weights_serve_a_run_of_some_of_its_tasks():
    options = TrainConfig(loss_weights={"semseg": 3.0, "depth": 4.0})
    weights = build_criterion(("depth", "normals"), options).weights
    assert weights == {"depth": 4.0, "normals": 10.0}  # normals: the field's
    with pytest.raises(
        MistakeError, match=r"train\.loss_weights\.depht: unknown task; expected some of depth, normals"
    ):
        build_criterion(("depth", "normals"), TrainConfig(loss_weights={"depht": 1.0}))
