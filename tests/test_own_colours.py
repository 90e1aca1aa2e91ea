"""The colours that a data set gives its classes, from dataset.yaml to every drawing of a model trained on it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

import mtlsi
from mtlsi import kinds
from mtlsi.data.datasets import colours_of, open_dataset
from mtlsi.data.readers.folder import Folder
from mtlsi.data.scenes.dataset import render_scene
from mtlsi.dataset_tools.prepare import prepare
from mtlsi.drawing.panels import draw_task
from mtlsi.errors import MistakeError
from mtlsi.kinds.palette import palette
from mtlsi.model.build import create_model
from mtlsi.model.network import MTLSINet
from mtlsi.packing.pack import ROOM_HW, ROOMS, rooms
from mtlsi.prediction.files import predict_paths
from mtlsi.prediction.predictor import Predictor
from mtlsi.studies.sheet import draw_sheet
from mtlsi.training.setup import build_model

SIDE = 64
COLOURS = {"sky": [1, 99, 250], "road": [250, 3, 120], "tree": [7, 200, 30]}
TABLE = np.uint8(list(COLOURS.values()))
OURS = palette(3)


def holds(sheet: np.ndarray, colour: object) -> bool:
    return bool((sheet == np.asarray(colour)).all(-1).any())


def drawn_in_own_colours(sheet: np.ndarray, classes: np.ndarray) -> None:
    """Every class present has its colour on ``sheet``, and nothing has our own."""
    for index in np.unique(classes):
        assert holds(sheet, TABLE[index]), index
    assert not any(holds(sheet, colour) for colour in OURS)


@pytest.fixture(scope="module")
def streets(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("colours") / "streets"
    stripes = np.arange(SIDE) * 3 // SIDE
    for index in range(4):
        classes = np.roll(stripes, 9 * index)[None].repeat(SIDE, 0)
        for folder, pixels in {"images": 255 - TABLE[classes], "semseg": TABLE[classes]}.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"street_{index}.png")
    lists = {"train": ["street_0", "street_1", "street_2"], "val": ["street_3"]}
    settings = {"splits": lists, "tasks": {"semseg": {"colours": COLOURS}}}
    (root / "dataset.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return root


@pytest.fixture(scope="module")
def run(streets, tiny_config, tmp_path_factory):
    """A training of two steps: its configuration and its folder."""
    data = replace(tiny_config.data, name="folder", root=str(streets), size_hw=(SIDE, SIDE), image_hw=(SIDE, SIDE))
    train = replace(tiny_config.train, iterations=2, checkpoint_every=0, evaluate_every=0)
    config, out = replace(tiny_config, data=data, train=train), tmp_path_factory.mktemp("run") / "run"
    mtlsi.train(config, out, console=Console(file=StringIO()))
    return config, out


def test_the_model_folder_holds_them(run):
    _, out = run
    assert json.loads((out / "config.json").read_text())["colours"] == {"semseg": TABLE.tolist()}
    network = MTLSINet.from_pretrained(out)
    assert network.classes == {"semseg": tuple(COLOURS)}
    assert network.colours == {"semseg": tuple(map(tuple, TABLE.tolist()))}


def test_samples_and_study_sheets_are_drawn_in_them(run):
    config, out = run
    truth = open_dataset(config.data, "val")[0]["semseg"].numpy()
    samples = [np.asarray(Image.open(path)) for path in (out / "samples").iterdir()]
    assert len(samples) == 1
    drawn_in_own_colours(samples[0], truth)
    drawn_in_own_colours(draw_sheet({"a": SimpleNamespace(config=config, out=out, seed=0)}, "street_3"), truth)  # type: ignore[dict-item]


def test_predictions_are_drawn_in_them(run, streets, tmp_path):
    predict_paths(streets / "images/street_3.png", Predictor(MTLSINet.from_pretrained(run[1]), device="cpu"), tmp_path)
    predicted = np.load(tmp_path / "street_3_semseg.npy")
    for name in ("semseg", "panel"):
        drawn_in_own_colours(np.asarray(Image.open(tmp_path / f"street_3_{name}.png")), predicted)
    with Image.open(tmp_path / "street_3_semseg_index.png") as index:
        np.testing.assert_array_equal(np.asarray(index), predicted)
        np.testing.assert_array_equal(np.asarray(index.convert("RGB")), TABLE[predicted])


def test_a_cards_picture_is_drawn_in_them(run):
    network = MTLSINet.from_pretrained(run[1])
    subject = SimpleNamespace(network=network, device=torch.device("cpu"))
    predicted = Predictor(network, device="cpu")(render_scene(ROOMS[0], size_hw=ROOM_HW)["image"])["semseg"]
    picture = rooms(subject)  # type: ignore[arg-type]
    assert all(holds(picture, TABLE[index]) for index in np.unique(predicted))
    network.colours = {}
    assert not any(holds(rooms(subject), TABLE[index]) for index in np.unique(predicted))  # type: ignore[arg-type]


def test_a_prepared_copy_keeps_them(run, streets, tmp_path):
    prepare(streets, tmp_path / "fast", num_workers=1, console=Console(quiet=True))
    config = replace(run[0], data=replace(run[0].data, root=str(tmp_path / "fast")))
    dataset = open_dataset(config.data, "train")
    assert colours_of(dataset) == {"semseg": tuple(map(tuple, TABLE.tolist()))}
    assert build_model(config, dataset).colours == MTLSINet.from_pretrained(run[1]).colours


def test_models_and_data_sets_without_colours_stay_as_they_were(tmp_path):
    network = create_model("tiny", tasks=["semseg"], classes={"semseg": ["a", "b"]}, input_size=(64, 64))
    assert network.colours == {}
    network.save_pretrained(tmp_path)
    assert "colours" not in json.loads((tmp_path / "config.json").read_text())
    assert MTLSINet.from_pretrained(tmp_path).colours == {}
    assert colours_of(open_dataset(mtlsi.RunConfig().data, "val")) == {}


def test_a_task_alone_keeps_its_colours(streets):
    colours = {"semseg": TABLE.tolist(), "parsing": [[0, 0, 0]] * 7}
    classes = {"semseg": list(COLOURS), "parsing": [f"part {i}" for i in range(7)]}
    network = create_model("tiny", tasks=["semseg", "parsing"], classes=classes, colours=colours).eval()
    assert network.for_tasks(["parsing"]).colours == {"parsing": ((0, 0, 0),) * 7}
    assert Folder(streets, tasks=("semseg",)).colours == {"semseg": TABLE.tolist()}


@pytest.mark.parametrize(
    ("colours", "told"),
    [
        ([[1, 2, 3]], "semseg: 1 colours for 3 classes"),
        ([[1, 2]] * 3, r"a colour of semseg: \[1, 2\]; expected \[red, green, blue\] in 0..255"),
        ([[1, 2, 300]] * 3, "a colour of semseg"),
    ],
)
def test_colours_that_do_not_fit_are_told_in_one_line(run, tmp_path, colours, told):
    shutil.copytree(run[1], tmp_path / "model", ignore=shutil.ignore_patterns("state"))
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colours": {"semseg": colours}}))
    with pytest.raises(MistakeError, match=told) as raised:
        MTLSINet.from_pretrained(tmp_path / "model")
    assert "\n" not in str(raised.value)


def test_classes_beyond_the_chosen_colours_have_our_own():
    assert palette(4, [(1, 2, 3), (4, 5, 6)]) == [(1, 2, 3), (4, 5, 6), *palette(4)[2:]]
    maps = np.repeat(np.uint8([0, 1, 255]), 40)[None].repeat(120, 0)
    shown = kinds.of("semseg").colours(maps, chosen=[(1, 2, 3), (4, 5, 6)])
    np.testing.assert_array_equal(shown[0, [0, 40]], [(1, 2, 3), (4, 5, 6)])
    below = draw_task("semseg", maps, ["a", "b"], colours=[(1, 2, 3), (4, 5, 6)])[-40:]
    assert holds(below, (1, 2, 3))
    assert holds(below, (4, 5, 6))
