import json
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file

from mtlsi.errors import MistakeError
from mtlsi.model import backbone as backbone_module
from mtlsi.model import hub
from mtlsi.model.build import create_model
from mtlsi.model.network import MTLSINet
from mtlsi.model.pretrained import is_packaged, packaged_models
from mtlsi.tasks import PARTS7


def images(batch=1):
    return torch.randn(batch, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def moved_model(**options):
    """A small network in evaluation, whose statistics are not the initial ones."""
    torch.manual_seed(0)
    model = create_model("tiny", **options).train()
    with torch.no_grad():
        for _ in range(3):
            model(images(batch=2))
    return model.eval()


@torch.no_grad()
def assert_same_outputs(ours, expected, tolerance=0.0):
    ours, expected = ours(images()), expected(images())
    for task in expected.final:
        torch.testing.assert_close(ours.final[task], expected.final[task], atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(ours.coarse[task], expected.coarse[task], atol=tolerance, rtol=tolerance)


def mistake(call):
    with pytest.raises(MistakeError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def tiny():
    return moved_model()


def test_config_json_names_every_choice_and_one_of_before_means_what_it_meant(tmp_path):
    model = moved_model()
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["decoder_options"]["mix"] == 16
    assert stored["decoder_options"].pop("add_coarse") == "areas_but_values"
    for before, meaning in (({}, "none"), ({"add_coarse": True}, "areas"), ({"add_coarse": False}, "none")):
        options = stored["decoder_options"] | before
        (tmp_path / "config.json").write_text(json.dumps(stored | {"decoder_options": options}))
        loaded = MTLSINet.from_pretrained(tmp_path)
        model.decoder.add_coarse = meaning
        assert_same_outputs(loaded, model)


def test_a_saved_model_comes_back_the_same(tmp_path):
    model = moved_model(dataset="pascal", tasks=["boundary", "parsing"], input_size=(64, 96), window=4, scales=(1, 3))
    model.save_pretrained(tmp_path)
    again = MTLSINet.from_pretrained(tmp_path)
    assert not again.training
    assert (again.tasks, again.classes, again.input_size) == (model.tasks, {"parsing": PARTS7}, (64, 96))
    assert_same_outputs(again, model)


def test_float16_weights_load_as_float32(tmp_path, tiny):
    tiny.save_pretrained(tmp_path)
    halved = {n: x.half() if x.is_floating_point() else x for n, x in load_file(tmp_path / "model.safetensors").items()}
    save_file(halved, tmp_path / "model.safetensors")
    again = MTLSINet.from_pretrained(tmp_path)
    for name, value in again.state_dict().items():
        assert torch.equal(value, halved[name].to(value.dtype)), name
        assert value.dtype in (torch.float32, torch.int64)
    assert_same_outputs(again, tiny, tolerance=0.05)


def test_loading_a_model_does_not_fetch_its_backbones_first_weights(tmp_path, monkeypatch):
    """The folder holds all weights; a model that began from timm's must come back without a network connection."""
    asked = []

    def without_download(name, *, pretrained=False, **options):
        asked.append(pretrained)
        return build(name, **options)

    build = backbone_module.timm.create_model
    monkeypatch.setattr(backbone_module.timm, "create_model", without_download)
    create_model("tiny", pretrained_backbone=True).save_pretrained(tmp_path)
    assert asked.count(True) == 1
    MTLSINet.from_pretrained(tmp_path)
    assert asked.count(True) == 1


@pytest.fixture
def folder(tmp_path, tiny):
    tiny.save_pretrained(tmp_path)
    return tmp_path


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: edit_config(folder, channels=32),
        lambda folder: edit_config(folder, num_blocks=2),
        lambda folder: edit_config(folder, fusion=False),
        lambda folder: edit_config(folder, window=None),
        lambda folder: edit_config(folder, window=65),
        lambda folder: (folder / "config.json").write_text('{"tasks": ['),
        lambda folder: (folder / "model.safetensors").write_bytes(b"not weights"),
    ],
    ids=[
        "other_shape",
        "weights_missing",
        "weights_left_over",
        "setting_missing",
        "huge_window",
        "no_json",
        "no_safetensors",
    ],
)
def test_weights_and_settings_that_do_not_fit_are_refused(folder, damage):
    damage(folder)
    message = mistake(lambda: MTLSINet.from_pretrained(folder))
    assert str(folder) in message
    said = ("do not fit each other", "model size window", "config.json: cannot be read", "not a whole safetensors file")
    assert any(words in message for words in said)


def test_a_model_is_not_saved_into_a_file(tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    for given in (tmp_path / "file", tmp_path / "file" / "below"):
        assert mistake(lambda given=given: tiny.save_pretrained(given)).startswith(f"cannot write to {given} (")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("part", ["config.json", "model.safetensors"])
def test_a_folder_without_a_part_is_refused_by_its_name(folder, part):
    (folder / part).unlink()
    assert f"has no {part}" in mistake(lambda: MTLSINet.from_pretrained(folder))


def test_a_file_and_a_folder_that_is_not_there_are_refused(folder):
    assert "is a file" in mistake(lambda: MTLSINet.from_pretrained(folder / "model.safetensors"))
    message = mistake(lambda: MTLSINet.from_pretrained(folder / "runs" / "absent"))
    assert "is not a folder, not packaged" in message
    assert str(folder / "runs" / "absent") in message


def test_a_name_that_the_hub_does_not_know_is_refused_as_such(monkeypatch):
    def not_found(*_, **__):
        raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(hub, "hf_hub_download", not_found)
    assert "is not a folder, not packaged" in mistake(lambda: MTLSINet.from_pretrained("somebody/nyud-mobilnetv2"))


def test_without_a_network_an_unknown_name_is_refused_as_such(monkeypatch):
    def unreachable(*_, **__):
        raise LocalEntryNotFoundError("cannot find the requested files in the local cache")

    monkeypatch.setattr(hub, "hf_hub_download", unreachable)
    assert "is not a folder, not packaged" in mistake(lambda: MTLSINet.from_pretrained("somebody/nyud-mobilnetv2"))


@pytest.mark.parametrize("name", ["nyud-mobilnetv2", "runs/nyud", "./runs/nyud", "a/b/c"])
def test_a_path_that_is_not_there_is_refused_without_asking_the_hub(name, monkeypatch, tmp_path):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_, **__: pytest.fail("the hub was asked"))
    assert "is not a folder, not packaged" in mistake(lambda: MTLSINet.from_pretrained(name))


def test_packaged_models_come_back_by_name():
    names = packaged_models()
    if not names:
        pytest.skip("no weights are packaged in this checkout")
    for name in names:
        model = MTLSINet.from_pretrained(name)
        with torch.no_grad():
            assert all(x.isfinite().all() for x in model(images()).final.values())


def test_an_alias_stands_for_a_packaged_model():
    if "nyud-efficientnet-lite2" not in packaged_models():
        pytest.skip("no weights are packaged in this checkout")
    one, other = MTLSINet.from_pretrained("nyud").state_dict(), MTLSINet.from_pretrained("nyud-efficientnet-lite2")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.items())
    assert is_packaged("nyud")
    assert not is_packaged("nyu")
