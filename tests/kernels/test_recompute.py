import copy

import pytest
import torch
from torch import nn

from mtlsi.kernels.recompute import recompute
from mtlsi.model.build import create_model


def statistics_of(module):
    return {name: buffer for name, buffer in module.named_buffers() if "running" in name or "num_batches" in name}


def test_a_recomputed_module_gives_the_same_gradients_and_counts_its_batch_once():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Dropout(0.5))
    saving, x = copy.deepcopy(plain), torch.randn(2, 3, 8, 8, requires_grad=True)
    grads = []
    recompute(saving, True)
    for module in (plain, saving):
        torch.manual_seed(1)
        module(x).square().sum().backward()
        grads.append([p.grad.clone() for p in (*module.parameters(), x)])
        x.grad = None
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    for name, buffer in statistics_of(saving).items():
        assert torch.equal(buffer, statistics_of(plain)[name]), name


def test_several_backward_passes_over_one_graph_recompute_it_each_time():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU())
    saving, x = copy.deepcopy(plain), torch.randn(2, 3, 8, 8, requires_grad=True)
    recompute(saving, True)
    found = []
    for module in (plain, saving):
        out = module(x)
        found.append([torch.autograd.grad(out[:, c].square().sum(), x, retain_graph=True)[0] for c in range(3)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    for name, buffer in statistics_of(saving).items():
        assert torch.equal(buffer, statistics_of(plain)[name]), name


def saved_bytes(model, images):
    """What a forward keeps for the backward pass, each storage once, the weights left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        output = model(images, full_size=False)
    return sum(kept.values()), output


@pytest.mark.parametrize(
    ("preset", "sizes"),
    [
        ("tiny", {}),
        ("swin_tiny", {"num_tokens": 16, "drop_path": 0.1}),
        ("vit_large", {"backbone": "vit_tiny_patch16_224", "channels": 32, "num_tokens": 16}),
    ],
)
def test_a_recomputed_network_trains_alike_and_keeps_less(preset, sizes):
    torch.manual_seed(0)
    plain = create_model(preset, **sizes).train()
    saving = copy.deepcopy(plain)
    saving.recompute(True)
    images, kept = torch.randn(2, 3, 64, 96), []
    for model in (plain, saving):
        torch.manual_seed(1)
        num_bytes, output = saved_bytes(model, images)
        kept.append(num_bytes)
        sum(x.square().mean() for x in (*output.final.values(), *output.coarse.values())).backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for name, buffer in statistics_of(saving).items():
        assert torch.equal(buffer, statistics_of(plain)[name]), name
    assert kept[1] < 0.5 * kept[0]
