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
        ("truth", "c.png", np.zeros((4, 6), np.uint8), "no map for 1 of the 3 images of .*such as c;"),
        ("truth", "B.png", np.zeros((40, 60), np.uint8), r"such as B \(b differs in upper and lower case\)"),
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


# ---- what people have


def soft_map(size=(40, 60), seed=0):
    """A map of 8 bits with weak and strong boundaries near ``cross``, as 0..255."""
    draw = np.random.default_rng(seed)
    strength = np.where(cross(size), draw.integers(40, 256, size), draw.integers(0, 100, size))
    return strength.astype(np.uint8)


@pytest.fixture
def one_image(tmp_path):
    """Folders for maps and truth; the truth of ``a`` is there."""
    maps, truth = tmp_path / "one", tmp_path / "true"
    maps.mkdir()
    truth.mkdir()
    Image.fromarray(cross().astype(np.uint8) * 255).save(truth / "a.png")
    return maps, truth


def scored(folders, **options):
    return score_folders(*folders, console=quiet(), num_thresholds=19, max_dist=0.02, **options)


FORMS = {
    "16 bits": ("a.png", lambda grey: Image.fromarray(grey.astype(np.uint16) * 257)),
    "8 bits in 16": ("a.png", lambda grey: Image.fromarray(grey.astype(np.uint16))),
    "RGB": ("a.png", lambda grey: Image.fromarray(np.stack([grey] * 3, -1))),
    "RGBA": ("a.png", lambda grey: Image.fromarray(grey).convert("RGBA")),
    "grey and opacity": ("a.png", lambda grey: Image.fromarray(grey).convert("LA")),
    "palette": ("a.png", lambda grey: Image.fromarray(grey).convert("P")),
    "0..1": ("a.npy", lambda grey: grey / 255),
    "whole numbers": ("a.npy", lambda grey: grey),
    "as predict names it": ("a_boundary.npy", lambda grey: (grey / 255).astype(np.float32)),
    "BMP": ("a.bmp", Image.fromarray),
    "fractions in TIFF": ("a.tif", lambda grey: Image.fromarray((grey / 255).astype(np.float32))),
    "a word before the name": ("edges-a.png", Image.fromarray),
    "MATLAB": ("a.mat", lambda grey: {"edges": grey}),
    "ucm2": ("a.mat", lambda grey: {"ucm2": doubled(grey / 255)}),
}


def doubled(soft):
    """Twice the size plus one; the benchmark reads every second value, from the third on."""
    ucm2 = np.random.default_rng(1).random((2 * soft.shape[0] + 1, 2 * soft.shape[1] + 1))
    ucm2[2::2, 2::2] = soft
    return ucm2


def write(path, content):
    if path.suffix == ".npy":
        np.save(path, content)
    elif path.suffix == ".mat":
        savemat(path, content)
    else:
        content.save(path)


@pytest.mark.parametrize("form", FORMS)
def test_a_map_scores_the_same_in_every_form(one_image, form):
    maps, _ = one_image
    Image.fromarray(soft_map()).save(maps / "a.png")
    expected = scored(one_image)
    (maps / "a.png").unlink()
    name, content = FORMS[form]
    write(maps / name, content(soft_map()))
    assert scored(one_image) == pytest.approx(expected, abs=1e-9)
    assert 0.3 < expected["ods"] < 1


def test_of_1_bit_every_pixel_is_white_or_black(one_image):
    maps, truth = one_image
    for path in (maps / "a.png", truth / "a.png"):
        Image.fromarray(cross()).convert("1").save(path)
    assert scored(one_image, nms=False)["ods"] == pytest.approx(1)


def test_a_folder_of_predictions_holds_other_files_too(one_image):
    maps, _ = one_image
    for name in ("a_boundary.png", "a_depth.png", "a_panel.png"):
        Image.fromarray(np.zeros((4, 6, 3), np.uint8) + np.array([9, 0, 0], np.uint8)).save(maps / name)
    np.save(maps / "a_depth.npy", np.ones((4, 6)))
    np.save(maps / "a_boundary.npy", soft_map() / 255)
    assert scored(one_image)["ods"] > 0.3
    Image.fromarray(soft_map()).save(maps / "a.png")
    with pytest.raises(MistakeError, match=r"both a.png and a_boundary.npy; keep one"):
        scored(one_image)


def test_unknown_pixels_of_the_truth_belong_to_neither_side(one_image):
    maps, truth = one_image
    label = cross().astype(np.uint8) * 255
    label[:, :20] = 127
    Image.fromarray(label).save(truth / "a.png")
    extra = cross() | np.roll(cross(), 8, axis=0)
    extra[:, 20:] = cross()[:, 20:]  # false lines, but only where nothing is known
    Image.fromarray(extra.astype(np.uint8) * 255).save(maps / "a.png")
    masked, counted = scored(one_image, nms=False), scored(one_image, nms=False, mask_unknown=False)
    assert masked["ods"] == pytest.approx(1)
    assert counted["ods"] < 0.9
    Image.fromarray(label.astype(np.uint16) * 257).save(truth / "a.png")
    assert scored(one_image, nms=False) == masked
    clear = np.where(label == 127, 0, 255)  # no opacity, no label: as in evaluation
    Image.fromarray(np.dstack([cross() * 255] * 3 + [clear]).astype(np.uint8)).save(truth / "a.png")
    assert scored(one_image, nms=False) == masked


def test_names_fit_in_each_folders_own_way(tmp_path):
    maps, truth, path = tmp_path / "maps", tmp_path / "truth", tmp_path / "scores.json"
    (truth / "hall").mkdir(parents=True)
    (maps / "hall").mkdir(parents=True)
    for name in ("hall/a_gt.png", "b_edges.png", "edges.png"):
        Image.fromarray(cross().astype(np.uint8) * 255).save(truth / name)
    for name in ("hall/a.png", "b.bmp", "edges_boundary.png", "c.png"):
        Image.fromarray(soft_map()).save(maps / name)
    Image.fromarray(soft_map()).convert("RGB").save(maps / "b_photo.jpg")
    np.save(maps / "edges_depth.npy", np.ones((3, 3)))
    said = StringIO()
    score_folders(maps, truth, console=Console(file=said, width=200), num_thresholds=3, json_path=path)
    written = json.loads(path.read_text())
    assert (written["images"], written["without_truth"]) == (3, ["c.png"])
    assert "1 maps have no truth and are passed over, such as c.png" in said.getvalue()


@pytest.mark.parametrize(
    ("soft", "label", "remark"),
    [
        (soft_map(), cross() & False, "no boundary in the truth"),
        (255 - soft_map(), cross(), "is it inverted"),
        (cross().astype(np.uint8) * 255, cross(), "holds 0 and 1 alone"),
        (cross().astype(np.uint8), cross(), "holds 0 and 1 alone"),
        (soft_map() * 0, cross(), "the map is 0 everywhere"),
        (soft_map(), ~cross(), "more than half of the truth is boundary"),
        (soft_map(), np.where(cross(), 130, 3), "the truth is no map of yes and no"),
        (soft_map(), np.full((40, 60), 127), "every pixel of the truth is unknown"),
    ],
)
def test_what_is_odd_is_said_in_a_line(one_image, tmp_path, soft, label, remark):
    maps, truth = one_image
    Image.fromarray(soft).save(maps / "a.png")
    Image.fromarray(label.astype(np.uint8) * (255 if label.dtype == bool else 1)).save(truth / "a.png")
    said, path = StringIO(), tmp_path / "scores.json"
    score_folders(maps, truth, console=Console(file=said, width=200), num_thresholds=3, json_path=path)
    [line] = [line for line in said.getvalue().splitlines() if remark in line]
    assert line.startswith("a: ")
    written = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert (written["ods"] is None) == (remark in ("no boundary in the truth", "every pixel of the truth is unknown"))
    assert written["remarks"].keys() == {line.removeprefix("a: ")}


def test_tables_and_files_say_how_it_was_measured(one_image, tmp_path):
    np.save(one_image[0] / "a.npy", soft_map() / 255)
    said, files = StringIO(), (tmp_path / "s.json", tmp_path / "s.csv")
    score_folders(
        *one_image,
        boundary_protocol="seism",
        json_path=files[0],
        csv_path=files[1],
        console=Console(file=said, width=150),
    )
    written = json.loads(files[0].read_text())
    expected = {
        "protocol": "seism",
        "max_dist": 0.0075,
        "nms": False,
        "thin": True,
        "thresholds": 99,
        "eight_bit": True,
    }
    assert {name: written[name] for name in expected} == expected
    assert {"ods_recall", "ods_precision", "ois_recall", "ois_precision", "r50", "threshold"} <= written.keys()
    assert "seism, not suppressed, 8-bit maps, 99 thresholds, within 0.0075" in " ".join(said.getvalue().split())
    header, row = files[1].read_text().splitlines()
    assert header == "image,threshold,recall,precision,f"
    assert row.startswith("a,")
    assert float(row.split(",")[-1]) == pytest.approx(written["ods"], abs=1e-5)  # of a single image


def cells(*values):
    found = np.empty((1, len(values)), object)
    for i, value in enumerate(values):
        found[0, i] = value
    return {"groundTruth": found}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.mat", cells(), "groundTruth is empty|no groundTruth"),
        ("a.mat", cells({"Segmentation": np.ones((4, 6))}), "no groundTruth"),
        ("a.mat", cells({"Boundaries": "lines"}), "Boundaries of annotator 1"),
        ("a.mat", cells({"Boundaries": np.ones((4, 6, 2))}), "Boundaries of annotator 1"),
        ("a.mat", cells({"Boundaries": np.ones((4, 6))}, {"Boundaries": np.ones((4, 5))}), "Boundaries of annotator 2"),
        ("a.mat", cells({"Boundaries": np.full((4, 6), np.nan)}), "not finite"),
        ("a.mat", {"groundTruth": 7}, "no groundTruth"),
        ("a.mat", {"LabelMap": np.ones((4, 6))}, "no groundTruth.*LabelMap"),
        ("a.npy", np.full((40, 60), np.nan), "values that are not finite"),
        ("a.npy", np.full((40, 60), -1), "values -1..-1"),
        ("a.jpg", Image.fromarray(cross()), "a lossy file"),
        ("a.npy", np.ones(5), r"shape \[5\]"),
        ("a.npy", np.ones((0, 5)), r"shape \[0, 5\]"),
        ("a.npy", np.array(["text"]), "expected an array of numbers"),
    ],
)
def test_every_malformed_truth_has_its_line(one_image, name, content, message):
    maps, truth = one_image
    (truth / "a.png").unlink()
    write(truth / name, content)
    Image.fromarray(soft_map()).save(maps / "a.png")
    with pytest.raises(MistakeError, match=message) as caught:
        scored(one_image)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.mat", {"a": np.ones((4, 6)), "b": np.ones((4, 6))}, r"2 maps in it \(a, b\)"),
        ("a.mat", {"ucm2": np.ones((40, 60))}, "twice the image's size plus one"),
        ("a.npy", np.full((40, 60), 70000), "values 70000..70000"),
    ],
)
def test_maps_that_cannot_be_read_are_named(one_image, name, content, message):
    write(one_image[0] / name, content)
    with pytest.raises(MistakeError, match=message):
        scored(one_image)
