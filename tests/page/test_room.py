"""Requests of any length and speed, spoken as a server of ASGI speaks them, and uploads that fill their folder."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from mtlsi.page import room
from mtlsi.page.room import MOST_REQUEST, MOST_SAID, UPLOAD, WithRoom, make_room

MB = 2**20


def answered(folder: Path, chunks, *, announced: int | str | None = None, method: str = "POST", path: str = UPLOAD):
    """The status of the answer to a request of these ``chunks``, and the bytes that the page itself has got of it."""
    got, told, waiting = bytearray(), [], [*chunks]

    async def page(_, receive, send):
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError("the sender has left")
            got.extend(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"whole"})

    async def receive():
        if not waiting:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting) or announced == -1}

    async def send(message):
        told.append(message)

    headers = [] if announced in (None, -1) else [(b"content-length", str(announced).encode())]
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    asyncio.run(WithRoom(page, folder)(scope, receive, send))
    return next(message["status"] for message in told if message["type"] == "http.response.start"), len(got)


def test_a_photo_of_the_largest_kind_comes_through_and_a_longer_request_does_not(tmp_path):
    parts = [bytes(MB)] * 41
    assert len(parts) * MB == MOST_REQUEST
    assert answered(tmp_path, parts) == (200, MOST_REQUEST)
    assert answered(tmp_path, parts, announced=MOST_REQUEST) == (200, MOST_REQUEST)
    assert answered(tmp_path, [*parts, b"x"]) == (413, MOST_REQUEST)
    assert answered(tmp_path, [b"x"], announced=MOST_REQUEST + 1) == (413, 0)
    assert answered(tmp_path, [b"x"], announced="9" * 5000) == (413, 0)


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/run/upload", "/gradio_api/upload/", "/"])
def test_what_is_no_photo_is_short(tmp_path, path):
    """JSON takes many times its length in memory."""
    assert answered(tmp_path, [bytes(MOST_SAID)], path=path) == (200, MOST_SAID)
    assert answered(tmp_path, [bytes(MOST_SAID), b"x"], path=path) == (413, MOST_SAID)
    assert answered(tmp_path, [b"x"], announced=MOST_SAID + 1, path=path) == (413, 0)


def test_a_sender_who_is_too_slow_is_let_go(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "LONGEST_S", 0.05)
    assert answered(tmp_path, [b"x"], announced=-1) == (408, 1)


def upload(folder: Path, name: str, size: int, age_s: float) -> Path:
    path = folder / name / "photo.png"
    path.parent.mkdir()
    with path.open("wb") as file:
        file.truncate(size)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_the_oldest_uploads_make_room_and_the_young_ones_stay(tmp_path):
    oldest, old, young = (upload(tmp_path, name, 10 * MB, age) for name, age in (("c", 900), ("a", 300), ("b", 5)))
    assert make_room(tmp_path, 30 * MB)
    assert oldest.exists()
    assert make_room(tmp_path, 29 * MB)
    assert [path.exists() for path in (oldest, old, young)] == [False, True, True]
    assert not make_room(tmp_path, 9 * MB)
    assert [path.exists() for path in (old, young)] == [False, True]


def test_empty_files_are_counted_too(tmp_path):
    for number in range(16):
        upload(tmp_path, str(number), 0, 900)
    assert make_room(tmp_path, MB)
    assert len(list(tmp_path.rglob("*.png"))) == 16
    assert make_room(tmp_path, MB // 2)
    assert len(list(tmp_path.rglob("*.png"))) == 8


def test_without_room_a_request_is_refused_before_it_is_read(tmp_path):
    upload(tmp_path, "young", room.MOST_KEPT, 0)
    assert answered(tmp_path, [b"x"]) == (507, 0)
    assert answered(tmp_path, [b"x"], method="GET") == (200, 1)


def test_what_may_still_come_counts_as_if_it_were_there(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "MOST_KEPT", 2 * MOST_REQUEST)
    statuses = []

    async def page(scope, _, send):
        await scope["go on"].wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def three_at_once():
        app, go_on = WithRoom(page, tmp_path), asyncio.Event()
        scope = {"type": "http", "method": "POST", "path": UPLOAD, "headers": [], "go on": go_on}
        tasks = [asyncio.create_task(app(scope, None, send)) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert statuses == [507]
        go_on.set()
        await asyncio.gather(*tasks)
        assert app.coming == 0

    asyncio.run(three_at_once())
    assert sorted(statuses) == [200, 200, 507]
