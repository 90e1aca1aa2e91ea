"""What a model says of itself on its card: the front matter of model hubs, what goes in and out, how to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtlsi.tasks import TASKS

TAGS = {
    "semseg": "semantic-segmentation",
    "depth": "depth-estimation",
    "normals": "surface-normals",
    "boundary": "edge-detection",
}
"""By task, what hubs call it."""


def front_matter(tasks: Sequence[str], license: str) -> str:
    """What model hubs read."""
    tags = ["multi-task-learning", *(TAGS[task] for task in tasks if task in TAGS)]
    return f"---\nlicense: {license}\nlibrary_name: mtlsi\npipeline_tag: image-segmentation\ntags: [{', '.join(tags)}]\n---"


def introduction(network: Any, preset: str | None = None, megabytes: float | None = None) -> str:
    """What goes in, what comes out of an ``MTLSINet``, and how large it is; ``preset`` and ``megabytes`` where known."""
    sizes, outputs = network.sizes, []
    for task in network.tasks:
        record = TASKS[task]
        named = f" ({len(network.classes[task])} classes)" if task in network.classes else ""
        outputs.append(f"{record.title.lower()}{named}{f' in {record.unit}' if record.kind == 'distance' else ''}")
    listed = " and ".join([", ".join(outputs[:-1]), outputs[-1]] if len(outputs) > 1 else outputs)
    what = f"MTLSI-Net, form `{sizes.form}`," if sizes.decoder == "mtlsi" else f"The decoder `{sizes.decoder}`"
    from_preset = f" (preset `{preset}`)" if preset else ""
    parameters = sum(x.numel() for x in network.parameters()) / 1e6
    on_disk = "" if megabytes is None else f", {megabytes:.1f} MB on disk (matrices in float16)"
    return (
        f"One RGB image in; {listed} out. {what} on the backbone `{sizes.backbone}`{from_preset}: "
        f"{parameters:.2f} M parameters{on_disk}. It saw images of {network.input_size[0]}x{network.input_size[1]}."
    )


def use_text(name: str) -> str:
    """How to predict with the model ``name``, a folder or a hub's id."""
    return (
        f"## How to use it\n```bash\nmtlsi predict photo.jpg --model {name}\n```\n\n"
        f'```python\nfrom mtlsi import MTLSINet, Predictor\n\nmodel = MTLSINet.from_pretrained("{name}")\n'
        'prediction = Predictor(model)("photo.jpg")  # arrays by task, at the photo\'s own size\n```'
    )


def terms_text(license: str) -> str:
    """Whose terms apply."""
    return (
        f"## Terms\nThe weights: `{license}`. The data that they were trained on has terms of its own, and so may have the "
        "weights that the backbone started from."
    )


def classes_text(classes: Mapping[str, Sequence[str]]) -> str:
    """The class names of each task that has some."""
    lines = [f"- {TASKS[task].title}: {', '.join(names)}" for task, names in classes.items()]
    return "## Classes\n" + "\n".join(lines) if lines else ""


def scores_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """A row for each task with its headline score, of figures as ``mtlsi.evaluate`` gives them."""
    rows = ["| task | score |", "|---|---|"]
    for task, values in scores.items():
        record = TASKS[task]
        rows.append(f"| {record.title} | {record.score} {values[record.score]:.4g} {record.unit}".rstrip() + " |")
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
        f"# {name.rpartition('/')[2]}",
        introduction(network),
        use_text(name),
        scores_table(scores) if scores else "",
        classes_text(network.classes),
        terms_text(license),
        notes.strip(),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
