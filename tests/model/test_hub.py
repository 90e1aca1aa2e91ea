"""Models pushed to a hub and fetched from it: the real library, against a server on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest
import yaml

from hub_server import COMMIT, READER, TOKEN, Hub
from mtlsi.errors import MistakeError
from mtlsi.model import hub as hub_module
from mtlsi.model.build import create_model
from mtlsi.model.network import MTLSINet

CLIENT = """
import json, sys, torch
from pathlib import Path
from mtlsi import MTLSINet, MistakeError, create_model
from mtlsi.model.hub import check_push, push_folder

def attempt(name, call):
    try:
        said[name] = call()
    except MistakeError as error:
        said[name] = f"mistake: {error}"

torch.manual_seed(0)
said, work, writer, reader = {}, Path(sys.argv[1]), *sys.argv[2:4]
model = create_model("tiny", tasks=["depth", "semseg"], input_size=(64, 96)).eval()
image = torch.randn(1, 3, 64, 96)
scores = {"depth": {"RMSE": 0.5123}, "semseg": {"mIoU": 44.25}}
card = {"scores": scores, "notes": "## Bias\\nRooms only."}
load, push = MTLSINet.from_pretrained, model.push_to_hub

attempt("pushed", lambda: push("me/tiny", token=writer, private=True, model_card_kwargs=card))
attempt("unknown token", lambda: push("me/tiny", token="hf_nobody"))
attempt("no right to write", lambda: push("me/tiny", token=reader))
attempt("no id", lambda: push("me//tiny", token=writer))
attempt("nobody", lambda: push("me/tiny"))
attempt("refused", lambda: push("me/broken", token=writer))

attempt("private", lambda: load("me/tiny"))  # before it is in the cache
again = load("me/tiny", token=reader)
said["same"] = all(torch.equal(again(image).final[t], model(image).final[t]) for t in model.tasks)
attempt("gated", lambda: load("me/gated"))
attempt("no file", lambda: load("me/empty"))
attempt("pickle", lambda: load("me/pickle"))
attempt("unknown", lambda: load("me/none"))
attempt("newer", lambda: load("me/newer"))
attempt("revision", lambda: load("me/tiny", token=reader, revision="v7"))

folder = work / "folder"
model.save_pretrained(folder)
attempt("folder", lambda: push_folder(folder, "me/folder", token=writer))
attempt("from folder", lambda: sorted(load("me/folder").tasks))
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def hub():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def said(hub, tmp_path_factory):
    """What a client was told, by what it tried; it runs in a process of its own, where nothing keeps it offline."""
    work = tmp_path_factory.mktemp("client")
    newer = {"tasks": ["depth"], "classes": {}, "input_size": [64, 64], "format_version": 9, "mtlsi_version": "4.2.0"}
    hub.models["me/newer"] = {"config.json": json.dumps(newer).encode(), "model.safetensors": b""}
    hub.models["me/pickle"] = {
        "config.json": json.dumps(newer | {"format_version": 1}).encode(),
        "pytorch_model.bin": b"",
    }
    ours = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(work / "home")}
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
    kept = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HF_TOKEN_PATH")}
    settings = {**kept, **ours, **quiet, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", CLIENT, str(work), TOKEN, READER]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_pushed_model_comes_back_the_same(said, hub):
    assert said["pushed"] == f"{hub.address}/me/tiny/commit/{COMMIT}"
    assert said["same"]
    assert "me/tiny" in hub.private
    assert set(hub.models["me/tiny"]) == {"README.md", "config.json", "model.safetensors"}
    assert json.loads(hub.models["me/tiny"]["config.json"])["format_version"] == 1


@pytest.mark.usefixtures("said")
def test_its_card_says_what_it_does_how_well_and_how_it_is_used(hub):
    front, text = hub.models["me/tiny"]["README.md"].decode().split("---\n", 2)[1:]
    assert yaml.safe_load(front)["library_name"] == "mtlsi"
    assert yaml.safe_load(front)["license"] == "mit"
    assert {"depth-estimation", "semantic-segmentation"} <= set(yaml.safe_load(front)["tags"])
    assert "# tiny\n" in text
    assert "depth in m and semantic segmentation (40 classes) out" in text
    assert 'MTLSINet.from_pretrained("me/tiny")' in text
    assert "| depth | RMSE 0.5123 m |" in text
    assert "| semantic segmentation | mIoU 44.25 % |" in text
    assert "night stand" in text
    assert "## Terms" in text
    assert text.endswith("## Bias\nRooms only.\n")


def test_a_folder_is_pushed_as_it_is(said, hub):
    assert said["folder"] == f"{hub.address}/me/folder"
    assert said["from folder"] == ["depth", "semseg"]
    assert set(hub.models["me/folder"]) == {"README.md", "config.json", "model.safetensors"}
    assert "me/folder" not in hub.private


@pytest.mark.parametrize(
    ("tried", "told"),
    [
        ("unknown token", "the hub does not accept the token"),
        ("no right to write", "you may not do that there"),
        ("no id", "expected OWNER/MODEL"),
        ("nobody", "nobody is logged in; log in with `hf auth login`"),
        ("refused", "the hub answered 418"),
        ("private", "the hub knows no such model, or it is private"),
        ("gated", "its terms to be accepted"),
        ("no file", "does not hold config.json and model.safetensors"),
        ("pickle", "does not hold config.json and model.safetensors"),
        ("unknown", "the hub knows no such model, or it is private"),
        ("revision", "no such revision"),
        ("newer", "expected mtlsi 4.2.0 or later"),
    ],
)
def test_what_goes_wrong_is_told_in_one_line(said, tried, told):
    assert said[tried].startswith("mistake: ")
    assert told in said[tried]
    assert "\n" not in said[tried]
    assert len(said[tried]) < 300


def test_pickles_and_weights_of_a_newer_format_are_never_asked_for(said, hub):
    assert said["same"]
    assert not [line for line in hub.asked if ".bin" in line or ".pkl" in line or ".pt" in line]
    assert not [line for line in hub.asked if "me/newer" in line and "safetensors" in line]
    weights = [line for line in hub.asked if "me/tiny" in line and line.startswith("GET") and "safetensors" in line]
    assert weights == [f"GET /me/tiny/resolve/{COMMIT}/model.safetensors"]  # of the same commit as its config.json


def test_offline_is_told_in_one_line(monkeypatch):
    """Here the library is told to stay offline."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(MistakeError, match=r"the hub cannot be reached and it is not in the local cache; connect"):
        MTLSINet.from_pretrained("somebody/rooms")
    with pytest.raises(MistakeError, match=r"'somebody/rooms' was not pushed to the hub: the hub cannot be reached; "):
        create_model("tiny").push_to_hub("somebody/rooms")


def test_a_broken_line_is_told_as_such(monkeypatch):
    for error in (
        ConnectionResetError("peer"),
        TimeoutError("slow"),
        *(kind("down") for kind in hub_module.NO_WAY[2:]),
    ):

        def broken(*_, error=error, **__):
            raise error

        monkeypatch.setattr(hub_module, "hf_hub_download", broken)
        with pytest.raises(MistakeError, match="the hub cannot be reached"):
            MTLSINet.from_pretrained("somebody/rooms")
