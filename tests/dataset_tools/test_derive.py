from __future__ import annotations

from io import StringIO

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mtlsi.cli import main
from mtlsi.data.datasets import open_folder
from mtlsi.data.readers.decoding import edges_png, normals_png
from mtlsi.data.readers.derive import boundaries_from_labels, normals_from_depth
from mtlsi.dataset_tools.derive import Camera, Derivation, derive
from mtlsi.errors import MistakeError
from mtlsi.tasks import NYUD40

CAMERA = Camera((50.0, 51.0), (32.0, 24.0))


def run(root, out, wanted):
    return derive(root, out, wanted, num_workers=0, console=Console(file=StringIO()))


def test_every_image_gets_the_labels_that_its_others_say(nyud_root, tmp_path, untouched):
    untouched()
    salient = ("bed", "person", NYUD40[7])
    wanted = Derivation(("boundary", "normals", "saliency"), camera=CAMERA, salient=salient)
    assert run(nyud_root, tmp_path / "out", wanted) == {"train": 6, "val": 6}
    for split in ("train", "val"):
        dataset = open_folder(nyud_root, split)
        for index, name in enumerate(dataset.names):
            semseg, depth = dataset.read("semseg", index), dataset.read("depth", index)
            path = tmp_path / f"out/boundary/{name}.png"
            np.testing.assert_array_equal(edges_png(path, path.read_bytes()), boundaries_from_labels(semseg))
            path = tmp_path / f"out/normals/{name}.png"
            expected = normals_from_depth(depth, focal_xy=CAMERA.focal_xy, centre_xy=CAMERA.centre_xy, step_m=None)
            np.testing.assert_allclose(normals_png(path, path.read_bytes()), expected, atol=0.01)
            seen = np.array(Image.open(tmp_path / f"out/saliency/{name}.png"))
            classes = {NYUD40.index(of) for of in salient}
            naive = np.vectorize(lambda c, classes=classes: 127 if c == 255 else 255 * (int(c) in classes))(semseg)
            np.testing.assert_array_equal(seen, naive)


def test_an_image_without_the_label_gets_none(nyud_root, tmp_path):
    (nyud_root / "segmentation/0002.png").unlink()
    assert run(nyud_root, tmp_path / "out", Derivation(("boundary",))) == {"train": 1, "val": 2}
    assert not (tmp_path / "out/boundary/0002.png").exists()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Derivation(()), "nothing to derive"),
        (Derivation(("normals",)), "give --focal FX FY and --centre CX CY"),
        (Derivation(("saliency",), salient=("cat",)), "class 'cat' is not one of the data set's: wall"),
        (Derivation(("normals",), camera=CAMERA, depth_step_m=-1.0), "--depth-step -1; expected metres, above 0"),
    ],
)
def test_what_cannot_be_derived_is_told_before_anything_is_written(nyud_root, tmp_path, wanted, message):
    with pytest.raises(MistakeError, match=message):
        run(nyud_root, tmp_path / "out", wanted)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("focal_xy", [(0.0, 100.0), (-100.0, 100.0), (float("nan"), 100.0), (float("inf"), 1.0)])
def test_a_camera_that_cannot_be_is_told(focal_xy):
    with pytest.raises(MistakeError, match="expected focal lengths above 0 and a centre"):
        Camera(focal_xy, (32.0, 24.0))
    with pytest.raises(MistakeError, match="expected focal lengths above 0 and a centre"):
        Camera((50.0, 50.0), (float("nan"), 24.0))


def test_labels_of_the_data_set_are_never_replaced(nyud_root):
    (nyud_root / "edge").mkdir()
    (nyud_root / "boundary").mkdir()
    kept = nyud_root / "boundary/0001.png"
    kept.write_bytes(b"of somebody")
    with pytest.raises(MistakeError, match="boundary holds files of the data set itself; give another --out"):
        run(nyud_root, nyud_root, Derivation(("boundary",)))
    assert kept.read_bytes() == b"of somebody"


def test_names_that_lead_out_of_the_folder_are_told_before_anything_is_written(nyud_root, tmp_path, monkeypatch):
    def opened(*args, **options):
        dataset = open_folder(*args, **options)
        dataset.names[-1] = f"../images/{dataset.names[-1]}"
        return dataset

    monkeypatch.setattr("mtlsi.dataset_tools.derive.open_folder", opened)
    with pytest.raises(MistakeError, match="leads out of its folder"):
        run(nyud_root, tmp_path / "out", Derivation(("boundary",)))
    assert not (tmp_path / "out").exists()


def test_a_data_set_without_the_source_is_told(nyud_root, tmp_path):
    for path in (nyud_root / "depth").iterdir():
        path.unlink()
    with pytest.raises(MistakeError, match=r"depth.*missing"):
        run(nyud_root, tmp_path / "out", Derivation(("normals",), camera=CAMERA))


@pytest.fixture
def own_root(tmp_path):
    """Two images of one's own with 16-bit depth, a slanted plane, and a camera in dataset.yaml."""
    root = tmp_path / "mine"
    for folder in ("images", "depth"):
        (root / folder).mkdir(parents=True)
    rows, columns = np.indices((30, 40))
    for name in "ab":
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(root / f"images/{name}.png")
        Image.fromarray((2000 + 20 * rows + 9 * columns).astype(np.uint16)).save(root / f"depth/{name}.png")
    settings = "splits: {train: [a], val: [b]}\ntasks: {depth: {unit: mm%s}}\n"
    (root / "dataset.yaml").write_text(settings % ", intrinsics: {focal: [50, 51], centre: [20.5, 14]}")
    return root


def test_normals_take_the_camera_of_ones_own_data_set_unless_another_is_given(own_root, tmp_path, capsys):
    def normals_in(out):
        path = out / "normals/b.png"
        return normals_png(path, path.read_bytes())

    depth = open_folder(own_root, "val").read("depth", 0)
    assert run(own_root, tmp_path / "own", Derivation(("normals",))) == {"train": 1, "val": 1}
    own = normals_from_depth(depth, focal_xy=(50, 51), centre_xy=(20.5, 14), step_m=None)
    np.testing.assert_allclose(normals_in(tmp_path / "own"), own, atol=0.01)

    camera = Camera((200.0, 200.0), (0.0, 0.0))
    run(own_root, tmp_path / "given", Derivation(("normals",), camera=camera))
    given = normals_from_depth(depth, focal_xy=camera.focal_xy, centre_xy=camera.centre_xy, step_m=None)
    np.testing.assert_allclose(normals_in(tmp_path / "given"), given, atol=0.01)
    assert np.abs(given - own).max() > 0.1

    command = ["data", "derive", str(own_root), "--normals", "--out", str(tmp_path / "command"), "--workers", "0"]
    assert main(command) == 0
    assert "camera: focal 50 51, centre 20.5 14, of" in capsys.readouterr().out
    np.testing.assert_array_equal(normals_in(tmp_path / "command"), normals_in(tmp_path / "own"))


def test_a_data_set_of_ones_own_without_a_camera_is_told_where_to_write_it(own_root, tmp_path):
    (own_root / "dataset.yaml").write_text("splits: {train: [a], val: [b]}\n")
    with pytest.raises(MistakeError, match=r"or write tasks\.depth\.intrinsics into .*mine/dataset\.yaml"):
        run(own_root, tmp_path / "out", Derivation(("normals",)))
