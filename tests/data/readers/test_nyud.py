from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtlsi import kinds
from mtlsi.data.readers.decoding import decode_normals, encode_normals
from mtlsi.data.readers.derive import boundaries_from_labels, normals_from_depth
from mtlsi.data.readers.nyud import NYUD
from mtlsi.errors import MistakeError
from mtlsi.io import default_cache_dir

REAL = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "nyudv2"
HEIGHT, WIDTH = 48, 64


def write_dataset(root: Path) -> dict[str, dict[str, np.ndarray]]:
    """Three images in the layout; returns what was written, name by name."""
    rng = np.random.default_rng(0)
    written = {}
    for folder in ("images", "depth", "segmentation", "gt_sets"):
        (root / folder).mkdir(parents=True)
    for name in ("0002", "0007", "0011"):
        image = np.full((HEIGHT, WIDTH, 3), rng.integers(0, 256, 3), np.uint8)
        depth = (60 + np.arange(WIDTH) // 4 + rng.integers(0, 20) + np.zeros((HEIGHT, 1))).astype(np.uint8)
        depth[:3, :5] = 0
        segmentation = np.repeat(rng.permutation(41)[:8], WIDTH // 8)[None].repeat(HEIGHT, 0).astype(np.uint8)
        segmentation[0, 0], segmentation[0, 1] = 0, 40
        Image.fromarray(image).save(root / f"images/{name}.jpg", quality=100)
        Image.fromarray(depth).save(root / f"depth/{name}.png")
        Image.fromarray(segmentation).save(root / f"segmentation/{name}.png")
        written[name] = {"image": image, "depth": depth, "segmentation": segmentation}
    (root / "gt_sets/train.txt").write_text("0002\n0011\n")
    (root / "gt_sets/val.txt").write_text("0007\n")
    return written


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "nyud")
    return tmp_path / "nyud"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_items_hold_what_was_written_and_the_folder_is_left_alone(tmp_path: Path) -> None:
    written = write_dataset(tmp_path / "nyud")
    before = snapshot(tmp_path / "nyud")
    dataset = NYUD(tmp_path / "nyud", "train", cache_dir=tmp_path / "cache")
    assert [dataset.name(i) for i in range(len(dataset))] == ["0002", "0011"]
    assert set(dataset.derived) < set(dataset.tasks)
    for index in range(2):
        item, source = dataset[index], written[dataset.name(index)]
        assert set(item) == {"image", "semseg", "depth", "normals", "boundary"}
        assert item["image"].dtype == torch.uint8
        assert item["image"].shape == (3, HEIGHT, WIDTH)
        assert np.abs(item["image"].numpy().transpose(1, 2, 0).astype(int) - source["image"]).max() <= 2  # JPEG
        for task in dataset.tasks:
            assert item[task].dtype == kinds.of(task).label_dtype()
        classes = np.array([255, *range(40)])[source["segmentation"]]
        np.testing.assert_array_equal(item["semseg"], classes)
        metres = np.where(source["depth"] == 0, 0, (source["depth"] + 0.5) / 25.5)
        np.testing.assert_allclose(item["depth"], metres, rtol=1e-6)
        np.testing.assert_array_equal(item["boundary"], boundaries_from_labels(classes))
        # The camera's official numbers, at a tenth of the official size.
        normals = normals_from_depth(metres, focal_xy=(51.886, 51.947), centre_xy=(32.108, 24.924))
        norms = np.linalg.norm(item["normals"], axis=0)
        np.testing.assert_array_equal(norms == 0, source["depth"] == 0)
        np.testing.assert_allclose(norms[source["depth"] > 0], 1, atol=1e-6)
        np.testing.assert_allclose(item["normals"], normals, atol=0.0075)
    assert snapshot(tmp_path / "nyud") == before


def test_the_second_reading_comes_from_the_cache_and_is_the_same(root: Path, tmp_path: Path, monkeypatch) -> None:
    fresh = NYUD(root, cache_dir=tmp_path / "cache")[1]
    monkeypatch.setattr("mtlsi.data.readers.nyud.normals_from_depth", None)
    monkeypatch.setattr("mtlsi.data.readers.nyud.boundaries_from_labels", None)
    again = NYUD(root, cache_dir=tmp_path / "cache")[1]
    for task, label in fresh.items():
        assert torch.equal(label, again[task])
    depth = Image.open(root / "depth/0011.png")
    Image.fromarray(np.asarray(depth) + np.uint8(1)).save(root / "depth/0011.png")
    with pytest.raises(TypeError):  # other depth: the kept normals are not taken
        NYUD(root, cache_dir=tmp_path / "cache")[1]


def test_a_label_that_is_removed_from_the_cache_just_then_is_made_again(
    root: Path, tmp_path: Path, monkeypatch
) -> None:
    fresh, exists = NYUD(root, cache_dir=tmp_path / "cache")[1], Path.exists

    def exists_no_more(path: Path) -> bool:
        found = exists(path)
        if found and path.is_relative_to(tmp_path / "cache") and path.is_file():
            path.unlink()
        return found

    monkeypatch.setattr(Path, "exists", exists_no_more)
    again = NYUD(root, cache_dir=tmp_path / "cache")[1]
    assert again.keys() == fresh.keys()
    assert all(torch.equal(x, fresh[name]) for name, x in again.items())


def test_a_label_that_is_damaged_in_the_cache_is_made_again(root: Path, tmp_path: Path) -> None:
    fresh = NYUD(root, cache_dir=tmp_path / "cache")[1]
    kept = {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*.png")}
    assert len(kept) == 2
    for share in (0, 0.5):
        for path, content in kept.items():
            path.write_bytes(content[: int(share * len(content))])
        again = NYUD(root, cache_dir=tmp_path / "cache")[1]
        assert all(torch.equal(x, fresh[name]) for name, x in again.items())
        assert {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()} == kept


@pytest.mark.parametrize("num_workers", [0, 2])
def test_prepare_fills_the_cache(root: Path, tmp_path: Path, num_workers: int) -> None:
    NYUD(root, cache_dir=tmp_path / "cache").prepare(num_workers)
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert sorted(path.suffix for path in kept) == [".png"] * 4
    before = snapshot(tmp_path / "cache")
    NYUD(root, cache_dir=tmp_path / "cache")[0]
    assert snapshot(tmp_path / "cache") == before


def test_prepare_hands_on_a_mistake_met_by_a_worker(root: Path, tmp_path: Path) -> None:
    (root / "depth/0011.png").write_bytes(b"")
    with pytest.raises(MistakeError, match=r"0011.png: not a whole image"):
        NYUD(root, cache_dir=tmp_path / "cache").prepare(2)


def test_normals_survive_their_image_within_half_a_degree() -> None:
    normals = np.random.default_rng(0).standard_normal((3, 100, 100))
    normals /= np.linalg.norm(normals, axis=0)
    normals[:, 5, 6] = 0
    kept = decode_normals(encode_normals(normals))
    assert not kept[:, 5, 6].any()
    normals[:, 5, 6] = kept[:, 5, 6] = (0, 0, 1)
    assert np.degrees(np.arccos(np.clip((normals * kept).sum(0), -1, 1))).max() < 0.5


def test_only_the_files_of_the_asked_tasks_are_needed(root: Path, tmp_path: Path) -> None:
    for path in (root / "segmentation").iterdir():
        path.unlink()
    (root / "segmentation").rmdir()
    assert set(NYUD(root, tasks=("depth",), cache_dir=tmp_path / "none")[0]) == {"image", "depth"}
    assert not (tmp_path / "none").exists()
    with pytest.raises(MistakeError, match="segmentation: no such folder"):
        NYUD(root, tasks=("boundary",))


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MTLSI_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("MTLSI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "mtlsi"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "mtlsi"


def relabel(path: Path, value: int) -> None:
    pixels = np.array(Image.open(path))
    pixels[4, 5] = value
    Image.fromarray(pixels).save(path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


MISTAKES = {
    "other root": (lambda root: (root / "gt_sets/train.txt").rename(root / "train.txt"), "it holds .*expected images/"),
    "empty split": (lambda root: (root / "gt_sets/train.txt").write_text("\n"), "train.txt: empty"),
    "no image": (lambda root: (root / "images/0011.jpg").unlink(), r"0011.jpg: missing, and so are 0 more"),
    "label 60": (lambda root: relabel(root / "segmentation/0002.png", 60), "0002.png: label 60; expected 1..40"),
    "cut image": (lambda root: cut(root / "images/0002.jpg"), "0002.jpg: not a whole image"),
    "cut label": (lambda root: cut(root / "segmentation/0002.png"), "0002.png: not a whole image"),
    "text": (lambda root: (root / "depth/0002.png").write_text("hello"), "0002.png: not a whole image"),
    "16 bits": (
        lambda root: Image.fromarray(np.ones((HEIGHT, WIDTH), np.uint16)).save(root / "depth/0002.png"),
        "0002.png: pixels of mode I;16; expected one 8-bit channel",
    ),
    "other size": (
        lambda root: Image.fromarray(np.ones((HEIGHT, 32), np.uint8)).save(root / "depth/0002.png"),
        "0002.png: 48x32 pixels, but .*0002.jpg has 48x64 pixels",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(root: Path, tmp_path: Path, name: str) -> None:
    spoil, message = MISTAKES[name]
    spoil(root)
    with pytest.raises(MistakeError, match=message) as raised:
        NYUD(root, cache_dir=tmp_path / "cache")[0]
    assert "\n" not in str(raised.value)


def test_wrong_arguments_are_told(root: Path, tmp_path: Path) -> None:
    with pytest.raises(MistakeError, match="split 'test': unknown to NYUDv2; expected one of train, val"):
        NYUD(root, "test")
    with pytest.raises(MistakeError, match="unknown task 'saliency'"):
        NYUD(root, tasks=("depth", "saliency"))
    with pytest.raises(MistakeError, match="nowhere: no such folder"):
        NYUD(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(MistakeError, match="set MTLSI_CACHE"):
        NYUD(root, cache_dir=tmp_path / "file")[0]
    dataset = NYUD(root, tasks=("depth",))
    (root / "depth/0002.png").rename(root / "depth/0002.txt")
    with pytest.raises(MistakeError, match=r"0002.png: cannot be read \(No such file"):
        dataset[0]


@pytest.mark.skipif(not REAL.is_dir(), reason="the real NYU Depth v2 set is not at ../shared/data/nyudv2")
def test_the_real_set_is_read_as_its_description_says(tmp_path: Path) -> None:
    train, val = (NYUD(REAL, split, cache_dir=tmp_path) for split in ("train", "val"))
    assert (len(train), len(val)) == (795, 654)
    assert not set(train.names) & set(val.names)
    semseg_only = NYUD(REAL, "train", tasks=("semseg",))
    seen = torch.cat([semseg_only[i]["semseg"].unique() for i in range(0, 795, 50)]).unique().tolist()
    assert 39 not in seen
    assert seen[-1] == 255
    item = val[0]
    assert item["image"].shape == (3, 480, 640)
    assert 0.5 < item["depth"].min() < item["depth"].max() < 10
    # Normals look at the camera: against the ray they never turn away, bar the blur at depth jumps.
    rows, columns = torch.meshgrid(torch.arange(480.0), torch.arange(640.0), indexing="ij")
    ray = torch.stack([(columns - 325.58) / 518.86, (253.74 - rows) / 519.47, -torch.ones(480, 640)])
    assert ((item["normals"] * ray).sum(0) < 0).float().mean() > 0.99
    assert 0.002 < (item["boundary"] == 1).float().mean() < 0.05


def write_package(root: Path, letter: str) -> dict[str, np.ndarray]:
    """One image in package A or B, every value written down as the field writes it; returns what must be read."""
    rng = np.random.default_rng(ord(letter))
    for folder in ("images", "segmentation", "depth", "normals", "edge", "gt_sets"):
        (root / folder).mkdir(parents=True)
    image = np.full((HEIGHT, WIDTH, 3), (200, 30, 90), np.uint8)
    classes = rng.integers(0, 41, (HEIGHT, WIDTH)).astype(np.uint8)
    depth_m = rng.uniform(0.7, 9.9, (HEIGHT, WIDTH)).astype(np.float32)
    depth_m[:4] = 0
    normals = rng.standard_normal((HEIGHT, WIDTH, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    edge = rng.random((HEIGHT, WIDTH)) > 0.9
    Image.fromarray(image).save(root / f"images/0007.{'png' if letter == 'A' else 'jpg'}")
    Image.fromarray(classes).save(root / "segmentation/0007.png")
    np.save(root / "depth/0007.npy", depth_m if letter == "A" else depth_m[..., None])
    if letter == "A":
        Image.fromarray(np.rint((normals + 1) * 127.5).astype(np.uint8)).save(root / "normals/0007.png")
        Image.fromarray(edge.astype(np.uint8) * 255).save(root / "edge/0007.png")
    else:
        normals[:3] = 0
        np.save(root / "normals/0007.npy", normals.astype(np.float32))
        np.save(root / "edge/0007.npy", edge.astype(np.float64))
    for split in ("train", "val"):
        (root / f"gt_sets/{split}.txt").write_text("0007\n")
    semseg = np.array([255, *range(40)])[classes]
    return {"semseg": semseg, "depth": depth_m, "normals": normals.transpose(2, 0, 1), "boundary": edge}


@pytest.mark.parametrize("letter", ["A", "B"])
def test_packages_are_told_apart_and_read_as_written(tmp_path: Path, letter: str) -> None:
    written = write_package(tmp_path / "nyud", letter)
    dataset = NYUD(tmp_path / "nyud", "val", cache_dir=tmp_path / "cache")
    assert f"package {letter}" in dataset.layout
    assert (dataset.tasks, dataset.derived, dataset.left_out) == (tuple(written), (), {})
    item = dataset[0]
    for task in ("semseg", "depth", "boundary"):
        np.testing.assert_array_equal(item[task], written[task], err_msg=task)
    # 8 bits per component turn a direction by at most sqrt(3) / 255
    np.testing.assert_allclose(item["normals"], written["normals"], atol=0.007 if letter == "A" else 1e-6)
    assert not (tmp_path / "cache").exists()


def test_a_package_without_edges_derives_them_and_without_normals_leaves_them_out(tmp_path: Path) -> None:
    written = write_package(tmp_path / "nyud", "A")
    for folder in ("edge", "normals"):
        (tmp_path / "nyud" / folder / "0007.png").unlink()
        (tmp_path / "nyud" / folder).rmdir()
    dataset = NYUD(tmp_path / "nyud", cache_dir=tmp_path / "cache")
    assert dataset.tasks == ("semseg", "depth", "boundary")
    assert dataset.derived == ("boundary",)
    assert "normals: no such folder" in dataset.left_out["normals"]
    np.testing.assert_array_equal(dataset[0]["boundary"], boundaries_from_labels(written["semseg"]))
    with pytest.raises(MistakeError, match="normals: no such folder"):
        NYUD(tmp_path / "nyud", tasks=("normals",))


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("depth/0007.npy", np.full((HEIGHT, WIDTH), np.nan), "3072 depths are not finite"),
        ("depth/0007.npy", np.full((HEIGHT, WIDTH), 2500.0), "depths 0..2500; expected metres"),
        ("depth/0007.npy", np.full((HEIGHT, WIDTH), -1.0), "depths -1..0; expected metres"),
        ("depth/0007.npy", np.zeros((2, HEIGHT, WIDTH)), r"shape \[2, 48, 64\]; expected depth"),
        ("depth/0007.npy", np.array(["a"]), "holds <U1; expected an array of numbers"),
        ("normals/0007.npy", np.full((HEIGHT, WIDTH, 3), 127.0), "vectors up to 220 long; expected unit"),
        ("normals/0007.npy", np.full((HEIGHT, WIDTH), 1.0), "expected normals"),
        ("normals/0007.npy", np.full((HEIGHT, WIDTH, 3), np.inf), "9216 numbers are not finite"),
        ("edge/0007.npy", np.full((HEIGHT, WIDTH), 256.0), "expected boundaries"),
    ],
)
def test_wrong_numbers_are_told_with_their_file(tmp_path: Path, file: str, values: np.ndarray, message: str) -> None:
    write_package(tmp_path / "nyud", "B")
    np.save(tmp_path / "nyud" / file, values)
    with pytest.raises(MistakeError, match=f"{file}: .*{message}"):
        NYUD(tmp_path / "nyud")[0]
    (tmp_path / "nyud" / file).write_bytes(b"\x93NUMPY")
    with pytest.raises(MistakeError, match=f"{file}: not a whole NumPy file"):
        NYUD(tmp_path / "nyud")[0]
