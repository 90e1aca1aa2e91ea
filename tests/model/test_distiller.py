import math

import pytest
import torch
import torch.nn.functional as F

from mtlsi.model.distiller import LEAST_SHARE, CentroidDistiller, PooledTokens, SemanticTokenDistiller
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


def test_centroids_are_those_that_the_assignment_says():
    module, fused = randomized(CentroidDistiller(TASKS, CHANNELS, TOKENS)), fused_features()
    assignment = module.assignment(fused)  # b t n k
    torch.testing.assert_close(assignment.sum(-1), torch.ones(2, TASKS, POSITIONS))
    centred = assignment.mT @ (fused - fused.mean(2, keepdim=True)) / (assignment.sum(2)[..., None] + LEAST_SHARE)
    torch.testing.assert_close(module.norm(centred), module(fused), atol=1e-3, rtol=1e-3)


def naive_centroids(module, fused, task):
    """One image's tokens of one task (k c), float64, token by token."""
    projected = [position @ module.project.weight[task] + module.project.bias[task, 0] for position in fused]
    middle, mean = sum(projected) / len(fused), fused.mean(0)
    total, share = [torch.zeros(CHANNELS, dtype=torch.float64) for _ in range(TOKENS)], [0.0] * TOKENS
    for position, x in zip(fused, projected, strict=True):
        cosines = [
            torch.cosine_similarity(x - middle, module.directions[task, :, k], dim=0).item() for k in range(TOKENS)
        ]
        weights = [math.exp(module.log_scale[task].exp().item() * cosine) for cosine in cosines]
        for k in range(TOKENS):
            share[k] += weights[k] / sum(weights)
            total[k] += weights[k] / sum(weights) * position
    centred = [(x - s * mean) / (s + LEAST_SHARE) for x, s in zip(total, share, strict=True)]
    return torch.stack([normalised(x, module.norm, task) for x in centred])


def test_centroids_equal_a_loop_over_positions():
    module, fused = randomized(CentroidDistiller(TASKS, CHANNELS, TOKENS)), fused_features()
    exact = randomized(CentroidDistiller(TASKS, CHANNELS, TOKENS)).double()
    with torch.no_grad():
        out = module(fused)
        for b in range(2):
            for task in range(TASKS):
                expected = naive_centroids(exact, fused[b, task].double(), task)
                torch.testing.assert_close(out[b, task].double(), expected, atol=1e-3, rtol=1e-3)


def mean_cosine(tokens):
    """Between different tokens of an image and task."""
    unit = F.normalize(tokens, dim=-1)
    cosines = unit @ unit.mT
    k = tokens.shape[2]
    return ((cosines.sum((-1, -2)) - k) / (k * (k - 1))).mean()


def test_centroids_begin_apart_where_shares_begin_as_one():
    """Of features with a part that all positions share, as an image's have."""
    torch.manual_seed(0)
    fused = torch.randn(1, 2, 300, 32) + 2 * torch.randn(32)
    with torch.no_grad():
        assert mean_cosine(SemanticTokenDistiller(2, 32, 16)(fused)) > 0.95
        assert mean_cosine(CentroidDistiller(2, 32, 16)(fused)) < 0.1


def test_a_token_without_positions_is_finite_and_plain():
    torch.manual_seed(0)
    module = CentroidDistiller(TASKS, CHANNELS, TOKENS)
    with torch.no_grad():
        module.log_scale.fill_(math.log(1e7))
        tokens = module(fused_features(positions=2))  # more tokens than positions
    assert tokens.isfinite().all()
    empty = tokens.abs().amax(-1) == 0
    assert (empty.sum(-1) == TOKENS - 2).all()


BOTH = pytest.mark.parametrize("kind", [SemanticTokenDistiller, CentroidDistiller])


@BOTH
def test_an_image_of_twice_the_size_makes_the_same_tokens(kind):
    module, fused = randomized(kind(TASKS, CHANNELS, TOKENS)), fused_features(positions=200)
    torch.testing.assert_close(module(fused.repeat(1, 1, 4, 1)), module(fused), atol=1e-3, rtol=1e-3)


@BOTH
def test_tokens_do_not_know_the_order_of_positions(kind):
    module, fused = randomized(kind(TASKS, CHANNELS, TOKENS)), fused_features()
    torch.testing.assert_close(module(fused.flip(2)), module(fused), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [SemanticTokenDistiller, CentroidDistiller, PooledTokens])
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
