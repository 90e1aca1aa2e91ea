"""Train a network: one function that reads from top to bottom."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from mtlsi import kinds, run_folder
from mtlsi.config import DataConfig, RunConfig, TrainConfig
from mtlsi.data.batches import evaluation_batches, training_batches
from mtlsi.data.datasets import LabelledImages, constant_predictions, open_dataset, spread
from mtlsi.data.sampling import RunSampler
from mtlsi.device import choose_precision
from mtlsi.drawing.panels import compare_panel
from mtlsi.drawing.plots import plot_curves
from mtlsi.errors import MistakeError
from mtlsi.evaluation.evaluate import evaluate, shared_tasks
from mtlsi.evaluation.report import Scores, introduce, write_scores
from mtlsi.losses import MultiTaskLoss
from mtlsi.model.network import MTLSINet, create_model, decode, packaged_models
from mtlsi.nn.layers import TaskLayerNorm, resize_maps
from mtlsi.run_folder import MovingAverage, Position
from mtlsi.training.log import Log


@dataclass
class Parts:
    """What a run consists of, made ready for the machine by accelerate."""

    accelerator: Accelerator
    train_set: LabelledImages
    val_set: LabelledImages
    network: MTLSINet
    model: nn.Module
    """The network as accelerate wraps it for several processes."""
    criterion: MultiTaskLoss
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LambdaLR
    average: MovingAverage
    position: Position


def train(config: RunConfig, out: Path, *, resume: bool = False, console: Console | None = None) -> Scores:
    """Run ``config`` in the folder ``out`` and give the scores of the last weights on the validation split.

    With ``resume`` the run goes on from its last saved state and ends with the very weights of an unbroken run. Raises
    ``MistakeError`` for a configuration or folder that cannot be used, and for a loss that is no longer a number.
    """
    console = console or Console()
    check(config)
    config, options = settle(config), config.train
    parts = assemble(config, out, resume=resume)
    position, average = parts.position, parts.average
    if parts.accelerator.is_main_process:
        introduce(parts.train_set, console)
    batches = iter(batches_from(position.step, parts, config))
    log = Log(parts.accelerator, out, options, console, position.step)
    scores: Scores = {}
    parts.model.train()
    with log.progress:
        while position.step < options.iterations:
            norm = optimizer_step(parts, batches, config, log)
            last = position.step == options.iterations
            log.step(position.step, norm, options.lr * learning_rate_factor(position.step, options))
            if last or (options.checkpoint_every and position.step % options.checkpoint_every == 0):
                # a state with broken weights must not replace a good one
                if norm is not None and not torch.isfinite(norm):
                    raise MistakeError(
                        f"the gradient at step {position.step} is not finite; start again with a lower --train.lr"
                    )
                run_folder.save_state(parts.accelerator, out)
                if parts.accelerator.is_main_process:
                    run_folder.save_model(parts.network, average.state, out)
            if last or (options.evaluate_every and position.step % options.evaluate_every == 0):
                start = time.perf_counter()
                scores = measure(parts, config.data, 0 if last else options.evaluate_images)
                log.validation(position.step, scores, time.perf_counter() - start)
    if not scores:
        if (out / "scores.json").exists():
            raise MistakeError(f"the run in {out} has ended at step {position.step} already; nothing is left to do")
        # the run was stopped between its last saved state and its scores
        if parts.accelerator.is_main_process:
            run_folder.save_model(parts.network, average.state, out)
        scores = measure(parts, config.data, 0)
    if parts.accelerator.is_main_process:
        with average.lent_to(parts.network):
            finish(parts.network, parts.val_set, config.data, out, scores, console)
    parts.accelerator.end_training()
    return scores


def assemble(config: RunConfig, out: Path, *, resume: bool) -> Parts:
    """Open the data, build the network and what trains it, and make or open the run folder."""
    options = config.train
    trackers: dict[str, Any] = {"log_with": options.tracker, "project_dir": str(out)} if options.tracker else {}
    AcceleratorState._reset_state()  # else a second run in this process could not have another precision
    accelerator = Accelerator(mixed_precision="bf16" if options.precision == "bf16" else "no", **trackers)
    train_set, val_set = open_dataset(config.data, "train", config.seed), open_dataset(config.data, "val", config.seed)
    torch.manual_seed(config.seed)
    network = build_model(config, train_set, with_weights=not resume)
    shared_tasks(network, val_set)
    criterion = MultiTaskLoss(
        network.tasks,
        weights=options.loss_weights,
        coarse_weight=options.coarse_weight,
        boundary_weight=options.boundary_positive,
    )
    if accelerator.is_main_process:
        run_folder.prepare_run_folder(out, resume=resume)
    optimizer = build_optimizer(network, options)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, options))
    average, position = MovingAverage(network, options.ema), Position()
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        network = cast(MTLSINet, nn.SyncBatchNorm.convert_sync_batchnorm(network))
    model, optimizer = accelerator.prepare(network, optimizer)
    average.to(accelerator.device)
    accelerator.register_for_checkpointing(scheduler, average, position)
    if resume:
        run_folder.load_state(accelerator, out)
    if accelerator.is_main_process:
        run_folder.forget_metrics_after(out, position.step)
        run_folder.save_config(config, out)
    if options.tracker:
        accelerator.init_trackers(out.name)
    return Parts(accelerator, train_set, val_set, network, model, criterion, optimizer, scheduler, average, position)


def batches_from(step: int, parts: Parts, config: RunConfig) -> Iterable[dict[str, Tensor]]:
    """This process's batches of the steps after ``step``."""
    options, accelerator = config.train, parts.accelerator
    sampler = RunSampler(
        len(parts.train_set),
        options.batch_size,
        seed=config.seed,
        start=step * options.accumulate,
        stop=options.iterations * options.accumulate,
        process=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    on_gpu = accelerator.device.type == "cuda"
    return training_batches(parts.train_set, config.data, sampler, seed=config.seed, pin_memory=on_gpu)


def optimizer_step(parts: Parts, batches: Iterator[dict[str, Tensor]], config: RunConfig, log: Log) -> Tensor | None:
    """One step of the weights over ``accumulate`` batches; gives the gradient's norm before it was cut."""
    options, accelerator = config.train, parts.accelerator
    torch.manual_seed(step_seed(config.seed, parts.position.step, accelerator.process_index))  # drop path's draws
    parts.optimizer.zero_grad(set_to_none=True)
    for _ in range(options.accumulate):
        batch = {name: x.to(accelerator.device, non_blocking=True) for name, x in next(batches).items()}
        with accelerator.autocast():
            output = parts.model(batch["image"], full_size=options.loss_at == "image")
        loss, of_tasks = parts.criterion(output.final, output.coarse, batch)
        accelerator.backward(loss / options.accumulate)
        log.add(loss, of_tasks)
    norm = accelerator.clip_grad_norm_(parts.model.parameters(), options.clip_norm)
    parts.optimizer.step()
    parts.scheduler.step()
    parts.average.update(parts.network)
    parts.position.step += 1
    return norm


def measure(parts: Parts, config: DataConfig, num_images: int) -> Scores:
    """Scores of the averaged weights on ``num_images`` (0: all), shared out over the processes."""
    accelerator = parts.accelerator
    chosen = spread(num_images, len(parts.val_set))[accelerator.process_index :: accelerator.num_processes]
    with parts.average.lent_to(parts.network):
        return evaluate(parts.network, parts.val_set, config, indices=chosen, device=accelerator.device)


def resume(out: Path, *, console: Console | None = None) -> Scores:
    """Go on with the run in ``out`` under its own ``config.yaml``, to the weights that an unbroken run ends with."""
    run_folder.recover_state(out)
    return train(run_folder.load_config(out), out, resume=True, console=console)


def settle(config: RunConfig) -> RunConfig:
    """The configuration with what depends on this machine written out: the precision, and where files are."""
    root = config.data.root and str(Path(config.data.root).resolve())
    weights = config.backbone_weights
    if weights not in (None, "none", "pretrained", *packaged_models()):
        weights = str(Path(weights).resolve())
    options = replace(config.train, precision=choose_precision(config.train.precision))
    return replace(config, backbone_weights=weights, data=replace(config.data, root=root), train=options)


def check(config: RunConfig) -> None:
    """Refuse, in one line, numbers that cannot be trained with."""
    options, data = config.train, config.data
    if options.optimizer not in ("adamw", "adam"):
        raise MistakeError(f"train.optimizer {options.optimizer!r}; expected adamw or adam")
    if options.schedule not in ("poly", "cosine"):
        raise MistakeError(f"train.schedule {options.schedule!r}; expected poly or cosine")
    if options.loss_at not in ("prediction", "image"):
        raise MistakeError(f"train.loss_at {options.loss_at!r}; expected prediction or image")
    if not 0 <= options.ema < 1:
        raise MistakeError(f"train.ema {options.ema}; expected at least 0 and below 1")
    for part, names, least in (
        ("train", ("iterations", "batch_size", "accumulate", "log_every"), 1),
        ("train", ("warmup", "checkpoint_every", "evaluate_every", "evaluate_images"), 0),
        ("data", ("num_train", "num_val"), 1),
        ("data", ("num_workers",), 0),
    ):
        for name in names:
            value = getattr(getattr(config, part), name)
            if value < least:
                raise MistakeError(f"{part}.{name} {value}; expected at least {least}")
    for name in ("lr", "clip_norm"):
        if not getattr(options, name) > 0:
            raise MistakeError(f"train.{name} {getattr(options, name)}; expected a number above 0")
    if not 0 < data.zoom[0] <= data.zoom[1]:
        raise MistakeError(f"data.zoom {list(data.zoom)}; expected two numbers above 0, the smaller one first")
    if data.image_hw is not None and min(data.image_hw) < 2:
        raise MistakeError(f"data.image_hw {list(data.image_hw)}; expected a height and a width in pixels")
    if config.seed < 0:
        raise MistakeError(f"seed {config.seed}; expected 0 or more")
    trackers = [str(name) for name in get_available_trackers()]
    if options.tracker is not None and options.tracker not in trackers:
        known = ", ".join(trackers) or "none"
        raise MistakeError(f"train.tracker {options.tracker!r} is not installed; expected one of those here: {known}")
    stride = config.model_config().decoder_stride
    if stride not in (4, 8, 16):
        raise MistakeError(f"model.decoder_stride {stride}; expected 4, 8 or 16")
    if any(side % stride or side < 64 for side in data.size_hw):
        raise MistakeError(
            f"data.size_hw {list(data.size_hw)}; expected multiples of the decoder's stride {stride}, 64 or more"
        )


def build_model(config: RunConfig, dataset: LabelledImages, *, with_weights: bool = True) -> MTLSINet:
    """The network of ``config`` for the tasks and classes of ``dataset``, the backbone loaded and frozen as told.

    ``with_weights=False`` is for a resumed run, whose state brings all weights.

    Its ``input_size`` is a whole image's at zoom 1: an image shown larger or smaller than that has other depths.
    """
    network = create_model(
        config.preset,
        tasks=dataset.tasks,
        classes=dataset.classes,
        input_size=config.data.image_hw or dataset[0]["image"].shape[-2:],
        **config.model,
    )
    if with_weights:
        set_first_weights(network, config.backbone_weights or "none", dataset)
    network.backbone.freeze(config.train.freeze_stride, norm=config.train.freeze_norm)
    network.recompute(config.train.recompute)
    return network


def set_first_weights(network: MTLSINet, backbone_weights: str, dataset: LabelledImages) -> None:
    """The backbone's weights as ``RunConfig.backbone_weights`` says, and depth begun at its median in ``dataset``."""
    if backbone_weights == "pretrained":
        network.backbone.download()
    elif backbone_weights in packaged_models() or Path(backbone_weights).is_dir():
        network.backbone.take_from(MTLSINet.from_pretrained(backbone_weights).backbone)
    elif backbone_weights != "none":
        network.backbone.load(backbone_weights)
    for task, value in constant_predictions(dataset).items():
        if kinds.of(task).starts_at_constant:  # metres far from 0 would take a thousand steps to reach
            network.preliminary.predict.start_at(task, float(value.mean()))
            network.heads.predict.start_at(task, float(value.mean()))


def build_optimizer(network: MTLSINet, options: TrainConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over four groups: backbone or decoder, with weight decay (matrices) or without (vectors)."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = defaultdict(list)
    norms = [module for module in network.modules() if isinstance(module, TaskLayerNorm)]
    gains = {parameter for norm in norms for parameter in norm.parameters()}  # one row per task: no matrix
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            is_vector = name.endswith(".bias") or parameter.dim() < 2 or parameter in gains
            groups[name.startswith("backbone.body."), is_vector].append(parameter)
    settings = [
        {
            "params": parameters,
            "lr": options.lr * (options.backbone_lr_factor if in_backbone else 1.0),
            "weight_decay": 0.0 if is_vector else options.weight_decay,
        }
        for (in_backbone, is_vector), parameters in groups.items()
    ]
    return {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[options.optimizer](
        settings, lr=options.lr, fused=True
    )


def learning_rate_factor(step: int, options: TrainConfig) -> float:
    """What the learning rate is multiplied by after ``step`` steps: a linear rise, then the schedule down to zero."""
    if step < options.warmup:
        return (step + 1) / options.warmup
    share = min(1.0, (step - options.warmup) / max(1, options.iterations - options.warmup))
    return (1 - share) ** 0.9 if options.schedule == "poly" else 0.5 * (1 + math.cos(math.pi * share))


def step_seed(seed: int, step: int, process: int) -> int:
    """The seed of what the network draws in one step: a pure function of its arguments."""
    return (seed * 1_000_003 + step) * 4_096 + process


def finish(
    network: MTLSINet, dataset: LabelledImages, config: DataConfig, out: Path, scores: Scores, console: Console
) -> None:
    """Scores, curves and a panel of predictions beside the labels, in the run folder and on the screen."""
    write_scores(scores, out / "scores.json", data=config.name, split="val", images=len(dataset))
    plot_curves(out / run_folder.METRICS, out / "curves.png")
    draw_samples(network, dataset, config, out / "samples")
    console.print(f"run folder: {out}")


@torch.no_grad()
def draw_samples(
    network: MTLSINet, dataset: LabelledImages, config: DataConfig, folder: Path, num_images: int = 3
) -> None:
    """A few images of ``dataset``, each with its predictions above its labels, as PNG files in ``folder``."""
    network.eval()
    folder.mkdir(exist_ok=True)
    indices = spread(num_images, len(dataset))
    device, tasks = next(network.parameters()).device, shared_tasks(network, dataset)
    for index, (sample,) in zip(indices, evaluation_batches(dataset, config, indices), strict=True):
        photo = dataset[index]["image"].permute(1, 2, 0).numpy()
        raw = network(sample["image"][None].to(device), tasks).final
        predicted = {
            task: decode(task, resize_maps(x.float(), photo.shape[:2]))[0].cpu().numpy() for task, x in raw.items()
        }
        truth = {task: sample[task].numpy() for task in tasks}
        sheet = compare_panel(photo, predicted, truth, network.classes)
        Image.fromarray(sheet).save(folder / f"{dataset.name(index)}.png")
