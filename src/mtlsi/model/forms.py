"""MTLSI-Net as the paper describes it, and as it is built here unless asked otherwise.

``ModelConfig.form`` names one of the two; ``decoder_options`` change single choices of it, so that each can be measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from mtlsi.errors import MistakeError, check_choice
from mtlsi.model.decoder_spec import options_given
from mtlsi.model.final import ADD_COARSE
from mtlsi.model.fusion import CONTEXTS, ONTO
from mtlsi.model.preliminary import DEEP_SUPERVISION
from mtlsi.sizes import ModelConfig


@dataclass(frozen=True)
class Form:
    """The choices in which the two forms differ, and ``context``, and those named ``fuse_``, alike in both."""

    context: str = "sums"
    """What a position attends to in the fusion. sums: C, the sums of values weighed by elu + 1 of the keys; centroids: every
    position is shared out to a head's channels by its direction from the mean of its task, and attends to the mean values
    of these shares, less that of all."""
    fuse_coarse: bool = True
    """The fusion reads the tasks' coarse predictions beside their features."""
    fuse_onto: str = "joined"
    """What the fusion adds to: joined, the features and coarse predictions as it projects them to read them; features, a
    task's own features, which then reach the CWIB as they are."""
    fuse_gradient: bool = True
    """The features and coarse predictions that the fusion reads learn to be read. Without it the gradient ends where it
    reads, and goes on only past it, where the fusion adds to the features themselves."""
    tokens: str = "shares"
    """shares: every position is shared out to the tokens by the softmax of an MLP; centroids: by its direction from the
    image's mean, and a token is the centroid of its share, less that mean."""
    pool: int = 1
    """Tasks interact on features pooled over squares of this many positions; what comes of it is upsampled and added."""
    refine: str = "preliminary"
    """What the CWIB refines: the preliminary features, or those with the fused ones added (fused)."""
    zero_start: bool = False
    """What the interaction adds to a task's own features begins at zero: training starts from plain heads."""
    read_tokens: str = "own"
    """Whose tokens a position reads in the CWIB: those of its own task, or of all tasks."""
    mix: int = 0
    """Channels of every task through which the heads' features mix at stride 4; 0: they do not."""
    positions: bool = False
    """A depthwise 3x3 convolution in the CWIB tells positions apart."""
    deep_supervision: str = "all"
    """Of which tasks the losses of the coarse predictions train the preliminary features: all; areas, all but those of thin
    lines; none. Of the others they train the predictions' own layer alone."""
    add_coarse: str = "none"
    """Which final predictions are what the heads draw plus the upsampled coarse ones: none; areas, all but those of thin
    lines; areas_but_values, those of distances and other values neither."""


FORMS = {
    "paper": Form(),
    "refined": Form(
        tokens="centroids",
        pool=2,
        refine="fused",
        zero_start=True,
        read_tokens="all",
        mix=16,
        positions=True,
        deep_supervision="areas",
        add_coarse="areas_but_values",
    ),
}
"""By ``ModelConfig.form``."""
CHOICES: dict[str, tuple[Any, ...]] = {
    "context": CONTEXTS,
    "fuse_coarse": (True, False),
    "fuse_onto": ONTO,
    "fuse_gradient": (True, False),
    "tokens": ("shares", "centroids"),
    "pool": (1, 2, 4),
    "refine": ("preliminary", "fused"),
    "zero_start": (True, False),
    "read_tokens": ("own", "all"),
    "mix": (0, 8, 16, 32),
    "positions": (True, False),
    "deep_supervision": DEEP_SUPERVISION,
    "add_coarse": ADD_COARSE,
}


def form_of(sizes: ModelConfig) -> Form:
    """The form that ``sizes`` name, with its changes. Raises ``MistakeError`` for an unknown form or choice."""
    if sizes.form not in FORMS:
        raise MistakeError(f"unknown form {sizes.form!r}; expected {' or '.join(FORMS)}")
    changes = {name: value for name, value in options_given(sizes, Form).items() if value is not None}
    for name, value in changes.items():
        check_choice(f"decoder option {name}:", value, CHOICES[name])
    return replace(FORMS[sizes.form], **changes)


def spelt_out(sizes: ModelConfig) -> ModelConfig:
    """The same sizes with every choice of the form among ``decoder_options``, where a form that changes later leaves it."""
    return replace(sizes, decoder_options=asdict(form_of(sizes))) if sizes.decoder == "mtlsi" else sizes


def as_stored(sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of a config.json, with what was otherwise before it had a name in there."""
    options = sizes.get("decoder_options") or {}
    if sizes.get("decoder", "mtlsi") != "mtlsi" or sizes.get("form") != "refined":
        return {**sizes}
    added = options.get("add_coarse", False)
    if isinstance(added, bool):
        added = "areas" if added else "none"
    return {**sizes, "decoder_options": {**options, "add_coarse": added}}
