"""What a model says of itself on its card: the front matter of model hubs, what goes in and out, how to use it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from mtlsi.errors import clipped, one_line
from mtlsi.model.pretrained import is_packaged
from mtlsi.tasks import LONGEST_TEXT, TASKS

TAGS = {
    "semseg": "semantic-segmentation",
    "depth": "depth-estimation",
    "normals": "surface-normals",
    "boundary": "edge-detection",
}
"""By task, what hubs call it."""
PLAIN = re.compile(r"(?!.*www\.)[\w .,;()+'%°/-]*", re.IGNORECASE)
"""Texts in which Markdown finds no link, no heading and no HTML."""


def printed(text: str) -> str:
    """A text out of somebody's files as it may stand in a card: as it is where it is ``PLAIN``, else as code."""
    return text if PLAIN.fullmatch(text) and len(text) <= LONGEST_TEXT else code(text)


def code(text: str) -> str:
    """``text`` as code in one line, between more backticks than stand together in it."""
    line = clipped(one_line(text), LONGEST_TEXT)
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " * (len(ticks) > 1)
    return f"{ticks}{space}{line}{space}{ticks}"


def in_cell(text: str) -> str:
    """The same in a table, whose columns a stroke would part."""
    return printed(text).replace("|", r"\|")


def address(name: str) -> str:
    """What a person gives as the model ``name``: a folder called as a packaged model, or as a flag, is given as a path."""
    return f"./{name}" if is_packaged(name) or name.startswith("-") else name


def front_matter(tasks: Sequence[str], license: str) -> str:
    """What model hubs read."""
    tags = ["multi-task-learning", *(TAGS[task] for task in tasks if task in TAGS)]
    facts = {"license": license, "library_name": "mtlsi", "pipeline_tag": "image-segmentation", "tags": tags}
    written = yaml.safe_dump(facts, sort_keys=False, default_flow_style=None, width=10_000, allow_unicode=True)
    return f"---\n{written}---"


def introduction(network: Any, preset: str | None = None, on_disk: str = "") -> str:
    """What goes in, what comes out of an ``MTLSINet``, and how large it is; ``preset`` and ``on_disk`` where known."""
    sizes, outputs = network.sizes, []
    for task in network.tasks:
        record = TASKS[task]
        named = f" ({len(network.classes[task])} classes)" if task in network.classes else ""
        unit = f" in {printed(record.unit or '')}" if record.kind == "distance" else ""
        outputs.append(f"{printed(record.title.lower())}{named}{unit}")
    listed = " and ".join([", ".join(outputs[:-1]), outputs[-1]] if len(outputs) > 1 else outputs)
    what = f"MTLSI-Net, form {code(sizes.form)}," if sizes.decoder == "mtlsi" else f"The decoder {code(sizes.decoder)}"
    from_preset = f" (preset {code(preset)})" if preset else ""
    parameters = f"{sum(x.numel() for x in network.parameters()) / 1e6:.2f} M parameters{', ' * bool(on_disk)}{on_disk}"
    return (
        f"One RGB image in; {listed} out. {what} on the backbone {code(sizes.backbone)}{from_preset}: "
        f"{parameters}. It saw images of {network.input_size[0]}x{network.input_size[1]}."
    )


def use_text(name: str) -> str:
    """How to predict with the model ``name``, a folder or a hub's id."""
    given = address(one_line(name))
    return (
        f"## How to use it\n```bash\nmtlsi predict photo.jpg --model {shlex.quote(given)}\n```\n\n"
        "```python\nfrom mtlsi import MTLSINet, Predictor\n\n"
        f"model = MTLSINet.from_pretrained({json.dumps(given, ensure_ascii=False)})\n"
        'prediction = Predictor(model)("photo.jpg")  # arrays by task, at the photo\'s own size\n```'
    )


def terms_text(license: str) -> str:
    """Whose terms apply."""
    return (
        f"## Terms\nThe weights: {code(license)}. The data that they were trained on has terms of its own, and so may have "
        "the weights that the backbone started from."
    )


def classes_text(classes: Mapping[str, Sequence[str]]) -> str:
    """The class names of each task that has some."""
    lines = [f"- {printed(TASKS[task].title)}: {', '.join(map(printed, names))}" for task, names in classes.items()]
    return "## Classes\n" + "\n".join(lines) if lines else ""


def scores_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """A row for each task with its headline score, of figures as ``mtlsi.evaluate`` gives them."""
    rows = ["| task | score |", "|---|---|"]
    for task, values in scores.items():
        record = TASKS[task]
        figure = f"{record.score} {values[record.score]:.4g} {in_cell(record.unit or '')}".rstrip()
        rows.append(f"| {in_cell(record.title)} | {figure} |")
    return "## Scores\n" + "\n".join(rows)


def own_card(
    network: Any,
    name: str,
    *,
    scores: Mapping[str, Mapping[str, float]] | None = None,
    notes: str = "",
    license: str = "mit",
) -> str:
    """The card in Markdown of an ``MTLSINet`` by itself.

    ``scores``: as ``mtlsi.evaluate`` gives them; ``notes``: Markdown, put last; ``license``: as model hubs name it.
    """
    parts = [
        front_matter(network.tasks, license),
        f"# {printed(name.rpartition('/')[2])}",
        introduction(network),
        use_text(name),
        scores_table(scores) if scores else "",
        classes_text(network.classes),
        terms_text(license),
        notes.strip(),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
