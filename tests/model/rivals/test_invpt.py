import math

import pytest
import torch
import torch.nn.functional as F

from mtlsi.errors import MistakeError
from mtlsi.model.build import create_model
from mtlsi.model.decoder_spec import DecoderSpec
from mtlsi.model.rivals.invpt import InvPTBlock, InvPTOptions, MultiScaleHeads, TaskConvReLU, Upscale, build_invpt
from mtlsi.model.rivals.invpt_attention import FusionAttention, SelectiveAttention, resize_scores
from mtlsi.sizes import PRESETS, ModelConfig

TASKS, CHANNELS, HEADS = 3, 8, 2
OUTPUTS = {"semseg": 5, "depth": 1, "normals": 3}
MAP_CHANNELS = (6, 7, 8, 9)


def randomized(module):
    """Float64, in evaluation, every parameter and statistic drawn, so that nothing is idle."""
    torch.manual_seed(0)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
            elif name.endswith("running_mean"):
                buffer.normal_()
    return module


def drawn(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def decoder(options=None, **sizes):
    config = ModelConfig(channels=16, num_heads=HEADS, decoder="invpt", decoder_options=options or {}, **sizes)
    return randomized(build_invpt(DecoderSpec(OUTPUTS, MAP_CHANNELS, config)))


def drawn_maps(height=64, width=96, batch=1):
    return [drawn(batch, c, height // s, width // s, seed=s) for c, s in zip(MAP_CHANNELS, (4, 8, 16, 32), strict=True)]


def naive_heads(module, x):
    """Queries, keys, values {(task, head): (positions d)} of one image's maps (t c h w), task by task, and their grid."""
    norm, q, k, v = module.sample.norm.norm, {}, {}, {}
    width = CHANNELS // HEADS
    for task in range(TASKS):
        own = slice(task * CHANNELS, (task + 1) * CHANNELS)
        convolved = F.conv2d(x[task, None], module.sample.spatial[task], stride=2, padding=1, groups=CHANNELS)
        normed = F.batch_norm(
            convolved, norm.running_mean[own], norm.running_var[own], norm.weight[own], norm.bias[own], eps=norm.eps
        )
        pooled = F.avg_pool2d(x[task, None], module.pool, ceil_mode=True)
        queries = normed[0].flatten(1).T @ module.query.weight.T + module.query.bias
        keys_values = pooled[0].flatten(1).T @ module.key_value.weight.T + module.key_value.bias
        for head in range(HEADS):
            channels = slice(head * width, (head + 1) * width)
            q[task, head] = queries[:, channels]
            k[task, head] = keys_values[:, :CHANNELS][:, channels]
            v[task, head] = keys_values[:, CHANNELS:][:, channels]
    return q, k, v, normed.shape[-2:]


def naive_merge(module, attended, grid):
    """{(task, head): (positions d)} -> maps (t c y x)."""
    maps = []
    for task in range(TASKS):
        merged = torch.cat([attended[task, head] for head in range(HEADS)], -1) @ module.merge.weight.T
        maps.append((merged + module.merge.bias).T.unflatten(1, grid))
    return torch.stack(maps)


def by_task_and_key(scores):
    """Scores of one image (heads y x t m) -> {(task, head): (positions, keys)}."""
    heads, tasks = scores.shape[0], scores.shape[3]
    return {(task, head): scores[head, :, :, task].flatten(0, 1) for task in range(tasks) for head in range(heads)}


def key_order(of_task):
    """Keys of each task (positions d) -> all keys in the order of the module's: position by position, then tasks."""
    return torch.stack(of_task, 1).flatten(0, 1)


@pytest.mark.parametrize("height_width", [(8, 12), (7, 10)])
def test_fusion_attention_against_a_loop_over_tasks_and_heads(height_width):
    first = randomized(FusionAttention(TASKS, CHANNELS, num_heads=HEADS, pool=2, is_first=True))
    second = randomized(FusionAttention(TASKS, CHANNELS, num_heads=HEADS, pool=4, is_first=False))
    coarse = drawn(2, TASKS, CHANNELS, *height_width)
    fine = drawn(2, TASKS, CHANNELS, 2 * height_width[0], 2 * height_width[1], seed=2)
    with torch.no_grad():
        _, passed = first(coarse, None)
        attended, passed_on = second(fine, passed)
    for image in range(2):
        q, k, v, grid = naive_heads(second, fine[image])
        scores = {}
        for task in range(TASKS):
            for head in range(HEADS):
                keys = key_order([k[source, head] for source in range(TASKS)])
                own = q[task, head] @ keys.T / math.sqrt(CHANNELS)
                before = passed[image, head, :, :, task].permute(2, 0, 1)[None]  # 1 m v u
                up = F.interpolate(before, size=tuple(grid), mode="bilinear", align_corners=False)
                scores[task, head] = own, up[0].flatten(1).T
        weight, expected = second.fuse.weight[:, :, 0, 0], {}
        for task in range(TASKS):
            inputs = [scores[task, head][0] for head in range(HEADS)] + [scores[task, head][1] for head in range(HEADS)]
            for head in range(HEADS):
                fused = sum(w * x for w, x in zip(weight[head], inputs, strict=True)) + second.fuse.bias[head]
                torch.testing.assert_close(by_task_and_key(passed_on[image])[task, head], fused)
                values = key_order([v[source, head] for source in range(TASKS)])
                expected[task, head] = fused.softmax(-1) @ values
        torch.testing.assert_close(attended[image], naive_merge(second, expected, grid))


def test_selective_attention_against_a_loop_over_tasks_and_heads():
    """Three stages: the second attends to half of the keys of the first, the third to half of those."""
    shares, pools = (1.0, 0.5, 0.25), (2, 4, 8)
    stages = [
        randomized(SelectiveAttention(TASKS, CHANNELS, num_heads=HEADS, pool=pool, share=share))
        for pool, share in zip(pools, shares, strict=True)
    ]
    passed, kept = None, {head: list(range(TASKS * 2 * 3)) for head in range(HEADS)}
    for number, (stage, share) in enumerate(zip(stages, shares, strict=True)):
        x = drawn(1, TASKS, CHANNELS, 4 * 2**number, 6 * 2**number, seed=number)
        with torch.no_grad():
            attended, importance = stage(x, passed)
        q, k, v, grid = naive_heads(stage, x[0])
        expected, looked_at = {}, {}
        for head in range(HEADS):
            if passed is not None:
                by_importance = sorted(kept[head], key=lambda m: -passed[0, head, m].item())
                kept[head] = by_importance[: math.ceil(share * TASKS * 2 * 3)]
            keys = key_order([k[source, head] for source in range(TASKS)])[kept[head]]
            values = key_order([v[source, head] for source in range(TASKS)])[kept[head]]
            attention = [(q[task, head] @ keys.T / math.sqrt(CHANNELS)).softmax(-1) for task in range(TASKS)]
            for task in range(TASKS):
                expected[task, head] = attention[task] @ values
            looked_at[head] = torch.cat(attention).mean(0)
        torch.testing.assert_close(attended[0], naive_merge(stage, expected, grid))
        for head in range(HEADS):
            every_key = torch.zeros(TASKS * 2 * 3, dtype=torch.float64)
            every_key[kept[head]] = looked_at[head]
            torch.testing.assert_close(importance[0, head], every_key)
        passed = importance
    assert len(kept[0]) == 5


def test_selecting_every_key_is_attending_to_all():
    stage = randomized(SelectiveAttention(TASKS, CHANNELS, num_heads=HEADS, pool=2, share=1.0))
    x = drawn(2, TASKS, CHANNELS, 8, 12)
    with torch.no_grad():
        plain, importance = stage(x, None)
        torch.testing.assert_close(stage(x, importance)[0], plain)
    torch.testing.assert_close(importance.sum(-1), torch.ones(2, HEADS, dtype=torch.float64))


def test_scores_passed_on_are_interpolated_within_each_task_and_key():
    scores = drawn(2, HEADS, 2, 3, TASKS, 4)
    resized = resize_scores(scores, (5, 6))
    for task in range(TASKS):
        maps = scores[:, :, :, :, task].permute(0, 1, 4, 2, 3).flatten(0, 2)[:, None]  # (b heads m) 1 v u
        up = F.interpolate(maps, size=(5, 6), mode="bilinear", align_corners=False)
        torch.testing.assert_close(resized[:, :, :, :, task].permute(0, 1, 4, 2, 3).flatten(0, 2)[:, None], up)


@pytest.mark.parametrize("kind", ["fusion", "selective"])
def test_what_one_task_knows_reaches_every_task_through_the_attention_alone(kind):
    make = {
        "fusion": lambda: FusionAttention(TASKS, CHANNELS, num_heads=HEADS, pool=2, is_first=True),
        "selective": lambda: SelectiveAttention(TASKS, CHANNELS, num_heads=HEADS, pool=2, share=1.0),
    }
    block = randomized(InvPTBlock(CHANNELS, 2, make[kind]()))
    x = drawn(1, TASKS, CHANNELS, 4, 6)
    other = x.clone()
    other[:, 1] += drawn(CHANNELS, 4, 6, seed=5)
    with torch.no_grad():
        moved = [not torch.equal(a, b) for a, b in zip(block(x, None)[0][0], block(other, None)[0][0], strict=True)]
        assert moved == [True] * TASKS
        block.attention.merge.weight.zero_()
        moved = [not torch.equal(a, b) for a, b in zip(block(x, None)[0][0], block(other, None)[0][0], strict=True)]
    assert moved == [False, True, False]


def test_a_change_of_one_tasks_preliminary_weights_reaches_every_final_prediction():
    model, maps = decoder(), drawn_maps()
    with torch.no_grad():
        before, coarse_before = model(maps)
        model.preliminary.narrow.kernel[1] += drawn(*model.preliminary.narrow.kernel.shape[1:])  # depth
        after, coarse_after = model(maps)
    assert [task for task in OUTPUTS if not torch.equal(coarse_before[task], coarse_after[task])] == ["depth"]
    assert [task for task in OUTPUTS if not torch.equal(before[task], after[task])] == list(OUTPUTS)


def test_convolutions_are_each_tasks_own_with_its_norm():
    for dilation in (1, 2):
        layer = randomized(TaskConvReLU(TASKS, 4, 5, dilation=dilation))
        x = drawn(2, TASKS, 4, 6, 7)
        norm = layer.norm.norm
        with torch.no_grad():
            for shared in (False, True):
                result = layer(x[:, 0] if shared else x)
                for task in range(TASKS):
                    own, given = slice(task * 5, (task + 1) * 5), x[:, 0 if shared else task]
                    y = F.conv2d(given, layer.kernel[task], padding=dilation, dilation=dilation)
                    y = F.batch_norm(
                        y, norm.running_mean[own], norm.running_var[own], norm.weight[own], norm.bias[own], eps=norm.eps
                    )
                    torch.testing.assert_close(result[:, task], y.relu())


def test_a_stage_begins_with_the_upsampled_maps_and_the_encoders():
    upscale = randomized(Upscale(TASKS, 8, 4, 6))
    x, finer = drawn(2, TASKS, 8, 3, 4), drawn(2, 6, 6, 8, seed=2)
    with torch.no_grad():
        result = upscale(x, finer)
        up = torch.stack(
            [F.interpolate(x[:, t], size=(6, 8), mode="bilinear", align_corners=False) for t in range(TASKS)], 1
        )
        skip = F.conv2d(finer, upscale.skip.weight, upscale.skip.bias, padding=1)
        torch.testing.assert_close(result, upscale.second(upscale.first(up)) + skip[:, None])


def test_heads_add_the_normalised_stages_at_stride_4():
    heads = randomized(MultiScaleHeads([8, 4], OUTPUTS))
    stages, finest = [drawn(2, TASKS, 8, 3, 4), drawn(2, TASKS, 4, 6, 8, seed=2)], drawn(2, 5, 12, 16)
    with torch.no_grad():
        result, whole = heads(stages, finest), []
        flat = [x.flatten(1, 2).permute(0, 2, 3, 1) for x in stages]  # b h w (t c)
        normed = [
            F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias) for x, norm in zip(flat, heads.norms, strict=True)
        ]
        for task in range(TASKS):
            first = normed[0][..., task * 8 : (task + 1) * 8]
            second = normed[1][..., task * 4 : (task + 1) * 4] @ heads.project[0].weight[task]
            second = second + heads.project[0].bias[task, 0]
            ups = [
                F.interpolate(x.permute(0, 3, 1, 2), size=(12, 16), mode="bilinear", align_corners=False)
                for x in (first, second)
            ]
            whole.append(ups[0] + ups[1])
        torch.testing.assert_close(result, heads.predict(heads.refine(torch.stack(whole, 1))))


@pytest.mark.parametrize(
    ("options", "coarse_stride", "num_stages"),
    [
        ({}, 32, 3),
        ({"attention": "fusion"}, 32, 3),
        ({"num_stages": 4, "selected": 0.3}, 32, 4),
        ({"num_stages": 1}, 32, 1),
    ],
)
def test_options_build_what_they_say(options, coarse_stride, num_stages):
    model = decoder(options)
    final, coarse = model(drawn_maps(96, 160))
    assert {task: tuple(x.shape) for task, x in final.items()} == {t: (1, c, 24, 40) for t, c in OUTPUTS.items()}
    size = 96 // coarse_stride, 160 // coarse_stride
    assert {task: tuple(x.shape) for task, x in coarse.items()} == {t: (1, c, *size) for t, c in OUTPUTS.items()}
    widths = [block.norm.normalized_shape[0] for block in model.blocks]
    assert widths == [16, 8, 4, 2][:num_stages]


def test_published_sizes():
    """Parameters of the decoder on maps of 1024 channels, as the authors' code has them for NYUDv2 with ViT-L, counted.

    Theirs: 97,959,768. Of these 6,639,562 are never used (the first stage's encoder convolution, fusion of scores and
    projection, a last norm), and 2,304 are biases in front of a batch norm, which takes them out.
    """
    outputs = {"semseg": 40, "depth": 1, "normals": 3, "boundary": 1}
    config = PRESETS["invpt_vit_large"]
    for options, more in (({"attention": "fusion"}, 0), ({}, -20)):  # two fusions of 2 x 2 heads to 2: 10 numbers each
        sizes = ModelConfig.of({**vars(config), "decoder_options": options})
        with torch.device("meta"):
            built = build_invpt(DecoderSpec(outputs, (1024,) * 4, sizes))
        assert sum(p.numel() for p in built.parameters()) == 97_959_768 - 6_639_562 - 2_304 + more
    assert build_options(config) == InvPTOptions()


def build_options(config):
    return DecoderSpec(OUTPUTS, MAP_CHANNELS, config).options(InvPTOptions)


def test_some_tasks_cost_less_and_are_the_same():
    model, maps = decoder(), drawn_maps()
    some = model.for_tasks([2])
    with torch.no_grad():
        whole, part = model(maps)[0], some(maps)[0]
    assert list(part) == ["normals"]
    torch.testing.assert_close(part["normals"], whole["normals"])
    assert some.heads.refine.kernel.shape[0] == 1


def test_bfloat16_gives_nearly_the_same():
    model, maps = decoder().float(), [x.float() for x in drawn_maps(64, 64, batch=2)]
    with torch.no_grad():
        exact = model(maps)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(maps)[0]
    for task, value in exact.items():
        assert (rough[task].float() - value).norm() < 0.1 * value.norm()


@pytest.mark.parametrize(
    ("options", "sizes", "message"),
    [
        ({"attention": "none"}, {}, "invpt's attention 'none'; expected selective"),
        ({"selected": 0.0}, {}, "invpt's selected 0.0; expected a part of the keys"),
        ({"selected": 1.5}, {}, "invpt's selected 1.5; expected a part of the keys"),
        ({"num_stages": 5}, {}, "invpt's num_stages 5; expected 1, 2, 3 or 4"),
        ({"preliminary_channels": 0}, {}, "invpt's preliminary_channels 0; expected 1 or more"),
        ({"stages": 3}, {}, "decoder invpt has no option 'stages'; expected some of attention, selected"),
        ({}, {"channels": 20, "num_heads": 2}, "channels 20 of invpt; expected a multiple of 8"),
    ],
)
def test_mistakes_are_one_line(options, sizes, message):
    with pytest.raises(MistakeError) as error:
        create_model("tiny", decoder="invpt", decoder_options=options, **sizes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_image_too_small_for_batch_statistics_is_refused_and_two_are_not():
    model = create_model("tiny", decoder="invpt").train()
    with pytest.raises(MistakeError, match="one image of 64x64 or less to train invpt on"):
        model(torch.zeros(1, 3, 64, 64))
    assert model(torch.randn(2, 3, 64, 64)).final["depth"].shape == (2, 1, 64, 64)
    with torch.no_grad():
        assert model.eval()(torch.randn(1, 3, 32, 32)).final["depth"].isfinite().all()
