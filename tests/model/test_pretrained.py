"""What a name stands for: a packaged model letter by letter, else a folder, else a model of the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtlsi.errors import MistakeError
from mtlsi.model import pretrained
from mtlsi.model.build import create_model
from mtlsi.model.network import MTLSINet
from mtlsi.model.pretrained import folder_of, is_packaged, note_on_name, packaged_models


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working folder, with a model of depth in ``scenes`` and in ``room``; packaged as ``scenes``, for which ``room``
    stands, is one of normals."""
    package, here = tmp_path / "package" / "models", tmp_path / "here"
    monkeypatch.setattr(pretrained, "PACKAGED", package)
    monkeypatch.setattr(pretrained, "ALIASES", {"room": "scenes"})
    create_model("tiny", tasks=["normals"]).save_pretrained(package / "scenes")
    (package.parent / "training").mkdir()
    own = create_model("tiny", tasks=["depth"])
    for name in ("scenes", "room"):
        own.save_pretrained(here / name)
    monkeypatch.chdir(here)
    return here


OF_THE_PACKAGE = ("scenes", "room")
OWN = (
    "./scenes",
    "scenes/",
    "scenes/.",
    "../here/scenes",
    ".//scenes",
    "./room",
    "room/",
    Path("scenes"),
    Path("room"),
)


def test_only_the_letters_of_its_name_are_the_packaged_model(here):
    assert packaged_models() == ["scenes"]
    for name in OF_THE_PACKAGE:
        assert is_packaged(name)
        assert MTLSINet.from_pretrained(name).tasks == ("normals",), name
    for name in (*OWN, str(here / "scenes"), here / "scenes"):
        assert not is_packaged(name)
        assert MTLSINet.from_pretrained(name).tasks == ("depth",), name


def test_a_path_within_the_working_folder_never_leads_into_the_package(here, monkeypatch):
    monkeypatch.chdir(here / "scenes")
    assert MTLSINet.from_pretrained(".").tasks == ("depth",)
    assert MTLSINet.from_pretrained("../room").tasks == ("depth",)
    for missing in ("../training", "../models/scenes"):
        with pytest.raises(MistakeError, match="is not a folder, not packaged"):
            folder_of(missing)


def test_no_name_at_all_is_not_the_working_folder(here, monkeypatch):
    monkeypatch.chdir(here / "scenes")
    with pytest.raises(MistakeError, match="model '' is not a folder, not packaged"):
        MTLSINet.from_pretrained("")


def test_a_model_beside_the_packaged_one_of_its_name_is_noted(here):
    for name in OF_THE_PACKAGE:
        assert note_on_name(name) == (
            f"{name} is the packaged model; for the model in the folder of that name here give ./{name}"
        )
    for name in OWN:
        assert note_on_name(name) is None
    (here / "scenes" / "config.json").unlink()  # a folder of data, say
    assert note_on_name("scenes") is None
