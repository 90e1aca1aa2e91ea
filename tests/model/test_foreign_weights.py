"""Files of weights that are refused: what the one line says must work when it is done."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtlsi.errors import MistakeError
from mtlsi.model.backbone import Backbone
from mtlsi.model.build import create_model
from mtlsi.model.network import MTLSINet

SMALL = "mobilenetv2_035"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 12345\n"


def mistake(call):
    with pytest.raises(MistakeError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def program_in(message, **names):
    """What ``message`` has Python do."""
    program = re.search(r'python -c "([^"]*)"', message)[1]
    for name, path in names.items():
        program = program.replace(name, str(path))
    return program


def do_what_it_says(message, folder, **names):
    """In a fresh process, which has imported nothing."""
    subprocess.run([sys.executable, "-c", program_in(message, **names)], cwd=folder, check=True)


def test_a_pickled_backbone_is_refused_and_converts_as_the_line_says(tmp_path):
    one, other = Backbone(SMALL), Backbone(SMALL)
    torch.save(one.body.state_dict(), tmp_path / "mine.pth")
    message = mistake(lambda: other.load(tmp_path / "mine.pth"))
    assert "expected a .safetensors file; nothing is unpickled here, convert it once" in message
    do_what_it_says(message, tmp_path)
    other.load(tmp_path / "mine.safetensors")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_a_prefix_is_named_and_comes_off_as_the_line_says(tmp_path):
    one, other = Backbone(SMALL), Backbone(SMALL)
    save_file({f"module.encoder.{k}": v for k, v in one.body.state_dict().items()}, tmp_path / "old.safetensors")
    message = mistake(lambda: other.load(tmp_path / "old.safetensors"))
    assert "the names begin with 'module.encoder.', take it off" in message
    do_what_it_says(message, tmp_path, OLD=tmp_path / "old.safetensors", NEW=tmp_path / "new.safetensors")
    other.load(tmp_path / "new.safetensors")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_a_pointer_in_place_of_weights_is_called_so(tmp_path):
    (tmp_path / "backbone.safetensors").write_text(POINTER)
    message = mistake(lambda: Backbone(SMALL).load(tmp_path / "backbone.safetensors"))
    assert "it is a Git LFS pointer, the weights are still on the server: git lfs pull fetches them" in message
    create_model("tiny").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_text(POINTER)
    assert "git lfs pull" in mistake(lambda: MTLSINet.from_pretrained(tmp_path / "model"))


def test_models_are_refused_with_what_to_do(tmp_path, monkeypatch):
    def do_it_here(message, folder, **names):
        """The same programs as above, which were seen to need nothing that is imported here."""
        with monkeypatch.context() as patched:
            patched.chdir(folder)
            exec(program_in(message, **names), {})

    network = create_model("tiny", tasks=("depth",), input_size=(64, 64))
    network.save_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    state = load_file(weights)
    torch.save(state, tmp_path / "model.pth")
    message = mistake(lambda: MTLSINet.from_pretrained(tmp_path / "model.pth"))
    assert "is a file; expected the folder" in message
    assert "convert it once" in message
    (tmp_path / "model.onnx").write_bytes(b"a graph")
    message = mistake(lambda: MTLSINet.from_pretrained(tmp_path / "model.onnx"))
    assert "it is an exported graph: mtlsi predict --model FILE" in message
    weights.unlink()
    torch.save(state, tmp_path / "model" / "model.bin")
    message = mistake(lambda: MTLSINet.from_pretrained(tmp_path / "model"))
    assert "has no model.safetensors" in message
    do_it_here(message, tmp_path / "model")
    assert all(
        torch.equal(x, network.state_dict()[n])
        for n, x in MTLSINet.from_pretrained(tmp_path / "model").state_dict().items()
    )
    save_file({f"module.{name}": x for name, x in state.items()}, weights)
    message = mistake(lambda: MTLSINet.from_pretrained(tmp_path / "model"))
    assert "the names begin with 'module.', take it off" in message
    do_it_here(message, tmp_path, OLD=weights, NEW=weights)
    MTLSINet.from_pretrained(tmp_path / "model")


def test_weights_of_another_network_are_no_matter_of_prefixes(tmp_path):
    create_model("tiny", tasks=("depth",)).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"channels": 32}))
    assert "begin with" not in mistake(lambda: MTLSINet.from_pretrained(tmp_path))
