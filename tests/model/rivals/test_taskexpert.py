import math

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mtlsi.errors import MistakeError
from mtlsi.model.build import create_model
from mtlsi.model.rivals.taskexpert import Experts, MemorialMixture, TaskExpertOptions, assemble
from random_weights import draw_weights

TASKS = ("semseg", "depth", "normals", "boundary")


def model_of(**options):
    torch.manual_seed(0)
    return create_model("tiny", decoder="taskexpert", decoder_options=options).eval()


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def maps_of(model, height=64, width=96, batch=1, seed=0):
    strides = zip(model.backbone.channels, (4, 8, 16, 32), strict=True)
    return [noise(batch, c, height // s, width // s, seed=seed + s) for c, s in strides]


def final_of(model, maps):
    with torch.no_grad():
        return model.decoder(maps)[0]


def moved(before, after):
    return [task for task in TASKS if not torch.allclose(before[task], after[task], atol=1e-6)]


@pytest.mark.parametrize("with_memory", [True, False])
def test_assembling_is_a_weighted_sum_at_each_position(with_memory):
    b, t, e, n, c = 2, 3, 4, 5, 6
    experts = noise(b, e, n, c, dtype=torch.float64)
    memory = noise(b, t, n, c, seed=1, dtype=torch.float64) if with_memory else None
    shares = noise(b, t, n, e + with_memory, seed=2, dtype=torch.float64).softmax(-1)
    expected = np.zeros((b, t, n, c))
    for i, task, position in np.ndindex(b, t, n):
        for expert in range(e):
            expected[i, task, position] += (
                shares[i, task, position, expert].item() * experts[i, expert, position].numpy()
            )
        if memory is not None:
            expected[i, task, position] += shares[i, task, position, e].item() * memory[i, task, position].numpy()
    np.testing.assert_allclose(assemble(shares, experts, memory).numpy(), expected, atol=1e-12)


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


@pytest.mark.parametrize("gate", ["position", "image"])
def test_gates_are_a_softmax_of_what_experts_and_memory_hold(gate):
    """Against loops over images, tasks and positions; the norm of a fresh network keeps its input but for epsilon."""
    torch.manual_seed(0)
    e, t, c, h, w = 3, 2, 8, 2, 3
    mixture = MemorialMixture(t, c, TaskExpertOptions(num_experts=e, gate=gate), reads_memory=True, dense=False)
    mixture = mixture.double().eval()
    assert mixture.from_memory is not None
    experts, memory = noise(2, e, c, h, w, dtype=torch.float64), noise(2, t, h * w, c, seed=1, dtype=torch.float64)
    weights = mixture.from_experts.weight.detach().numpy()[..., 0, 0] / math.sqrt(1 + 1e-5)
    read, score = (mixture.from_memory.weight.detach().numpy(), mixture.score.weight.detach().numpy())
    with torch.no_grad():
        mixture.from_memory.bias.copy_(noise(t, 1, c, seed=2))
        mixture.score.bias.copy_(noise(t, 1, e + 1, seed=3))
        shares = mixture.shares(experts, memory).numpy()
    side_by_side = experts.permute(0, 3, 4, 1, 2).reshape(2, h * w, e * c).numpy()
    for i, task in np.ndindex(2, t):
        hidden = np.stack(
            [
                gelu(
                    weights[task] @ side_by_side[i, position]
                    + memory[i, task, position].numpy() @ read[task]
                    + mixture.from_memory.bias[task, 0].detach().numpy()
                )
                for position in range(h * w)
            ]
        )
        if gate == "image":
            hidden = np.broadcast_to(hidden.mean(0), hidden.shape)
        logits = hidden @ score[task] + mixture.score.bias[task, 0].detach().numpy()
        expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        np.testing.assert_allclose(shares[i, task], expected, atol=1e-10)


def test_shares_differ_between_positions_tasks_and_images():
    torch.manual_seed(0)
    mixture = MemorialMixture(2, 8, TaskExpertOptions(), reads_memory=False, dense=False).eval()
    shares = mixture.shares(noise(2, 7, 8, 3, 3), None).detach()
    torch.testing.assert_close(shares.sum(-1), torch.ones(2, 2, 9))
    assert all((shares - shares.mean(axis, keepdim=True)).abs().max() > 1e-3 for axis in (0, 1, 2))


def test_the_memory_keeps_what_was_written_and_adds_to_it():
    torch.manual_seed(0)
    mixture = MemorialMixture(2, 8, TaskExpertOptions(num_experts=3), reads_memory=True, dense=False).eval()
    experts, memory = noise(1, 3, 8, 4, 4), noise(1, 2, 8, 4, 4, seed=1)
    with torch.no_grad():
        mixture.write.norm.norm.weight.zero_()  # nothing more is written
        assert torch.equal(mixture(experts, memory), memory)


def test_experts_read_every_depth_at_the_decoders_stride():
    """A finer map is averaged, and a coarser one interpolated: a map that is constant over squares tells."""
    torch.manual_seed(0)
    experts = Experts(5, 3, 8, dense=False).eval()
    x = noise(1, 5, 4, 6)
    fine = x.repeat_interleave(4, 2).repeat_interleave(4, 3)
    ripple = torch.tensor([1.0, -1.0]).repeat(12)  # of mean 0 in every square
    with torch.no_grad():
        at_stride = experts(x, (4, 6))
        assert at_stride.shape == (1, 3, 8, 4, 6)
        torch.testing.assert_close(experts(fine + ripple, (4, 6)), at_stride)
        flat = noise(1, 5, 1, 1, seed=2)
        torch.testing.assert_close(experts(flat.expand(1, 5, 2, 3), (4, 6)), experts(flat.expand(1, 5, 4, 6), (4, 6)))


def test_tasks_share_the_experts_and_nothing_else():
    model = draw_weights(model_of(), std=0.3)
    maps = maps_of(model)
    before = final_of(model, maps)
    with torch.no_grad():
        model.decoder.mixtures[0].write.spatial[1] += 1  # what depth remembers
    after = final_of(model, maps)
    assert moved(before, after) == ["depth"]
    with torch.no_grad():
        model.decoder.mixtures[1].score.bias[3, 0, 0] += 5  # which expert boundary listens to
    assert moved(after, final_of(model, maps)) == ["boundary"]
    after = final_of(model, maps)
    with torch.no_grad():
        model.decoder.experts[0].refine.spatial[2] += 1  # one expert
    assert moved(after, final_of(model, maps)) == list(TASKS)


def test_training_one_task_trains_the_experts_and_no_other_tasks_gates():
    model = model_of().train()
    model(noise(2, 3, 64, 64)).final["depth"].square().mean().backward()
    for experts, mixture in zip(model.decoder.experts, model.decoder.mixtures, strict=True):
        assert experts.refine.spatial.grad.abs().sum((1, 2, 3, 4)).gt(0).all()
        reached = mixture.score.weight.grad.abs().sum((1, 2)) > 0
        assert reached.tolist() == [False, True, False, False]


@pytest.mark.parametrize("memory_expert", [True, False])
def test_a_depth_reads_what_earlier_depths_remember(memory_expert):
    model = model_of(memory_expert=memory_expert)
    maps = maps_of(model)
    assembled = []
    model.decoder.mixtures[3].write.register_forward_hook(lambda _, given, __: assembled.append(given[0]))
    final_of(model, maps)
    final_of(model, [maps[0] + 1, *maps[1:]])
    assert torch.allclose(*assembled, atol=1e-6) is not memory_expert


def test_deep_supervision_adds_coarse_predictions_before_the_last_depth():
    maps = maps_of(model_of())
    assert model_of().decoder(maps)[1] == {}
    model = model_of(deep_supervision=True)
    coarse = model.decoder(maps)[1]
    assert {task: tuple(x.shape) for task, x in coarse.items()} == {
        "semseg": (1, 40, 8, 12), "depth": (1, 1, 8, 12), "normals": (1, 3, 8, 12), "boundary": (1, 1, 8, 12)
    }  # fmt: skip
    last, first = (model.decoder([*maps[:3], maps[3] + 1])[1], model.decoder([maps[0] + 1, *maps[1:]])[1])
    assert all(torch.equal(last[task], coarse[task]) for task in TASKS)
    assert moved(coarse, first) == list(TASKS)
    some = model.for_tasks(("normals",)).decoder(maps)[1]
    assert list(some) == ["normals"]
    torch.testing.assert_close(some["normals"], coarse["normals"], atol=1e-5, rtol=1e-4)
    model.train()
    output = model(noise(1, 3, 70, 101))
    sum(x.square().mean() for x in (*output.final.values(), *output.coarse.values())).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_tasks_meet_at_the_stride_that_is_asked_for(stride):
    torch.manual_seed(0)
    model = create_model("tiny", decoder="taskexpert", decoder_stride=stride, dense_convolutions=stride == 16)
    remembered = []
    model.decoder.mixtures[3].register_forward_hook(lambda _, __, result: remembered.append(result.shape[-2:]))
    final = model.eval()(noise(1, 3, 64, 96)).final
    assert remembered == [(64 // stride, 96 // stride)]
    assert all(x.shape[-2:] == (64, 96) for x in final.values())


def test_fewer_tasks_cost_less():
    model, maps = model_of(), maps_of(model_of())

    def operations(decoder):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            decoder(maps)
        return counter.get_total_flops()

    assert operations(model.for_tasks(("depth",)).decoder) < 0.6 * operations(model.decoder)


def test_bfloat16_comes_near():
    model = model_of()
    images = noise(1, 3, 64, 96)
    with torch.no_grad():
        exact = model(images).final
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(images).final
    for task in TASKS:
        assert (rough[task].float() - exact[task]).norm() < 0.05 * exact[task].norm()


def test_the_preset_has_the_published_number_of_parameters():
    """420 M in all on PASCAL-Context, as the paper that this project follows quotes it."""
    with torch.device("meta"):
        model = create_model("taskexpert_vit_large", dataset="pascal")
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(420e6, rel=0.005)
    assert len(model.decoder.experts[0].project.weight) == TaskExpertOptions().num_experts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": 0}, "decoder option num_experts 0; expected 1 or more"),
        ({"gate": "pixel"}, "decoder option gate 'pixel'; expected one of position, image"),
        (
            {"experts": 4},
            "decoder taskexpert has no option 'experts'; expected some of num_experts, gate, memory_expert",
        ),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(MistakeError) as error:
        model_of(**options)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
