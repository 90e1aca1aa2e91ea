"""What a training run consists of, built from its configuration: data, network, optimizer, schedule, run folder."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from rich.console import Console
from torch import Generator, Tensor, nn
from torchmetrics import Metric

from mtlsi import kinds, processes, run_folder
from mtlsi.config import RESIZES, RunConfig, TrainConfig
from mtlsi.data.datasets import (
    LabelledImages,
    camera_of,
    colours_of,
    constant_predictions,
    note_on_blur,
    note_on_camera,
    open_dataset,
)
from mtlsi.data.transforms import Sample
from mtlsi.device import choose_precision
from mtlsi.errors import MistakeError
from mtlsi.evaluation.evaluate import check_metrics, shared_tasks
from mtlsi.losses import MultiTaskLoss
from mtlsi.model.build import create_model
from mtlsi.model.decoder import start_predictions_at
from mtlsi.model.freezing import freeze
from mtlsi.model.inherit import NEW, check_sizes_agree, inherit, tensors_of
from mtlsi.model.network import MTLSINet
from mtlsi.model.pretrained import is_packaged, note_on_name
from mtlsi.nn import sync_norm
from mtlsi.nn.layers import TaskLayerNorm
from mtlsi.plugins import settle_plugins
from mtlsi.run_folder import MovingAverage, Position
from mtlsi.sizes import sizes_of
from mtlsi.tasks import TASKS
from mtlsi.training import checkpoints, class_weights, run_state, sharding
from mtlsi.training.balance.base import Balance
from mtlsi.training.balance.build import build_balance
from mtlsi.training.best import Best
from mtlsi.training.class_weights import ClassWeights, weights_for
from mtlsi.training.cuda_graph import RecordedPasses, notes_on_recording, obstacle
from mtlsi.training.faults import alone_in
from mtlsi.training.passes import forward_backward
from mtlsi.training.same_settings import differing, flat, told
from mtlsi.training.spread import check_facts, note_on_spread

Transform = Callable[[Sample, Generator], Sample]
"""An augmentation: a sample and the generator of all its random draws, to a sample of the network's input."""


@dataclass
class TrainingRun:
    """Everything that a run trains with, ready for this machine; callbacks receive it."""

    config: RunConfig
    """As settled for this machine."""
    out: Path
    """The run folder."""
    accelerator: Accelerator
    train_set: LabelledImages
    val_set: LabelledImages
    network: MTLSINet
    model: nn.Module
    """``network`` as accelerate wraps it for several processes; itself where its parameters are shared out among them."""
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LambdaLR
    average: MovingAverage
    """Moving average of the weights: what is evaluated and saved."""
    position: Position
    train_transform: Transform | None = None
    """Instead of the field's augmentation."""
    metrics: Mapping[str, Metric] | None = None
    """Instead of the metrics of these tasks."""
    balance: Balance | None = None
    """What makes one gradient of the tasks' losses; None: the criterion's total."""
    taken_over: Mapping[str, str] = field(default_factory=dict)
    """By task, what the model that the run starts from brought."""
    passes: Callable[..., dict[str, Tensor]] = forward_backward
    """Takes a micro-batch forward and backward."""
    notes: tuple[str, ...] = ()
    """What a person should know of how the run begins."""
    own_parts: Mapping[str, Any] = field(default_factory=dict)
    """What was given instead of built-in parts, by argument of ``train``, as ``run_state.own_parts`` names it."""
    class_weights: ClassWeights = field(default_factory=dict)
    """Of the built-in criterion."""

    @property
    def is_sharded(self) -> bool:
        """Whether each process keeps a share of every parameter."""
        return is_sharded(self.config.train)

    def whole_average(self) -> dict[str, Tensor]:
        """The averaged weights, to be written by the first process; every process must ask."""
        return sharding.whole_in_first(self.average.state) if self.is_sharded else self.average.state

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the context ``network`` has the averaged weights, whole in every process; all of them must enter it."""
        with self.average.lent_to(self.network), ExitStack() as also:
            if self.is_sharded:
                also.enter_context(sharding.whole_in_each(self.network))
            yield

    def balance_weights(self) -> dict[str, Tensor]:
        """By task, what the balance multiplied its loss or gradient by in the last step; empty without a balance."""
        if self.balance is None:
            return {}
        return dict(zip(self.network.tasks, self.balance.weights.unbind(), strict=True))


def settle(config: RunConfig, *, resume: bool = False) -> RunConfig:
    """``config`` with all that depends on this machine written out: the precision, absolute paths, the sizes of ``init``.

    ``resume``: they stand in it already, and the model that the run started from is needed no more.
    """
    root = config.data.root and str(Path(config.data.root).resolve())
    weights, init = config.backbone_weights, config.init
    if weights not in (None, "none", "pretrained") and not is_packaged(weights):
        weights = str(Path(weights).resolve())
    if init is not None and not is_packaged(init) and Path(init).is_dir():
        init = str(Path(init).resolve())
    return replace(
        config,
        model=config.model if init is None or resume else sizes_of_start(init, config),
        backbone_weights=weights,
        init=init,
        plugins=settle_plugins(config.plugins),
        data=replace(config.data, root=root),
        train=replace(config.train, precision=processes.of_first(choose_precision(config.train.precision))),
    )


def sizes_of_start(init: str, config: RunConfig) -> dict[str, Any]:
    """What turns the run's preset into the sizes of the model ``init``, under the changes that the run asks for.

    Raises ``MistakeError`` where a preset is given that is of other sizes: it would count for nothing.
    """
    sizes = MTLSINet.from_pretrained(init).sizes
    if config.preset != RunConfig.preset:
        check_sizes_agree(config.model_config(), sizes, f"the model {init}")
    theirs, preset = asdict(sizes), asdict(sizes_of(config.preset, {}))
    return {size: value for size, value in theirs.items() if value != preset[size]} | config.model


def assemble(
    config: RunConfig,
    out: Path,
    *,
    resume: bool,
    criterion: nn.Module | None = None,
    train_transform: Transform | None = None,
    metrics: Mapping[str, Metric] | None = None,
    console: Console | None = None,
    claims: ExitStack | None = None,
) -> TrainingRun:
    """Open the data, build the network and its optimizer, and create or open the run folder ``out``.

    ``claims`` keeps other processes out of it until it is closed. A run without a checkpoint is resumed from its beginning.
    """
    options = config.train
    if criterion is not None and options.class_weights:
        raise MistakeError(
            "train.class_weights belong to MultiTaskLoss, and a criterion is given; leave one of them out"
        )
    check_tracker(options.tracker)
    trackers: dict[str, Any] = {"log_with": options.tracker, "project_dir": str(out)} if options.tracker else {}
    AcceleratorState._reset_state()  # else a second run in this process could not have another precision
    accelerator = Accelerator(mixed_precision="bf16" if options.precision == "bfloat16" else "no", **trackers)
    if resume:
        run_folder.prepare_run_folder(out, resume=True)
        if claims is not None and accelerator.is_main_process:
            claims.enter_context(alone_in(out))
    notes = notes_on_sharding(options)
    checkpoint = newest_checkpoint(out, console) if resume else None
    if checkpoint is not None:
        check_facts(config, accelerator.num_processes, checkpoint)
        notes += note_on_spread(config, accelerator.num_processes, checkpoint)
    train_set, val_set = open_dataset(config.data, "train", config.seed), open_dataset(config.data, "val", config.seed)
    torch.manual_seed(config.seed)
    network = build_model(config, train_set)
    taken_over = {}
    if checkpoint is None:
        taken_over = set_first_weights(network, config, train_set)
        started_from = (config.init, config.backbone_weights)
        notes += tuple(note for name in started_from if name is not None and (note := note_on_name(name)) is not None)
    shared_tasks(network, val_set)
    check_metrics(metrics or {}, network.tasks)
    if options.best_by is not None:
        Best(options.best_by, options.patience, network.classes, network.tasks, 0)
    weights = weights_for(config, train_set, out if checkpoint is not None else None) if criterion is None else {}
    loss: nn.Module = build_criterion(network.tasks, options, weights) if criterion is None else criterion
    balance = build_balance(options, network, loss, sharded=is_sharded(options))
    if accelerator.is_main_process and not resume:
        start_folder(config, out, claims)
    own = run_state.own_parts(criterion, train_transform, metrics)
    if accelerator.is_main_process and checkpoint is None:
        run_state.begin_with(own, out)
    if processes.has_joined():
        sync_norm.synchronise(network)
    if is_sharded(options):
        sharding.shard(network.to(accelerator.device), accelerator.device)
    optimizer = build_optimizer(network, options, [*loss.parameters(), *(balance.learned() if balance else [])])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, options))
    average, position = MovingAverage(network, options.ema), Position()
    if is_sharded(options):
        model, optimizer = network, accelerator.prepare(optimizer)
    else:
        model, optimizer = accelerator.prepare(network, optimizer)
    average.to(accelerator.device)
    loss = loss.to(accelerator.device)
    if any(parameter.requires_grad for parameter in loss.parameters()):
        loss = accelerator.prepare(loss)  # its gradients are averaged over processes, its weights saved
    if balance is not None:
        balance.prepare(accelerator)
    run = TrainingRun(
        config, out, accelerator, train_set, val_set, network, model, loss, optimizer, scheduler, average, position,
        train_transform, metrics, balance, taken_over,
        own_parts=own, class_weights=weights,
    )  # fmt: skip
    run.passes = RecordedPasses(run, console or Console(stderr=True))
    if checkpoint is not None:
        run_state.load(run, checkpoint)
        go_on_from(position.step, optimizer, scheduler, options)
    if accelerator.is_main_process:
        blur = note_on_blur(train_set, config.data) if train_transform is None else ()
        cut, recording = run_folder.forget_metrics_after(out, position.step), notes_on_recording(run, obstacle(run))
        checkpoints.set_aside_after(out, position.step)
        run.notes = (*notes, *cut, *note_on_camera(train_set), *blur, *recording)
        run_folder.save_config(config, out)
        if weights:
            class_weights.save(weights, train_set.classes, out)
    if options.tracker:
        accelerator.init_trackers(out.name)
    return run


def newest_checkpoint(out: Path, console: Console | None) -> checkpoints.Checkpoint | None:
    """The checkpoint to go on from, as the first process finds it once the folder is its own.

    The others could see what another run there had not yet finished, and go on from another step.
    """
    found = checkpoints.newest(out, console or Console(stderr=True)) if processes.is_first() else None
    return processes.of_first(found)


def is_sharded(options: TrainConfig) -> bool:
    """Whether a run with ``options`` shares its parameters out: one process has nobody to share them with."""
    return options.shard and processes.number() > 1


def notes_on_sharding(options: TrainConfig) -> tuple[str, ...]:
    """What a person is told who asked for shards and has one process."""
    if not options.shard or is_sharded(options):
        return ()
    return ("train.shard: one process keeps all of the network; start several with torchrun to share it out",)


def start_folder(config: RunConfig, out: Path, claims: ExitStack | None) -> None:
    """Make the run folder of a new run; one that was cut before its first checkpoint may be started again as it was."""
    run_folder.prepare_run_folder(out, resume=False)
    if claims is not None:
        claims.enter_context(alone_in(out))
        run_folder.check_usable(out)  # another process may have trained here until just now
    if (out / "config.yaml").exists() and (found := differing(config, flat(run_folder.load_config(out)))):
        raise MistakeError(
            f"{out} holds a run that was cut before its first checkpoint, under other settings: {told(found)}; give another "
            "--out, or remove it"
        )


def go_on_from(step: int, optimizer: Any, scheduler: torch.optim.lr_scheduler.LambdaLR, options: TrainConfig) -> None:
    """Let the learning rates be those of the schedule after ``step``, which is another one where the run's length changed.

    Raises ``MistakeError`` where the run is longer already than it is to be.
    """
    if step > options.iterations:
        raise MistakeError(
            f"train.iterations {options.iterations}, but the run is saved at step {step}; expected {step} or more"
        )
    for group, rate in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
        group["lr"] = rate * learning_rate_factor(step, options)


def check_tracker(name: str | None) -> None:
    """Raises ``MistakeError`` for a tracker whose library is not installed."""
    trackers = [str(tracker) for tracker in get_available_trackers()]
    if name is not None and name not in trackers:
        known = ", ".join(trackers) or "none"
        raise MistakeError(f"train.tracker {name!r} is not installed; expected one of those here: {known}")


def build_model(config: RunConfig, dataset: LabelledImages) -> MTLSINet:
    """The network of ``config`` for the tasks and classes of ``dataset``, its weights random, its parts frozen as asked.

    The network's ``input_size`` is that of a whole image at zoom 1: an image shown larger or smaller than that has other
    depths.
    """
    network = create_model(
        config.preset,
        tasks=dataset.tasks,
        classes=dataset.classes,
        colours=colours_of(dataset),
        camera=camera_of(dataset),
        input_size=config.data.image_hw or dataset[0]["image"].shape[-2:],
        resize=config.data.resize if config.data.image_hw else RESIZES[0],  # as stored, nothing is resized
        **config.model,
    )
    network.backbone.freeze(config.train.freeze_stride, norm=config.train.freeze_norm)
    freeze(network, config.train.freeze)
    network.recompute(config.train.recompute)
    return network


def set_first_weights(network: MTLSINet, config: RunConfig, dataset: LabelledImages) -> dict[str, str]:
    """Load what ``config.init`` and ``config.backbone_weights`` say, and start a new depth at its median in ``dataset``.

    Gives by task what ``config.init`` brought of it. Raises ``MistakeError`` for weights that are not finite.
    """
    load_backbone(network, config.backbone_weights or "none")
    taken_over: dict[str, str] = {}
    if config.init is not None:
        taken_over = inherit(network, MTLSINet.from_pretrained(config.init), f"the model {config.init}")
    loaded = config.init or config.backbone_weights or "none"
    for name, tensor in tensors_of(network).items() if loaded != "none" else ():
        if not tensor.isfinite().all():
            raise MistakeError(
                f"the weights of {loaded} are not finite ({name}): their training "
                "diverged, or the file is damaged; start from others"
            )
    for task, value in constant_predictions(dataset).items():
        if kinds.of(task).starts_at_constant and taken_over.get(task, NEW) == NEW:
            start_predictions_at(network.decoder, task, value)  # metres far from 0 would take a thousand steps to reach
    return taken_over


def load_backbone(network: MTLSINet, weights: str) -> None:
    """The backbone's weights as ``RunConfig.backbone_weights`` says."""
    if weights == "pretrained":
        network.backbone.download()
    elif is_packaged(weights) or Path(weights).is_dir():
        network.backbone.take_from(MTLSINet.from_pretrained(weights).backbone)
    elif weights != "none":
        network.backbone.load(weights)


def build_criterion(
    tasks: tuple[str, ...], options: TrainConfig, weights: class_weights.ClassWeights | None = None
) -> MultiTaskLoss:
    """The multi-task loss with the weights of ``options``, and ``weights`` of classes.

    A recipe's weights serve any of its tasks: those of tasks that are known and not trained here have no say. Raises
    ``MistakeError`` for a weight of what is no task.
    """
    for task in options.loss_weights:
        if task not in TASKS:
            raise MistakeError(f"train.loss_weights.{task}: unknown task; expected some of {', '.join(tasks)}")
    return MultiTaskLoss(
        tasks,
        weights={task: weight for task, weight in options.loss_weights.items() if task in tasks},
        coarse_weight=options.coarse_weight,
        boundary_weight=options.boundary_positive,
        class_weights=weights,
    )


def build_optimizer(
    network: MTLSINet, options: TrainConfig, others: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Adam or AdamW over four groups: backbone or decoder, with weight decay (matrices) or without (vectors).

    ``others``, such as learned weights of the tasks, are a fifth group, without weight decay.
    """
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
    learned = [parameter for parameter in others if parameter.requires_grad]
    if learned:
        settings.append({"params": learned, "lr": options.lr, "weight_decay": 0.0})
    return {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[options.optimizer](
        settings, lr=options.lr, fused=True
    )


def learning_rate_factor(step: int, options: TrainConfig) -> float:
    """Factor on the learning rate after ``step`` steps: linear warm-up, then the schedule down to zero."""
    if step < options.warmup:
        return (step + 1) / options.warmup
    share = min(1.0, (step - options.warmup) / max(1, options.iterations - options.warmup))
    return (1 - share) ** 0.9 if options.schedule == "poly" else 0.5 * (1 + math.cos(math.pi * share))
