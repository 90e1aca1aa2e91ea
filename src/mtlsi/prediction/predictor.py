"""From an image to the arrays of every task, at the image's own size."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from hashlib import blake2b
from numbers import Real
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import nn

from mtlsi import kinds
from mtlsi.config import PRECISIONS, RESIZES
from mtlsi.device import find_device, prepare_process
from mtlsi.drawing.panels import Panel
from mtlsi.errors import MistakeError, message_of
from mtlsi.kernels.convolve_linears import convolutions_are_faster, convolve_linears, has_linears
from mtlsi.kernels.fold_norms import fold_norms
from mtlsi.kinds.colouring import Colour
from mtlsi.model.backbone import STRIDES
from mtlsi.model.network import MTLSINet, Output, slots_of, versions_of
from mtlsi.nn.normalise import normalise
from mtlsi.nn.task_subset import shallow_copy
from mtlsi.prediction.camera import Camera, TrainingCamera, multiplied
from mtlsi.prediction.full_size import bands
from mtlsi.prediction.images import ImageLike, as_pixels
from mtlsi.prediction.maps import Maps
from mtlsi.prediction.recorded import recorded
from mtlsi.prediction.shown import Shown, Size
from mtlsi.tasks import check_tasks
from mtlsi.version import __version__

DTYPES: dict[str, torch.dtype] = {spelling: getattr(torch, name) for spelling, name in PRECISIONS.items()}


class Predictor:
    """Predicts every task on one image of any size: ``Predictor(model)("photo.jpg")``.

    ``model`` is a network, or what ``MTLSINet.from_pretrained`` opens: the name or the folder of one.

    Choice: the image is resized, its shape kept, to the area of the images that the network was trained on
    (``model.input_size``, or ``working_size`` (height, width) in its place): objects then have
    the size seen in training, and portrait and landscape images cost the same. For a network trained with ``data.resize:
    keep_ratio`` it is resized to fit inside that size, as in training. Raw outputs are resized to the image's
    own size before they are decoded. Metres are those of a camera like the training set's, at any working size, unless
    ``camera`` says by what
    the image was taken: its focal length in the image's own pixels, or a ``Camera``, which also reads a photo's EXIF. They
    are then multiplied by how much longer its focal length is than the training camera's (``docs/points.md``).

    The model is moved to ``device`` (None: an accelerator where there is one, else the CPU) and put in evaluation
    mode. ``dtype`` is float32, bfloat16 or float16 (mixed precision), a name or torch's own. On a GPU the pass of images of
    one shape is recorded when the third comes and then replayed (``RecordedNetwork``), unless ``cuda_graph`` is False.
    ``compile`` hands the network to ``torch.compile``, which takes a minute for every new image shape: for video, not for
    photo albums. Where the model's weights change, later predictions are by the new ones.
    Allocator and denormals are set for the whole process: see ``prepare_process``.
    Raises ``MistakeError`` for a device that is not there, an unknown dtype, a machine that cannot compile, and for a camera
    where the model does not know that of its training; as ``MTLSINet.from_pretrained`` for a name.
    """

    def __init__(
        self,
        model: MTLSINet | str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        working_size: Size | None = None,
        compile: bool = False,
        camera: Camera | float | None = None,
        cuda_graph: bool = True,
    ):
        if dtype not in {*DTYPES, *DTYPES.values()}:
            raise MistakeError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
        if working_size is not None and not is_pair(working_size):
            raise MistakeError(f"working size {working_size}; expected a height and a width in pixels, such as 448 576")
        if not isinstance(camera, Camera | Real | None) or isinstance(camera, bool):
            raise MistakeError(f"camera {camera!r}; expected a focal length in the image's pixels, or a Camera")
        if not isinstance(model, nn.Module | str | Path):
            raise MistakeError(
                f"a model of type {type(model).__name__}; expected a network, or the name or folder of one"
            )
        self.device = find_device(device)
        prepare_process()
        model = MTLSINet.from_pretrained(model) if isinstance(model, str | Path) else model
        self.dtype = DTYPES[dtype] if isinstance(dtype, str) else dtype
        height, width = working_size or model.input_size
        self.working_size = (int(height), int(width))
        self.camera = camera if isinstance(camera, Camera | None) else Camera(focal_px=camera)
        self.model = model.to(self.device).eval()
        if self.camera is not None and self.training_camera is None:
            raise MistakeError("the model's config.json names no training camera; add one, or predict without a camera")
        network = for_prediction(self.model, self.dtype)
        self._copy = None if network is self.model else network
        self._slots = [] if self._copy is None else slots_of(self.model.backbone)
        self._made_of = versions_of(self._slots)
        self.network: Callable[..., Output] = network
        if compile:
            self.network = compiled(network, self.device)
        elif cuda_graph:
            self.network = recorded(network, self.device)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the model has."""
        return self.model.tasks

    @property
    def classes(self) -> Mapping[str, Sequence[str]]:
        """The class names of each task that has classes."""
        return self.model.classes

    @property
    def colours(self) -> Mapping[str, Sequence[Colour]]:
        """The colours of the classes, by task, where the training set chose them."""
        return getattr(self.model, "colours", {})  # a network of one's own need not choose any

    @property
    def shown(self) -> Shown:
        """At what size images are shown to the network."""
        return shown_to(self.model, self.working_size)

    @property
    def training_camera(self) -> TrainingCamera | None:
        """The camera of the images that the model was trained on, where that is known."""
        stored = getattr(self.model, "camera", {})
        shown = shown_to(self.model, self.model.input_size)
        return TrainingCamera(stored["focal_px"], tuple(stored["size_hw"]), shown) if stored else None

    @property
    def identity(self) -> str:
        """Differs where the predictions for the same image would: a digest of the weights and settings.

        Of each tensor only some numbers are read, which a training step changes as surely as the rest.
        """
        settings = f"{__version__} {self.dtype} {self.shown} {self.model.input_size} {self.camera}"
        names = f"{dict(self.classes)} {dict(self.colours)}"  # which results show
        digest = blake2b((settings + names).encode(errors="backslashreplace"), digest_size=8)
        for name, tensor in self.model.state_dict().items():
            some = tensor.detach().flatten()[:: max(1, tensor.numel() // 16)].double().cpu()
            digest.update(f"{name} {tuple(tensor.shape)}".encode() + some.numpy().tobytes())
        return digest.hexdigest()

    @overload
    def __call__(
        self, image: list[ImageLike] | tuple[ImageLike, ...], tasks: str | Iterable[str] | None = None
    ) -> list[dict[str, np.ndarray]]: ...

    @overload
    def __call__(self, image: ImageLike, tasks: str | Iterable[str] | None = None) -> dict[str, np.ndarray]: ...

    def __call__(
        self, image: ImageLike | list[ImageLike] | tuple[ImageLike, ...], tasks: str | Iterable[str] | None = None
    ) -> dict[str, np.ndarray] | list[dict[str, np.ndarray]]:
        """The prediction of each task (default: all that the model has), as arrays of the image's own size ``H W``.

        ``image`` is a path, bytes, a file object, a PIL image, an array ``(H W 3)`` or a tensor ``(3 H W)``: see
        ``as_pixels``. A list of images gives a list of results. ``tasks``: names, or one string such as "depth,normals".
        Gives semseg and parsing ``(H W) uint8``, depth ``(H W) float32`` in metres, normals ``(H W 3) float32`` of unit
        length, boundary and saliency ``(H W) float32`` in 0..1.
        Raises ``MistakeError`` for an unreadable image or an unknown task.
        """
        names = check_tasks(self.model.tasks if tasks is None else tasks, among=self.model.tasks)
        if isinstance(image, list | tuple):
            return [self(one, names) for one in image]
        return dict(self.maps(image, names))

    def maps(self, image: ImageLike, tasks: str | Iterable[str] | None = None) -> Mapping[str, np.ndarray]:
        """What a call gives, brought to the image's size when it is asked for: never all of a large photo at once.

        Raises as a call does, now and not later.
        """
        names = check_tasks(self.model.tasks if tasks is None else tasks, among=self.model.tasks)
        pixels = as_pixels(image)
        size_hw = pixels.shape[0], pixels.shape[1]
        with torch.inference_mode():
            raw = self._raw(pixels, names)
        found = Maps(size_hw[0], {task: partial(bands, task, raw[task], size_hw) for task in names})
        factor = self._factor(size_hw, image)
        return found if factor == 1 else multiplied(found, factor)

    def draw(self, image: ImageLike, prediction: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """The image and its predictions in colours on one sheet, with their legends, ``(H' W' 3) uint8``.

        ``prediction``: what a call gave for the image, or some of its tasks; by default that call is made.
        Raises as a call does, and ``MistakeError`` for maps of another size than the image's.
        """
        pixels = as_pixels(image)
        if prediction is None:
            prediction = self.maps(self.once_read(image, pixels))
        sheet = Panel(pixels, self.classes, colours=self.colours)
        for task in check_tasks(prediction, among=self.tasks):
            array, channels = prediction[task], kinds.of(task).label_channels
            if array.shape != (*pixels.shape[:2], *[channels] * bool(channels)):
                raise MistakeError(
                    f"{task} of shape {array.shape}, the image's is {pixels.shape}; expected its own prediction"
                )
            sheet.add(task, array)
        return sheet.draw()

    def once_read(self, image: ImageLike, pixels: np.ndarray) -> ImageLike:
        """What a call is given of an image whose ``pixels`` have been read: these, or its path where its EXIF may count."""
        by_name = isinstance(image, str | os.PathLike) and self.camera is not None
        return image if by_name else pixels

    def _factor(self, size_hw: Size, image: ImageLike) -> float:
        """What the network's metres are multiplied by: for the working size, and for the image's camera where one is asked
        for.
        """
        factor = self.shown.share(size_hw, self.model.input_size)
        if self.camera is None or self.training_camera is None:
            return factor
        path = Path(image) if isinstance(image, str | os.PathLike) else None
        view = self.camera.view(size_hw, path)
        return factor if view is None else factor * self.training_camera.factor(view.focal_px, size_hw)

    def _raw(self, pixels: np.ndarray, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """The raw outputs ``(1 c h w) float32`` for an image ``(H W 3) uint8``."""
        return self._run(self._shrink(pixels), names)

    def _shrink(self, pixels: np.ndarray) -> torch.Tensor:
        """The network's input ``(1 3 h w)``: the image at the working size, ImageNet-normalised."""
        height, width = self.shown.fit(pixels.shape[:2])
        small = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
        return normalise(torch.from_numpy(np.array(small)).to(self.device).permute(2, 0, 1)[None].float() / 255)

    def _run(self, images: torch.Tensor, tasks: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """The raw outputs ``(1 c h w) float32``."""
        self._follow_weights()
        mixed = self.dtype is not torch.float32
        fits = all(side % STRIDES[0] == 0 for side in images.shape[-2:])  # the predictions' grid is the image's
        with torch.autocast(self.device.type, self.dtype) if mixed else nullcontext():
            final = self.network(images, tasks=tasks, full_size=not fits).final
        raw = {task: final[task].float() for task in tasks}
        finite = torch.stack([torch.isfinite(values).all() for values in raw.values()]).tolist()  # a GPU is asked once
        for task, is_finite in zip(raw, finite, strict=True):
            if not is_finite:
                advice = "use float32" if mixed else "the weights are damaged or their training diverged"
                raise MistakeError(f"the network's {task} is not finite (dtype {self.dtype}); {advice}")
        return raw

    def _follow_weights(self) -> None:
        """Make the copy's backbone anew where the model's has changed: norms are folded into weights of its own."""
        if self._copy is not None and (versions := versions_of(self._slots)) != self._made_of:
            with torch.inference_mode(False), torch.no_grad():
                self._copy.backbone = for_prediction(self.model, self.dtype).backbone
            self._made_of = versions


def shown_to(model: nn.Module, working_size: Size) -> Shown:
    """At what size images are shown to the model; a network of one's own need not say how it was trained."""
    return Shown(working_size, getattr(model, "resize", RESIZES[0]))


def is_pair(value: Any) -> bool:
    """Whether it is two whole numbers of at least 1, such as a height and a width."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    return all(isinstance(one, int | np.integer) and one >= 1 for one in value)


def compiled(network: Callable[..., Output], device: torch.device) -> Callable[..., Output]:
    """``network`` under ``torch.compile``; calling it raises ``MistakeError`` where this machine cannot compile."""
    from torch._dynamo.exc import TorchDynamoException  # lazy: seconds of imports, for this name

    # on a GPU a recorded graph of kernels, whose buffers are reused for every image
    mode = "reduce-overhead" if device.type == "cuda" else None
    optimised = torch.compile(network, dynamic=False, mode=mode)

    def call(*images: torch.Tensor, **options: Any) -> Output:
        if isinstance(network, MTLSINet):
            network.for_tasks(options.get("tasks"))  # made before a graph is traced, which then finds it
        try:
            return optimised(*images, **options)
        except TorchDynamoException as error:
            reason = message_of(error, 200)
            raise MistakeError(f"this machine cannot compile ({reason}); predict without compile") from error

    return call


def for_prediction(model: MTLSINet, dtype: torch.dtype) -> MTLSINet:
    """The model, or a faster copy with the same predictions.

    The backbone's batch norms are folded into its convolutions, except where an output is read before the norm. On a CPU
    where 1x1 convolutions are faster than matrix products, they replace the backbone's linear layers.
    """
    if not isinstance(model, MTLSINet):
        return model
    device, body = next(model.parameters()).device, model.backbone.body
    folds = bool(model.backbone.batch_norms())
    convolves = device.type == "cpu" and dtype is torch.float32 and has_linears(body) and convolutions_are_faster()
    if not folds and not convolves:
        return model
    copied = _with_own_backbone(model)
    if folds:
        probe = torch.randn(1, 3, 2 * STRIDES[-1], 2 * STRIDES[-1]).to(device)
        if not fold_norms(copied.backbone.body, probe):
            copied = _with_own_backbone(model)
    if convolves:
        convolve_linears(copied.backbone.body)
    return copied


def _with_own_backbone(model: MTLSINet) -> MTLSINet:
    """The same network with a copy of its backbone, whose weights are the same tensors."""
    copied = shallow_copy(model)
    same = {id(parameter): parameter for parameter in model.backbone.parameters()}
    copied.backbone = copy.deepcopy(model.backbone, same)
    return copied
