"""The measurements that a benchmark is made of: one model, on one machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass, field
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from mtlsi import kinds
from mtlsi.benchmarking.parts import part_costs
from mtlsi.errors import MistakeError, message_of
from mtlsi.kernels.recompute import batch_norms
from mtlsi.losses import MultiTaskLoss
from mtlsi.model.backbone import STRIDES
from mtlsi.model.build import create_model
from mtlsi.model.network import MTLSINet, pad_to_multiple
from mtlsi.model.pretrained import is_packaged, packaged_models
from mtlsi.plugins import import_plugins
from mtlsi.sizes import PRESETS, sizes_of
from mtlsi.tasks import num_channels
from mtlsi.timing import Timing, copy_rate, fit_power, matrix_rate, peak_memory, time_calls

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MODES = ("eager", "compiled", "cudagraphs", "exported")
"""cudagraphs: compiled, and on a GPU recorded as one graph of kernels with buffers that are used again."""
FIRST_SIZE = (64, 64)
"""A forward of this size comes before memory is measured, so that what is set up once is not counted."""
TRAINING_BATCH = 2
STATISTICS_SIZE, NUM_STATISTICS_FORWARDS = (64, 96), 2
"""Noise images from which a network with random weights takes its batch statistics."""
DID_NOT_WORK = (RuntimeError, AssertionError, TypeError, ValueError, LookupError, AttributeError, ImportError, OSError)
"""What torch.compile and torch.export raise on a network or a machine (no C++ compiler, say), and memory run out."""

Size = tuple[int, int]
Forward = Callable[[], Any]


def open_model(
    name: str, dataset: str | None = None, changes: Mapping[str, Any] | None = None, plugins: Sequence[str] = ()
) -> MTLSINet:
    """A preset with random weights, or a trained model, in evaluation mode; ``MistakeError`` where ``name`` is neither.

    ``changes``: sizes that differ from the preset's, by field of ``ModelConfig``. ``plugins`` are imported first.
    """
    import_plugins(plugins)
    if name in PRESETS:
        sizes_of(name, changes or {})  # create_model has other arguments, too
        return with_statistics(create_model(name, dataset=dataset or "nyud", **(changes or {})))
    if not is_packaged(name) and not Path(name).exists():
        raise MistakeError(
            f"unknown model {name!r}; expected a preset ({', '.join(PRESETS)}), a packaged model "
            f"({', '.join(packaged_models()) or 'none'}) or the folder of one"
        )
    if changes:
        raise MistakeError(
            f"{', '.join(changes)}: only a preset's sizes can be changed; {name} has its own: leave them out"
        )
    if dataset is not None:
        raise MistakeError(f"dataset {dataset!r} goes with a preset; {name} has tasks of its own: leave it out")
    return MTLSINet.from_pretrained(name)


def with_statistics(model: MTLSINet) -> MTLSINet:
    """The model in evaluation mode, its batch norms with the statistics of a few noise images.

    Untouched statistics let the activations of random weights grow to thousands; softmaxes then give denormal numbers,
    for which some CPUs take a hundred times as long, so that nothing true would be measured.
    """
    norms = batch_norms(model)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # a plain mean over the forwards below
    model.train()
    with torch.no_grad():
        for seed in range(NUM_STATISTICS_FORWARDS):
            model(random_images(2, STATISTICS_SIZE, next(model.parameters()).device, seed), full_size=False)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


@contextmanager
def predicting(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """As the predictor runs a network: without gradients, in mixed precision where ``dtype`` says so."""
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
        yield


def forward_of(network: Callable[[Tensor], Any], images: Tensor, device: torch.device, dtype: torch.dtype) -> Forward:
    """One forward, the precision set up again in each call, as it is for each image."""

    def forward() -> Any:
        with predicting(device, dtype):
            return network(images)

    return forward


def prepare_forward(
    opened: Callable[[], MTLSINet], tasks: tuple[str, ...] | None, size_hw: Size, device: str, dtype: torch.dtype
) -> Forward:
    """A forward of a model opened for this alone, after a first small one."""
    place = torch.device(device)
    network = opened().to(place).for_tasks(tasks)
    forward_of(network, random_images(1, FIRST_SIZE, place), place, dtype)()
    return forward_of(network, random_images(1, size_hw, place), place, dtype)


def random_images(batch: int, size_hw: Size, device: torch.device, seed: int = 0) -> Tensor:
    """Images (b 3 H W), as noisy as normalised ones are."""
    return torch.randn(batch, 3, *size_hw, generator=torch.Generator().manual_seed(seed)).to(device)


def random_labels(model: MTLSINet, batch: int, size_hw: Size, device: torch.device) -> dict[str, Tensor]:
    """A label of every task, laid out as ``mtlsi.tasks`` says, with nothing invalid."""
    return {
        task: kinds.of(task).random(batch, size_hw, num_channels(task, model.classes)).to(device)
        for task in model.tasks
    }


class TensorsOnly(nn.Module):
    """The network with a dictionary as its result, since torch.export knows no dataclass."""

    def __init__(self, model: MTLSINet):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.model(images).final


@dataclass
class Measured:
    """One model on one machine, and the measurements that a benchmark is made of."""

    model: MTLSINet
    name: str
    dataset: str | None
    tasks: tuple[str, ...] | None
    dtype_name: str
    device: torch.device
    repeats: int
    changes: Mapping[str, Any] = field(default_factory=dict)
    plugins: Sequence[str] = ()
    """What a process of its own must import before it can open the model."""
    failed: list[dict[str, Any]] = field(default_factory=list)
    """Modes that did not work here: mode, batch, reason."""
    _memory_mb: dict[Size, float | None] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """The type of matrix products."""
        return DTYPES[self.dtype_name]

    def forwards(self, batch: int, size_hw: Size) -> tuple[Forward, Forward]:
        """One eager forward of the backbone alone, and one of the whole."""
        images = random_images(batch, size_hw, self.device)
        padded = pad_to_multiple(images, STRIDES[-1])
        whole = self.model.for_tasks(self.tasks)
        return (
            forward_of(self.model.backbone, padded, self.device, self.dtype),
            forward_of(whole, images, self.device, self.dtype),
        )

    def rates(self) -> dict[str, Any]:
        """What the machine can do: matrix products in float32 and in the dtype asked for, and copies."""
        names = dict.fromkeys(("float32", self.dtype_name))
        return {
            "matrix_gflop_per_s": {name: matrix_rate(DTYPES[name], self.device) / 1e9 for name in names},
            "copy_gb_per_s": copy_rate(self.device) / 1e9,
        }

    def parts(self, size_hw: Size, rates: dict[str, Any]) -> list[dict[str, Any]]:
        """Every part's parameters, operations and time, and how near it comes to what the machine allows."""
        _, whole = self.forwards(1, size_hw)
        network = self.model.for_tasks(self.tasks)  # what ``whole`` runs: no other weights are counted
        flops_per_s = 1e9 * rates["matrix_gflop_per_s"][self.dtype_name]
        rows = []
        for cost in part_costs(network, whole, repeats=self.repeats, device=self.device):
            allowed = cost.allowed_s(flops_per_s, 1e9 * rates["copy_gb_per_s"])
            rows.append(
                {
                    "part": cost.part,
                    "parameters": cost.parameters,
                    "gflop": cost.flops / 1e9,
                    "ms": in_ms(cost.timing),
                    "moved_mb": None if cost.bytes_moved is None else cost.bytes_moved / 1e6,
                    "allowed_ms": None if allowed is None else 1e3 * allowed,
                    "share_of_roofline": allowed / cost.timing.median_s if allowed and cost.timing.median_s else None,
                }
            )
        return rows

    def memory_mb(self, size_hw: Size) -> float | None:
        """Peak of what a forward needs beside the loaded model, in 10^6 bytes; None: not measured."""
        if size_hw not in self._memory_mb:
            opened = partial(open_model, self.name, self.dataset, self.changes, self.plugins)
            prepare = partial(prepare_forward, opened, self.tasks, size_hw, str(self.device), self.dtype)
            rise = peak_memory(prepare, self.device)
            self._memory_mb[size_hw] = None if rise is None else rise / 1e6
        return self._memory_mb[size_hw]

    def whole(self, size_hw: Size, modes: Sequence[str], batches: Sequence[int]) -> list[dict[str, Any]]:
        """The backbone alone and the whole network in every mode, at every batch size, all modes taking turns."""
        rows = []
        for batch in dict.fromkeys(batches):
            torch._dynamo.reset()
            calls: dict[tuple[str, str], Forward] = {}
            breaks: dict[str, list[str]] = {}
            for mode in dict.fromkeys(modes):
                try:
                    backbone, whole = self.in_mode(mode, batch, size_hw)
                    counters.clear()
                    whole()
                    breaks[mode] = [reason for reason, n in counters["graph_break"].items() for _ in range(n)]
                    backbone()
                except DID_NOT_WORK as error:
                    breaks.pop(mode, None)
                    reason = message_of(error, 300)
                    self.failed.append({"mode": mode, "batch": batch, "reason": f"{type(error).__name__}: {reason}"})
                    continue
                calls |= {(mode, "backbone"): backbone, (mode, "whole"): whole}
            timings = time_calls(calls, repeats=self.repeats, device=self.device)
            for mode in breaks:
                row = compared(timings[mode, "backbone"], timings[mode, "whole"])
                per_second = batch / timings[mode, "whole"].median_s
                rows.append({"mode": mode, "batch": batch, **row, "images_per_s": per_second})
                if mode == "compiled":
                    rows[-1]["graph_breaks"] = breaks[mode]
        return rows

    def in_mode(self, mode: str, batch: int, size_hw: Size) -> tuple[Forward, Forward]:
        """The two forwards in one mode; what is compiled is compiled when it is first called."""
        if mode == "eager":
            return self.forwards(batch, size_hw)
        images = random_images(batch, size_hw, self.device)
        given = pad_to_multiple(images, STRIDES[-1]), images
        networks: list[Any]
        if mode in ("compiled", "cudagraphs"):
            kind = "reduce-overhead" if mode == "cudagraphs" else None
            backbone, whole = (
                torch.compile(network, dynamic=False, mode=kind)
                for network in (self.model.backbone, self.model.for_tasks(self.tasks))
            )
            networks = [backbone, whole]
        else:
            networks = [self.model.backbone, TensorsOnly(self.model.for_tasks(self.tasks)).eval()]
            # where export fails, it prints the whole graph before it says why
            with predicting(self.device, self.dtype), redirect_stderr(StringIO()):
                networks = [
                    torch.export.export(network, (x,)).module() for network, x in zip(networks, given, strict=True)
                ]
        backbone, whole = (
            forward_of(network, x, self.device, self.dtype) for network, x in zip(networks, given, strict=True)
        )
        return backbone, whole

    def scaling(self, sizes: Sequence[Size]) -> dict[str, Any]:
        """Time and memory over the sizes, and the exponents with which the decoder's time and the memory grow."""
        rows = []
        for size_hw in sorted(set(sizes), key=lambda size: size[0] * size[1]):
            backbone, whole = self.forwards(1, size_hw)
            taken = time_calls({"backbone": backbone, "whole": whole}, repeats=self.repeats, device=self.device)
            decoder = taken["whole"].median_s - taken["backbone"].median_s
            rows.append(
                {
                    "size_hw": list(size_hw),
                    "pixels": size_hw[0] * size_hw[1],
                    **compared(taken["backbone"], taken["whole"]),
                    "decoder_ms": 1e3 * decoder,
                    "peak_memory_mb": self.memory_mb(size_hw),
                }
            )
        return {"sizes": rows, **{f"{name}_fit": fitted(rows, name) for name in ("decoder_ms", "peak_memory_mb")}}

    def training(self, size_hw: Size) -> dict[str, Any]:
        """A step of training (forward, losses, backward, AdamW) on images of half the size with random labels.

        Predictions meet their labels at the network's own stride, as in training's default. The last measurement of a
        benchmark: it changes the weights.
        """
        half = (max(size_hw[0] // 2, 1), max(size_hw[1] // 2, 1))
        model = self.model.train()
        criterion, optimizer = MultiTaskLoss(model.tasks), torch.optim.AdamW(model.parameters(), lr=1e-5)
        images = random_images(TRAINING_BATCH, half, self.device)
        labels = random_labels(model, TRAINING_BATCH, half, self.device)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
                output = model(images, full_size=False)
            criterion(output.final, output.coarse, labels)[0].backward()
            optimizer.step()

        timing = time_calls({"step": step}, repeats=self.repeats, device=self.device)["step"]
        model.eval()
        per_second = TRAINING_BATCH / timing.median_s
        return {"batch": TRAINING_BATCH, "size_hw": list(half), "step_ms": in_ms(timing), "images_per_s": per_second}


def in_ms(timing: Timing) -> dict[str, float]:
    """Milliseconds by median, lowest and highest."""
    return {name.removesuffix("_s"): 1e3 * seconds for name, seconds in asdict(timing).items()}


def compared(backbone: Timing, whole: Timing) -> dict[str, Any]:
    """The backbone alone beside the whole, and how many times as long the whole takes."""
    return {
        "backbone_ms": in_ms(backbone),
        "whole_ms": in_ms(whole),
        "ratio": whole.median_s / backbone.median_s,
    }


def fitted(rows: Sequence[dict[str, Any]], name: str) -> dict[str, float] | None:
    """How ``name`` grows with the pixels, as ``factor * pixels ** exponent``; None: not measured, or not positive."""
    values = [row[name] for row in rows]
    found = None if None in values else fit_power([row["pixels"] for row in rows], values)
    return None if found is None else {"exponent": found[0], "factor": found[1]}
