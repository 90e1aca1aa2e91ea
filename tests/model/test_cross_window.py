import math

import pytest
import torch
import torch.nn.functional as F

from mtlsi.model.cross_window import CrossWindowBlock, FusedFeatures, OwnFeatures
from mtlsi.nn.layout import join_windows, split_windows, to_map, to_positions
from mtlsi.nn.task_subset import for_tasks

TASKS, CHANNELS, HEADS, WINDOW, TOKENS = 3, 6, 2, 4, 5
WIDTH = CHANNELS // HEADS
SIZES = [(8, 8), (6, 10), (3, 5), (4, 7)]
SUBSET = [0, 2]


def block(**options):
    """The block with every weight drawn again."""
    torch.manual_seed(0)
    module = CrossWindowBlock(TASKS, CHANNELS, num_heads=HEADS, window=WINDOW, ffn_ratio=2, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
    return module


def inputs(size_hw, batch=2):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(batch, TASKS, math.prod(size_hw), CHANNELS, generator=draw)
    return x, torch.randn(batch, TASKS, TOKENS, CHANNELS, generator=draw)


def linear(layer, task, x):
    return x @ layer.weight[task] + layer.bias[task, 0]


def layer_norm(layer, task, x):
    return F.layer_norm(x, (CHANNELS,), layer.weight[task, 0], layer.bias[task, 0])


def softmax_attention(queries, keys, values, allowed=None):
    """Heads one by one, with the whole attention matrix; ``allowed`` (n m) is False where a query must not look."""
    out = []
    for head in range(HEADS):
        part = slice(head * WIDTH, (head + 1) * WIDTH)
        scores = queries[:, part] @ keys[:, part].T / WIDTH**0.5
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -math.inf)
        out.append(scores.softmax(1) @ values[:, part])
    return torch.cat(out, 1)


def on_map(call, x, size_hw):
    """``call`` of a map's positions (b t n c) window by window and of their mask; its result in the map's order."""
    positions, mask = split_windows(to_map(x, size_hw), WINDOW)
    return to_positions(join_windows(call(positions, mask), size_hw, WINDOW))


def same_window(size_hw):
    """True (n n) where two positions of a map lie in the same window."""
    h, w = size_hw
    number = torch.tensor([(y // WINDOW) * w + x // WINDOW for y in range(h) for x in range(w)])
    return number[:, None] == number[None]


def naive_within_windows(module, task, normed, size_hw):
    """Attention over the whole map, positions of other windows masked out."""
    queries, keys, values = linear(module.window_qkv, task, normed).split(CHANNELS, 1)
    return softmax_attention(queries, keys, values, same_window(size_hw))


def naive_to_tokens(module, task, normed, tokens):
    keys, values = linear(module.token_key_value, task, tokens).split(CHANNELS, 1)
    return softmax_attention(linear(module.token_query, task, normed), keys, values)


def naive_mlp(mlp, task, x):
    return linear(mlp.reduce, task, F.gelu(linear(mlp.expand, task, x)))


def naive_block(module, task, x, tokens, size_hw):
    normed = layer_norm(module.norm, task, x)
    near = naive_within_windows(module, task, normed, size_hw)
    far = naive_to_tokens(module, task, normed, tokens)
    x = x + naive_mlp(module.merge, task, torch.cat((near, far), 1))
    return x + naive_mlp(module.ffn, task, layer_norm(module.ffn_norm, task, x))


@torch.no_grad()
def assert_equals_naive(out, naive, *arguments):
    """``out`` (b t n c) against ``naive(module, task, one image's float64 arguments)``."""
    exact = block().double()
    for b in range(out.shape[0]):
        for task in range(TASKS):
            expected = naive(exact, task, *(x[b, task].double() if torch.is_tensor(x) else x for x in arguments))
            torch.testing.assert_close(out[b, task].double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size_hw", SIZES)
def test_window_attention_equals_full_attention_under_a_block_mask(size_hw):
    """Also where the window does not divide the map: padding has no part in it."""
    x, _ = inputs(size_hw)
    assert_equals_naive(on_map(block().within_windows, x, size_hw), naive_within_windows, x, size_hw)


def test_attention_to_tokens_equals_its_matrix_form():
    x, tokens = inputs((3, 5))
    assert_equals_naive(block().to_tokens(x, tokens), naive_to_tokens, x, tokens)


@pytest.mark.parametrize("size_hw", [(8, 8), (6, 10)])
def test_block_equals_its_parts_written_out_task_by_task(size_hw):
    x, tokens = inputs(size_hw)
    out = to_positions(block()(to_map(x, size_hw), tokens))
    assert_equals_naive(out, naive_block, x, tokens, size_hw)


def test_positions_are_told_apart_by_a_convolution_before_the_block():
    module, size_hw = block(positions=True), (6, 10)
    x, tokens = inputs(size_hw)
    x = to_map(x, size_hw)
    kernels = module.positions.weight
    moved = [F.conv2d(x[:, t], kernels[t], padding=1, groups=CHANNELS) for t in range(TASKS)]
    plain = block()
    plain.load_state_dict(module.state_dict(), strict=False)
    torch.testing.assert_close(module(x, tokens), plain(x + torch.stack(moved, 1), tokens), atol=1e-4, rtol=1e-4)


def test_a_block_that_starts_at_zero_passes_its_input_on():
    x, tokens = inputs((6, 10))
    options = {"num_heads": HEADS, "window": WINDOW, "ffn_ratio": 2, "positions": True}
    x = to_map(x, (6, 10))
    torch.testing.assert_close(CrossWindowBlock(TASKS, CHANNELS, **options, zero_start=True)(x, tokens), x)
    assert not torch.allclose(CrossWindowBlock(TASKS, CHANNELS, **options)(x, tokens), x, atol=1e-2)


def test_fused_features_are_added_task_by_task():
    x, fused = inputs((3, 5))[0], inputs((3, 5))[0] + 1
    local = FusedFeatures(TASKS, CHANNELS, zero_start=False)
    expected = torch.stack([x[:, t] + linear(local.project, t, fused[:, t]) for t in range(TASKS)], 1)
    torch.testing.assert_close(to_positions(local(to_map(x, (3, 5)), fused)), expected)
    assert torch.equal(FusedFeatures(TASKS, CHANNELS, zero_start=True)(to_map(x, (3, 5)), fused), to_map(x, (3, 5)))
    assert torch.equal(OwnFeatures()(to_map(x, (3, 5)), fused), to_map(x, (3, 5)))


def test_a_subset_of_the_tasks_gives_their_slice():
    module, size_hw = block(positions=True), (6, 10)
    x, tokens = inputs(size_hw)
    x = to_map(x, size_hw)
    some = for_tasks(module, SUBSET)(x[:, SUBSET], tokens[:, SUBSET])
    torch.testing.assert_close(some, module(x, tokens)[:, SUBSET], atol=1e-5, rtol=1e-5)


def test_distant_positions_meet_only_through_the_tokens():
    module, size_hw = block(), (8, 8)
    x, tokens = inputs(size_hw)
    changed = x.clone()
    changed[:, :, 0] = torch.randn_like(changed[:, :, 0])

    def refined(x, tokens):
        return to_positions(module(to_map(x, size_hw), tokens))

    moved = (refined(changed, tokens) - refined(x, tokens)).abs().amax((0, 1, 3)) > 1e-6
    assert torch.equal(moved, same_window(size_hw)[0])
    other_tokens = refined(x, tokens + torch.randn_like(tokens))
    assert ((other_tokens - refined(x, tokens)).abs().amax((0, 1, 3)) > 1e-6).all()


def test_with_read_all_a_position_attends_to_the_tokens_of_every_task():
    module = block(read_all=True)
    x, tokens = inputs((6, 10))
    found = module.to_tokens(x, tokens)
    for image in range(len(x)):
        both = [linear(module.token_key_value, t, tokens[image, t]) for t in range(TASKS)]
        keys, values = (torch.cat([part.chunk(2, 1)[i] for part in both]) for i in range(2))
        for t in range(TASKS):
            expected = softmax_attention(linear(module.token_query, t, x[image, t]), keys, values)
            torch.testing.assert_close(found[image, t], expected, atol=1e-4, rtol=1e-4)
