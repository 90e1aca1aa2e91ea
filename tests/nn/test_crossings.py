from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import small_backbones  # noqa: F401 (registers them)
from mtlsi.losses import MultiTaskLoss
from mtlsi.model.build import create_model
from mtlsi.model.network import MTLSINet
from mtlsi.nn.crossings import Crossings

TASKS = ("semseg", "depth", "normals", "boundary")


def found(operation) -> str:
    with Crossings() as crossings:
        operation()
    return crossings.found


def gpu(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


@pytest.fixture
def fake():
    """Tensors without values, on a GPU that is not there."""
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        yield mode


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda: gpu(3) * 2 + gpu(1), ""),
        (lambda: gpu(3) * torch.tensor(2.0), ""),  # goes along with the call
        (lambda: torch.zeros(3) + torch.arange(3).nonzero().sum(), ""),  # among itself
        (lambda: torch.arange(3, device="cuda") * gpu(3), ""),
        (lambda: torch.zeros(3).to("cuda"), "_to_copy"),
        (lambda: torch.tensor(2.0).to("cuda"), "_to_copy"),
        (lambda: gpu(3).copy_(torch.zeros(3)), "copy_"),
        (lambda: gpu(3).cpu(), "_to_copy"),
        (lambda: gpu(3, 3)[torch.tensor([0, 1])], "index"),
        (lambda: gpu(3).nonzero(), "nonzero"),  # the host waits for their number
        (lambda: gpu(3)[gpu(3) > 0], "index"),
        (lambda: gpu(3)[torch.zeros(2, dtype=torch.int64, device="cuda")], ""),
        (lambda: torch.where(gpu(3) > 0, gpu(3), 0.0), ""),
        (lambda: gpu(3, dtype=torch.uint8)[torch.zeros(2, dtype=torch.int64, device="cuda")], ""),
    ],
)
def test_the_first_meeting_of_host_and_device_is_found(operation, name):
    assert found(operation) == name


# ---- the networks, whose passes are recorded


def on_a_gpu(network: MTLSINet) -> MTLSINet:
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(gpu(*weight.shape), requires_grad=weight.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = gpu(*value.shape, dtype=value.dtype)
    return network


NETWORKS = [
    {"decoder": "mtlsi"},
    {"decoder": "heads_only", "backbone": "convnext_atto"},
    pytest.param({"decoder": "taskexpert", "backbone": "vit_of_four_blocks"}, marks=pytest.mark.slow),
    pytest.param({"decoder": "atrc", "backbone": "hrnet_w18_small"}, marks=pytest.mark.slow),
    pytest.param({"decoder": "invpt", "backbone": "swin_of_five_blocks"}, marks=pytest.mark.slow),
]


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")  # by which a subset knows its weights
@pytest.mark.parametrize("sizes", NETWORKS, ids=str)
def test_no_pass_meets_the_hosts_memory(sizes):
    network = create_model("tiny", tasks=TASKS, **sizes)
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_a_gpu(network)
        images = gpu(2, 3, 96, 128)
        labels = {
            "semseg": gpu(2, 96, 128, dtype=torch.uint8),
            "depth": gpu(2, 96, 128),
            "normals": gpu(2, 3, 96, 128),
            "boundary": gpu(2, 96, 128, dtype=torch.uint8),
        }
        criterion = MultiTaskLoss(TASKS)
        with Crossings() as crossings:
            output = network.train()(images, full_size=False)
            criterion(output.final, output.coarse, labels)  # without its gradient, which takes a GPU
        assert crossings.found == ""
        network.eval()
        with torch.no_grad():
            for chosen in (network, network.for_tasks(("depth",))):
                with Crossings() as crossings:
                    chosen(images, full_size=False)
                assert crossings.found == ""


def test_rotary_embeddings_that_are_made_on_the_host_are_found():
    network = create_model("tiny", tasks=TASKS, backbone="vit_of_four_turned_blocks").eval()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        on_a_gpu(network)
        with Crossings() as crossings:
            network(gpu(1, 3, 96, 128))
    assert crossings.found == "_to_copy"
