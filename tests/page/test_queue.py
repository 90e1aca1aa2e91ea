"""Ten people who ask the page for their photos at once."""

from __future__ import annotations

import importlib.util
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from PIL import Image

from mtlsi.model.build import create_model
from page_server import served

pytestmark = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed here")

PEOPLE = 10
TASKS = ["depth", "boundary"]


def photo(folder: Path, number: int) -> Path:
    """Each person's photo has a height of its own, by which the result is known."""
    path = folder / f"{number}.png"
    pixels = np.random.default_rng(number).integers(0, 256, (600 + 4 * number, 800, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def ask(address: str, path: Path, together: Barrier) -> tuple[dict, list[int]]:
    """A person's result, and the places in the queue that the page told meanwhile."""
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False)
    together.wait(60)
    job = client.submit(handle_file(path), "model", TASKS, "As trained", "As in training", fn_index=0)
    places = []
    while not job.done():
        if (place := job.status().rank) is not None:
            places.append(place)
        time.sleep(0.002)
    return job.result()[0], places


@pytest.mark.slow
def test_no_other_file_of_the_machine_is_opened_whatever_a_request_says(tmp_path, monkeypatch):
    """Neither in the photo's place nor in another field's, and no device is read."""
    import httpx

    create_model("tiny", tasks=TASKS, input_size=(64, 64)).save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    secret = photo(tmp_path, 1)
    with served(Path("model"), tmp_path / "reached") as address:
        for path in (str(secret), "/etc/passwd", "/dev/zero"):
            file = {"path": path, "meta": {"_type": "gradio.FileData"}}
            for data in (
                [file, "model", TASKS, "As trained", "As in training"],
                [{**file, "is_stream": True}, "model", TASKS, "As trained", "As in training"],
                [None, "model", [file], "As trained", "As in training"],
            ):
                call = f"{address}gradio_api/call/predict"
                event = httpx.post(call, json={"data": data}, timeout=20).json()["event_id"]
                answer = httpx.get(f"{call}/{event}", timeout=20).text
                assert "key" not in answer, data
                assert "event: error" in answer or "refused" in answer or "null" in answer


@pytest.mark.slow
def test_each_of_ten_people_is_queued_and_has_the_own_photo_predicted(tmp_path, monkeypatch):
    create_model("tiny", tasks=TASKS, input_size=(64, 64)).save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    photos = [photo(tmp_path, number) for number in range(PEOPLE)]
    together = Barrier(PEOPLE)
    with served(Path("model"), tmp_path / "reached") as address, ThreadPoolExecutor(PEOPLE) as people:
        told = list(people.map(lambda path: ask(address, path, together), photos))
    assert [result["size"] for result, _ in told] == [[800, 600 + 4 * number] for number in range(PEOPLE)]
    assert len({result["key"] for result, _ in told}) == PEOPLE
    assert max(place for _, places in told for place in places) >= 1  # somebody was told to be further back
