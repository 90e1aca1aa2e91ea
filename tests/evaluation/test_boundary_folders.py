from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy.io import savemat

from mtlsi.errors import MistakeError
from mtlsi.evaluation.boundary_folders import score_folders

REFERENCE = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "bsds_bench"


def quiet():
    return Console(file=StringIO(), width=120)


def cross(size=(40, 60), row=20, column=30):
    boundary = np.zeros(size, bool)
    boundary[row, 5:-5] = boundary[5:-5, column] = True
    return boundary


@pytest.fixture
def folders(tmp_path):
    """Two images: one map exact, in PNG, truth of two annotators; one in NumPy, half of it wrong."""
    predictions, truth = tmp_path / "maps", tmp_path / "truth"
    predictions.mkdir()
    truth.mkdir()
    Image.fromarray(cross().astype(np.uint8) * 255).save(predictions / "a.png")
    annotators = np.empty((1, 2), object)
    for i in range(2):
        annotators[0, i] = {"Segmentation": np.ones((40, 60), np.uint16), "Boundaries": cross().astype(np.uint8)}
    savemat(truth / "a.mat", {"groundTruth": annotators})
    wrong = np.zeros((40, 60), np.float32)
    wrong[20, 5:-5], wrong[5, 5:-5] = 1, 1
    np.save(predictions / "b.npy", wrong)
    Image.fromarray(cross().astype(np.uint8) * 255).save(truth / "b.png")
    (truth / "notes.txt").write_text("not an image")
    return predictions, truth


def test_precision_and_recall_of_lines_are_those_of_counting(folders, tmp_path):
    scores = score_folders(
        *folders,
        nms=False,
        num_thresholds=5,
        json_path=tmp_path / "scores.json",
        curve_path=tmp_path / "curve.png",
        console=quiet(),
    )
    line, upright = 50, 29  # the upright stroke without the pixel where the two cross
    recall = (2 * (line + upright) + line) / (3 * (line + upright))
    precision = (line + upright + line) / (line + upright + 2 * line)
    # a pixel or two at the crossing depend on the thinning
    assert scores["ods"] == pytest.approx(2 * precision * recall / (precision + recall), abs=0.02)
    assert scores["ois"] == pytest.approx(scores["ods"], abs=1e-9)  # all thresholds give the same map
    written = json.loads((tmp_path / "scores.json").read_text())
    assert {name: written[name] for name in ("ods", "ois", "ap")} == scores
    assert (written["images"], written["thresholds"], len(written["curve"]["recall"])) == (2, 5, 5)
    assert (tmp_path / "curve.png").stat().st_size > 5000


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the BSDS reference is not at ../shared/data/bsds_bench")
def test_the_command_gives_the_benchmarks_own_numbers():
    scores = score_folders(REFERENCE / "png", REFERENCE / "groundTruth", nms=False, num_thresholds=5, console=quiet())
    expected = [float(x) for x in (REFERENCE / "expected/eval_bdry.txt").read_text().split()]
    assert scores["ods"] == pytest.approx(expected[3], abs=2e-4)
    assert scores["ois"] == pytest.approx(expected[6], abs=2e-4)
    assert scores["ap"] == pytest.approx(expected[7], abs=2e-3)


def put(folder, name, content):
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        Image.fromarray(content).save(folder / name)


@pytest.mark.parametrize(
    ("where", "name", "content", "message"),
    [
        ("maps", "a.png", np.zeros((40, 59), np.uint8), "40x59 pixels, but .*a.mat has 40x60"),
        ("maps", "a.png", b"text", "a.png: not a whole image"),
        (
            "maps",
            "a.png",
            np.eye(40, 60, dtype=np.uint8)[..., None] * np.array([9, 9, 8], np.uint8),
            "a.png: coloured pixels",
        ),
        ("maps", "b.npy", b"text", "b.npy: not a whole NumPy file"),
        ("truth", "a.mat", b"MATLAB 5.0", "a.mat: not a whole MATLAB file"),
        ("truth", "c.png", np.zeros((4, 6), np.uint8), "no map for 1 of the 3 images of .*such as c"),
    ],
)
def test_what_cannot_be_scored_is_named(folders, where, name, content, message):
    put(folders[where == "truth"], name, content)
    with pytest.raises(MistakeError, match=message):
        score_folders(*folders, console=quiet())


def test_wrong_settings_and_folders_are_told(folders, tmp_path):
    savemat(folders[1] / "a.mat", {"other": 1})
    with pytest.raises(MistakeError, match="no groundTruth"):
        score_folders(*folders, console=quiet())
    np.save(folders[0] / "b.npy", np.full((40, 60), 1.5))
    (folders[1] / "a.mat").unlink()
    with pytest.raises(MistakeError, match=r"b.npy: values 1.5..1.5; expected 0..1"):
        score_folders(*folders, console=quiet())
    for options, message in (
        ({"max_dist": 0.0}, "--max-dist 0.0; expected a fraction"),
        ({"num_thresholds": 0}, "expected 1 or more"),
        ({"json_path": tmp_path / "no/where.json"}, "cannot write"),
    ):
        with pytest.raises(MistakeError, match=message):
            score_folders(*folders, console=quiet(), **options)
    with pytest.raises(MistakeError, match="nowhere: no such folder"):
        score_folders(tmp_path / "nowhere", folders[1], console=quiet())
