"""Trains cheaper and dearer forms of the network for the same number of steps on the same data, and compares scores.

    python benchmarks/forms.py --out DIR                                     # tiny on generated scenes
    python benchmarks/forms.py --out DIR --root NYUDV2_FOLDER --weights FILE # mobilenetv2_100 on NYUDv2, ImageNet weights

Every form has the same seed, order of images and augmentation; the first is also trained with a second seed, to show the
variation between seeds. Finished forms are not trained again, interrupted ones are. The table is written to DIR/forms.md.
NYUDv2 is resized to 240x320 and scored at that size, on every sixth of its 654 test images.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from mtlsi.cli import main as mtlsi
from mtlsi.model.build import create_model
from mtlsi.sizes import PRESETS
from mtlsi.tasks import TASK_SETS, TASKS

RECIPES = Path(__file__).parent.parent / "recipes"
SCORED = 6
"""One in this many test images is scored."""
SHOWN_HW = (240, 320)


def forms_of(preset: str) -> dict[str, dict[str, Any]]:
    """By name, the sizes of each form that differ from the preset."""
    return {
        "meets at stride 8": {},
        "meets at stride 4": {"decoder_stride": 4, "context_pool": 4},
        "full-width heads": {"head_channels": PRESETS[preset].channels},
        "shared queries": {"queries": "shared"},
        "1 head": {"num_heads": 1},
        "dense queries": {"queries": "dense"},
        "dense convolutions": {"dense_convolutions": True},
    }


def settings_for(root: Path | None, weights: str, out: Path) -> list[str]:
    """The settings of the command that all forms share."""
    if root is None:
        return ["--config", str(RECIPES / "scenes_tiny.yaml"), "--data.num_val", "100", "--train.iterations", "400"]
    prepared = out / "prepared"
    if not prepared.exists():
        part = out / "nyudv2"
        (part / "gt_sets").mkdir(parents=True)
        for folder in ("images", "depth", "segmentation"):
            (part / folder).symlink_to((root / folder).resolve())
        (part / "gt_sets/train.txt").write_text((root / "gt_sets/train.txt").read_text())
        names = (root / "gt_sets/val.txt").read_text().split()[::SCORED]
        (part / "gt_sets/val.txt").write_text("\n".join(names) + "\n")
        if code := mtlsi(["data", "prepare", str(part), "--out", str(prepared), "--size", *map(str, SHOWN_HW)]):
            raise SystemExit(code)
    changes = {
        "config": RECIPES / "nyud_mobilenetv2_100.yaml",
        "backbone_weights": weights,
        "data.root": prepared,
        "data.size_hw": [192, 256],
        "data.image_hw": list(SHOWN_HW),
        "train.iterations": 400,
        "train.warmup": 40,
        "train.ema": 0.99,
        "train.evaluate_every": 0,
        "train.checkpoint_every": 0,
    }
    return [word for name, value in changes.items() for word in (f"--{name}", str(value))]


def train(run: Path, settings: list[str], sizes: dict[str, Any], seed: int) -> dict[str, Any]:
    """The scores of a form, read from its run folder if it has been trained."""
    if not (run / "scores.json").exists():
        shutil.rmtree(run, ignore_errors=True)
        arguments = ["train", *settings, "--model", json.dumps(sizes), "--seed", str(seed), "--out", str(run)]
        if code := mtlsi(arguments):
            raise SystemExit(code)
    return json.loads((run / "scores.json").read_text())["scores"]


def main() -> None:
    """Trains what has not been trained and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", type=Path, default=None)
    parser.add_argument("--weights", type=str, default="nyud-mobilenetv2")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    preset = "tiny" if given.root is None else "mobilenetv2_100"
    settings = settings_for(given.root, given.weights, given.out)
    tasks = TASK_SETS["nyud"].tasks
    lines = [f"| {preset} | decoder | " + " | ".join(f"{task} {TASKS[task].score}" for task in tasks) + " |"]
    lines.append("|---" * (len(tasks) + 2) + "|")
    runs = [(name, sizes, 0) for name, sizes in forms_of(preset).items()]
    runs.insert(1, (runs[0][0] + ", second seed", {}, 1))
    for name, sizes, seed in runs:
        scores = train(given.out / name.replace(", ", "_").replace(" ", "_"), settings, sizes, seed)
        model = create_model(preset, **sizes)
        decoder = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("backbone."))
        values = (f"{scores[task][TASKS[task].score]:.3f}" for task in tasks)
        lines.append(f"| {name} | {decoder / 1e6:.3f} M | " + " | ".join(values) + " |")
        (given.out / "forms.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
