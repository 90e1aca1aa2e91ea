import math

import pytest
import torch
import torch.nn.functional as F

from mtlsi.model import distiller
from mtlsi.model.distiller import PooledTokens, SemanticTokenDistiller

TASKS, CHANNELS, TOKENS, POSITIONS = 3, 6, 5, 14
SUBSET = [0, 2]


def randomized(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def fused_features(positions=POSITIONS, batch=2):
    return torch.randn(batch, TASKS, positions, CHANNELS, generator=torch.Generator().manual_seed(1))


def normalised(token, norm, task):
    """Layer norm of one token by its formula."""
    centred = token - token.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * norm.weight[task, 0] + norm.bias[task, 0]


def naive_tokens(module, fused, task):
    """One image's tokens of one task (k c), float64, position by position: each is shared out over all tokens."""
    mlp = module.assign
    tokens = torch.zeros(TOKENS, CHANNELS, dtype=torch.float64)
    for position in fused:
        hidden = F.gelu(position @ mlp.expand.weight[task] + mlp.expand.bias[task, 0])
        scores = (hidden @ mlp.reduce.weight[task] + mlp.reduce.bias[task, 0]).tolist()
        shares = [math.exp(score - max(scores)) for score in scores]
        for token, share in enumerate(shares):
            tokens[token] += share / sum(shares) * position
    return torch.stack([normalised(token / len(fused), module.norm, task) for token in tokens])


def test_tokens_equal_a_loop_over_positions():
    module, fused = randomized(SemanticTokenDistiller(TASKS, CHANNELS, TOKENS)), fused_features()
    with torch.no_grad():
        out = module(fused)
        exact = randomized(SemanticTokenDistiller(TASKS, CHANNELS, TOKENS)).double()
        exact.load_state_dict(module.state_dict())
        for b in range(2):
            for task in range(TASKS):
                expected = naive_tokens(exact, fused[b, task].double(), task)
                torch.testing.assert_close(out[b, task].double(), expected, atol=1e-4, rtol=1e-4)


def test_an_image_of_twice_the_size_makes_the_same_tokens():
    module, fused = randomized(SemanticTokenDistiller(TASKS, CHANNELS, TOKENS)), fused_features()
    torch.testing.assert_close(module(fused.repeat(1, 1, 4, 1)), module(fused), atol=1e-5, rtol=1e-5)


def test_tokens_do_not_know_the_order_of_positions():
    module, fused = randomized(SemanticTokenDistiller(TASKS, CHANNELS, TOKENS)), fused_features()
    torch.testing.assert_close(module(fused.flip(2)), module(fused), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [SemanticTokenDistiller, PooledTokens])
def test_a_subset_of_the_tasks_gives_their_slice(kind):
    module, fused = randomized(kind(TASKS, CHANNELS, TOKENS)), fused_features()
    torch.testing.assert_close(module(fused[:, SUBSET], SUBSET), module(fused)[:, SUBSET], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", [POSITIONS, 3 * TOKENS, 3])
def test_pooled_tokens_are_means_of_neighbouring_positions(positions):
    """Also where the positions do not divide by the tokens, and where there are fewer of them."""
    module, fused = randomized(PooledTokens(TASKS, CHANNELS, TOKENS)), fused_features(positions)
    out = module(fused)
    assert out.shape == (2, TASKS, TOKENS, CHANNELS)
    for k in range(TOKENS):
        first, last = k * positions // TOKENS, -(-(k + 1) * positions // TOKENS)
        for task in range(TASKS):
            expected = normalised(fused[1, task, first:last].mean(0), module.norm, task)
            torch.testing.assert_close(out[1, task, k], expected, atol=1e-4, rtol=1e-4)


def test_a_large_map_is_distilled_in_parts_to_the_same_tokens(monkeypatch):
    torch.manual_seed(0)
    module, fused = SemanticTokenDistiller(2, 8, 5), torch.randn(2, 2, 37, 8)
    whole = module(fused)
    monkeypatch.setattr(distiller, "POSITIONS_AT_ONCE", 10)
    with torch.no_grad():
        torch.testing.assert_close(module(fused), whole)


@pytest.mark.parametrize("share_out", [distiller._SharedInParts.apply, distiller._shared_at_once])
@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_are_those_of_float64_whichever_way_the_sums_are_made(monkeypatch, share_out, bf16):
    monkeypatch.setattr(distiller, "POSITIONS_AT_ONCE", 10)
    torch.manual_seed(0)
    hidden, fused = torch.randn(2, 37, TASKS, 6).transpose(1, 2), torch.randn(2, 37, TASKS, 6).transpose(1, 2) + 1
    given = [hidden, fused, torch.randn(TASKS, 6, 8), torch.randn(TASKS, 1, 8)]
    target = torch.randn(2, TASKS, 6, 8)

    def gradients(make, dtype, autocast):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in given]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            sums = make(*leaves)
        (sums * target.to(dtype)).sum().backward()
        return [sums.detach(), *(leaf.grad for leaf in leaves)]

    def plain(hidden, fused, weight, bias):
        return fused.mT @ (torch.einsum("btnc,tck->btnk", hidden, weight) + bias).softmax(-1)

    for ours, exact in zip(
        gradients(share_out, torch.float32, bf16), gradients(plain, torch.float64, False), strict=True
    ):
        assert (ours - exact).norm() < (2e-2 if bf16 else 1e-5) * exact.norm()
