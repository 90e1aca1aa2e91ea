"""A model's card: what it predicts, how well, what it was trained on, and what it is not good at. Text only."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path

from mtlsi.config import FROM_SHARES, RunConfig
from mtlsi.errors import counted
from mtlsi.evaluation.report import Scores, decimals
from mtlsi.model.card import address, code, front_matter, in_cell, introduction, printed, terms_text, use_text
from mtlsi.model.freezing import BACKBONE
from mtlsi.model.network import MTLSINet
from mtlsi.model.pretrained import is_packaged
from mtlsi.run_folder import BEST, Progress
from mtlsi.tasks import TASKS
from mtlsi.training.best import Kept

PICTURE = "rooms.jpg"


@dataclass(frozen=True)
class Measured:
    """The model's scores and what they were measured on."""

    scores: Scores
    constant: Scores
    """Those of the best prediction that does not look at the image."""
    data: str
    """The data set's name."""
    layout: str
    """What the data set is called for people."""
    images: int
    split: str
    shown: str
    """How the model saw them."""
    derived: Sequence[str] = ()
    """Tasks whose labels were worked out from other labels."""
    flags: str = ""
    """What the command needs beyond the data's name."""
    boundaries: str = ""
    """What boundaries were measured by; "": not known."""


@dataclass(frozen=True)
class Trained:
    """Where the model comes from."""

    config: RunConfig
    layout: str
    """What the training data is called for people."""
    images: int | None
    """How many of them; None: they are not to be found here."""
    whole: str
    """What size a whole image has at zoom 1, in words."""
    progress: Progress
    best: Kept | None = None
    """The evaluation for which these weights were kept; None: they are the last."""


def card(
    name: str,
    network: MTLSINet,
    measured: Measured,
    trained: Trained | None,
    *,
    on_disk: str,
    license: str,
    notes: str,
) -> str:
    """The card in Markdown, with the front matter that model hubs read; ``notes``, Markdown too, come last.

    What comes out of files stands in it as text: a run folder may be somebody else's.
    ``trained``: None where nobody knows.
    """
    parts = [
        front_matter(network.tasks, license),
        f"# {printed(name.rpartition('/')[2])}",
        introduction(network, preset_of(trained), on_disk),
        f"![Predictions for generated rooms that it was not trained on]({PICTURE})",
        use_text(name),
        f"## Scores\n{scores_text(name, measured)}",
        f"## Data and training\n{training_text(trained)}",
        terms_text(license),
        notes.strip(),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def preset_of(trained: Trained | None) -> str | None:
    """The preset of the run; None where it changed sizes, as --init does, or where nobody knows."""
    return None if trained is None or trained.config.model else trained.config.preset


def scores_text(name: str, measured: Measured) -> str:
    """The command that measures them, and a row for each task."""
    command = f"mtlsi evaluate {shlex.quote(address(name))} --data {shlex.quote(measured.data)}{measured.flags}"
    lines = [
        f"On {printed(measured.layout)}: {counted(measured.images, 'image')} of the split {measured.split}, "
        f"{measured.shown}; compared at the labels' own size. *Constant*: the best prediction that does not look at the "
        "image.",
        "",
        f"```bash\n{command}\n```",
        "",
        "| task | score | constant | other figures |",
        "|---|---|---|---|",
    ]
    for task, values in measured.scores.items():
        record = TASKS[task]
        title = in_cell(record.title) + (" (derived labels)" if task in measured.derived else "")
        best = f"{record.score} {figure(task, values[record.score])} {in_cell(record.unit or '')}".strip()
        constant = measured.constant.get(task, {}).get(record.score, float("nan"))
        others = ", ".join(
            f"{key} {value:.4g}" for key, value in values.items() if key != record.score and "/" not in key
        )
        lines.append(f"| {title} | {best} | {figure(task, constant)} | {others} |")
    if any(TASKS[task].metric == "boundary_f" for task in measured.scores):
        lines += ["", f"Boundaries are measured by the protocol {measured.boundaries or 'unknown'}."]
    if measured.derived:
        lines += ["", "Derived labels were worked out from other labels: those figures do not compare with a paper's."]
    return "\n".join(lines)


def figure(task: str, value: float) -> str:
    """A headline figure as tables give it; a dash where there is none."""
    return "-" if isnan(value) else f"{value:.{decimals(task)}f}"


def training_text(trained: Trained | None) -> str:
    """What the run's configuration says, as a list."""
    if trained is None:
        return "How it was trained is not known: the model was packed without its run folder."
    config, options, data = trained.config, trained.config.train, trained.config.data
    images = " (not found here, nor counted): " if trained.images is None else f": {counted(trained.images, 'image')}, "
    kept, backbone_rate = "", f" ({options.backbone_lr_factor:g} of it for the backbone)"
    if BACKBONE in options.freeze:
        backbone_rate = ""
    else:
        frozen = [f"everything up to stride {options.freeze_stride}"] if options.freeze_stride else []
        frozen += ["all batch statistics"] if options.freeze_norm else []
        kept = f" Frozen of the backbone: {' and '.join(frozen)}." if frozen else ""
    if options.freeze:
        kept = f" Frozen: {', '.join(map(printed, options.freeze))}.{kept}"
    done, seconds = trained.progress.saved_step, trained.progress.seconds
    minutes = "" if seconds is None else f" in {counted(round(seconds / 60), 'minute')}"
    steps = f"{done} steps of {options.batch_size * options.accumulate} images{minutes}"
    if trained.best is not None:
        steps += f" (of a schedule made for {options.iterations})"
    elif done < options.iterations:
        steps += f" (stopped; its schedule was made for {options.iterations})"
    balance = "" if options.balance == "fixed" else f", losses balanced by {printed(options.balance)}"
    weights = ", ".join(f"{printed(task)} {weight:g}" for task, weight in options.loss_weights.items()) or "the field's"
    weighed = options.class_weights if isinstance(options.class_weights, dict) else {"all classes": FROM_SHARES}
    kind = "The last weights, not the best." if trained.best is None else best_text(trained.best)
    classes = ", ".join(
        f"{printed(task)} {'by their shares' if w == FROM_SHARES else 'by hand'}" for task, w in weighed.items()
    )
    lines = [
        f"Trained on {printed(trained.layout)}{images}{trained.whole} times {data.zoom[0]:g} to {data.zoom[1]:g}, crops of "
        f"{data.size_hw[0]}x{data.size_hw[1]}.",
        start_text(config) + kept,
        f"{steps}: {printed(options.optimizer)}, learning rate {options.lr:g}{backbone_rate}, "
        f"{printed(options.precision)}{balance}.",
        f"Loss weights: {weights}.{f' Classes weighed: {classes}.' if classes else ''} {kind}",
    ]
    return "\n".join(f"- {line}" for line in lines)


def best_text(best: Kept) -> str:
    """Which weights were kept, and why."""
    return (
        f"The best weights of the run by {printed(best.score)} ({best.value:.4g} on {best.num_images} validation images, "
        f"after step {best.step}), not the last."
    )


def start_text(config: RunConfig) -> str:
    """What the weights were before training."""
    if config.init is not None:
        if is_packaged(config.init):
            return f"It starts from the packaged model {code(config.init)}."
        init = Path(config.init)
        if not init.is_absolute():  # a hub's, with its owner
            return f"It starts from the model {code(config.init)}."
        return f"It starts from the model {code('/'.join(init.parts[-2:]) if init.name == BEST else init.name)}."
    weights = config.backbone_weights or "none"
    if weights == "none":
        return "It starts from random weights."
    return "The backbone starts from " + (
        "timm's pretrained weights." if weights == "pretrained" else f"{code(Path(weights).name)}."
    )
