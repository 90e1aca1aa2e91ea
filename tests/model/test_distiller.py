import math

import pytest
import torch
import torch.nn.functional as F

from mtlsi.model.distiller import PooledTokens, SemanticTokenDistiller
from mtlsi.nn.task_subset import for_tasks

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


def test_tokens_are_the_sums_that_the_assignment_says():
    module, fused = randomized(SemanticTokenDistiller(TASKS, CHANNELS, TOKENS)), fused_features()
    assignment = module.assignment(fused)  # b t n k
    torch.testing.assert_close(assignment.sum(-1), torch.ones(2, TASKS, POSITIONS))
    torch.testing.assert_close(module.norm(assignment.mT @ fused / POSITIONS), module(fused), atol=1e-5, rtol=1e-4)


def test_an_image_of_twice_the_size_makes_the_same_tokens():
    module, fused = randomized(SemanticTokenDistiller(TASKS, CHANNELS, TOKENS)), fused_features()
    torch.testing.assert_close(module(fused.repeat(1, 1, 4, 1)), module(fused), atol=1e-5, rtol=1e-5)


def test_tokens_do_not_know_the_order_of_positions():
    module, fused = randomized(SemanticTokenDistiller(TASKS, CHANNELS, TOKENS)), fused_features()
    torch.testing.assert_close(module(fused.flip(2)), module(fused), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [SemanticTokenDistiller, PooledTokens])
def test_a_subset_of_the_tasks_gives_their_slice(kind):
    module, fused = randomized(kind(TASKS, CHANNELS, TOKENS)), fused_features()
    torch.testing.assert_close(
        for_tasks(module, SUBSET)(fused[:, SUBSET]), module(fused)[:, SUBSET], atol=1e-5, rtol=1e-5
    )


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
