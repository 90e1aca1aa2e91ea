from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torchvision.transforms.v2.functional import resize

from mtlsi.errors import MistakeError
from mtlsi.model.backbone import Backbone
from mtlsi.sizes import PRESETS

SMALL = "mobilenetv2_035"
WEIGHTS = Path(__file__).resolve().parents[2] / ".." / "shared" / "weights" / "mobilenetv2_100.safetensors"
CHANNELS = {
    "tiny": (8, 16, 32, 112),
    "mobilenetv2_100": (24, 32, 96, 320),
    "hrnet_w18": (18, 36, 72, 144),
    "swin_tiny": (96, 192, 384, 768),
    "swin_large": (192, 384, 768, 1536),
    "vit_large": (128, 256, 512, 512),
    "convnext_tiny": (96, 192, 384, 768),
    "dinov3_vits16": (128, 256, 512, 512),
    "dinov2_vitb14": (128, 256, 512, 512),
    "taskexpert_vit_large": (128, 256, 512, 512),
    "atrc_hrnet_w18": (18, 36, 72, 144),
    "atrc_hrnet_w48": (48, 96, 192, 384),
}


def random_images(height=64, width=96, seed=0):
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def mistake(call):
    with pytest.raises(MistakeError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


LIKE_SMALLER_ONES = ("swin_large", "taskexpert_vit_large", "atrc_hrnet_w48")


@pytest.mark.parametrize(
    "preset",
    [pytest.param(preset, marks=[pytest.mark.slow] if preset in LIKE_SMALLER_ONES else []) for preset in CHANNELS],
)
def test_maps_have_strides_4_to_32_and_the_promised_channels(preset):
    """On the meta device: shapes without arithmetic, so that the largest are checked too."""
    with torch.device("meta"):
        backbone = Backbone(PRESETS[preset].backbone)
        maps = backbone(torch.zeros(2, 3, 64, 96))
    assert backbone.channels == CHANNELS[preset]
    assert [tuple(x.shape) for x in maps] == [
        (2, c, 64 // stride, 96 // stride) for c, stride in zip(CHANNELS[preset], (4, 8, 16, 32), strict=True)
    ]


def test_no_preset_has_another_backbone():
    assert {sizes.backbone for sizes in PRESETS.values()} == {PRESETS[preset].backbone for preset in CHANNELS}


def test_hrnet_is_the_small_one_without_classifier():
    """3.9 M parameters, as the field reports HRNet-18 without its classification head."""
    with torch.device("meta"):
        body = Backbone("hrnet_w18_small_v2").body
    assert sum(p.numel() for p in body.parameters()) == pytest.approx(3.86e6, abs=0.005e6)


def test_vit_gives_four_depths_spread_evenly():
    with torch.device("meta"):
        assert list(Backbone("vit_tiny_patch16_224").body.feature_info.out_indices) == [2, 5, 8, 11]


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "swin_tiny_patch4_window7_224",
        "vit_small_patch16_dinov3",  # rotary positions and register tokens
        "vit_small_patch14_dinov2",
    ],
)
def test_transformers_take_images_of_other_sizes_than_they_were_made_for(name):
    backbone = Backbone(name).eval()
    with torch.no_grad():
        for height, width in ((64, 96), (32, 160)):
            maps = backbone(random_images(height, width))
            assert [tuple(x.shape[2:]) for x in maps] == [(height // s, width // s) for s in (4, 8, 16, 32)]
            assert all(x.isfinite().all() for x in maps)


def test_a_vit_of_patch_14_sees_the_image_at_14_sixteenths_of_its_size():
    """Each patch of 14 then covers 16 pixels of the image; torchvision, which resizes like Pillow, does the same by hand."""
    backbone = Backbone("vit_small_patch14_dinov2").eval()
    with torch.no_grad():
        shrunk = resize(random_images(64, 96), [56, 84], antialias=True)
        depths = backbone.body(shrunk.contiguous(memory_format=torch.channels_last))
        assert {tuple(x.shape[2:]) for x in depths} == {(4, 6)}
        for ours, theirs in zip(backbone(random_images(64, 96)), backbone.pyramid(tuple(depths)), strict=True):
            torch.testing.assert_close(ours, theirs)
        halves = backbone.bfloat16()(random_images(64, 96).bfloat16())
    assert {x.dtype for x in halves} == {torch.bfloat16}


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked_shapes")
def test_a_vit_of_patch_14_is_exported():
    backbone = Backbone("vit_small_patch14_dinov2").eval()
    exported = torch.export.export(backbone, (random_images(),)).module()
    with torch.no_grad():
        for ours, theirs in zip(backbone(random_images(seed=1)), exported(random_images(seed=1)), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_rotary_positions_and_register_tokens_are_recomputed_alike():
    backbone, gradients = Backbone("vit_small_patch16_dinov3"), []
    for on in (False, True):
        backbone.recompute(on)
        backbone.zero_grad()
        sum(x.square().mean() for x in backbone(random_images())).backward()
        gradients.append([p.grad for p in backbone.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_swin_maps_are_timms_own_with_the_channels_second():
    backbone = Backbone("swin_tiny_patch4_window7_224").eval()
    with torch.no_grad():
        for ours, theirs in zip(backbone(random_images()), backbone.body(random_images()), strict=True):
            assert torch.equal(ours[0, :, 1, 0], theirs[0, 1, 0])


def test_swin_maps_have_the_channels_second_where_they_are_as_high_as_they_have_channels():
    with torch.no_grad():
        maps = Backbone("swin_tiny_patch4_window7_224").eval()(torch.randn(1, 3, 384, 32))
    assert [tuple(x.shape[1:]) for x in maps] == [(96, 96, 8), (192, 48, 4), (384, 24, 2), (768, 12, 1)]


def test_unknown_and_unfit_backbones_are_refused():
    assert "unknown backbone 'mobilenet_v9'" in mistake(lambda: Backbone("mobilenet_v9"))
    with torch.device("meta"):
        assert "strides [32, 32, 32, 32]" in mistake(lambda: Backbone("vit_base_patch32_224"))


@pytest.mark.parametrize(
    ("stride", "frozen"),
    [
        (0, ()),
        (4, ("conv_stem", "bn1", "blocks.0.", "blocks.1.")),
        (8, ("conv_stem", "bn1", "blocks.0.", "blocks.1.", "blocks.2.")),
        (16, ("conv_stem", "bn1", "blocks.0.", "blocks.1.", "blocks.2.", "blocks.3.", "blocks.4.")),
        (32, ("",)),
    ],
)
def test_freeze_keeps_the_weights_upstream_of_a_map_and_no_others(stride, frozen):
    backbone = Backbone(SMALL)
    backbone.freeze(stride, norm=False)
    parameters = dict(backbone.body.named_parameters())
    names = [name for name in parameters if any(name.startswith(part) for part in frozen)]
    assert [name for name, p in parameters.items() if not p.requires_grad] == names


@pytest.mark.parametrize(
    ("name", "stride", "survive"),
    [
        (SMALL, 8, [True, True, False, False]),
        ("vit_tiny_patch16_224", 8, [True, True, False, False]),
        ("vit_tiny_patch16_224", 32, [True] * 4),
    ],
)
def test_frozen_maps_survive_an_optimizer_step_and_the_others_move(name, stride, survive):
    """timm's maps; a plain ViT's are its depths, and the pyramid that they become is never frozen."""
    backbone = Backbone(name)
    backbone.freeze(stride, norm=True)

    def maps():
        backbone.eval()
        return [x.detach() for x in (*backbone.own_maps(random_images()), *backbone(random_images()))]

    before = maps()
    backbone.train()
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=1e-2)
    sum(x.square().mean() for x in backbone(random_images(seed=1))).backward()
    optimizer.step()
    same = [torch.equal(a, b) for a, b in zip(before, maps(), strict=True)]
    assert same == survive + ([False] * 4 if backbone.pyramid is not None else survive)


@pytest.mark.parametrize(("stride", "blocks"), [(4, 3), (8, 6), (16, 9), (32, 12)])
def test_of_a_plain_vit_a_share_of_its_blocks_is_frozen_and_its_pyramid_never(stride, blocks):
    with torch.device("meta"):
        backbone = Backbone("vit_tiny_patch16_224")
        backbone.freeze(stride, norm=False)
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    expected = {
        name
        for name, _ in backbone.named_parameters()
        if name.startswith("pyramid.") or any(f"blocks.{i}." in name for i in range(blocks, 12))
    }
    assert trained == expected


@pytest.mark.parametrize("name", [SMALL, "vit_tiny_patch16_224"])
def test_a_body_that_is_all_frozen_runs_in_training_as_in_evaluation(name):
    """No path is dropped, and no statistics move, although ``norm`` does not say so."""
    backbone = Backbone(name, drop_path=0.5)
    backbone.freeze(32, norm=False)
    with torch.no_grad():
        expected = backbone.eval()(random_images())
        trained = backbone.train()(random_images())
    assert backbone.training
    assert all(torch.equal(a, b) for a, b in zip(expected, trained, strict=True))
    backbone.freeze(0, norm=False)
    assert all(module.training for module in backbone.modules())


def test_freezing_moves_no_statistics_and_keeps_the_mode():
    backbone = Backbone(SMALL).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone.freeze(16, norm=False)
    assert backbone.training
    assert backbone.body.bn1.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("norm", [True, False])
def test_frozen_norms_keep_their_statistics_in_training(norm):
    backbone = Backbone(SMALL)
    backbone.freeze(0, norm=norm)
    backbone.train()
    before = backbone.body.bn1.running_mean.clone()
    backbone(random_images())
    assert torch.equal(before, backbone.body.bn1.running_mean) == norm


def test_freeze_refuses_a_stride_without_a_map():
    assert "freeze_stride 2; expected" in mistake(lambda: Backbone(SMALL).freeze(2, norm=False))


@pytest.mark.parametrize(
    "name",
    [
        SMALL,
        "hrnet_w18_small",
        "vit_tiny_patch16_224",
        "convnext_atto",
        "vit_small_patch16_dinov3",
        "vit_small_patch14_dinov2",
    ],
)
def test_a_classifiers_float16_weights_load_under_timms_names(tmp_path, name):
    """The maps are then those that timm's own classifier computes on its way; its classifier weights are passed over."""
    classifier = timm.create_model(name).eval()
    state = {key: x.half() if x.is_floating_point() else x for key, x in classifier.state_dict().items()}
    save_file({key: x.contiguous() for key, x in state.items()}, tmp_path / "backbone.safetensors")
    backbone = Backbone(name).eval()
    backbone.load(tmp_path / "backbone.safetensors")
    own = backbone.body.state_dict()
    shared = {key: key for key in state if key in own}  # mobilenet, hrnet
    shared |= {key: key.replace(".", "_", 1) for key in state if key.replace(".", "_", 1) in own}  # convnext
    shared |= {key: "model." + key for key in state if "model." + key in own}  # vit
    assert set(shared.values()) == set(own)
    for theirs, ours in shared.items():
        assert torch.equal(own[ours].float(), state[theirs].float()), ours
    assert all(value.dtype == torch.float32 for value in own.values() if value.is_floating_point())


def test_loaded_maps_equal_timms(tmp_path):
    """Names that fit could still be put in the wrong place: the maps of a classifier with the same weights tell."""
    torch.manual_seed(0)
    classifier = timm.create_model(SMALL).eval()
    save_file(classifier.state_dict(), tmp_path / "backbone.safetensors")
    backbone = Backbone(SMALL).eval()
    backbone.load(tmp_path / "backbone.safetensors")
    with torch.no_grad():
        same_layout = random_images().contiguous(memory_format=torch.channels_last)
        expected = classifier.forward_intermediates(same_layout, intermediates_only=True)[1:]
        for ours, theirs in zip(backbone(random_images()), expected, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_position_embeddings_of_another_size_are_resampled_and_those_of_no_square_refused(tmp_path):
    def state_of(**options):
        return timm.create_model("vit_tiny_patch16_224", **options).state_dict()

    torch.manual_seed(0)
    state = state_of(img_size=160)
    save_file(state, tmp_path / "backbone.safetensors")
    backbone = Backbone("vit_tiny_patch16_224")
    backbone.load(tmp_path / "backbone.safetensors")
    ours = backbone.body.state_dict()["model.pos_embed"]
    assert torch.equal(ours[:, :1], state["pos_embed"][:, :1])  # the class token has no place in the grid
    grid = state["pos_embed"][:, 1:].unflatten(1, (10, 10)).movedim(-1, 1)
    grid = F.interpolate(grid, (14, 14), mode="bicubic", antialias=True)
    torch.testing.assert_close(ours[:, 1:], grid.flatten(2).mT)
    for positions in (state_of(img_size=(160, 96))["pos_embed"], state["pos_embed"][..., :-1]):
        save_file(state | {"pos_embed": positions.contiguous()}, tmp_path / "other.safetensors")
        message = mistake(lambda: backbone.load(tmp_path / "other.safetensors"))
        assert "1 of another shape" in message
        assert "model.pos_embed" in message


@pytest.mark.parametrize(
    ("change", "count", "name"),
    [
        (lambda state: state.pop("conv_stem.weight"), "1 missing, 0 of another shape", "conv_stem.weight"),
        (lambda state: state.update({"bn1.bias": torch.zeros(3)}), "0 missing, 1 of another shape", "bn1.bias"),
    ],
    ids=["missing", "other_shape"],
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(tmp_path, change, count, name):
    backbone = Backbone(SMALL)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    state = timm.create_model(SMALL).state_dict()
    change(state)
    save_file(state, tmp_path / "backbone.safetensors")
    message = mistake(lambda: backbone.load(tmp_path / "backbone.safetensors"))
    assert count in message
    assert f"the first is {name};" in message
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_weights_of_a_deeper_network_are_refused(tmp_path):
    """Swin-S holds everything that Swin-T has, under the same names, and more."""
    state = timm.create_model(SMALL).state_dict() | {"blocks.5.3.conv_pw.weight": torch.zeros(8, 8, 1, 1)}
    save_file(state, tmp_path / "backbone.safetensors")
    assert "blocks.5.3.conv_pw.weight" in mistake(lambda: Backbone(SMALL).load(tmp_path / "backbone.safetensors"))


def test_download_puts_timms_weights_in_place(monkeypatch):
    pretrained = timm.create_model(SMALL, features_only=True)
    backbone = Backbone(SMALL)
    monkeypatch.setattr(timm, "create_model", lambda *_, **options: pretrained if options["pretrained"] else None)
    backbone.download()
    expected = pretrained.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in backbone.body.state_dict().items())


@pytest.mark.parametrize("error", [OSError("no route\nto host"), RuntimeError("no pretrained weights exist")])
def test_a_download_that_fails_says_what_to_do(monkeypatch, error):
    def unreachable(*_, **__):
        raise error

    backbone = Backbone(SMALL)
    monkeypatch.setattr(timm, "create_model", unreachable)
    message = mistake(backbone.download)
    assert f"no pretrained weights for {SMALL}" in message
    assert "give a .safetensors file" in message


def test_files_that_hold_no_weights_are_refused(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickled.pth")
    (tmp_path / "text.safetensors").write_text("not weights\nat all")
    (tmp_path / "empty.safetensors").touch()
    backbone = Backbone(SMALL)
    for name in ("pickled.pth", "text.safetensors", "empty.safetensors", "absent.safetensors"):
        message = mistake(lambda path=tmp_path / name: backbone.load(path))
        assert name in message
        assert "expected a .safetensors file" in message


def test_imagenet_weights_load():
    if not WEIGHTS.is_file():
        pytest.skip("the ImageNet weights of mobilenetv2_100 are not beside the repository")
    backbone = Backbone("mobilenetv2_100").eval()
    backbone.load(WEIGHTS)
    stem = load_file(WEIGHTS)["conv_stem.weight"].float()
    assert torch.equal(backbone.body.conv_stem.weight, stem)
    with torch.no_grad():
        assert all(x.isfinite().all() for x in backbone(random_images()))


@pytest.mark.parametrize("name", ["mobilenetv2_035", "vit_tiny_patch16_224"])
def test_weights_are_taken_from_a_backbone_of_the_same_name_only(name):
    one, other = Backbone(name), Backbone(name)
    images = torch.randn(1, 3, 64, 64)
    one.eval(), other.eval()
    assert not torch.equal(one(images)[-1], other(images)[-1])
    other.take_from(one)
    assert torch.equal(one(images)[-1], other(images)[-1])
    with pytest.raises(MistakeError, match=f"of {name}; expected those of mobilenetv2_050"):
        Backbone("mobilenetv2_050").take_from(one)
