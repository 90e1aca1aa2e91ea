import itertools
import math

import pytest
import torch

from mtlsi.nn import attention
from mtlsi.nn.attention import FEW_KEYS, WIDE_HEAD, global_context, kernel_features, query_shares, token_attention


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def linear_attention(queries, keys, values):
    """Queries (b n d), keys (b m d), values (b m e), one head each -> (b n e) by the two functions under test."""
    context, normaliser = global_context(keys, values)
    return query_shares(queries.unsqueeze(2), normaliser.unsqueeze(1)).squeeze(2) @ context


def quadratic_attention(queries, keys, values):
    """The same with its n x m attention matrix written out, in the dtype of the inputs."""

    def positive(x):
        return torch.where(x > 0, x + 1, x.clamp_max(0).exp())

    matrix = positive(queries) @ positive(keys).mT
    return (matrix / matrix.sum(-1, keepdim=True)) @ values


def test_kernel_features_are_positive_and_continuous_at_zero():
    x = torch.tensor([-10.0, -1.0, -1e-4, 0.0, 1e-4, 1.0, 10.0])
    expected = [math.exp(v) if v < 0 else v + 1 for v in x.tolist()]
    assert kernel_features(x).tolist() == pytest.approx(expected, rel=1e-3)
    assert (kernel_features(x) > 0).all()


@pytest.mark.parametrize(("num_queries", "num_keys"), [(37, 29), (1, 50), (50, 1)])
def test_linear_attention_equals_its_quadratic_form(num_queries, num_keys):
    queries, keys = draw(3, num_queries, 5, seed=1), draw(3, num_keys, 5, seed=2)
    values = draw(3, num_keys, 7, seed=3)
    out = linear_attention(queries.float(), keys.float(), values.float())
    assert out.shape == (3, num_queries, 7)
    torch.testing.assert_close(out.double(), quadratic_attention(queries, keys, values), atol=1e-5, rtol=1e-5)


def test_gradients_equal_those_of_the_quadratic_form():
    leaves = [draw(2, 11, 4, seed=1), draw(2, 13, 4, seed=2), draw(2, 13, 3, seed=3)]
    cotangent = draw(2, 11, 3, seed=4)
    exact = [x.clone().requires_grad_() for x in leaves]
    (quadratic_attention(*exact) * cotangent).sum().backward()
    single = [x.float().requires_grad_() for x in leaves]
    (linear_attention(*single) * cotangent).sum().backward()
    for ours, expected in zip(single, exact, strict=True):
        torch.testing.assert_close(ours.grad.double(), expected.grad, atol=1e-5, rtol=1e-4)


def test_context_is_a_mean_so_that_more_positions_do_not_make_it_larger():
    keys, values = draw(2, 10, 4, seed=1), draw(2, 10, 6, seed=2)
    few = global_context(keys, values)
    many = global_context(keys.repeat(1, 100, 1), values.repeat(1, 100, 1))
    for a, b in zip(few, many, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_equal_values_come_out_unchanged():
    """The weights of every query sum to one."""
    out = linear_attention(draw(1, 9, 4, seed=1).float(), draw(1, 20, 4, seed=2).float(), torch.full((1, 20, 3), 2.5))
    torch.testing.assert_close(out, torch.full((1, 9, 3), 2.5), atol=1e-5, rtol=0)


def test_keys_that_the_kernel_maps_to_zero_give_no_nan():
    out = linear_attention(torch.full((1, 3, 4), -200.0), torch.full((1, 5, 4), -200.0), torch.ones(1, 5, 2))
    assert out.isfinite().all()


def test_sums_stay_float32_under_autocast():
    keys, values, queries = draw(2, 64, 4, seed=1).float(), draw(2, 64, 4, seed=2).float(), draw(1, 9, 2, 4, seed=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        context, normaliser = global_context(keys, values)
        shares = query_shares(queries.bfloat16(), normaliser.unsqueeze(0))
    assert context.dtype == normaliser.dtype == torch.float32
    assert shares.dtype == torch.bfloat16
    exact = query_shares(queries.bfloat16().double(), normaliser.unsqueeze(0).double())
    torch.testing.assert_close(shares.double(), exact, atol=0, rtol=0.02)
    torch.testing.assert_close(context, global_context(keys, values)[0])


@pytest.mark.parametrize("masked", [False, True])
def test_token_attention_equals_naive_loops(masked):
    b, t, n, k, heads, d = 2, 2, 6, 5, 3, 4
    queries, keys, values = (draw(b, t, m, heads * d, seed=seed) for seed, m in enumerate((n, k, k)))
    mask = torch.rand(b, 1, n, k, generator=torch.Generator().manual_seed(4)) < 0.6 if masked else None
    if mask is not None:
        mask[..., 0] = True  # every query may look somewhere
    expected = torch.zeros(b, t, n, heads * d, dtype=torch.float64)
    for image, task, head, i in itertools.product(range(b), range(t), range(heads), range(n)):
        part = slice(head * d, (head + 1) * d)
        seen = [j for j in range(k) if mask is None or mask[image, 0, i, j]]
        products = (float(queries[image, task, i, part] @ keys[image, task, j, part]) for j in seen)
        scores = [math.exp(product / d**0.5) for product in products]
        for j, score in zip(seen, scores, strict=True):
            expected[image, task, i, part] += score / sum(scores) * values[image, task, j, part]
    out = token_attention(queries.float(), keys.float(), values.float(), heads, mask)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)


def explicit_attention(queries, keys, values, heads, mask=None):
    """The same with its matrices written out, in the type of the inputs."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(2, 3) for x in (queries, keys, values))  # b t heads n d
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask.unsqueeze(1), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(2, 3).flatten(3)


@pytest.mark.parametrize("at_once", [1, 1000, attention.SCORES_AT_ONCE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_in_parts_is_that_of_float64(monkeypatch, dtype, at_once):
    """Without gradients, wide heads and many keys go another way, a few positions at a time."""
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", at_once)
    queries, keys, values = (draw(2, 3, n, 2 * WIDE_HEAD, seed=n).to(dtype) for n in (37, FEW_KEYS + 1, FEW_KEYS + 1))
    calls = []
    in_parts = attention._attend_in_parts
    monkeypatch.setattr(attention, "_attend_in_parts", lambda *x: calls.append(x) or in_parts(*x))
    with torch.no_grad():
        out = token_attention(queries, keys, values, 2)
    assert len(calls) == 1
    assert out.dtype == dtype
    expected = explicit_attention(queries.double(), keys.double(), values.double(), 2)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("num_keys", [64, FEW_KEYS, FEW_KEYS + 1])
@pytest.mark.parametrize("masked", [False, True])
def test_bf16_attention_is_that_of_float64_whichever_way_it_is_computed(num_keys, masked):
    draw = torch.Generator().manual_seed(0)
    queries, keys, values = (torch.randn(3, 2, n, 24, generator=draw) for n in (50, num_keys, num_keys))
    mask = torch.rand(3, 1, 1, num_keys, generator=draw) > 0.3 if masked else None
    low = [x.bfloat16().requires_grad_() for x in (queries, keys, values)]
    exact = [x.detach().double().requires_grad_() for x in low]
    result, expected = token_attention(*low, 2, mask), explicit_attention(*exact, 2, mask)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.double(), expected, atol=0.02, rtol=0.02)
    result.backward(torch.ones_like(result))
    expected.backward(torch.ones_like(expected))
    for x, y in zip(low, exact, strict=True):
        assert (x.grad.double() - y.grad).norm() < 0.03 * y.grad.norm()
