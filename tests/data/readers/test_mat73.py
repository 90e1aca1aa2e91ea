"""MATLAB files of version 7.3, read as those of older versions are."""

from __future__ import annotations

import io

import h5py
import numpy as np
import pytest
from scipy.io import savemat
from scipy.sparse import csc_matrix

from mtlsi.data.readers.mat73 import decode_mat73
from mtlsi.errors import MistakeError
from mtlsi.evaluation.boundary_files import read_map, read_truth

HEAD = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Jul 30 12:00:00 2012 HDF5 schema 1.00 ."
MASKS = [np.random.default_rng(seed).random((5, 7)) > 0.7 for seed in range(3)]


def write(path, fill):
    with h5py.File(path, "w", userblock_size=512) as file:
        fill(file)
    with path.open("r+b") as file:
        file.write(HEAD)
    return path


def put(group, name, values):
    """An array as MATLAB stores it, with its axes the other way round."""
    group[name] = np.asarray(values).T


def cells(file, parts):
    """A cell (1 n) of structures of which ``Boundaries`` is a field."""
    names = []
    for i, part in enumerate(parts):
        group = file.create_group(f"#refs#/{chr(97 + i)}")
        put(group, "Boundaries", part.astype(np.uint8))
        put(group, "Segmentation", np.ones(part.shape, np.uint16))
        names.append(group.ref)
    file.create_dataset("groundTruth", (len(parts), 1), dtype=h5py.ref_dtype)[:, 0] = names


def test_annotators_are_those_of_an_older_file(tmp_path):
    annotators = np.empty((1, 3), object)
    for i, mask in enumerate(MASKS):
        annotators[0, i] = {"Segmentation": np.ones((5, 7), np.uint16), "Boundaries": mask.astype(np.uint8)}
    savemat(tmp_path / "older.mat", {"groundTruth": annotators})
    newer = read_truth(write(tmp_path / "newer.mat", lambda file: cells(file, MASKS))).annotators
    older = read_truth(tmp_path / "older.mat").annotators
    assert len(newer) == len(older) == 3
    for mine, theirs, mask in zip(newer, older, MASKS, strict=True):
        np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_array_equal(mine, mask)


def test_maps_and_ucm2_are_upright(tmp_path):
    soft = np.random.default_rng(0).random((11, 15))
    one = write(tmp_path / "one.mat", lambda file: put(file, "edges", soft))
    np.testing.assert_array_equal(read_map(one), soft)
    ucm = write(tmp_path / "ucm.mat", lambda file: put(file, "ucm2", soft))
    np.testing.assert_array_equal(read_map(ucm), soft[2::2, 2::2])


def test_sparse_arrays_are_read(tmp_path):
    stored = csc_matrix(MASKS[0].astype(float))

    def fill(file):
        group = file.create_group("edges")
        group.attrs["MATLAB_sparse"] = np.uint64(5)
        group["data"], group["ir"], group["jc"] = stored.data, stored.indices, stored.indptr

    np.testing.assert_array_equal(read_map(write(tmp_path / "a.mat", fill)), MASKS[0])


def huge(file):
    file.create_dataset("edges", (1 << 20, 1 << 20), np.uint8, chunks=(64, 64))


def many(file):
    file.create_dataset("groundTruth", (1 << 20, 1), dtype=h5py.ref_dtype, chunks=(64, 1))


def elsewhere(file):
    file["edges"] = h5py.ExternalLink("other.mat", "edges")


def circle(file):
    cell = file.create_dataset("groundTruth", (1, 1), dtype=h5py.ref_dtype)
    cell[0, 0] = cell.ref


def circles(file):
    cell = file.create_dataset("edges", (100, 1), dtype=h5py.ref_dtype)
    cell[:, 0] = [cell.ref] * 100


def again(file):
    array = file.create_dataset("#refs#/a", (9000, 9000), np.uint8, chunks=(1000, 1000), fillvalue=1)
    file.create_dataset("edges", (1000, 1), dtype=h5py.ref_dtype)[:, 0] = [array.ref] * 1000


def outside(file):
    group = file.create_group("edges")
    group.attrs["MATLAB_sparse"] = np.uint64(10)
    group["jc"], group["ir"], group["data"] = np.uint64([0, 3]), np.array([0, 500_000_000, 900_000_000]), np.ones(3)


def sparse_elsewhere(file):
    outside(file)
    del file["edges/data"]
    file["edges"].create_dataset("data", (3,), np.uint8, external=[(__file__, 0, 3)])


def sparse_again(file):
    group = file.create_group("#refs#/a/Boundaries")
    group.attrs["MATLAB_sparse"] = np.uint64(9000)
    group["jc"] = np.zeros(9001, np.uint64)
    file.create_dataset("groundTruth", (2, 1), dtype=h5py.ref_dtype)[:, 0] = [file["#refs#/a"].ref] * 2


def chunk_again(file):
    array = file.create_dataset("#refs#/a", (3, 4), np.uint8, maxshape=(None, None), chunks=(20_000, 20_000))
    file.create_dataset("edges", (2, 1), dtype=h5py.ref_dtype)[:, 0] = [array.ref] * 2


def sparse_texts(file):
    outside(file)
    del file["edges/data"]
    file["edges"]["data"] = ["1", "2", "3"]


def sparse_of_text_size(file):
    outside(file)
    file["edges"].attrs["MATLAB_sparse"] = "10"


def letters(file):
    put(file, "edges", np.full((3, 4), 65, np.uint16))
    file["edges"].attrs["MATLAB_class"] = np.bytes_("char")


def nothing(file):
    file["groundTruth"] = np.zeros(2, np.uint64)
    file["groundTruth"].attrs["MATLAB_empty"] = np.uint8(1)


@pytest.mark.parametrize(
    ("fill", "read", "told"),
    [
        (huge, read_map, "edges is 1048576x1048576; expected no more than"),
        (many, read_truth, "has 1048576 cells"),
        (elsewhere, read_map, "0 maps in it"),
        (circle, read_truth, "no groundTruth"),
        (circles, read_map, "holds more than 512 MB or 20000 arrays"),
        (again, read_map, "holds more than 512 MB or 20000 arrays"),
        (outside, read_map, "a sparse matrix whose indices are not its own"),
        (sparse_elsewhere, read_map, "/edges lies in another file"),
        (sparse_again, read_truth, "sparse matrices of more than 512 MB in all"),
        (chunk_again, read_map, "holds more than 512 MB or 20000 arrays"),
        (sparse_texts, read_map, "/edges: its data are no numbers"),
        (sparse_of_text_size, read_map, "not a whole MATLAB file"),
        (letters, read_map, "0 maps in it"),
        (nothing, read_truth, "groundTruth is empty"),
        (lambda file: put(file, "edges", np.ones((3, 4))), read_truth, "no groundTruth{k}.Boundaries in it (edges)"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_what_is_no_map_or_too_large_is_said_in_one_line(tmp_path, fill, read, told):
    with pytest.raises(MistakeError) as caught:
        read(write(tmp_path / "a.mat", fill))
    assert told in str(caught.value)
    assert str(tmp_path / "a.mat") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sparse_indices_of_an_older_file_are_looked_at_before_they_are_followed(tmp_path):
    rows = np.array([1, 2, 3], np.int32)
    savemat(tmp_path / "a.mat", {"edges": csc_matrix((np.ones(3), rows, [0, 3]), shape=(10, 1))})
    np.testing.assert_array_equal(np.flatnonzero(read_map(tmp_path / "a.mat")), rows)
    content = (tmp_path / "a.mat").read_bytes()
    assert content.count(rows.tobytes()) == 1
    (tmp_path / "a.mat").write_bytes(
        content.replace(rows.tobytes(), np.array([1, 2**31 - 7, 2**30], np.int32).tobytes())
    )
    with pytest.raises(MistakeError, match=r"a\.mat: a sparse matrix whose indices are not its own"):
        read_map(tmp_path / "a.mat")


@pytest.mark.parametrize("read", [read_map, read_truth])
def test_sparse_matrices_of_an_older_file_are_no_larger_than_may_be_read(tmp_path, read):
    zeros = csc_matrix((6000, 9000))
    annotators = np.empty((1, 2), object)
    annotators[0] = [{"Boundaries": zeros}] * 2
    savemat(tmp_path / "a.mat", {"groundTruth": annotators, "a": zeros, "b": zeros})
    with pytest.raises(MistakeError, match=r"a\.mat: sparse matrices of more than 512 MB in all"):
        read(tmp_path / "a.mat")


def test_a_sparse_array_of_zeros_is_read(tmp_path):
    def fill(file):
        group = file.create_group("edges")
        group.attrs["MATLAB_sparse"] = np.uint64(5)
        group["jc"] = np.zeros(8, np.uint64)

    np.testing.assert_array_equal(read_map(write(tmp_path / "a.mat", fill)), np.zeros((5, 7)))


def test_a_file_cut_short_is_a_mistake(tmp_path):
    content = write(tmp_path / "a.mat", lambda file: cells(file, MASKS)).read_bytes()
    for size in (600, len(content) // 2, len(content) - 64):
        with pytest.raises(MistakeError, match="not a whole MATLAB file"):
            decode_mat73(tmp_path / "a.mat", io.BytesIO(content[:size]).getvalue())
