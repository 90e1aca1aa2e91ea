"""Weights, their gradients and what is kept of each of them, shared out among the processes: torch's FSDP2.

Every process keeps a share of each tensor. The backbone is whole a block at a time, on its way forward and again on its way
back; the decoder, whose kernels read the weights of several modules at once, is one part, and what else there is another.
The gradients' means go straight to the process that keeps the share. Weights, moments and moving average move by shares.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mtlsi import processes
from mtlsi.kernels.recompute import called_modules
from mtlsi.later import Later

if TYPE_CHECKING:
    import torch.distributed.device_mesh as device_mesh
    import torch.distributed.fsdp as fsdp
    import torch.distributed.tensor as shares

    from mtlsi.model.network import MTLSINet
else:  # they take a second to import
    fsdp, shares = Later("torch.distributed.fsdp"), Later("torch.distributed.tensor")
    device_mesh = Later("torch.distributed.device_mesh")

BLOCKS = "blocks"
"""What timm calls the list of a network's blocks, or of each of its stages' blocks."""


def shard(network: MTLSINet, device: torch.device) -> None:
    """Share the parameters of ``network``, which all processes have alike, out among them; buffers stay whole.

    From now on its parameters are ``DTensor``, of their old shapes; every process must call the network equally often.
    """
    mesh = device_mesh.init_device_mesh(device.type, (processes.number(),))
    settings: Any = {"mesh": mesh, "shard_placement_fn": _placement}
    # our own code writes into no part's output
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    for part in parts_of(network):
        fsdp.fully_shard(part, **settings, reshard_after_forward=part is not network.decoder)  # its way back comes next
    fsdp.fully_shard(network, **settings)


def parts_of(network: MTLSINet) -> list[nn.Module]:
    """What is made whole by itself: the backbone's blocks, or its stages where timm lists no blocks, and the decoder.

    A backbone that is recomputed as a whole, since it has batch statistics, is one part.
    """
    body: Any = network.backbone.body
    if "forward" in vars(body):  # mtlsi.kernels.recompute
        return [body, network.decoder]
    lists = [m for name, m in body.named_modules() if name.rsplit(".", 1)[-1] == BLOCKS and _is_list(m)]
    outermost = [m for m in lists if not any(m in other.modules() for other in lists if other is not m)]
    items = [item for found in outermost for item in found.children()]
    stages = [
        stage for child in body.children() for stage in called_modules(child) if any(True for _ in stage.children())
    ]
    return [part for part in items or stages if any(True for _ in part.parameters())] + [network.decoder]


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList)


def _placement(parameter: nn.Parameter) -> Any:
    """Along the first axis that gives all processes equally much, else along the first one."""
    even = (axis for axis, length in enumerate(parameter.shape) if length % processes.number() == 0)
    return shares.Shard(next(even, 0))


def whole(tensor: Any) -> Tensor:
    """``tensor`` itself, or all of what this process has a share of. Every process must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def whole_in_first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors``, whole and on the CPU, in the first process; {} in the others, all of which must ask for the same ones."""
    found = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor.detach())
        if processes.is_first():
            found[name] = gathered.cpu()
    return found


def share_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's share of the whole ``tensor``, as it has one of ``like``; ``tensor`` where that is whole."""
    if not isinstance(like, shares.DTensor):
        return tensor
    on_device = tensor.to(like.device)
    return shares.distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)


def set_meeting(network: nn.Module, on: bool) -> None:
    """Whether the gradients of the next backward pass meet. Until they do, each process adds up whole ones."""
    network.set_requires_gradient_sync(on)  # type: ignore[operator]


@contextmanager
def whole_in_each(network: nn.Module) -> Iterator[None]:
    """Within the context every process has all weights of ``network``, and may call it as often as it likes."""
    parts: list[Any] = [module for module in network.modules() if isinstance(module, fsdp.FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not network and part is not network.decoder, recurse=False)
