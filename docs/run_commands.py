"""Run every ``mtlsi`` command of the README and the docs, in the order in which they are read, on small stand-ins.

    python docs/run_commands.py --work NEW_FOLDER               # all: half an hour on two cores
    python docs/run_commands.py --work NEW_FOLDER --pages README.md docs/predict.md

Photos, clips and data sets are generated rooms in the genuine formats. What takes hours is shortened, and what needs a
download does without: the line printed for a command is the one that was run. Ends with 1 where a command fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
SHORT_TRAINING = (
    *("--train.iterations", "2", "--train.warmup", "1", "--train.batch_size", "2", "--train.accumulate", "1"),
    *("--train.evaluate_every", "2", "--train.evaluate_images", "2", "--train.final_images", "2"),
    *("--data.num_train", "4", "--data.num_val", "2", "--data.num_workers", "0"),
)
APPENDED = {
    "demo": ("--iterations", "2"),
    "evaluate": ("--limit", "2"),
    "diagnose": ("--limit", "2"),
    "figures": ("--limit", "3"),
    "pack": ("--limit", "2"),
    "benchmark": ("--repeats", "2"),
    "study": ("--seeds", "0", *SHORT_TRAINING),
}
"""What makes a verb's commands short, where they do not say it themselves."""
OPTIONAL = ("--only", "--table", "--list")
"""Of a study with these the runs are there already, or nothing is run."""
SERVES = "page"
"""Runs until it is stopped; what it says first tells whether it serves."""

BEGUN_BY_OTHERS = ("train", "--config", "recipes/scenes_tiny.yaml", "--out", "runs/four", *SHORT_TRAINING)
"""In the place of the run that docs/many_machines.md begins with four processes; its step has as many images."""

MY_MODULE = """
import mtlsi
from mtlsi.data.readers.nyud_any import open_nyud

mtlsi.register_dataset("mine", open_nyud)
"""


def blocks_of(page: Path, language: str) -> list[str]:
    """The blocks of a page's code in one language, by their fences."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands_of(page: Path) -> list[str]:
    """The ``mtlsi`` commands of a page, without their comments."""
    lines = [line for block in blocks_of(page, "bash") for line in block.splitlines()]
    return [re.split(r"\s#", line)[0].strip() for line in lines if line.startswith("mtlsi ")]


# ---- stand-ins


def prepare(folder: Path, num_rooms: int = 4) -> None:
    """Everything that the commands read, by the names that they use, and the recipes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "docs/browser").mkdir(parents=True)
    (folder / "runs").mkdir()
    rooms = [dict(zip(("image", "semseg", "depth", "normals"), room, strict=True)) for room in draw_rooms(num_rooms)]
    for path in ("photo.jpg", "huge.jpg", "holiday/a.jpg", "holiday/sea/b.jpg", "photos/c.jpg", "more/d.jpg"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rooms[0]["image"]).resize((640, 480)).save(folder / path, quality=95)
    for name in ("NYUDV2_FOLDER", "PREPARED_NYUDV2", "DIR"):
        write_nyud(folder / name, rooms)
    write_pascal(folder / "PASCALCONTEXT_FOLDER", rooms)
    write_rooms(folder / "my_rooms", rooms)
    write_boundaries(folder)
    (folder / "my_decoder.py").write_text(blocks_of(ROOT / "docs/own_decoder.md", "python")[0])
    (folder / "my_module.py").write_text(MY_MODULE)
    (folder / "limits.md").write_text("Rooms only.\n")
    for name in ("clip.mp4", "clip.mov"):
        write_clip(folder / name, [room["image"] for room in rooms])


def draw_rooms(count: int, size_hw: tuple[int, int] = (240, 320)) -> Iterator[tuple[np.ndarray, ...]]:
    """RGB, classes, metres and normals (H W 3) of generated rooms."""
    from mtlsi.data.scenes.dataset import Scenes

    scenes = Scenes(count, size_hw=size_hw, label_set="nyud")
    for index in range(count):
        labels = scenes[index]
        image = labels["image"].permute(1, 2, 0).numpy()
        normals = labels["normals"].permute(1, 2, 0).numpy()
        yield image, labels["semseg"].numpy(), labels["depth"].numpy(), normals


def write_nyud(root: Path, rooms: Sequence[dict[str, np.ndarray]]) -> None:
    """The 8-bit layout of NYUDv2: half of the rooms to train on."""
    for name, room in _named(rooms):
        _save(root / f"images/{name}.jpg", room["image"])
        _save(root / f"depth/{name}.png", (room["depth"] * 25.5).clip(1, 255).astype(np.uint8))
        classes = (room["semseg"].astype(np.uint8) + 1) * (room["semseg"] < 40)
        classes[:8] = np.arange(classes.shape[1]) % 41  # a class without a pixel is a doubt of `mtlsi data check`
        _save(root / f"segmentation/{name}.png", classes)
    names = [name for name, _ in _named(rooms)]
    (root / "gt_sets").mkdir()
    for split, chosen in (("train", names[::2]), ("val", names[1::2])):
        (root / f"gt_sets/{split}.txt").write_text("\n".join(chosen) + "\n")


def write_pascal(root: Path, rooms: Sequence[dict[str, np.ndarray]]) -> None:
    """PASCAL-Context without human parts."""
    for name, room in _named(rooms):
        classes = room["semseg"].astype(int) % 21
        _save(root / f"JPEGImages/{name}.jpg", room["image"])
        _save(root / f"semseg/VOC12/{name}.png", classes.astype(np.uint8))
        _save(root / f"sal_distill/{name}.png", (255 * (classes % 2)).astype(np.uint8))
        _save(root / f"normals_distill/{name}.png", ((room["normals"] + 1) * 127.5).round().astype(np.uint8))
        (root / "pascal-context/trainval").mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(root / f"pascal-context/trainval/{name}.mat", {"LabelMap": (classes + 3).astype(float)})
    (root / "ImageSets/Context").mkdir(parents=True)
    for split in ("train", "val"):
        (root / f"ImageSets/Context/{split}.txt").write_text("\n".join(name for name, _ in _named(rooms)) + "\n")


def write_rooms(root: Path, rooms: Sequence[dict[str, np.ndarray]]) -> None:
    """The folder of docs/own_data.md, with the page's own ``dataset.yaml``."""
    for name, room in _named(rooms):
        _save(root / f"images/{name}.jpg", room["image"])
        _save(root / f"semseg/{name}.png", (room["semseg"].astype(int) % 5).astype(np.uint8))
        _save(root / f"depth/{name}.png", (1000 * room["depth"]).astype(np.uint16))
    (root / "dataset.yaml").write_text(blocks_of(ROOT / "docs/own_data.md", "yaml")[0])


def write_clip(path: Path, pictures: Sequence[np.ndarray]) -> None:
    """A clip of a few pictures, where PyAV is installed."""
    if importlib.util.find_spec("av") is None:
        return
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())


def write_boundaries(folder: Path) -> None:
    """``MAPS`` and ``TRUTH``: a detector's boundaries, one pixel off."""
    line = np.zeros((60, 80), np.uint8)
    line[:, 40] = 255
    _save(folder / "TRUTH/a.png", line)
    _save(folder / "MAPS/a.png", np.roll(line, 1, 1))


def _named(rooms: Sequence[dict[str, np.ndarray]]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    yield from ((f"{index:04}", room) for index, room in enumerate(rooms))


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


# ---- commands


def shortened(command: str) -> list[str]:
    """The arguments of ``mtlsi``, for a machine without a network and with little time."""
    text = re.sub(r"--backbone_weights \S+", "--backbone_weights none", command)
    text = text.replace(" FILE ", " recipes/studies/rivals_scenes.yaml ")
    text = re.sub(r"\b(\d{3,4})x(\d{3,4})\b", lambda m: "x".join(str(int(side) // 4) for side in m.groups()), text)
    if text.startswith("mtlsi benchmark"):  # C++ of every size of every network: many minutes for a large one
        text = re.sub(r"--model \S+", "--model tiny", text)
        text = re.sub(r"(--sizes [^,\s]+,[^,\s]+)\S*", r"\1", text)
    verb, *rest = shlex.split(text)[1:]
    if verb == "benchmark" and "--size" in rest:
        at = rest.index("--size") + 1
        rest[at : at + 2] = [str(int(side) // 4) for side in rest[at : at + 2]]
    given = {word for word in rest if word.startswith("--")}
    extra = list(APPENDED.get(verb, ()))
    if verb == "train" and "--resume" in given:
        at = rest.index("--train.iterations") if "--train.iterations" in given else len(rest)
        rest[at : at + 2] = ["--train.iterations", "3"]
        extra = []
    elif verb == "train":
        extra = [*SHORT_TRAINING, *(() if given & {"--init", "--backbone_weights"} else ("--backbone_weights", "none"))]
    elif verb == "study" and given & {*OPTIONAL}:
        extra = list(APPENDED["study"])
    return [verb, *rest, *extra]


def run(arguments: Sequence[str], folder: Path, timeout_s: float = 1200) -> tuple[int, str]:
    """A command's exit code and its last line; a page is stopped as soon as it says where it serves.

    A run folder that another command of the docs made by that name makes room.
    """
    if "--resume" in arguments and "runs/four" in arguments and not (folder / "runs/four").exists():
        run([*BEGUN_BY_OTHERS, "--train.batch_size", "8"], folder, timeout_s)
    if arguments[0] == "train" and "--out" in arguments:
        shutil.rmtree(folder / arguments[arguments.index("--out") + 1], ignore_errors=True)
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "MTLSI_CACHE": str(folder / "cache"), "COLUMNS": "160"}
    command = [sys.executable, "-m", "mtlsi.cli", *arguments]
    with subprocess.Popen(
        command, cwd=folder, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        if arguments[0] == SERVES:
            said = ""
            for line in process.stdout or ():
                said += line
                if "http" in line:
                    break
            said += stopped(process)
            return (0 if process.returncode in (0, 130) and "http" in said else 1), _last(said)
        try:
            said = process.communicate(timeout=timeout_s)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            return 124, f"took more than {timeout_s:.0f} s"
    return process.returncode, _last(said)


def stopped(process: subprocess.Popen[str]) -> str:
    """What a server still says after Ctrl-C, which it may not hear before it has begun to listen for it."""
    for _ in range(12):
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=5)[0]
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    return process.communicate()[0]


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:140] if lines else ""


def main() -> int:
    """Run them and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a new folder for the stand-ins and results")
    parser.add_argument("--pages", nargs="*", type=Path, default=PAGES, help="only the commands of these pages")
    options = parser.parse_args()
    folder = options.work.resolve()
    prepare(folder)
    failed = []
    for page in options.pages:
        for command in commands_of(page):
            arguments, start = shortened(command), time.perf_counter()
            if "--camera" in arguments and not list(Path("/dev").glob("video*")):
                print(f"{page.name}: {command}\n    not run: no camera here", flush=True)
                continue
            print(f"{page.name}: mtlsi {shlex.join(arguments)}", flush=True)
            code, last = run(arguments, folder)
            print(f"    {code} after {time.perf_counter() - start:.0f} s: {last}", flush=True)
            if code:
                failed.append(command)
    print(f"{len(failed)} failed", *failed, sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
