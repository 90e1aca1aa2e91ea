from __future__ import annotations

import os
import socket
import sys

import pytest

from mtlsi.cli import main
from mtlsi.errors import MistakeError
from mtlsi.page.server import listen


def test_a_port_in_use_is_one_line():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(MistakeError) as error:
            listen("127.0.0.1", port)
    assert f"cannot listen on 127.0.0.1, port {port}" in str(error.value)
    assert "--port" in str(error.value)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none_is_one_line(port):
    with pytest.raises(MistakeError, match="expected 1 to 65535"):
        listen("127.0.0.1", port)


def test_an_address_of_another_machine_is_one_line():
    with pytest.raises(MistakeError, match=r"cannot listen on 192\.0\.2\.1"):
        listen("192.0.2.1", 0)


def test_by_default_this_machine_alone_is_listened_to():
    from mtlsi.options.using import PageOptions

    with listen(PageOptions().host, 0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"
        assert listening.family is socket.AF_INET


def test_without_gradio_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(os, "environ", os.environ.copy())  # the command sets gradio's
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["page", "--port", "0"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "pip install 'mtlsi[page]'" in said
