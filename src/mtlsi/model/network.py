"""The whole network: backbone -> decoder -> predictions.

    image (b 3 H W)
      backbone       four maps at strides 4 8 16 32           (b c_i H/4.. W/4..)
      preliminary    per task: features, coarse prediction    (b t c h w)
      MT-MQLFB       fused features, one shared context       (b t n c)
      distiller      per task: semantic tokens                (b t k c)
      CWIB           per task: windows and tokens             (b t c h w)
      heads          per task: prediction at stride 4         (b channels H/4 W/4)

Paper: arXiv 2604.01995, "A Linear Semantic Interaction Network for Parameter-Efficient Multi-Task Dense Prediction".
From preliminary to heads it is ``decoder.py``; any decoder with its contract takes its place, see ``decoders.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import load_model
from torch import Tensor, nn

from mtlsi.config import RESIZES
from mtlsi.errors import MistakeError, message_of
from mtlsi.kernels.recompute import called_modules, recompute
from mtlsi.kinds.colouring import Colour, checked_colours
from mtlsi.model.backbone import STRIDES, Backbone
from mtlsi.model.budget import weights_within
from mtlsi.model.card import own_card
from mtlsi.model.decoder_spec import DecoderSpec
from mtlsi.model.decoders import OnlyTasks, build_decoder
from mtlsi.model.facts import check_facts, checked_camera
from mtlsi.model.forms import as_stored
from mtlsi.model.freezing import parts_of
from mtlsi.model.fusion import ReplaceContext
from mtlsi.model.stored import OF_THE_HUB, WEIGHTS, without_versions, write_settings
from mtlsi.nn.layout import resize_maps
from mtlsi.nn.task_subset import shallow_copy
from mtlsi.reading import shortened
from mtlsi.sizes import ModelConfig
from mtlsi.tasks import check_tasks, num_channels, register_records
from mtlsi.tensor_files import check_tensor_file
from mtlsi.weights import replace_weights

if TYPE_CHECKING:
    from huggingface_hub import ModelCard


Slots = list[tuple[dict[str, Any], str]]
"""Of tensors in a module: the registry that holds each, and its name there."""


@dataclass
class Output:
    """Raw predictions (b channels H W) by task; ``mtlsi.decode`` says what the channels mean."""

    final: dict[str, Tensor]
    padded_coarse: dict[str, Tensor]
    """The coarse predictions at the decoder's stride on the padded image."""
    size_hw: tuple[int, int] | None = None
    """The size of the image that they are to be fitted to; None: they fit."""
    full_size: bool = True

    @cached_property
    def coarse(self) -> dict[str, Tensor]:
        """The coarse predictions. Upsampled on first access; inference skips it."""
        if self.size_hw is None:
            return self.padded_coarse
        return fit_to_image(self.padded_coarse, self.size_hw, full_size=self.full_size)


NO_COLOURS: Mapping[str, Sequence[Sequence[int]]] = MappingProxyType({})
"""As a default it is not written into config.json, which so stays readable for versions without colours."""


NO_CAMERA: Mapping[str, Any] = MappingProxyType({})


class MTLSINet(nn.Module, PyTorchModelHubMixin, library_name="mtlsi", license="mit", tags=["multi-task-learning"]):
    """One RGB image in, every task out.

    ``tasks`` fixes the task axis; ``classes`` names the classes of each task that has classes; ``input_size`` (h, w) is
    the size of the images that the weights were trained on; ``own_tasks`` are the records of tasks that are not built in,
    registered again by name; ``colours``, by task, the RGB colours of the classes where the data set chose them;
    ``camera`` that of the training images, ``focal_px`` in pixels of an image of ``size_hw``, where it is known;
    ``resize``, one of ``RESIZES``, how those images were brought to ``input_size``; ``sizes`` are the fields of
    ``ModelConfig``.
    Raises ``MistakeError`` for an unknown task, backbone, decoder or size.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        classes: Mapping[str, Sequence[str]],
        input_size: Sequence[int],
        own_tasks: Sequence[Mapping[str, Any]] = (),
        colours: Mapping[str, Sequence[Sequence[int]]] = NO_COLOURS,
        camera: Mapping[str, Any] = NO_CAMERA,
        resize: str = RESIZES[0],
        **sizes: Any,
    ):
        super().__init__()
        check_facts(tasks, classes, input_size, own_tasks, resize)
        register_records(own_tasks)
        config = ModelConfig.of(sizes)
        self.sizes = config
        self.tasks = check_tasks(tasks)
        self.classes = {task: tuple(names) for task, names in classes.items() if task in self.tasks}
        self.colours = colours_by_task(colours, self.classes)
        self.camera = checked_camera(camera)
        self.input_size = (int(input_size[0]), int(input_size[1]))
        self.resize = resize
        outputs = {task: num_channels(task, self.classes) for task in self.tasks}
        self.backbone = Backbone(config.backbone, drop_path=config.drop_path)
        self.decoder = build_decoder(DecoderSpec(outputs, self.backbone.channels, config))
        self.register_state_dict_post_hook(_without_prefix)
        self.register_load_state_dict_pre_hook(_with_prefix)
        self._subsets: dict[tuple[str, ...], tuple[list[Any], MTLSINet]] = {}
        self.frozen_parts: tuple[str, ...] = ()
        """See ``mtlsi.model.freezing``."""

    def forward(
        self,
        images: Tensor,
        tasks: Iterable[str] | None = None,
        *,
        full_size: bool = True,
        context: ReplaceContext | None = None,
    ) -> Output:
        """ImageNet-normalised images (b 3 H W), H and W of any size, to the raw predictions of ``tasks`` (None: all).

        Predictions are at the images' size, or as the network makes them with ``full_size=False``: final ones at stride
        4 (b channels ceil(H/4) ceil(W/4)), coarse ones at the decoder's stride.
        What a subset of the tasks does not need is not computed; while training, all tasks are. ``context`` says what the
        fusion attends to in place of the images' own context, such as a ``RunningContext``. Raises ``MistakeError`` for an
        unknown task, for what is no batch of normalised images, and for ``context`` with a decoder that has none.
        """
        # fmt: off
        decoder = self._decoder_for(tasks)
        if context is not None:
            decoder = partial(check_context(decoder), context=context)
        padded = pad_to_multiple(self._checked(images), STRIDES[-1])  # b 3 H W, multiples of 32
        maps = self.backbone(padded)                                  # 4 x (b c_i H/4.. W/4..)
        final, coarse = decoder(maps)                                 # {task: b channels h w}
        size_hw = (images.shape[-2], images.shape[-1])
        final = fit_to_image(final, size_hw, full_size=full_size)     # {task: b channels H W}
        return Output(final, {task: coarse[task] for task in final if task in coarse}, size_hw, full_size)
        # fmt: on

    def for_tasks(self, tasks: Iterable[str] | None) -> MTLSINet:
        """This network for some of its tasks (None: all), with the same weights, for inference and export.

        Made once for a set of tasks, and again where weights have changed; no gradient reaches the weights through it.
        Raises ``MistakeError`` for an unknown task and while training.
        """
        names = self._checked_tasks(tasks)
        if names == self.tasks:
            return self
        versions = [id(self.backbone), *versions_of(slots_of(self.decoder))]
        if names not in self._subsets or self._subsets[names][0] != versions:
            with torch.inference_mode(False), torch.no_grad():
                self._subsets[names] = versions, self._subset(names)
        return self._subsets[names][1]

    def train(self, mode: bool = True) -> MTLSINet:
        """Training mode, in which frozen parts stay in evaluation."""
        super().train(mode)
        for name, part in parts_of(self).items() if self.frozen_parts else ():
            if name in self.frozen_parts:
                part.eval()
        return self

    def recompute(self, on: bool) -> None:
        """While training keep of every part little more than its inputs, and compute the rest again when it is needed."""
        self.backbone.recompute(on)
        for part in self.decoder.children():
            for module in called_modules(part):
                recompute(module, on)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> MTLSINet:
        """The network from a model or run folder, the name of a packaged model, or a hub id, in evaluation mode.

        ``revision``, ``token``, ``cache_dir``, ``local_files_only`` and ``force_download`` are for the hub. Nothing is
        unpickled and no code is run. Raises ``MistakeError`` where there is no such model, where weights do not fit their
        config.json, and for one that a newer mtlsi wrote in another format.
        """
        from mtlsi.model.pretrained import open_pretrained

        return open_pretrained(super().from_pretrained, pretrained_model_name_or_path, **kwargs)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> str | None:
        """Write the network and its card into the folder ``save_directory``, which is made where it is missing.

        ``model_card_kwargs`` as for ``push_to_hub``; the others are those of ``huggingface_hub``'s mixin. Raises
        ``MistakeError`` where the folder cannot be written to.
        """
        try:
            return super().save_pretrained(save_directory, **kwargs)
        except OSError as error:
            raise MistakeError(
                f"cannot write to {save_directory} ({message_of(error)}); give another folder"
            ) from error

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload the network with its card as the hub's model ``repo_id``, OWNER/NAME; gives the address of the commit.

        ``private``, ``token``, ``branch``, ``commit_message`` and the others are those of ``huggingface_hub``'s mixin;
        ``model_card_kwargs`` are ``scores``, as ``mtlsi.evaluate`` gives them, ``notes``, in Markdown, ``license`` and
        ``name``. Raises ``MistakeError`` for what the hub refuses and where it cannot be reached.
        """
        from mtlsi.model.hub import check_push, told_of

        check_push(repo_id, kwargs.get("token"))
        kwargs["model_card_kwargs"] = {"name": repo_id} | (kwargs.get("model_card_kwargs") or {})
        with told_of(repo_id):
            return super().push_to_hub(repo_id, **kwargs)

    def generate_model_card(self, *, name: str = "FOLDER", **kwargs: Any) -> ModelCard:
        """The card that ``save_pretrained`` and ``push_to_hub`` write, see ``mtlsi.model.card``."""
        from huggingface_hub import ModelCard

        return ModelCard(own_card(self, name, **kwargs))

    def _save_pretrained(self, save_directory: Path) -> None:
        replace_weights(save_directory / WEIGHTS, self.state_dict())
        write_settings(self, save_directory)

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, strict: bool = True, map_location: str = "cpu", **kwargs: Any
    ) -> MTLSINet:
        # in the mixin's place: building has to stay within the budget, reading the file need not be watched
        settings = {name: value for name, value in without_versions(kwargs).items() if name not in OF_THE_HUB}
        path = Path(model_id) / WEIGHTS
        with weights_within(check_tensor_file(path)):
            network = cls(**as_stored(settings))
        load_model(network, path, strict=strict, device=map_location)
        return network

    def _decoder_for(self, tasks: Iterable[str] | None) -> nn.Module:
        names = self._checked_tasks(tasks)
        if names == self.tasks:
            return self.decoder
        if torch.compiler.is_compiling() and names in self._subsets:
            return self._subsets[names][1].decoder  # made before: a graph cannot look at the weights' versions
        if torch.is_grad_enabled():
            return self._subset(names).decoder  # its slices join the graph
        return self.for_tasks(names).decoder

    def _subset(self, names: tuple[str, ...]) -> MTLSINet:
        chosen = shallow_copy(self)
        chosen.tasks = names
        chosen.classes = {task: classes for task, classes in self.classes.items() if task in names}
        chosen.colours = {task: colours for task, colours in self.colours.items() if task in names}
        index = [self.tasks.index(task) for task in names]
        decoder: Any = self.decoder
        chosen.decoder = decoder.for_tasks(index) if hasattr(decoder, "for_tasks") else OnlyTasks(decoder, names)
        return chosen

    def _checked_tasks(self, tasks: Iterable[str] | None) -> tuple[str, ...]:
        """The tasks asked for, in the network's order."""
        if tasks is None:
            return self.tasks
        names = check_tasks(tasks, self.tasks)
        if self.training:
            raise MistakeError(
                f"tasks={list(names)} while training; a subset is for inference: call model.eval() first"
            )
        return tuple(task for task in self.tasks if task in names)

    def _checked(self, images: Tensor) -> Tensor:
        """The images, in the weights' type where autocast does not choose one."""
        if images.dim() != 4 or images.shape[1] != 3 or not images.numel():
            hint = ": add the batch axis with images[None]" if images.dim() == 3 else ""
            raise MistakeError(f"images of shape {tuple(images.shape)}; expected (batch, 3, height, width){hint}")
        if not images.is_floating_point():
            raise MistakeError(
                f"images of {images.dtype}; expected ImageNet-normalised floats: give mtlsi.normalise(images)"
            )
        return images.to(next(self.backbone.parameters()).dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_subsets": {}}  # a copy makes its own


def check_context(decoder: nn.Module) -> nn.Module:
    """``decoder``; ``MistakeError`` unless it has a fusion, whose context can be replaced."""
    if not getattr(decoder, "has_context", False):
        raise MistakeError("this decoder has no fusion, whose context is smoothed; smooth the outputs instead")
    return decoder


def colours_by_task(colours: Any, classes: Mapping[str, Sequence[str]]) -> dict[str, tuple[Colour, ...]]:
    """``colours`` of the tasks in ``classes``; ``MistakeError`` unless every class has one of its own, in 0..255."""
    if not isinstance(colours or {}, Mapping):
        raise MistakeError(f"colours {shortened(colours)}; expected a list of [red, green, blue] by task")
    return {
        task: checked_colours(task, given, len(classes[task]))
        for task, given in (colours or {}).items()
        if task in classes
    }


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Images (b 3 H W) padded at the right and the bottom with zeros, the mean colour, to multiples of ``multiple``."""
    h, w = images.shape[-2:]
    return F.pad(images, (0, -w % multiple, 0, -h % multiple)) if h % multiple or w % multiple else images


def fit_to_image(predictions: Mapping[str, Tensor], size_hw: Sequence[int], *, full_size: bool) -> dict[str, Tensor]:
    """Predictions (b c h w) on the padded image, cut to the image of ``size_hw``, at its size or at their own stride.

    Upsampled ones are float32 or wider: a CPU takes twice as long in bf16.
    """
    height, width = size_hw
    fitted = {}
    for task, x in predictions.items():
        stride = -(-height // STRIDES[-1]) * STRIDES[-1] // x.shape[-2]
        if full_size:
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            fitted[task] = resize_maps(x, (stride * x.shape[-2], stride * x.shape[-1]))[..., :height, :width]
        else:
            fitted[task] = x[..., : -(-height // stride), : -(-width // stride)]
    return fitted


def _without_prefix(_: nn.Module, state: dict[str, Tensor], prefix: str, __: Any) -> None:
    """The decoder's weights are stored under its own names, without the prefix ``decoder.``."""
    for name in [name for name in state if name.startswith(f"{prefix}decoder.")]:
        state[prefix + name.removeprefix(f"{prefix}decoder.")] = state.pop(name)


def _with_prefix(_: nn.Module, state: dict[str, Tensor], prefix: str, *__: Any) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        if not name.startswith((f"{prefix}backbone.", f"{prefix}decoder.")):
            state[f"{prefix}decoder.{name.removeprefix(prefix)}"] = state.pop(name)


def slots_of(module: nn.Module) -> Slots:
    """Where ``module`` and its parts hold weights and statistics; to find these takes ten times as long as to read them."""
    registries = [x for part in module.modules() for x in (part._parameters, part._buffers)]
    return [(registry, name) for registry in registries for name, x in registry.items() if x is not None]


def versions_of(slots: Slots) -> list[tuple[int, ...] | None]:
    """Differs from an earlier one where what the slots hold has changed since, in place or not."""
    tensors = [registry.get(name) for registry, name in slots]
    return [None if x is None else (id(x), x.data_ptr(), 0 if x.is_inference() else x._version) for x in tensors]
