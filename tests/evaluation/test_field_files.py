from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mtlsi.data.readers.decoding import normals_png
from mtlsi.errors import MistakeError
from mtlsi.evaluation.field_files import save_for_field


def test_every_task_is_written_as_the_fields_tools_read_it(tmp_path):
    numbers = np.random.default_rng(0)
    normals = numbers.standard_normal((3, 10, 12))
    normals /= np.linalg.norm(normals, axis=0)
    decoded = {
        "semseg": numbers.integers(0, 40, (10, 12)),
        "parsing": numbers.integers(0, 7, (10, 12)),
        "saliency": numbers.random((10, 12), np.float32),
        "depth": numbers.uniform(0.5, 9, (10, 12)),
        "normals": normals.astype(np.float32),
        "boundary": numbers.random((10, 12), np.float32),
    }
    save_for_field(tmp_path / "out", "0007", decoded)
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    names = ("semseg/0007.png", "human_parts/0007.png", "sal/0007.png", "normals/0007.png", "edge/0007.png")
    assert files == {*names, "depth/0007.npy"}
    images = {}
    for name in names:
        with Image.open(tmp_path / "out" / name) as image:
            images[name] = image.copy()
    assert {name: image.mode for name, image in images.items() if image.mode != "L"} == {names[3]: "RGB"}
    np.testing.assert_array_equal(np.array(images[names[0]]), decoded["semseg"])
    np.testing.assert_array_equal(np.array(images[names[1]]), decoded["parsing"])
    for name, task in ((names[2], "saliency"), (names[4], "boundary")):
        np.testing.assert_allclose(np.array(images[name]) / 255, decoded[task], atol=0.5 / 255 + 1e-6)
    depth = np.load(tmp_path / "out/depth/0007.npy")
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, decoded["depth"], rtol=1e-6)
    path = tmp_path / "out" / names[3]
    np.testing.assert_allclose(normals_png(path, path.read_bytes()), normals, atol=0.01)


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(MistakeError, match="out: cannot be written"):
        save_for_field(tmp_path / "out", "a", {"depth": np.ones((2, 2))})


@pytest.mark.parametrize("name", ["../a", "kitchen/../../a", "/a"])
def test_a_name_never_leads_out_of_the_folder(tmp_path, name):
    with pytest.raises(MistakeError, match=r"leads out of its folder|expected one below a folder"):
        save_for_field(tmp_path / "out", name, {"depth": np.ones((2, 2))})
    assert list(tmp_path.iterdir()) == []
