"""The page as a person meets it: a real browser, a real server, a small network that was never trained."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mtlsi.page
from mtlsi.kinds.palette import palette
from mtlsi.model.network import MTLSINet
from mtlsi.prediction.predictor import Predictor
from page_server import lively_model, served

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
MISSING = [name for name in ("gradio", "selenium") if importlib.util.find_spec(name) is None]
MISSING += [name for name, path in (("chromium", BROWSER), ("chromedriver", DRIVER)) if path is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the page needs {', '.join(MISSING)}, not installed here")

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-default-apps",
    "--enable-unsafe-swiftshader", "--window-size=1400,1400",
)  # fmt: skip
PATIENCE_S = 120  # for one step, on a busy machine
TASKS = ("semseg", "depth", "normals", "boundary")


@contextmanager
def browsing(profile: Path) -> Iterator[Any]:
    """A browser with an empty profile that writes down what it asks for."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.binary_location = str(BROWSER)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        browser.set_script_timeout(PATIENCE_S)
        yield browser
    finally:
        browser.quit()


class Visit:
    """What a person does on the page."""

    def __init__(self, browser: Any, address: str):
        self.browser, self.address = browser, address
        browser.get(address)
        self.wait("input[type=file]")

    def find(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def wait(self, selector: str) -> Any:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if found := self.find(selector):
                return found[0]
            time.sleep(0.1)
        pytest.fail(f"waited in vain for {selector}; the page says {self.find('body')[0].text!r}")

    def upload(self, path: Path) -> None:
        self.find("#photo input[type=file]")[0].send_keys(str(path))

    def point(self, task: str, across: float, down: float) -> dict[str, str]:
        """The values that the page shows for every task with the pointer there on the card of ``task``."""
        from selenium.webdriver import ActionChains

        view = self.find(f".mtlsi .card[data-task={task}] .view")[0]
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", view)
        x, y = (share - 0.5 for share in (across, down))
        ActionChains(self.browser).move_to_element_with_offset(
            view, round(x * view.rect["width"]), round(y * view.rect["height"])
        ).perform()
        place = self.wait(".mtlsi.reading")
        shown = {name: place.get_attribute(f"data-{name}") for name in "xy"}
        cards = self.find(".mtlsi .card")
        return shown | {
            card.get_attribute("data-task"): card.find_element("css selector", ".value").text for card in cards
        }

    def requests(self) -> set[str]:
        """Every address that the browser asked for since the last call, as a page."""
        messages = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
        return {entry["request"]["url"] for entry in sent}


def expected_words(prediction: dict[str, np.ndarray], names: list[str], x: int, y: int) -> dict[str, str]:
    normal = prediction["normals"][y, x]
    return {
        "semseg": names[prediction["semseg"][y, x]],
        "depth": f"{prediction['depth'][y, x]:.2f} m",
        "normals": "({:.2f}, {:.2f}, {:.2f})".format(*normal),
        "boundary": f"{prediction['boundary'][y, x]:.2f}",
    }


def numbers_in(text: str) -> list[float]:
    words = (word.strip("(),m ") for word in text.split())
    return [float(word) for word in words if word]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "untrained"
    lively_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    path = tmp_path_factory.mktemp("photo") / "room 1.png"
    Image.fromarray(coarse).resize((240, 180), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.mark.slow
def test_a_visit_from_upload_to_download(model_folder, photo, tmp_path):
    predictor = Predictor(MTLSINet.from_pretrained(model_folder), device="cpu")
    expected = predictor(photo)
    names = list(predictor.model.classes["semseg"])
    assert len(np.unique(expected["semseg"])) > 3  # else the test would say little
    with served(model_folder, tmp_path / "reached") as address, browsing(tmp_path / "profile") as browser:
        visit = Visit(browser, address)
        refuses_what_is_no_photo(visit, tmp_path)
        visit.upload(photo)
        visit.wait(f".mtlsi[data-ready='{len(TASKS)}']")
        shows_every_task_with_its_legend(visit, expected, names)
        reads_the_predictors_values(visit, expected, names)
        draws_the_map_and_slides_to_the_photo(visit, expected, photo)
        gives_the_exact_arrays(visit, expected)
        turns_a_cloud(visit)
        predicts_chosen_tasks_alone(visit)
        foreign = {url for url in visit.requests() if not url.startswith((address, "data:", "blob:", "chrome:"))}
        assert foreign == set()
    assert not (tmp_path / "reached").exists(), (tmp_path / "reached").read_text()
    assert not list(
        Path(mtlsi.page.__file__).parent.glob("*.pyi")
    )  # gradio writes some for classes that extend its own


def refuses_what_is_no_photo(visit: Visit, folder: Path) -> None:
    hostile = folder / "<b>page.jpg"
    hostile.write_text("<html><script>document.title = 'taken'</script></html>")
    visit.upload(hostile)
    said = visit.wait(".mtlsi .refused").text
    assert said == "<b>page.jpg: not a whole image; expected JPEG, PNG, WebP, TIFF, BMP, AVIF or HEIC"
    assert visit.browser.title == "mtlsi"


def shows_every_task_with_its_legend(visit: Visit, expected: dict[str, np.ndarray], names: list[str]) -> None:
    assert [card.get_attribute("data-task") for card in visit.find(".mtlsi .card")] == list(TASKS)
    present = {names[index] for index in np.unique(expected["semseg"])}
    assert {entry.text for entry in visit.find(".mtlsi .card[data-task=semseg] .entry")} == present
    assert [mark.text[-1] for mark in visit.find(".mtlsi .card[data-task=depth] .marks span")] == ["m"] * 5
    assert visit.find(".mtlsi .said")[0].text.startswith("240 x 180 · ")


def reads_the_predictors_values(visit: Visit, expected: dict[str, np.ndarray], names: list[str]) -> None:
    for task, across, down in (
        ("semseg", 0.2, 0.3),
        ("depth", 0.5, 0.5),
        ("boundary", 0.9, 0.8),
        ("normals", 0.7, 0.1),
    ):
        shown = visit.point(task, across, down)
        x, y = int(shown.pop("x")), int(shown.pop("y"))
        assert (x, y) == (pytest.approx(240 * across, abs=2), pytest.approx(180 * down, abs=2))
        wanted = expected_words(expected, names, x, y)
        assert shown.pop("semseg") == wanted.pop("semseg")
        for name, text in wanted.items():  # the last digit may be rounded the other way
            assert numbers_in(shown[name]) == pytest.approx(numbers_in(text), abs=0.0101), name


def draws_the_map_and_slides_to_the_photo(visit: Visit, expected: dict[str, np.ndarray], photo: Path) -> None:
    view = visit.find(".mtlsi .card[data-task=semseg] .view")[0]
    slider = visit.find(".mtlsi .wipe input")[0]
    slide = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
    classes = np.asarray(palette(40), np.uint8)[expected["semseg"]]
    pixels = np.asarray(Image.open(photo))
    for percent, left, right in ((50, pixels, classes), (0, classes, classes)):
        visit.browser.execute_script(slide, slider, percent)
        shot = np.asarray(Image.open(io.BytesIO(view.screenshot_as_png)).convert("RGB").resize((240, 180)), int)
        for drawn, half in ((left, slice(20, 110)), (right, slice(130, 220))):
            # by the median: marks, the divider and resized edges differ
            assert np.median(np.abs(shot[20:160, half] - drawn[20:160, half].astype(int))) <= 3


def gives_the_exact_arrays(visit: Visit, expected: dict[str, np.ndarray]) -> None:
    links = {link.text: link.get_attribute("href") for link in visit.find(".mtlsi .downloads a")}
    assert list(links) == ["Arrays .npz", "Panel .png", "Points .ply", "Points .glb"]
    with urllib.request.urlopen(links["Arrays .npz"]) as answer:
        assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''" + percent_coded(
            "room_1_arrays.npz"
        )
        arrays = np.load(io.BytesIO(answer.read()))
    for task in TASKS:
        np.testing.assert_allclose(arrays[task], expected[task], atol=1e-5)
    with urllib.request.urlopen(links["Points .ply"]) as answer:
        assert answer.read(4) == b"ply\n"


def percent_coded(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


def turns_a_cloud(visit: Visit) -> None:
    from selenium.webdriver import ActionChains

    next(tab for tab in visit.find("button[role=tab]") if tab.text == "Point cloud").click()
    if any("WebGL" in note.text for note in visit.find(".mtlsi-cloud .note")):
        return  # this browser draws none, and says so
    canvas = visit.wait(".mtlsi-cloud canvas[data-drawn]")
    assert int(canvas.get_attribute("data-drawn")) > 10_000
    before = np.asarray(Image.open(io.BytesIO(canvas.screenshot_as_png)).convert("RGB"), int)
    assert len(np.unique(before.reshape(-1, 3), axis=0)) > 100
    ActionChains(visit.browser).click_and_hold(canvas).move_by_offset(120, 0).release().perform()
    time.sleep(0.5)
    after = np.asarray(Image.open(io.BytesIO(canvas.screenshot_as_png)).convert("RGB"), int)
    assert (np.abs(after - before).max(-1) > 20).mean() > 0.02
    next(tab for tab in visit.find("button[role=tab]") if tab.text == "Tasks").click()


def predicts_chosen_tasks_alone(visit: Visit) -> None:
    boxes = visit.find("input[type=checkbox]")
    assert len(boxes) == len(TASKS)
    for box in (boxes[0], boxes[3]):
        box.click()
    visit.wait(".mtlsi[data-ready='2']")
    assert [card.get_attribute("data-task") for card in visit.find(".mtlsi .card")] == ["depth", "normals"]
