"""Model folders of every version: their files, and which of them load."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest
import torch

from mtlsi.errors import MistakeError
from mtlsi.model.build import create_model
from mtlsi.model.network import MTLSINet
from mtlsi.model.stored import FORMAT
from mtlsi.sizes import LATER_SIZES


def saved(folder, **options):
    """A small network, whose statistics are not the initial ones, in ``folder``."""
    torch.manual_seed(0)
    model = create_model("tiny", **options).train()
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 96))
    model.eval().save_pretrained(folder)
    return model


def edit(folder, *without, **changes):
    path = folder / "config.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in settings.items() if name not in without}))


@torch.no_grad()
def assert_same(one, other):
    image = torch.randn(1, 3, 64, 96)
    ours, theirs = one(image), other(image)
    for task in other.tasks:
        assert torch.equal(ours.final[task], theirs.final[task])
        assert torch.equal(ours.coarse[task], theirs.coarse[task])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    saved(path)
    return path


def test_versions_are_written_and_a_loaded_model_writes_them_again(folder, tmp_path):
    stored = json.loads((folder / "config.json").read_text())
    assert (stored["format_version"], stored["mtlsi_version"]) == (FORMAT, version("mtlsi"))
    MTLSINet.from_pretrained(folder).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == stored


OLD_FORMS = {
    "of before there were versions": ({}, ("format_version", "mtlsi_version")),
    "of the first packaged model": (
        {"form": "paper"},
        ("format_version", "mtlsi_version", "own_tasks", "form", "decoder"),
    ),
    "of before heads had a width": ({"form": "paper"}, ("format_version", "mtlsi_version", "own_tasks", *LATER_SIZES)),
}


@pytest.mark.parametrize("form", OLD_FORMS)
def test_older_folders_load_with_the_same_predictions(form, tmp_path):
    options, without = OLD_FORMS[form]
    model = saved(tmp_path, **options)
    edit(tmp_path, *without)
    again = MTLSINet.from_pretrained(str(tmp_path))
    assert again.sizes == model.sizes or "decoder_options" in without
    assert_same(again, model)


def test_a_folder_of_before_contexts_were_a_choice_loads_with_sums(tmp_path):
    model = saved(tmp_path, decoder_options={"context": "sums"})
    options = json.loads((tmp_path / "config.json").read_text())["decoder_options"]
    assert options.pop("context") == "sums"
    edit(tmp_path, decoder_options=options)
    assert_same(MTLSINet.from_pretrained(tmp_path), model)


def test_a_run_folder_loads_by_str_and_by_path(tiny_run):
    assert_same(MTLSINet.from_pretrained(tiny_run.out), MTLSINet.from_pretrained(str(tiny_run.out)))
    assert json.loads((tiny_run.out / "config.json").read_text())["format_version"] == FORMAT


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"format_version": FORMAT + 1, "mtlsi_version": "7.1.0", "new_part": {"a": 1}},
            f"written in format {FORMAT + 1}, this mtlsi {version('mtlsi')} reads formats up to {FORMAT}; "
            "expected mtlsi 7.1.0 or later: upgrade mtlsi",
        ),
        ({"format_version": FORMAT + 1, "mtlsi_version": ["x"]}, "expected a newer mtlsi or later"),
        ({"format_version": "new"}, "is of the format 'new'; expected a number"),
        ({"format_version": -1}, "is of the format -1"),
        ({"format_version": True}, "is of the format True"),
    ],
)
def test_a_newer_format_and_none_at_all_are_refused_in_one_line(tmp_path, changes, told):
    (tmp_path / "config.json").write_text(
        json.dumps({"tasks": ["depth"], "classes": {}, "input_size": [64, 64]} | changes)
    )
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(MistakeError) as error:
        MTLSINet.from_pretrained(tmp_path)
    assert told in str(error.value)
    assert str(error.value).startswith(f"model {tmp_path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[]", "3", '"x"', "null", "{}", '{"tasks": ["depth"]}', "[" * 5000])
def test_a_config_json_that_is_no_model_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(MistakeError, match=r"config\.json"):
        MTLSINet.from_pretrained(tmp_path)


def test_a_pickle_in_the_place_of_weights_is_not_opened(folder, tmp_path):
    """It would leave a file behind."""
    import pickle

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    target = tmp_path / "model"
    target.mkdir()
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    for name in ("model.safetensors", "pytorch_model.bin"):
        (target / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(MistakeError, match="not a whole safetensors file"):
        MTLSINet.from_pretrained(target)
    (target / "model.safetensors").unlink()
    with pytest.raises(MistakeError, match=r"has no model\.safetensors"):
        MTLSINet.from_pretrained(target)
    assert not (tmp_path / "harm").exists()


def test_a_saved_folder_has_a_card(folder):
    text = (folder / "README.md").read_text()
    assert "boundaries out" in text
    assert "mtlsi predict photo.jpg --model FOLDER" in text
    assert "## Scores" not in text


@pytest.mark.parametrize("size", [[100_000, 100_000], [0, 64], [64], [64, True], [10**400, 1], [1, 2**25]])
def test_an_input_size_that_no_image_has_is_refused(folder, tmp_path, size):
    settings = json.loads((folder / "config.json").read_text()) | {"input_size": size}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(MistakeError, match=r"input_size .*; expected \[height, width\], at most 16384 a side and 33"):
        MTLSINet.from_pretrained(tmp_path)
