"""``mtlsi page``: the page and the results' files over HTTP, on this machine alone unless another address is given."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlsi.errors import MistakeError
from mtlsi.options.using import PageOptions
from mtlsi.page.results import DOWNLOADS, Result, Results
from mtlsi.page.uploads import MOST_BYTES

if TYPE_CHECKING:
    from fastapi import FastAPI  # pyright: ignore[reportMissingImports]

    from mtlsi.page.models import Models

LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""What browsers are told: fetch nothing from anywhere else, whatever a script asks for."""
MOST_MADE = 2
"""Downloads made at a time: the points of a large photo take 400 MB meanwhile."""
QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_SSR_MODE": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Environment of gradio, read when it is imported: nothing is reported, nothing is recorded."""


def page_from_command(options: PageOptions) -> None:
    """Serve the page until it is stopped. Raises ``MistakeError`` for a model, a port or a library that is not there."""
    with exit_on_signals(), tempfile.TemporaryDirectory(prefix="mtlsi-page-") as folder:
        os.environ.update(QUIET | {"GRADIO_TEMP_DIR": folder})
        try:
            import gradio  # noqa: F401  # pyright: ignore[reportMissingImports]: an extra, and seconds of imports
            import uvicorn  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MistakeError(f"mtlsi page needs gradio ({error}); pip install 'mtlsi[page]'") from error
        from mtlsi.page.models import Models

        listening = listen(options.host, options.port)
        with listening:
            models = Models(options.models, device=options.device, dtype=options.dtype)
            app = build_app(models, options.host)
            server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
            print(_greeting(options.host, listening.getsockname()[1]), flush=True)
            server.run(sockets=[listening])


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Within the context SIGTERM and the end of the terminal raise ``SystemExit``: else the folder of uploads would stay."""
    ends = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.getsignal(number) for number in ends}
    for number, handler in before.items():
        if number is signal.SIGTERM or handler is signal.SIG_DFL:  # nohup ignores the end of the terminal
            signal.signal(number, lambda *_: sys.exit(0))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any free one. ``MistakeError`` where it cannot."""
    if not 0 <= port < 65536:
        raise MistakeError(f"--port {port}; expected 1 to 65535, or 0 for any free one")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or error
        raise MistakeError(f"cannot listen on {host}, port {port} ({reason}); give another --port or --host") from error


def build_app(models: Models, host: str = LOOPBACK[0]) -> FastAPI:
    """The page over ``models``, and the routes that the viewer asks: ``results/KEY/FILE``."""
    import gradio as gr  # pyright: ignore[reportMissingImports]
    from fastapi import FastAPI  # pyright: ignore[reportMissingImports]
    from gradio.utils import get_upload_folder  # pyright: ignore[reportMissingImports]
    from starlette.middleware.trustedhost import TrustedHostMiddleware  # pyright: ignore[reportMissingImports]

    from mtlsi.page.app import build_page, style
    from mtlsi.page.room import WithRoom

    results = Results()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_results(app, results)
    page = build_page(models, results)
    gr.mount_gradio_app(app, page, path="/", max_file_size=MOST_BYTES, footer_links=[], **style())
    page.has_launched = True  # else gradio takes any file of this machine that a request names for an upload
    if host in LOOPBACK:  # a page elsewhere cannot reach this one by giving its own name this machine's address
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]"])
    app.add_middleware(WithRoom, folder=Path(get_upload_folder()))
    app.add_middleware(WithPolicy)
    return app


class WithPolicy:
    """Adds ``POLICY`` to every answer. No base class of starlette's: those hold back streams."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                told = (b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff")
                message["headers"] = [*message.get("headers", ()), *told, (b"referrer-policy", b"no-referrer")]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def add_results(app: FastAPI, results: Results) -> None:
    """``results/KEY/FILE``: ``photo.png``, ``cloud.glb``, ``TASK.png``, ``TASK.bin`` and ``DOWNLOADS``."""
    from fastapi import Response  # pyright: ignore[reportMissingImports]
    from starlette.concurrency import run_in_threadpool  # pyright: ignore[reportMissingImports]

    turns = asyncio.Semaphore(MOST_MADE)

    @app.get("/results/{key}/{file}")
    async def answer(key: str, file: str) -> Response:
        try:
            result = results.find(key)
            headers = {"cache-control": "private, max-age=3600"}
            if file in DOWNLOADS:
                ending, kind, make = DOWNLOADS[file]
                name = f"{result.stem}_{ending}{Path(file).suffix}"
                quoted = "".join(f"%{byte:02X}" for byte in name.encode())
                headers["content-disposition"] = f"attachment; filename*=UTF-8''{quoted}"
                async with turns:  # who waits holds no thread
                    content = await run_in_threadpool(make, result)
            else:
                make_part, kind = _part(result, file)
                content = await run_in_threadpool(make_part)
            return Response(content, media_type=kind, headers=headers)
        except MistakeError as error:
            return Response(str(error), status_code=404, media_type="text/plain; charset=utf-8")


def _part(result: Result, file: str) -> tuple[Callable[[], bytes], str]:
    """What makes one file of the viewer, and its type."""
    if file == "photo.png":
        return result.photo, "image/png"
    if file == "cloud.glb":
        return result.turning_cloud, "model/gltf-binary"
    task, _, ending = file.rpartition(".")
    if task in result.prediction and ending in ("png", "bin"):
        if ending == "png":
            return lambda: result.drawing(task), "image/png"
        return lambda: result.values(task), "application/octet-stream"
    raise MistakeError(f"no {file!r} in this result")


def _greeting(host: str, port: int) -> str:
    shown = f"[{host}]" if ":" in host else host
    reach = "" if host in LOOPBACK else "; everybody who reaches this machine can use it"
    return f"mtlsi page: http://{shown}:{port} (Ctrl-C stops it{reach})"
