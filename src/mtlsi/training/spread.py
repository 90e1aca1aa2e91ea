"""How the images of a step are spread over processes and micro-batches, which may change when a run goes on.

Step k of P processes, each with A micro-batches of B images, shows the images at the places k P A B to (k + 1) P A B of the
run's order, augmented by their places: another number of processes with the same P A B sees the same images in every step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mtlsi.errors import MistakeError
from mtlsi.run_folder import count_in
from mtlsi.training.checkpoints import FACTS, Checkpoint
from mtlsi.training.same_settings import FREE, SPREAD, check_same

if TYPE_CHECKING:
    from mtlsi.config import RunConfig


MOST = 10**6
"""Processes, images of a batch and batches of a step, each: more are in no checkpoint."""


class Spread(NamedTuple):
    """How the images of a step are spread over the processes."""

    processes: int
    batch_size: int
    accumulate: int

    @property
    def images(self) -> int:
        """Of a step."""
        return self.processes * self.batch_size * self.accumulate

    def __str__(self) -> str:
        number = f"{self.processes} process{'es' if self.processes > 1 else ''}"
        return f"{number} x batch_size {self.batch_size} x accumulate {self.accumulate}"


def spread_of(config: RunConfig, num_processes: int) -> Spread:
    """How ``num_processes`` that train as ``config`` says share a step's images."""
    return Spread(num_processes, config.train.batch_size, config.train.accumulate)


def spread_in(checkpoint: Checkpoint) -> Spread | None:
    """What made the steps of ``checkpoint``; None where its facts do not say."""
    facts = checkpoint.facts
    try:
        given = [count_in(facts["settings"], f"train.{name}", MOST) for name in ("batch_size", "accumulate")]
        found = Spread(count_in(facts, "processes", MOST), *given)
    except (KeyError, TypeError, ValueError):
        return None
    return found if all(found) else None


def note_on_spread(config: RunConfig, num_processes: int, checkpoint: Checkpoint) -> tuple[str, ...]:
    """What a person is told whose run goes on in other processes than it was trained by."""
    now, then = spread_of(config, num_processes), spread_in(checkpoint)
    return () if now == then else (f"goes on in {now}, after {then}: a step has the same {now.images} images",)


def check_facts(config: RunConfig, num_processes: int, checkpoint: Checkpoint) -> None:
    """Raises ``MistakeError`` where ``checkpoint`` was made under other settings, or with other images in a step."""
    out, stored = checkpoint.folder.parents[1], checkpoint.facts.get("settings")
    now, then = spread_of(config, num_processes), spread_in(checkpoint)
    if then is None or (then.processes == num_processes and then.images != now.images):
        check_same(config, stored, out)  # names what differs
    if then is None:
        raise MistakeError(f"{checkpoint.folder / FACTS} does not say what a step was; expected the facts of a run")
    if then.images != now.images:
        fits = then.images % (num_processes * now.accumulate) == 0
        batch_size = then.images // (num_processes * now.accumulate)
        raise MistakeError(
            f"cannot resume {out}: a step was of {then.images} images ({then}), and would be of {now.images} ({now}); start "
            f"{then.processes}" + (f", or give --train.batch_size {batch_size}" if fits else "")
        )
    check_same(config, stored, out, (*FREE, *SPREAD))
