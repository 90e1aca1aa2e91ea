"""How much the page takes in: in one request, and in all uploads together."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtlsi.page.uploads import MOST_BYTES

UPLOAD = "/gradio_api/upload"
"""Where photos are sent to, by every way of choosing one; what comes there is written to files."""
MOST_REQUEST = MOST_BYTES + 2**20
"""Bytes of a request to ``UPLOAD``: a photo and what is said around it."""
MOST_SAID = 2**17
"""Bytes of any other request, which is JSON: it may take sixty times as many in memory, while it is queued, too."""
MOST_KEPT = 2**30
"""Bytes of all uploads together, those that are still coming taken for as long as they may be."""
LEAST_FILE = 2**16
"""As many bytes a file is taken for at least: a million empty ones are many, too."""
YOUNG_S = 60.0
"""An upload as young as this is being read or predicted, and is not removed for another one."""
LONGEST_S = 300.0
"""For a request to come: a photo of the largest kind at 1.1 Mbit/s. Who sends more slowly would keep others' room."""
LEFT = {"type": "http.disconnect"}
TOO_LARGE = 413, f"a request of more than {MOST_REQUEST // 2**20} MB: make the photo smaller"
TOO_LONG = 413, f"a request of more than {MOST_SAID // 2**10} KB that is no photo"
TOO_SLOW = 408, f"a request that took more than {LONGEST_S:.0f} s to come: make the photo smaller"
NO_ROOM = 507, "too many photos at once; try again in a minute"


class WithRoom:
    """Refuses requests that are too long, and removes the oldest uploads in ``folder`` where another one finds no room.

    No base class of starlette's: those hold back streams.
    """

    def __init__(self, app: Any, folder: Path):
        self.app, self.folder, self.coming = app, folder, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self.app(scope, receive, send)
            return
        if not make_room(self.folder, MOST_KEPT - (self.coming + 1) * MOST_REQUEST):
            await _refuse(send, *NO_ROOM)
            return
        self.coming += 1
        try:
            await self._bounded(scope, receive, send)
        finally:
            self.coming -= 1

    async def _bounded(self, scope: Any, receive: Any, send: Any) -> None:
        """Counts what comes, whatever was announced: to the page what is beyond the limits looks like a sender who left."""
        most, too_large = (MOST_REQUEST, TOO_LARGE) if scope["path"] == UPLOAD else (MOST_SAID, TOO_LONG)
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if not told.isdigit() or len(told) > 15 or int(told) > most:
            await _refuse(send, *too_large)
            return
        num_bytes, whole, answered = 0, False, False
        refusal: tuple[int, str] | None = None
        end = time.monotonic() + LONGEST_S

        async def receive_bounded() -> Any:
            nonlocal num_bytes, whole, refusal
            if whole:  # what comes now is that the sender has left
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), end - time.monotonic())
            except TimeoutError:
                refusal = TOO_SLOW
                return LEFT
            num_bytes += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if num_bytes > most:
                refusal = too_large
            return message if refusal is None else LEFT

        async def send_unless_refused(message: Any) -> None:
            nonlocal answered
            if refusal is None:
                answered = True
                await send(message)

        try:
            await self.app(scope, receive_bounded, send_unless_refused)
        except Exception:
            if refusal is None:
                raise
        if refusal is not None and not answered:
            await _refuse(send, *refusal)


def make_room(folder: Path, most: int) -> bool:
    """Remove the oldest files below ``folder`` until those that are left have ``most`` bytes; whether they have."""
    files = sorted(_files(folder))
    kept = sum(size for _, size, _ in files)
    for changed, size, path in files:
        if kept <= most or changed > time.time() - YOUNG_S:
            break
        path.unlink(missing_ok=True)
        kept -= size
    return kept <= most


def _files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """When each file was changed, the bytes that it is taken for, and its path."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            try:
                found = path.lstat()
            except FileNotFoundError:  # gradio has swept it away
                continue
            yield found.st_mtime, max(found.st_size, LEAST_FILE), path


async def _refuse(send: Any, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
