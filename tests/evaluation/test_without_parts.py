from __future__ import annotations

import copy

import pytest
import torch

from mtlsi.errors import MistakeError
from mtlsi.evaluation.without_parts import VARIANTS, changed, decoder_of, left_out
from mtlsi.model.build import create_model
from mtlsi.nn.layout import resize_maps, to_positions


@pytest.fixture(params=["paper", "refined"])
def network(request, active_network):
    form, _, onto = request.param.partition("-")
    return active_network(form, num_blocks=2, decoder_options={"fuse_onto": onto} if onto else {})


of_the_fusion = pytest.mark.parametrize("network", ["paper", "refined", "refined-features"], indirect=True)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def images(*size_hw, batch=3, seed=1):
    return torch.randn(batch, 3, *size_hw, generator=torch.Generator().manual_seed(seed))


def with_tokens(network, tokens, shown):
    """What ``network`` predicts when its distiller gives ``tokens``."""
    handle = network.decoder.distiller.register_forward_hook(lambda *_: tokens)
    predicted = network(shown).final
    handle.remove()
    return predicted


def tokens_of(network, shown):
    kept = []
    handle = network.decoder.distiller.register_forward_hook(lambda _, __, tokens: kept.append(tokens))
    network(shown)
    handle.remove()
    return kept[0]


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)  # other sums in another order


def differ(one, other):
    return all(bool((one[task] - x).abs().max() > 1e-3) for task, x in other.items())


# ---- what each variant computes


def test_tokens_mean_gives_every_token_the_mean_over_the_tokens(network):
    shown = images(64, 96)
    tokens = tokens_of(network, shown)
    mean = tokens.mean(2, keepdim=True).repeat(1, 1, tokens.shape[2], 1)
    found = changed(network, VARIANTS["tokens_mean"])(shown).final
    assert_same(found, with_tokens(network, mean, shown))
    assert differ(found, network(shown).final)


def test_tokens_mean_changes_nothing_where_all_tokens_are_equal(network):
    norm, shown = network.decoder.distiller.norm, images(64, 96)
    norm.weight.zero_()
    norm.bias.normal_()  # every token is this
    assert_same(changed(network, VARIANTS["tokens_mean"])(shown).final, network(shown).final)


def test_tokens_of_another_image_are_those_of_the_image_before(network):
    variant, shown = changed(network, VARIANTS["tokens_of_another_image"]), images(64, 96, batch=5)
    tokens = tokens_of(network, shown)
    variant(shown[4:])  # the first image takes the last one's
    expected = with_tokens(network, tokens.roll(1, 0), shown)
    found = [variant(batch).final for batch in shown.split(2)]
    for task, x in expected.items():
        assert_same(torch.cat([batch[task] for batch in found]), x)
    assert differ(expected, network(shown).final)


def test_images_of_different_sizes_exchange_tokens(network):
    variant, small, large = changed(network, VARIANTS["tokens_of_another_image"]), images(32, 64), images(64, 96)
    variant(small[:1])
    expected = with_tokens(network, tokens_of(network, small[:1]), large[:1])
    assert_same(variant(large[:1]).final, expected)


def test_tokens_of_the_same_image_change_nothing(network):
    shown = images(64, 96, batch=1).repeat(2, 1, 1, 1)
    assert_same(changed(network, VARIANTS["tokens_of_another_image"])(shown).final, network(shown).final)


@pytest.mark.parametrize(("name", "half"), [("no_windows", 0), ("no_tokens", 1)])
def test_a_branch_of_zeros_is_a_merge_that_weighs_it_with_zeros(network, name, half):
    shown, blind = images(64, 96), copy.deepcopy(network)
    for block in blind.decoder.cross_window:
        block.merge.expand.weight.chunk(2, 1)[half].zero_()  # the biases still count
    found = changed(network, VARIANTS[name])(shown).final
    assert_same(found, blind(shown).final)
    assert differ(found, network(shown).final)


@of_the_fusion
def test_without_fusion_what_follows_reads_the_preliminary_features(network):
    shown, decoder = images(64, 96), network.decoder
    maps = network.backbone(shown)
    features, together = decoder.preliminary(maps)
    met = features.unflatten(-1, (-1, decoder.pool)).unflatten(-3, (-1, decoder.pool)).mean((-1, -3))
    unfused = to_positions(met)
    refined = decoder.cross_window(decoder.local(met, unfused), decoder.distiller(unfused))
    if decoder.pool > 1:
        refined = features + resize_maps(refined - met, features.shape[-2:])
    expected = decoder.heads.predict.by_task(decoder.heads(refined, maps[0]))
    for task, coarse in decoder.preliminary.predict.by_task(together).items():
        if decoder.begins_at_coarse(task):
            expected[task] = expected[task] + resize_maps(coarse, expected[task].shape[-2:])
    found = changed(network, VARIANTS["no_fusion"])(shown, full_size=False).final
    assert_same(found, expected)
    assert differ(found, network(shown, full_size=False).final)


@of_the_fusion
def test_fusion_mean_gives_every_position_the_mean_of_what_the_fusion_adds(network):
    shown, kept, silent = images(64, 96), [], copy.deepcopy(network).decoder.fusion
    for parameter in silent.merge.reduce.parameters():
        parameter.zero_()  # it gives J alone, or the features

    def averaged(_, given, fused):
        own = silent(*given)
        kept.append(torch.stack([own[:, :, n] + (fused - own).mean(2) for n in range(fused.shape[2])], 2))
        return kept[-1]

    found, whole = changed(network, VARIANTS["fusion_mean"])(shown).final, network(shown).final
    network.decoder.fusion.register_forward_hook(averaged)
    assert_same(found, network(shown).final)
    assert differ(found, whole)


def test_without_coarse_predictions_their_weights_do_not_matter(network):
    shown, blind = images(64, 96), copy.deepcopy(network)
    for layer in blind.decoder.fusion.embed.values():
        layer.weight.zero_()
    for layer in network.decoder.preliminary.predict.of_task.values():
        layer.weight.mul_(50)  # predictions of a size that a trained network has
    blind.decoder.preliminary.load_state_dict(network.decoder.preliminary.state_dict())
    output = changed(network, VARIANTS["no_coarse"])(shown)
    assert_same(output.final, blind(shown).final)
    assert_same(output.coarse, network(shown).coarse)
    assert differ(output.final, network(shown).final)


def test_without_the_mix_its_last_weights_do_not_matter(network):
    shown, blind = images(64, 96), copy.deepcopy(network)
    mix = blind.decoder.heads.mix
    if mix is None:
        pytest.skip("the paper's form has none")
    for last in mix.up.parameters():
        last.zero_()
    found = changed(network, VARIANTS["no_mix"])(shown).final
    assert_same(found, blind(shown).final)
    assert differ(found, network(shown).final)


# ---- whatever is taken out


@pytest.mark.parametrize("name", VARIANTS)
def test_a_subset_of_the_tasks_lacks_the_part_too(network, name):
    if name in left_out(network.decoder):
        pytest.skip("the paper's form has no such part")
    shown, tasks = images(64, 96), ("semseg", "normals")
    whole = network(shown, tasks).final  # the network keeps what it made for these tasks
    found = changed(network, VARIANTS[name])(shown, tasks).final
    every = changed(network, VARIANTS[name])(shown).final
    assert_same(found, {task: every[task] for task in tasks})
    assert any(bool((found[task] - x).abs().max() > 1e-4) for task, x in whole.items())


@pytest.mark.parametrize("name", VARIANTS)
def test_the_network_stays_as_it_is_and_weights_are_shared(network, name):
    shown = images(64, 96)
    before, parts = network(shown).final, dict(network.named_modules())
    variant = changed(network, VARIANTS[name])
    variant(shown)
    assert dict(network.named_modules()) == parts
    assert {task: torch.equal(x, before[task]) for task, x in network(shown).final.items()} == dict.fromkeys(
        before, True
    )
    assert {id(x) for x in variant.parameters()} <= {id(x) for x in network.parameters()}


# ---- networks without these parts


def test_parts_that_a_network_was_trained_without_are_left_out_and_said_so():
    fusion, cross_window = (
        {"fusion_mean", "no_fusion", "no_coarse"},
        {"tokens_mean", "tokens_of_another_image", "no_tokens", "no_windows"},
    )
    assert left_out(create_model("tiny").decoder) == {}  # type: ignore[arg-type]
    assert left_out(create_model("tiny", distiller=False).decoder) == {}  # type: ignore[arg-type]
    without = left_out(create_model("tiny", fusion=False).decoder)  # type: ignore[arg-type]
    assert without == dict.fromkeys(fusion, "the model has no fusion")
    assert left_out(create_model("tiny", cross_window=False).decoder).keys() == cross_window  # type: ignore[arg-type]
    unmixed = left_out(create_model("tiny", decoder_options={"mix": 0}).decoder)  # type: ignore[arg-type]
    assert unmixed == {"no_mix": "the model's heads do not mix"}
    blind = left_out(create_model("tiny", decoder_options={"fuse_coarse": False}).decoder)  # type: ignore[arg-type]
    assert blind == {"no_coarse": "the model's fusion reads no coarse predictions"}


def test_a_rival_has_no_such_parts():
    with pytest.raises(MistakeError, match=r"decoder is a HeadsOnlyDecoder; expected MTLSI-Net's"):
        decoder_of(create_model("tiny", decoder="heads_only"))
