"""What of a run's settings may change when it goes on, and what must be as it was."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtlsi.config import RunConfig
from mtlsi.errors import MistakeError

FREE = (
    "data.in_memory", "data.num_val", "data.num_workers", "data.root", "plugins",
    "train.best_by", "train.checkpoint_every", "train.cuda_graph", "train.evaluate_every", "train.evaluate_images",
    "train.final_images", "train.gradients_every", "train.iterations", "train.keep_checkpoints", "train.log_every",
    "train.patience", "train.skip_not_finite", "train.tracker",
)  # fmt: skip
"""Settings that no step's weights depend on, or that a person may change on purpose: how long, how often, where.

Another ``data.root`` must hold the same training images: the state knows their names.
"""

SPREAD = ("train.accumulate", "train.batch_size", "train.shard")
"""How a step is spread over processes: may change where its images, processes x batch_size x accumulate, stay as many."""


def flat(config: RunConfig, passed_over: Collection[str] = ()) -> dict[str, Any]:
    """The settings by dotted name, as YAML and JSON give them back."""
    found: dict[str, Any] = {}

    def add(prefix: str, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                add(f"{prefix}{name}.", value)
            elif f"{prefix}{name}" not in passed_over:
                found[f"{prefix}{name}"] = value

    add("", json.loads(json.dumps(asdict(config))))
    return found


def differing(config: RunConfig, stored: Mapping[str, Any], free: Collection[str] = FREE) -> dict[str, tuple[Any, Any]]:
    """By dotted name, ``stored``'s value and that of ``config``, where they differ and are not ``free`` to.

    A setting that ``stored``, of an older version, lacks had its default value.
    """
    ours, defaults = flat(config, free), flat(RunConfig())
    theirs = {name: value for name, value in stored.items() if name not in free}
    pairs = {name: (theirs.get(name, defaults.get(name)), ours.get(name, defaults.get(name))) for name in ours | theirs}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def told(found: Mapping[str, tuple[Any, Any]]) -> str:
    """The first three of what ``differing`` found, in words."""
    words = [f"{name} was {str(was)[:80]} and is {str(now)[:80]} now" for name, (was, now) in sorted(found.items())[:3]]
    return ", ".join(words) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def check_same(config: RunConfig, stored: Any, out: Path, free: Collection[str] = FREE) -> None:
    """Raises ``MistakeError`` where a run's state was made under other settings than ``config``."""
    if not isinstance(stored, dict):
        raise MistakeError(f"the state in {out} does not say what settings it was made with; restore a copy of it")
    if found := differing(config, stored, free):
        raise MistakeError(
            f"cannot resume {out} under other settings: {told(found)}; put config.yaml back, or train on from the weights "
            f"with --init {out} and another --out"
        )
