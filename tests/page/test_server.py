from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from threading import Lock

import numpy as np
import pytest

from mtlsi.cli import main
from mtlsi.errors import MistakeError
from mtlsi.model.build import create_model
from mtlsi.page.results import DOWNLOADS, Result, Results
from mtlsi.page.server import MOST_MADE, add_results, listen


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


def test_few_downloads_are_made_at_a_time(monkeypatch):
    """Each takes hundreds of megabytes meanwhile; who waits keeps nobody from the rest of the page."""
    fastapi = pytest.importorskip("fastapi", reason="gradio is not installed here")
    import httpx

    lock, making, most = Lock(), 0, 0

    def make(_):
        nonlocal making, most
        with lock:
            making += 1
            most = max(most, making)
        time.sleep(0.05)
        with lock:
            making -= 1
        return b"made"

    monkeypatch.setitem(DOWNLOADS, "points.ply", ("points", "application/octet-stream", make))
    app, results = fastapi.FastAPI(), Results()
    key = results.keep(Result(np.zeros((2, 3, 3), np.uint8), {}, "a", 1.0))
    add_results(app, results)

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://page") as client:
            waiting = [asyncio.create_task(client.get(f"/results/{key}/points.ply")) for _ in range(6)]
            await asyncio.sleep(0.02)
            assert (await client.get(f"/results/{key}/photo.png")).status_code == 200
            assert sum(task.done() for task in waiting) < 6
            return [(await task).content for task in waiting]

    assert asyncio.run(ask()) == [b"made"] * 6
    assert most == MOST_MADE


START = """
import signal, sys
for name in ("SIGHUP", "SIGINT"):  # ignored under nohup, and in the background of a script
    signal.signal(getattr(signal, name), signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
from mtlsi.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal on this system")
@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed here")
@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM", "SIGINT"])
def test_no_folder_of_uploads_stays_however_the_page_is_ended(tmp_path, name):
    create_model("tiny", tasks=["depth"], input_size=(64, 64)).save_pretrained(tmp_path / "model")
    settings = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", START, "page", "--port", "0", "--model", str(tmp_path / "model")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=settings) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline().startswith("mtlsi page: http")
            assert list(tmp_path.glob("mtlsi-page-*"))
            server.send_signal(getattr(signal, name))
            server.wait(60)
        finally:
            server.kill()
    assert not list(tmp_path.glob("mtlsi-page-*"))
