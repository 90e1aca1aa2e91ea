import json

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch
from PIL import Image

from mtlsi import kinds
from mtlsi.data.readers.pascal import (
    HUMAN_PARTS,
    LABELS_WITH_NORMALS,
    PASCALContext,
    boundaries_from_label_map,
    decode_human_parts,
)
from mtlsi.errors import MistakeError
from mtlsi.tasks import PARTS7, TASK_SETS

HEIGHT, WIDTH = 30, 40
TASK_NAMES = TASK_SETS["pascal"].tasks
PERSON, DOG = 15, 12
# label numbers of PASCAL-Context, from its published list
AEROPLANE, CHAIR, GRASS, PERSON_LABEL, SKY, TVMONITOR, UNKNOWN, WALL = 2, 72, 187, 284, 360, 427, 431, 440


def box(top, left, bottom, right):
    """The (H W) mask of a rectangle, in the data type of PASCAL-Part."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def thing(name, class_ind, mask, *parts):
    """One of anno.objects; each part is a name and a mask. Without parts the field holds MATLAB's []."""
    records = np.zeros((1, len(parts)), [("part_name", object), ("mask", object)])
    for i, (part_name, part_mask) in enumerate(parts):
        records[0, i] = part_name, part_mask
    return name, float(class_ind), mask, records if parts else np.zeros((0, 0))


def write_parts(path, *things):
    objects = np.zeros((1, len(things)), [(field, object) for field in ("class", "class_ind", "mask", "parts")])
    for i, each in enumerate(things):
        objects[0, i] = each
    anno = np.zeros((1, 1), [("imname", object), ("objects", object)])
    anno[0, 0] = path.stem, objects
    scipy.io.savemat(path, {"anno": anno}, do_compression=True)


OBJECTS = {
    # nobody, and a dog whose parts share names with a person's
    "2008_000002": (
        thing(
            "dog",
            DOG,
            box(0, 0, 20, 20),
            ("head", box(0, 0, 5, 5)),
            ("torso", box(5, 0, 9, 5)),
            ("tail", box(9, 0, 12, 5)),
        ),
    ),
    # two people, the second in front of the first; a dog; a person without parts
    "2008_000003": (
        thing(
            "person",
            PERSON,
            box(2, 2, 25, 15),
            ("head", box(2, 4, 8, 9)),
            ("leye", box(4, 5, 5, 6)),
            ("neck", box(8, 5, 10, 8)),
            ("luarm", box(10, 2, 15, 4)),
            ("lhand", box(15, 2, 18, 4)),
            ("ruleg", box(15, 4, 20, 8)),
            ("rfoot", box(20, 4, 24, 8)),
        ),
        thing("dog", DOG, box(0, 20, 9, 30), ("head", box(0, 20, 5, 25))),
        thing(
            "person",
            PERSON,
            box(5, 6, 28, 20),
            ("torso", box(5, 7, 20, 14)),
            ("hair", box(5, 7, 6, 14)),
            ("rlarm", box(18, 12, 22, 18)),
        ),
        thing("person", PERSON, box(20, 30, 30, 40)),
    ),
    "2008_000007": (thing("person", PERSON, box(5, 5, 20, 20)),),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A data set in the layout that the field passes round, and what was written, by name and kind."""
    root = tmp_path_factory.mktemp("source") / "PASCALContext"
    rng = np.random.default_rng(0)
    for folder in (
        *("JPEGImages", "semseg/VOC12", "semseg/pascal-context", "human_parts", "sal_distill", "normals_distill"),
        *("pascal-context/trainval", "ImageSets/Context", "ImageSets/Parts"),
    ):
        (root / folder).mkdir(parents=True)
    colours = np.arange(768, dtype=np.uint8).tolist()
    kept = {}
    for name, objects in OBJECTS.items():
        size = (HEIGHT, WIDTH)
        classes = rng.choice([*range(21), 255], size).astype(np.uint8)
        labels = rng.choice([AEROPLANE, CHAIR, GRASS, PERSON_LABEL, SKY, TVMONITOR, UNKNOWN, WALL, 459], (3, 4))
        labels = labels.repeat(10, 0).repeat(10, 1).astype(np.uint16)
        normals = rng.standard_normal((*size, 3))
        normals = np.rint((normals / np.linalg.norm(normals, axis=-1, keepdims=True) + 1) * 127.5).astype(np.uint8)
        saliency = rng.integers(0, 256, size).astype(np.uint8)
        saliency[0, :4] = 0, 127, 128, 255
        image = np.full((*size, 3), rng.integers(0, 256, 3), np.uint8)
        Image.fromarray(image).save(root / f"JPEGImages/{name}.jpg", quality=100)
        for folder, values in (("VOC12", classes), ("pascal-context", np.where(classes < 20, classes + 1, 0))):
            if folder == "pascal-context" or name != "2008_000003":
                palette = Image.fromarray(values.astype(np.uint8))
                palette.putpalette(colours)
                palette.save(root / f"semseg/{folder}/{name}.png")
        Image.fromarray(saliency).save(root / f"sal_distill/{name}.png")
        Image.fromarray(normals).save(root / f"normals_distill/{name}.png")
        scipy.io.savemat(root / f"pascal-context/trainval/{name}.mat", {"LabelMap": labels}, do_compression=True)
        write_parts(root / f"human_parts/{name}.mat", *objects)
        kept[name] = {
            "image": image,
            "classes": classes,
            "labels": labels,
            "normals": normals,
            "saliency": saliency,
        }
    (root / "ImageSets/Context/train.txt").write_text("2008_000002\n2008_000003\n")
    (root / "ImageSets/Context/val.txt").write_text("2008_000007\n")
    # what peers note here may be out of date: all wrong
    (root / "ImageSets/Parts/train.txt").write_text(json.dumps({"2008_000002": [15], "2008_000003": []}))
    return root, kept


@pytest.fixture
def root(written, tmp_path):
    """A copy to spoil."""
    for path in written[0].rglob("*.*"):
        copy = tmp_path / "PASCALContext" / path.relative_to(written[0])
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return tmp_path / "PASCALContext"


def snapshot(folder):
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def loop_laplacian(labels):
    """Where the four neighbours' sum is not four times the pixel; beyond the rim lies the second row or column."""
    changes = np.zeros(labels.shape, bool)
    (height, width), values = labels.shape, labels.tolist()
    for y in range(height):
        for x in range(width):
            up, down = abs(y - 1), y + 1 if y + 1 < height else height - 2
            left, right = abs(x - 1), x + 1 if x + 1 < width else width - 2
            around = values[up][x] + values[down][x] + values[y][left] + values[y][right]
            changes[y, x] = around != 4 * values[y][x]
    return changes


def loop_thin(mask):
    """Guo and Hall's thinning as MATLAB words its conditions, pixel by pixel."""
    mask = np.pad(mask, 1)
    while True:
        before = mask.copy()
        for half in (0, 1):
            gone = []
            for y, x in zip(*np.nonzero(mask), strict=True):
                ring = [(0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1)]
                n = [bool(mask[y + dy, x + dx]) for dy, dx in ring]
                crossings = sum(not n[i] and (n[i + 1] or n[(i + 2) % 8]) for i in (0, 2, 4, 6))
                odd = sum(n[i] or n[i + 1] for i in (0, 2, 4, 6))
                even = sum(n[i + 1] or n[(i + 2) % 8] for i in (0, 2, 4, 6))
                open_side = (
                    not ((n[1] or n[2] or not n[7]) and n[0])
                    if half == 0
                    else not ((n[5] or n[6] or not n[3]) and n[4])
                )
                if crossings == 1 and 2 <= min(odd, even) <= 3 and open_side:
                    gone.append((y, x))
            for pixel in gone:
                mask[pixel] = False
        if (mask == before).all():
            return mask[1:-1, 1:-1]


def painted(name):
    """What parsing of an image must be, from the rectangles alone."""
    part_of = {
        "head": 1,
        "leye": 1,
        "hair": 1,
        "neck": 2,
        "torso": 2,
        "luarm": 3,
        "lhand": 4,
        "rlarm": 4,
        "ruleg": 5,
        "rfoot": 6,
    }
    label = np.zeros((HEIGHT, WIDTH), int)
    for _, class_ind, _, parts in OBJECTS[name]:
        if class_ind == PERSON:
            for part_name, mask in parts.ravel():
                label[mask == 1] = part_of[part_name]
    return label if label.any() else np.full_like(label, 255)


def test_items_hold_what_was_written_and_the_folder_is_left_alone(written, tmp_path):
    root, kept = written
    before = snapshot(root)
    for split, names in (("train", ["2008_000002", "2008_000003"]), ("val", ["2008_000007"])):
        dataset = PASCALContext(root, split, cache_dir=tmp_path / "cache")
        assert [dataset.name(i) for i in range(len(dataset))] == names
        assert set(dataset.tasks) == set(TASK_NAMES)
        assert (dataset.left_out, dataset.derived, dataset.boundary_tolerance) == ({}, (), 0.0075)
        assert (len(dataset.classes["semseg"]), len(dataset.classes["parsing"])) == (21, 7)
        for index, name in enumerate(names):
            item, source = dataset[index], kept[name]
            assert set(item) == {"image", *TASK_NAMES}
            assert np.abs(item["image"].numpy().transpose(1, 2, 0).astype(int) - source["image"]).max() <= 2  # JPEG
            for task in dataset.tasks:
                assert item[task].dtype == kinds.of(task).label_dtype()
            np.testing.assert_array_equal(item["saliency"], source["saliency"] >= 128)
            np.testing.assert_array_equal(item["parsing"], painted(name))
            np.testing.assert_array_equal(item["boundary"], loop_thin(loop_laplacian(source["labels"].astype(int))))
            vectors = source["normals"].transpose(2, 0, 1) / 127.5 - 1
            vectors /= np.linalg.norm(vectors, axis=0)
            vectors[:, ~np.isin(source["labels"], (CHAIR, PERSON_LABEL, TVMONITOR, WALL))] = 0
            np.testing.assert_allclose(item["normals"], vectors, atol=1e-6)
    assert snapshot(root) == before


def test_semseg_comes_from_voc12_and_elsewhere_from_the_context_labels(written):
    root, kept = written
    dataset = PASCALContext(root, tasks=("semseg",))
    np.testing.assert_array_equal(dataset[0]["semseg"], kept["2008_000002"]["classes"])
    assert dataset.path("semseg", 0) == root / "semseg/VOC12/2008_000002.png"
    classes = kept["2008_000003"]["classes"]
    np.testing.assert_array_equal(dataset[1]["semseg"], np.where(classes < 20, classes + 1, 0))


def test_later_people_hide_earlier_ones_and_unlabelled_people_are_background(written, tmp_path):
    label = PASCALContext(written[0], tasks=("parsing",), cache_dir=tmp_path)[1]["parsing"]
    assert set(label.unique().tolist()) == set(range(7))
    # head; the second one's hair over it; torso over it; a dog's head; where a person without parts stands
    assert [label[y, x].item() for y, x in ((3, 5), (5, 8), (7, 8), (2, 22), (25, 35))] == [1, 1, 2, 0, 0]


def test_the_parts_are_the_24_of_pascal_part(tmp_path):
    sides = ("ear", "eye", "ebrow", "larm", "uarm", "hand", "lleg", "uleg", "foot")
    assert set(HUMAN_PARTS) == {
        "head",
        "hair",
        "nose",
        "mouth",
        "torso",
        "neck",
        *("l" + s for s in sides),
        *("r" + s for s in sides),
    }
    assert len(HUMAN_PARTS) == 24
    for name, part in HUMAN_PARTS.items():
        write_parts(tmp_path / "a.mat", thing("person", PERSON, box(0, 0, 9, 9), (name, box(1, 2, 3, 4))))
        label = decode_human_parts(tmp_path / "a.mat", (tmp_path / "a.mat").read_bytes())
        np.testing.assert_array_equal(label, box(1, 2, 3, 4) * part)
    arms_and_legs = {name: PARTS7[part] for name, part in HUMAN_PARTS.items() if name[1:] in sides[3:]}
    assert arms_and_legs == {
        side + name: part
        for side in "lr"
        for name, part in zip(
            sides[3:], ("lower arm", "upper arm", "lower arm", "lower leg", "upper leg", "lower leg"), strict=True
        )
    }


LIBRARY_LABELS = [
    [440, 440, 440, 360, 440, 440, 440, 440, 284, 284, 284, 284, 285, 286, 286, 286, 440, 440, 440, 440, 9, 9],
    [440, 440, 440, 440, 440, 440, 440, 440, 284, 284, 284, 284, 285, 286, 286, 286, 440, 440, 440, 440, 9, 9],
    [440, 440, 440, 440, 440, 440, 440, 440, 284, 284, 284, 284, 285, 286, 286, 286, 440, 440, 440, 440, 9, 9],
    [9, 9, 9, 9, 285, 285, 285, 285, 360, 360, 360, 360, 284, 284, 284, 284, 285, 285, 285, 285, 286, 286],
    [9, 9, 9, 9, 285, 285, 285, 285, 360, 360, 360, 360, 284, 284, 284, 284, 285, 285, 285, 285, 286, 286],
    [9, 9, 9, 9, 285, 285, 285, 187, 187, 187, 187, 187, 284, 284, 284, 284, 285, 285, 285, 285, 286, 286],
    [9, 9, 9, 9, 286, 286, 286, 187, 187, 187, 187, 187, 284, 284, 284, 284, 284, 284, 284, 284, 284, 284],
    [9, 9, 9, 9, 286, 286, 286, 187, 187, 187, 187, 187, 284, 284, 284, 284, 284, 284, 284, 284, 284, 284],
    [9, 9, 9, 9, 286, 286, 286, 187, 187, 187, 187, 187, 284, 284, 284, 455, 455, 455, 455, 455, 284, 284],
    [284, 284, 284, 284, 360, 360, 360, 360, 285, 285, 285, 285, 9, 9, 9, 9, 440, 440, 440, 440, 285, 285],
    [284, 284, 284, 284, 360, 360, 360, 360, 285, 285, 285, 285, 9, 9, 9, 9, 440, 440, 440, 440, 285, 285],
]  # fmt: skip
LIBRARY_BOUNDARIES = [
    "..###......#.#........",
    "...#.......#.#........",
    "...#........###.......",
    "########...#...####...",
    "....#...###.....#..#..",
    "....#..#...#....#.#.#.",
    ".....##....#.....###..",
    "....#.#....#.....#....",
    "....###....#....#.#...",
    "####...#########...##.",
    "......................",
]


def test_boundaries_equal_those_of_the_libraries_that_the_field_uses():
    """``skimage.morphology.thin(abs(cv2.Laplacian(labels, cv2.CV_64F)) > 0)``, OpenCV 5.0.0 and scikit-image 0.26.0."""
    labels = np.array(LIBRARY_LABELS, np.uint16)
    expected = np.array([[pixel == "#" for pixel in row] for row in LIBRARY_BOUNDARIES])
    for order in ("C", "F"):  # a .mat file gives the latter
        np.testing.assert_array_equal(boundaries_from_label_map(labels.astype(np.int64, order=order)), expected)


def test_normals_are_valid_on_the_labels_that_the_two_lists_share():
    labels = set(LABELS_WITH_NORMALS)
    assert len(labels) == len(LABELS_WITH_NORMALS) == 170
    assert {CHAIR, PERSON_LABEL, TVMONITOR, WALL, 158, 368, 397, 454} <= labels  # floor, sofa, table, window
    assert not labels & {
        0,
        AEROPLANE,
        GRASS,
        SKY,
        UNKNOWN,
        31,
        44,
        207,
        308,
        324,
        420,
    }  # boat, building, horse, pottedplant, road, tree
    assert 1 <= min(labels) < max(labels) <= 459


def test_the_second_reading_comes_from_the_cache_and_is_the_same(root, tmp_path, monkeypatch):
    dataset = PASCALContext(root, cache_dir=tmp_path / "cache")
    dataset.prepare()
    kept = snapshot(tmp_path / "cache")
    assert len(kept) == 4  # parsing and boundary of two images
    fresh = dataset[1]
    assert snapshot(tmp_path / "cache") == kept

    def fails(path, _content):
        raise AssertionError(path)

    again = PASCALContext(root, cache_dir=tmp_path / "cache")
    monkeypatch.setattr("mtlsi.data.readers.pascal.boundaries_from_label_map", fails)
    for task in ("parsing", "boundary"):
        (source,) = again.sources[task]
        monkeypatch.setitem(again.sources, task, (type(source)(**{**vars(source), "decode": fails}),))
    for task, label in again[1].items():
        assert torch.equal(label, fresh[task])
    write_parts(root / "human_parts/2008_000003.mat", *OBJECTS["2008_000007"])
    with pytest.raises(AssertionError, match=r"2008_000003.mat"):  # another annotation: the kept label is not taken
        again[1]


def test_an_image_may_lack_labels_and_trains_the_other_tasks(root, tmp_path):
    for path in (
        "human_parts/2008_000003.mat",
        "semseg/pascal-context/2008_000003.png",
        "normals_distill/2008_000002.png",
    ):
        (root / path).unlink()
    dataset = PASCALContext(root, cache_dir=tmp_path / "cache")
    assert (set(dataset.tasks), dataset.left_out) == (set(TASK_NAMES), {})
    assert set(dataset[0]) == {"image", "semseg", "parsing", "saliency", "boundary"}
    assert set(dataset[1]) == {"image", "saliency", "normals", "boundary"}
    dataset.prepare()
    with pytest.raises(
        MistakeError, match=r"2008_000003: no parsing; .*human_parts/2008_000003.mat: missing, and so are 0 more"
    ):
        dataset.read("parsing", 1)
    with pytest.raises(MistakeError, match=r"VOC12/2008_000003.png: missing, and so are 0 more"):
        PASCALContext(root, may_lack=False)


def test_an_image_without_its_label_map_has_no_normals(root, tmp_path):
    (root / "pascal-context/trainval/2008_000003.mat").unlink()
    dataset = PASCALContext(root, cache_dir=tmp_path / "cache")
    assert set(dataset[0]) == {"image", *TASK_NAMES}
    assert set(dataset[1]) == {"image", "semseg", "parsing", "saliency"}


def remove(folder):
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    ("folders", "left_out"),
    [
        (("human_parts",), {"parsing": "human_parts: no such folder; expected one file 2008_000002.mat"}),
        (("sal_distill",), {"saliency": "sal_distill: no such folder"}),
        (("normals_distill",), {"normals": "normals_distill: no such folder"}),
        (("semseg/VOC12",), {}),
        (("semseg/VOC12", "semseg/pascal-context"), {"semseg": "VOC12: no such folder"}),
        (
            ("pascal-context/trainval",),
            dict.fromkeys(("normals", "boundary"), "pascal-context/trainval: no such folder"),
        ),
    ],
)
def test_a_task_whose_folder_is_absent_is_left_out(root, tmp_path, folders, left_out):
    for folder in folders:
        remove(root / folder)
    dataset = PASCALContext(root, cache_dir=tmp_path / "cache")
    assert set(dataset.left_out) == set(left_out)
    assert set(dataset.tasks) == set(TASK_NAMES) - set(left_out)
    assert set(dataset[0]) == {"image", *dataset.tasks}
    for task, message in left_out.items():
        assert message in dataset.left_out[task]
        with pytest.raises(MistakeError, match=message):
            PASCALContext(root, tasks=(task,))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def relabel(path, value):
    pixels = np.array(Image.open(path))
    pixels[4, 5] = value
    Image.fromarray(pixels).save(path)


def save_labels(root, labels):
    scipy.io.savemat(root / "pascal-context/trainval/2008_000002.mat", labels)


def save_parts(root, *things):
    write_parts(root / "human_parts/2008_000002.mat", *things)


LABELS = np.full((HEIGHT, WIDTH), 9.0)
BODY = box(0, 0, 9, 9)

MISTAKES = {
    "cut image": (
        lambda root: cut(root / "JPEGImages/2008_000002.jpg"),
        "JPEGImages/2008_000002.jpg: not a whole image",
    ),
    "no image": (
        lambda root: (root / "JPEGImages/2008_000003.jpg").unlink(),
        "2008_000003.jpg: missing, and so are 0 more",
    ),
    "cut classes": (
        lambda root: cut(root / "semseg/VOC12/2008_000002.png"),
        "VOC12/2008_000002.png: not a whole image",
    ),
    "cut parts": (
        lambda root: cut(root / "human_parts/2008_000002.mat"),
        "human_parts/2008_000002.mat: not a whole MATLAB",
    ),
    "cut labels": (
        lambda root: cut(root / "pascal-context/trainval/2008_000002.mat"),
        "trainval/2008_000002.mat: not a whole MATLAB",
    ),
    "cut saliency": (
        lambda root: cut(root / "sal_distill/2008_000002.png"),
        "sal_distill/2008_000002.png: not a whole",
    ),
    "cut normals": (
        lambda root: cut(root / "normals_distill/2008_000002.png"),
        "normals_distill/2008_000002.png: not a",
    ),
    "class 200": (
        lambda root: relabel(root / "semseg/VOC12/2008_000002.png", 200),
        r"VOC12/2008_000002.png: label 200; expected 0..20, and 255 for unlabelled",
    ),
    "grey normals": (
        lambda root: Image.new("L", (WIDTH, HEIGHT)).save(root / "normals_distill/2008_000002.png"),
        "normals_distill/2008_000002.png: pixels of mode L; expected three",
    ),
    "other size": (
        lambda root: Image.new("L", (32, HEIGHT)).save(root / "sal_distill/2008_000002.png"),
        "sal_distill/2008_000002.png: 30x32 pixels, but .*2008_000002.jpg has 30x40 pixels",
    ),
    "normals of other size": (
        lambda root: Image.new("RGB", (WIDTH, 31)).save(root / "normals_distill/2008_000002.png"),
        "normals_distill/2008_000002.png: 31x40 pixels, but .*2008_000002.mat has 30x40 pixels",
    ),
    "no LabelMap": (
        lambda root: save_labels(root, {"labels": LABELS}),
        "2008_000002.mat: holds labels; expected LabelMap",
    ),
    "LabelMap of words": (
        lambda root: save_labels(root, {"LabelMap": "sky"}),
        "holds LabelMap; expected LabelMap, labels",
    ),
    "label 460": (
        lambda root: save_labels(root, {"LabelMap": LABELS + 451}),
        r"label 460; expected whole numbers in 0..459",
    ),
    "label 9.5": (lambda root: save_labels(root, {"LabelMap": LABELS + 0.5}), r"label 9.5; expected whole numbers"),
    "label NaN": (lambda root: save_labels(root, {"LabelMap": LABELS * np.nan}), "label nan; expected whole numbers"),
    "no anno": (
        lambda root: scipy.io.savemat(root / "human_parts/2008_000002.mat", {"other": {"objects": LABELS}}),
        "human_parts/2008_000002.mat: no annotation of PASCAL-Part; expected anno.objects",
    ),
    "anno of numbers": (
        lambda root: scipy.io.savemat(root / "human_parts/2008_000002.mat", {"anno": LABELS}),
        "2008_000002.mat: no annotation of PASCAL-Part",
    ),
    "masks of three axes": (
        lambda root: save_parts(root, thing("dog", DOG, np.zeros((HEIGHT, WIDTH, 3)))),
        "2008_000002.mat: no annotation of PASCAL-Part",
    ),
    **{
        f"mask of {name}": (
            lambda root, mask=mask: save_parts(root, thing("person", PERSON, BODY, ("head", mask))),
            "2008_000002.mat: no annotation of PASCAL-Part",
        )
        for name, mask in {
            "text": "head",
            "cells": np.array([["head", "hair"]], object),
            "sparse numbers": scipy.sparse.csc_matrix(BODY.astype(float)),
            "complex numbers": BODY * 1j,
        }.items()
    },
    "numbers for a part's name": (
        lambda root: save_parts(root, thing("person", PERSON, BODY, (BODY, BODY))),
        "2008_000002.mat: no annotation of PASCAL-Part",
    ),
    "no objects": (save_parts, "2008_000002.mat: no annotation of PASCAL-Part"),
    "unknown part": (
        lambda root: save_parts(root, thing("person", PERSON, BODY, ("tail", BODY))),
        "2008_000002.mat: human part 'tail'; expected one of head, hair",
    ),
    "mask of other size": (
        lambda root: save_parts(root, thing("person", PERSON, BODY, ("head", BODY[1:]))),
        r"2008_000002.mat: head: a mask of shape \(29, 40\); expected \(30, 40\)",
    ),
    "parts of other size": (
        lambda root: save_parts(root, thing("dog", DOG, BODY[1:])),
        "human_parts/2008_000002.mat: 29x40 pixels, but .*2008_000002.jpg has 30x40",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(root, tmp_path, name):
    spoil, message = MISTAKES[name]
    spoil(root)
    before = snapshot(root)
    with pytest.raises(MistakeError, match=message) as raised:
        PASCALContext(root, cache_dir=tmp_path / "cache")[0]
    assert "\n" not in str(raised.value)
    assert snapshot(root) == before


def test_wrong_arguments_are_told(root, tmp_path):
    with pytest.raises(MistakeError, match="split 'trainval': unknown to PASCAL-Context; expected one of train, val"):
        PASCALContext(root, "trainval")
    with pytest.raises(MistakeError, match="unknown task 'depth'; expected some of semseg"):
        PASCALContext(root, tasks=("depth",))
    with pytest.raises(MistakeError, match="nowhere: no such folder; expected JPEGImages/"):
        PASCALContext(tmp_path / "nowhere")
    (root / "ImageSets/Context/val.txt").write_text("\n")
    with pytest.raises(MistakeError, match=r"Context/val.txt: empty; expected one name per line, such as 2008_"):
        PASCALContext(root, "val")
