"""The network's equations written out plainly, with the weights of a real one: the reference for results and for speed.

Tasks, heads, scales and images' windows are Python loops, every convolution is a dense one, maps are upsampled before
they are read, and every attention has its matrix. Nothing here is shared with the network but the backbone and the numbers.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def plain_forward(model, images):
    """({task: final}, {task: coarse}) at the images' size (b channels H W), as ``MTLSINet`` gives them."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, -width % 32, 0, -height % 32))
    maps = [x.contiguous() for x in model.backbone(padded)]
    features, coarse = preliminary(model.preliminary, model.tasks, maps)
    fused = features if model.fusion is None else fusion(model.fusion, model.tasks, features, coarse)
    final = {}
    for t, task in enumerate(model.tasks):
        refined = fused[task]
        if model.distiller is not None:
            tokens, refined = distil(model.distiller, t, fused[task]), features[task]
            for block in model.cross_window:
                refined = cross_window(block, t, refined, tokens)
        final[task] = head(model.heads, t, task, refined, maps[0])
    return tuple(
        {task: resize_maps(x, padded.shape[-2:])[..., :height, :width] for task, x in predictions.items()}
        for predictions in (final, coarse)
    )


def resize_maps(x, size):
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def linear(layer, t, x):
    """One task's linear map of the last axis."""
    return x @ layer.weight[t] + layer.bias[t, 0]


def mlp(layer, t, x):
    return linear(layer.reduce, t, F.gelu(linear(layer.expand, t, x)))


def layer_norm(layer, t, x):
    return F.layer_norm(x, x.shape[-1:], layer.weight[t, 0], layer.bias[t, 0])


def batch_norm(layer, t, x):
    """One task's batch norm; by the batch while training, without a trace in the stored statistics."""
    norm, own = layer.norm, slice(t * x.shape[1], (t + 1) * x.shape[1])
    weight, bias = norm.weight[own], norm.bias[own]
    if norm.training:
        return F.batch_norm(x, None, None, weight, bias, training=True, eps=norm.eps)
    return F.batch_norm(x, norm.running_mean[own], norm.running_var[own], weight, bias, eps=norm.eps)


def to_rows(x):
    """(b c h w) -> (b n c)"""
    return x.flatten(2).transpose(1, 2)


def to_map(rows, size):
    return rows.transpose(1, 2).unflatten(2, tuple(size))


def convolution(layer, t, x):
    """3x3, norm, GELU; a separable one as the dense one that it equals."""
    kernel, bias = layer.spatial[t], None
    if not layer.dense:
        kernel = torch.einsum("cyx,cd->dcyx", kernel[:, 0], layer.pointwise.weight[t])
        bias = layer.pointwise.bias[t, 0]
    return F.gelu(batch_norm(layer.norm, t, F.conv2d(x, kernel, bias, padding=1)))


def projection(layer, t, x):
    return batch_norm(layer.norm, t, F.conv2d(x, layer.weight[t]))


def preliminary(module, tasks, maps):
    """Every map upsampled to the finest one, step by step, and only then projected."""
    used = maps[module.skip :]
    features, coarse = {}, {}
    for t, task in enumerate(tasks):
        total = 0
        for level, (lateral, x) in enumerate(zip(module.lateral, used, strict=True)):
            if module.training:  # the statistics of the norm are those of the map itself
                x = projection(lateral, t, x)
            for finer in reversed(used[:level]):
                x = resize_maps(x, finer.shape[-2:])
            total = total + (x if module.training else projection(lateral, t, x))
        features[task] = convolution(module.refine, t, total)
        coarse[task] = module.predict.of_task[task](features[task])
    return features, coarse


def dense_depthwise(layer, x):
    """A depthwise convolution as the dense one that it equals."""
    weight = layer.weight[:, 0]
    kernel = torch.einsum("cyx,cd->cdyx", weight, torch.eye(len(weight), dtype=weight.dtype))
    return F.conv2d(x, kernel, layer.bias, padding=weight.shape[-1] // 2)


def queries(module, x):
    if hasattr(module, "across"):  # one mixing for all scales
        mixed = module.across(x)
        return [
            mixed if isinstance(layer, torch.nn.Identity) else dense_depthwise(layer, mixed) for layer in module.spatial
        ]
    results = []
    for layer in module:
        kernel, bias = layer.across.weight, layer.across.bias
        if layer.spatial is not None:  # both in one dense kernel
            bias = bias + kernel[:, :, 0, 0] @ layer.spatial.bias
            kernel = torch.einsum("dc,cyx->dcyx", kernel[:, :, 0, 0], layer.spatial.weight[:, 0])
        results.append(F.conv2d(x, kernel, bias, padding=kernel.shape[-1] // 2))
    return results


def fusion(module, tasks, features, coarse):
    joined, normed, keys, values = {}, [], [], []
    for t, task in enumerate(tasks):
        size = features[task].shape[-2:]
        embedded = module.embed[task](coarse[task])
        joined[task] = to_map(linear(module.project, t, to_rows(features[task])), size) + embedded
        pooled = to_rows(F.avg_pool2d(joined[task], module.pool, ceil_mode=True))
        key, value = linear(module.key_value, t, layer_norm(module.context_norm, t, pooled)).chunk(2, -1)
        keys.append(key)
        values.append(value)
        normed.append(batch_norm(module.query_norm, t, joined[task]))
    keys, values = torch.cat(keys, 1), torch.cat(values, 1)
    of_scales = queries(module.queries, torch.cat(normed, 1))
    fused = {}
    for t, task in enumerate(tasks):
        c = joined[task].shape[1]
        seen = [linear_attention(module, to_rows(q[:, t * c : (t + 1) * c]), keys, values) for q in of_scales]
        fused[task] = joined[task] + to_map(mlp(module.merge, t, torch.cat(seen, -1)), size)
    return fused


def linear_attention(module, query, keys, values):
    """With its matrix of positions by pooled positions, head by head."""
    heads = []
    for q, k, v in zip(*(x.chunk(module.num_heads, -1) for x in (query, keys, values)), strict=True):
        matrix = (F.elu(q) + 1) @ (F.elu(k) + 1).transpose(1, 2)
        heads.append(matrix / matrix.sum(-1, keepdim=True) @ v)
    return torch.cat(heads, -1)


def distil(module, t, fused):
    rows = to_rows(fused)
    shares = mlp(module.assign, t, rows).softmax(-1)
    return layer_norm(module.norm, t, shares.transpose(1, 2) @ rows / rows.shape[1])


def softmax_attention(query, keys, values, num_heads):
    heads = []
    for q, k, v in zip(*(x.chunk(num_heads, -1) for x in (query, keys, values)), strict=True):
        heads.append((q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1) @ v)
    return torch.cat(heads, -1)


def cross_window(block, t, features, tokens):
    b, c, h, w = features.shape
    normed = layer_norm(block.norm, t, to_rows(features))
    on_map = normed.view(b, h, w, c)
    near = torch.zeros_like(on_map)
    for top in range(0, h, block.window):
        for left in range(0, w, block.window):
            window = on_map[:, top : top + block.window, left : left + block.window]
            qkv = linear(block.window_qkv, t, window.flatten(1, 2)).chunk(3, -1)
            seen = softmax_attention(*qkv, block.num_heads).view(window.shape)
            near[:, top : top + block.window, left : left + block.window] = seen
    keys, values = linear(block.token_key_value, t, tokens).chunk(2, -1)
    far = softmax_attention(linear(block.token_query, t, normed), keys, values, block.num_heads)
    x = to_rows(features) + mlp(block.merge, t, torch.cat((near.flatten(1, 2), far), -1))
    x = x + mlp(block.ffn, t, layer_norm(block.ffn_norm, t, x))
    return to_map(x, (h, w))


def head(module, t, task, refined, finest):
    x = convolution(module.refine, t, refined)
    if module.fine is not None:
        x = convolution(module.finish, t, resize_maps(x, finest.shape[-2:]) + projection(module.fine, t, finest))
    return module.predict.of_task[task](x)
