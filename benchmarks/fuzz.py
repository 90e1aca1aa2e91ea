"""Damaged and hostile files through the public doors: what opens, what is refused in one line, and what goes wrong.

    python benchmarks/fuzz.py                      # 6,000 cases, a summary by kind; exit code 1 where something went wrong
    python benchmarks/fuzz.py --cases 500 --kinds png,mat --show 5
    python benchmarks/fuzz.py --case mat:123 --keep DIR     # one case again, its file kept

Every case is a function of its kind and number. It is read in a worker process that may take 2 GB more than when it began
and 10 seconds for a case. A case may end in a value or in one line (``MistakeError``); a traceback, a crash, a hang and the
end of the memory are faults.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import select
import signal
import socket
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

SECONDS, MEGABYTES = 10, 2048
SHARES = {
    "jpg": 10, "png": 10, "webp": 5, "tif": 8, "bmp": 4, "gif": 4, "ppm": 4, "tga": 4, "avif": 3,
    "mat": 10, "mat73": 6, "npy": 10, "label_png": 4, "prepared": 8, "weights": 3, "dataset_yaml": 10, "recipe": 6,
    "run_yaml": 6, "config_json": 3, "prepared_json": 8, "onnx": 8, "video": 3, "scores": 5, "class_weights": 4,
    "metrics": 3, "manifest": 5, "lock": 3,
}  # fmt: skip
"""Of all cases, the parts of each kind."""
LINES = ("scores", "class_weights", "metrics", "manifest", "lock")
"""JSON that a run or a folder of results keeps."""
TEXTS = ("dataset_yaml", "recipe", "run_yaml", "config_json", "prepared_json", *LINES)
SNIPPETS = (
    b"null", b"[]", b"{}", b"-1", b"1e999", b".nan", b"NaN", b"9" * 400, b"0x" + b"f" * 300, b'""', b"[[[[", b"}}", b"true",
    b"../../etc/passwd", b"/etc/passwd", b"&a [*a]", b"*b", b"!!python/object/apply:os.system [id]", b"{a: 1, a: 2}",
    b"\0", b"[" * 2000, b"class_path: os.system", b"1" * 5000, b"'", b"\xff\xfe", b"- ", b": ", b"\xe2\x80\xae", b"1000000",
    b"[1, 2, 3]",
)  # fmt: skip
"""In place of words."""
EXTREMES = (
    b"\0" * 4,
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"\x01\0\0\0",
    b"\0\x10\0\0",
)
"""Numbers of four bytes that headers do not expect."""
TASKS = [{"name": "depth", "kind": "distance", "title": "depth", "unit": "m"}]


# ---- whole files


def whole_files(folder: Path) -> dict[str, Path]:
    """One whole file of every kind that this installation can make."""
    import numpy as np
    from PIL import Image, features

    rng = np.random.default_rng(0)
    ramp = (np.add.outer(np.arange(40), np.arange(48)) % 256).astype(np.uint8)
    photo = Image.fromarray(np.stack([ramp, ramp[::-1], rng.integers(0, 255, ramp.shape, dtype=np.uint8)], -1))
    found = {}
    for kind in ("jpg", "png", "webp", "tif", "bmp", "gif", "ppm", "tga", "avif"):
        if kind == "avif" and not features.check("avif"):
            continue
        exif = Image.Exif()
        exif[274] = 6
        extra: dict[str, Any] = (
            {"exif": exif} if kind in ("jpg", "png", "webp") else {"compression": "tiff_lzw"} if kind == "tif" else {}
        )
        found[kind] = folder / f"whole.{kind}"
        photo.save(found[kind], **extra)
    found["label_png"] = folder / "whole_label.png"
    Image.fromarray(ramp).quantize(8).save(found["label_png"], bits=4)
    found["npy"] = folder / "whole.npy"
    np.save(found["npy"], ramp / np.float32(255))
    found |= _matlab(folder, ramp) | _networks(folder) | _settings(folder) | _lines(folder)
    return found | _graph(folder) | _video(folder, photo)


def _matlab(folder: Path, ramp: Any) -> dict[str, Path]:
    import h5py
    import numpy as np
    from scipy.io import savemat
    from scipy.sparse import csc_matrix

    cells = np.empty((1, 2), object)
    cells[0, 0] = cells[0, 1] = {"Boundaries": ramp > 200, "Segmentation": ramp}
    paths = {"mat": folder / "whole.mat", "mat73": folder / "whole_73.mat"}
    variables = {"groundTruth": cells, "sparse": csc_matrix(ramp > 250), "text": "words", "odd": ramp.astype(float)}
    savemat(paths["mat"], variables, do_compression=True)
    with h5py.File(paths["mat73"], "w", userblock_size=512) as file:
        file.create_dataset("edges", data=ramp / 255, chunks=(8, 8), compression="gzip")
        file["edges"].attrs["MATLAB_class"] = np.bytes_("double")
    header = b"MATLAB 7.3 MAT-file, HDF5".ljust(124) + b"\x00\x02IM"
    paths["mat73"].write_bytes(header.ljust(512, b"\0") + paths["mat73"].read_bytes()[512:])
    return paths


def _networks(folder: Path) -> dict[str, Path]:
    import torch
    from safetensors.torch import save_file

    import mtlsi
    from mtlsi.data.readers.prepared import pack

    torch.manual_seed(0)
    model = mtlsi.create_model("tiny", tasks=("depth", "boundary"))
    for kind in ("weights", "config_json"):
        (folder / kind).mkdir()
        save_file(model.state_dict(), folder / kind / "model.safetensors")
        config: Any = model._hub_mixin_config
        (folder / kind / "config.json").write_text(json.dumps(config, default=list))
    sample = {
        "image": torch.zeros(3, 32, 40, dtype=torch.uint8),
        "semseg": torch.ones(32, 40, dtype=torch.uint8),
        "depth": torch.ones(32, 40),
        "normals": torch.stack([torch.zeros(32, 40), torch.zeros(32, 40), torch.ones(32, 40)]),
        "boundary": torch.zeros(32, 40, dtype=torch.uint8),
    }
    (folder / "whole.prepared").write_bytes(pack(sample))
    return {
        "weights": folder / "weights" / "model.safetensors",
        "config_json": folder / "config_json" / "config.json",
        "prepared": folder / "whole.prepared",
    }


def _settings(folder: Path) -> dict[str, Path]:
    from mtlsi.config import RunConfig
    from mtlsi.run_folder import save_config

    root = folder / "set"
    (root / "images").mkdir(parents=True)
    (root / "dataset.yaml").write_text(
        "name: rooms\nsplits: {val: val.txt, train: 0.8}\nboundary_tolerance: 0.01\ntasks:\n"
        "  semseg: {classes: [wall, floor], first: 1, invalid: [0], colours: [[1, 2, 3], [4, 5, 6]]}\n"
        "  depth: {unit: mm, intrinsics: {focal: [500, 500], centre: [320, 240]}}\n"
        "  albedo: {kind: value, channels: 3, range: [0, 1]}\nfiles: {depth: depth/*_d.png}\n"
    )
    (folder / "recipe.yaml").write_text(
        "preset: tiny\nseed: 3\nmodel: {num_tokens: 32}\ndata: {name: scenes, size_hw: [64, 96], zoom: [0.5, 2.0]}\n"
        "train: {iterations: 10, lr: 1e-3, loss_weights: {depth: 2}, balance: fixed}\n"
    )
    (folder / "run").mkdir()
    save_config(RunConfig(), folder / "run")
    index = {
        "version": 1, "complete": True, "layout": "folder", "size_hw": None, "tasks": {"train": ["depth"], "val": ["depth"]},
        "classes": {"semseg": ["wall", "floor"]}, "derived": [], "boundary_tolerance": 0.01,
        "splits": {"train": ["a", "b/c"], "val": ["d"]}, "camera": {"focal_px": 500.0, "size_hw": [480, 640]},
    }  # fmt: skip
    (folder / "index").mkdir()
    (folder / "index" / "prepared.json").write_text(json.dumps(index))
    return {
        "dataset_yaml": root / "dataset.yaml",
        "recipe": folder / "recipe.yaml",
        "run_yaml": folder / "run" / "config.yaml",
        "prepared_json": folder / "index" / "prepared.json",
    }


def _lines(folder: Path) -> dict[str, Path]:
    lines = [
        {"step": 50, "loss": 3.5, "lr": 1e-3, "loss/depth": 1.5, "train_s": 12.5, "images_per_s": 30.0, "skipped": 0},
        {"step": 50, "val/depth/RMSE": 0.75, "val/semseg/mIoU": None, "evaluation_s": 4.5, "evaluation_images": 20},
        {"step": 100, "loss": 2.5, "gradient_norm/depth": 0.5, "balance/depth": 0.25, "train_s": 25.0},
        {"step": 100, "val/depth/RMSE": 0.5, "val/semseg/mIoU": 12.5, "evaluation_s": 4.0, "evaluation_images": 20},
    ]
    results = [
        {"results": f"a/{n}", "image": f"/photos/a/{n}.jpg", "files": []}
        | dict.fromkeys(("state", "changed", "content"), f"{n:016x}")
        for n in range(5)
    ]
    contents = {
        "scores": (
            "scores.json",
            json.dumps({"step": 100, "scores": {"depth": {"RMSE": 0.5, "rel": 0.1}}, "images": 20}),
        ),
        "class_weights": ("class_weights.json", json.dumps({"semseg": {"wall": 0.5, "floor": 1.5}})),
        "metrics": ("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines)),
        "manifest": ("manifest.jsonl", "".join(json.dumps(line) + "\n" for line in results)),
        "lock": (".lock", json.dumps({"pid": 2**22 + 1, "host": socket.gethostname(), "since": 1.5e9})),
    }
    found = {}
    for kind, (name, content) in contents.items():
        (folder / f"{kind}_run").mkdir()
        found[kind] = folder / f"{kind}_run" / name
        found[kind].write_text(content)
    return found


def _graph(folder: Path) -> dict[str, Path]:
    try:
        import numpy as np
        import onnx
        import onnxruntime  # noqa: F401  what reads it
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        return {}
    weight = numpy_helper.from_array(np.ones((3, 1), np.float32), "weight")
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["floats", "weight"], ["product"]),
        helper.make_node("Squeeze", ["product", "axis"], ["depth"]),
    ]
    axis = numpy_helper.from_array(np.array([3]), "axis")
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, "h", "w", 3])
    depth = helper.make_tensor_value_info("depth", TensorProto.FLOAT, [1, "h", "w"])
    graph = helper.make_graph(nodes, "g", [image], [depth], [weight, axis])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    facts = {"mtlsi_version": "1", "own_tasks": "[]", "tasks": json.dumps(TASKS), "working_size": "[32, 40]"}
    helper.set_model_props(model, facts)
    onnx.save(model, folder / "whole.onnx")
    return {"onnx": folder / "whole.onnx"}


def _video(folder: Path, photo: Any) -> dict[str, Path]:
    try:
        import av
    except ImportError:
        return {}
    path = folder / "whole.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 40, "yuv420p"
        for _ in range(6):
            container.mux(stream.encode(av.VideoFrame.from_image(photo)))
        container.mux(stream.encode(None))
    return {"video": path}


# ---- damage


def damaged(kind: str, number: int, content: bytes) -> bytes:
    """The content of a case: flips, cuts, insertions and edits of the header, of texts also snippets in place of words."""
    chance = random.Random(int.from_bytes(hashlib.sha256(f"{kind}:{number}".encode()).digest()[:8], "big"))
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        place = chance.randrange(max(len(data), 1))
        ways = ("flip", "flips", "cut", "insert", "head", "head", "extreme", "zeros", "twice", "lift")
        way = chance.choice((*ways, *("snippet",) * 12) if kind in TEXTS else ways)
        if way == "flip" and data:
            data[place] ^= 1 << chance.randrange(8)
        elif way == "flips":
            for _ in range(chance.randrange(2, 40)):
                if data:
                    data[chance.randrange(len(data))] = chance.randrange(256)
        elif way == "cut":
            del data[place:]
        elif way == "lift":
            del data[place : place + chance.randrange(1, 64)]
        elif way == "insert":
            data[place:place] = chance.randbytes(chance.choice((1, 4, 64, 5000)))
        elif way in ("head", "extreme"):
            place = chance.randrange(min(len(data), 256 if way == "head" else len(data)) or 1)
            data[place : place + 4] = chance.choice(EXTREMES)
        elif way == "zeros":
            data[place : place + 64] = bytes(min(64, len(data) - place))
        elif way == "twice":
            data[place:place] = data[max(0, place - 500) : place]
        elif way == "snippet":
            end = place + chance.choice((0, 1, 4, 12))
            data[place:end] = chance.choice(SNIPPETS)
    return bytes(data)


# ---- doors


def doors() -> dict[str, Callable[[Path], Any]]:
    """By kind, what opens a file."""
    from mtlsi.config import RunConfig
    from mtlsi.data.readers.decoding import decode_indices, depth_metres, edges_npy, normals_npy
    from mtlsi.data.readers.folder_settings import read_settings
    from mtlsi.data.readers.prepared import Prepared, unpack
    from mtlsi.drawing.plots import plot_curves
    from mtlsi.evaluation.boundary_files import read_map, read_truth
    from mtlsi.evaluation.report import compare_single_task
    from mtlsi.lock import HeldError, held
    from mtlsi.model.network import MTLSINet
    from mtlsi.prediction.camera import view_from_exif
    from mtlsi.prediction.images import read_image
    from mtlsi.prediction.manifest import Manifest
    from mtlsi.run_folder import load_config, progress_of, read_metrics
    from mtlsi.studies.figures import headline_of, protocol_of
    from mtlsi.studies.settings import config_of, nested, read_mapping
    from mtlsi.studies.times import times_of
    from mtlsi.training import class_weights
    from mtlsi.training.best import Best, kept_step

    def image(path: Path) -> None:
        view_from_exif(path, read_image(path).shape[:2])

    def array(path: Path) -> None:
        for read in (depth_metres, edges_npy, normals_npy, decode_indices):
            _told(lambda read=read: read(path, path.read_bytes()))
        read_map(path)

    def matlab(path: Path) -> None:
        _told(lambda: read_map(path))
        read_truth(path)

    def matlab_map(path: Path) -> None:
        _told(lambda: read_truth(path))
        read_map(path)

    def graph(path: Path) -> None:
        import numpy as np

        from mtlsi.prediction.graph import GraphPredictor

        GraphPredictor(path, num_threads=1)(np.zeros((32, 40, 3), np.uint8))

    def video(path: Path) -> None:
        from mtlsi.prediction.clips.reading import open_clip

        with open_clip(path) as clip:
            for _ in clip.events():
                pass

    def scores(path: Path) -> None:
        for read in (headline_of, kept_step, protocol_of):
            _told(lambda read=read: read(path.parent))
        compare_single_task({"depth": {"RMSE": 0.5}}, path)

    def metrics(path: Path) -> None:
        for read in (read_metrics, times_of, lambda out: progress_of(out, RunConfig())):
            _told(lambda read=read: read(path.parent))
        Best("delta", 0, {}, ("depth",), 20).remember(path.parent, 1000)
        plot_curves(path, path.with_suffix(".svg"))

    def manifest(path: Path) -> None:
        opened = Manifest(path.parent)
        for number in range(5):
            opened.last(f"a/{number}")

    def lock(path: Path) -> None:
        with suppress(HeldError), held(path):
            pass

    found: dict[str, Callable[[Path], Any]] = dict.fromkeys(
        ("jpg", "png", "webp", "tif", "bmp", "gif", "ppm", "tga", "avif"), image
    )
    return found | {
        "label_png": lambda path: decode_indices(path, path.read_bytes()),
        "npy": array,
        "mat": matlab,
        "mat73": matlab_map,
        "prepared": lambda path: unpack(path, path.read_bytes(), ("semseg", "depth", "normals", "boundary")),
        "weights": lambda path: MTLSINet.from_pretrained(path.parent),
        "config_json": lambda path: MTLSINet.from_pretrained(path.parent),
        "dataset_yaml": lambda path: read_settings(path.parent),
        "recipe": lambda path: config_of(str(path), nested(str(path), read_mapping(path))),
        "run_yaml": lambda path: load_config(path.parent),
        "prepared_json": lambda path: Prepared(path.parent),
        "onnx": graph,
        "video": video,
        "scores": scores,
        "class_weights": lambda path: class_weights.load(path, {"semseg": ("wall", "floor")}),
        "metrics": metrics,
        "manifest": manifest,
        "lock": lock,
    }


def _told(call: Callable[[], Any]) -> None:
    from mtlsi.errors import MistakeError

    try:
        call()
    except MistakeError as error:
        _check_line(error)


def _check_line(error: Exception) -> None:
    if "\n" in str(error) or len(str(error)) > 2000:
        raise AssertionError(f"more than one line: {str(error)[:200]!r}") from error


# ---- workers


def work(folder: Path, kind: str, start: int, stop: int, say: Callable[[dict[str, Any]], Any]) -> None:
    """Says of each case that it begins, and how it ended."""
    from mtlsi.errors import MistakeError

    warnings.simplefilter("ignore")
    path = Path((folder / "whole.txt").read_text().split(f"{kind}=")[1].splitlines()[0])
    content, door = path.read_bytes(), doors()[kind]
    place = Path(tempfile.mkdtemp(dir=folder))
    if kind in ("weights", "config_json", "dataset_yaml", "run_yaml", "prepared_json"):
        for other in path.parent.iterdir():
            (place / other.name).symlink_to(other)
    file = place / path.name
    door(path)  # whole, it opens
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    most = taken + MEGABYTES * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for number in range(start, stop):
        file.unlink(missing_ok=True)
        file.write_bytes(damaged(kind, number, content))
        say({"case": number})
        before, said = time.monotonic(), ""
        try:
            door(file)
            outcome = "opened"
        except MistakeError as error:
            outcome, said = "refused", str(error)
            try:
                _check_line(error)
            except AssertionError:
                outcome = "traceback"
        except MemoryError:
            outcome = "memory"
        except BaseException as error:  # noqa: BLE001  what is looked for
            trace, frame = error.__traceback__, ""
            while trace:
                if "mtlsi" in trace.tb_frame.f_code.co_filename:
                    frame = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
                trace = trace.tb_next
            outcome, said = "traceback", f"{type(error).__name__} at {frame}: {str(error)[:200]}"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        seconds = time.monotonic() - before
        say({"end": number, "outcome": outcome, "said": said, "peak": peak, "s": seconds})


def _send(pipe: int, line: dict[str, Any]) -> None:
    os.write(pipe, json.dumps(line).encode() + b"\n")


def run_kind(folder: Path, kind: str, first: int, stop: int, report: Callable[[dict[str, Any]], None]) -> None:
    """All cases of a kind, in as many forked workers one after the other as it takes."""
    while first < stop:
        reading, writing = os.pipe()
        sys.stdout.flush()
        worker = os.fork()
        if not worker:
            os.close(reading)
            with open(os.devnull, "wb") as nothing:  # libraries say what they think of a file
                os.dup2(nothing.fileno(), 1)
                os.dup2(nothing.fileno(), 2)
            failed = 1
            try:
                work(folder, kind, first, stop, partial(_send, writing))
                failed = 0
            finally:
                os._exit(failed)
        os.close(writing)
        current, rest, limit, hung = None, b"", 120.0, False
        while not hung and (select.select([reading], [], [], limit)[0] or not (hung := True)):
            got = os.read(reading, 65536)
            if not got:
                break
            *lines, rest = (rest + got).split(b"\n")
            for line in map(json.loads, lines):
                current = line.get("case", current)
                if "end" in line:
                    report(line)
                    current = None
                limit = 120.0 if current is None else SECONDS
        if hung:
            os.kill(worker, signal.SIGKILL)
        status = os.waitpid(worker, 0)[1]
        os.close(reading)
        if current is None and status:
            raise SystemExit(f"{kind}: the worker failed before a case (status {status})")
        if current is not None:
            outcome, said = ("hang", f"more than {SECONDS} s") if hung else ("crash", f"status {status}")
            report({"end": current, "outcome": outcome, "said": said, "peak": 0, "s": SECONDS if hung else 0})
        first = stop if current is None else current + 1


def main() -> int:
    """The exit code: 1 where there were faults."""
    parser = argparse.ArgumentParser(description="Damaged files through the public doors.")
    parser.add_argument("--cases", type=int, default=6000)
    parser.add_argument("--kinds", default=",".join(SHARES))
    parser.add_argument("--first", type=int, default=0, help="number of the first case of every kind")
    parser.add_argument("--show", type=int, default=3, help="faults of a kind that are shown")
    parser.add_argument("--case", help="KIND:NUMBER, one case alone")
    parser.add_argument("--keep", type=Path, help="where its file goes")
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    doors()  # imported once, for all workers
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        whole = whole_files(folder)
        (folder / "whole.txt").write_text("".join(f"{kind}={path}\n" for kind, path in whole.items()))
        if given.case:
            kind, number = given.case.split(":")
            content = damaged(kind, int(number), whole[kind].read_bytes())
            if given.keep:
                (given.keep / whole[kind].name).write_bytes(content)
            kinds, first, counts = [kind], int(number), {kind: 1}
        else:
            kinds, first = [kind for kind in given.kinds.split(",") if kind in whole], given.first
            total = sum(SHARES[kind] for kind in kinds)
            counts = {kind: max(1, round(given.cases * SHARES[kind] / total)) for kind in kinds}
        for kind in given.kinds.split(","):
            if kind not in whole:
                print(f"{kind}: left out, this installation cannot make one")
        return summarise(folder, kinds, first, counts, given.show)


def summarise(folder: Path, kinds: list[str], first: int, counts: dict[str, int], show: int) -> int:
    """Runs the cases and prints a line for each kind; 1 where there were faults."""
    print(f"{'kind':14}{'cases':>7}{'opened':>8}{'refused':>9}{'faults':>8}{'s a case':>10}{'slowest':>9}{'MB':>7}")
    faults_of_all = cases_of_all = 0
    for kind in kinds:
        lines: list[dict[str, Any]] = []
        run_kind(folder, kind, first, first + counts[kind], lines.append)
        outcomes = Counter(line["outcome"] for line in lines)
        faults = [line for line in lines if line["outcome"] not in ("opened", "refused")]
        seconds, peak = [line["s"] for line in lines], max((line["peak"] for line in lines), default=0)
        faults_of_all, cases_of_all = faults_of_all + len(faults), cases_of_all + len(lines)
        mean = sum(seconds) / max(len(seconds), 1)
        print(
            f"{kind:14}{len(lines):7}{outcomes['opened']:8}{outcomes['refused']:9}{len(faults):8}{mean:10.3f}"
            f"{max(seconds, default=0):9.2f}{peak:7.0f}",
            flush=True,
        )
        for line in faults[:show]:
            print(f"    {kind}:{line['end']} {line['outcome']}: {line['said']}", flush=True)
    print(f"{cases_of_all} cases, {faults_of_all} faults")
    return 1 if faults_of_all else 0


if __name__ == "__main__":
    sys.exit(main())
