"""One contract for every decoder on every preset, built in or one's own."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import small_backbones  # noqa: F401 (registers them)
from mtlsi.errors import MistakeError
from mtlsi.model import decoders
from mtlsi.model.build import create_model
from mtlsi.model.decoders import BUILT_IN, register_decoder
from mtlsi.model.network import MTLSINet
from mtlsi.sizes import PRESETS
from mtlsi.tasks import NYUD40

CHANNELS = {"semseg": len(NYUD40), "depth": 1, "normals": 3, "boundary": 1}
SMALL_SIZES = {"num_tokens": 16}
SMALLER = {
    "swin_tiny": {"backbone": "swin_of_five_blocks"},
    "swin_large": {"backbone": "swin_of_five_blocks", "channels": 48},
    "vit_large": {"backbone": "vit_of_four_plain_blocks", "channels": 32},
    "convnext_tiny": {"backbone": "convnext_atto"},
    "dinov3_vits16": {"backbone": "vit_of_four_turned_blocks"},
    "dinov2_vitb14": {"backbone": "vit_of_four_blocks"},
}
SMALLER_RIVALS = {
    "atrc_hrnet_w48": {"backbone": "hrnet_w18_small"},
    "invpt_vit_large": {"backbone": "vit_of_four_plain_blocks", "channels": 32},
    "invpt_swin_large": {"backbone": "swin_of_five_blocks", "channels": 48},
    "taskexpert_vit_large": {"backbone": "vit_of_four_plain_blocks", "channels": 16, "head_channels": 16},
}
"""Sizes of the presets that are large for all that is done here: a smaller backbone of the same kind."""


class OneConvolution(nn.Module):
    """The least that a person might bring: no coarse predictions, no subsets."""

    def __init__(self, spec):
        super().__init__()
        self.of_task = nn.ModuleDict({t: nn.Conv2d(spec.map_channels[0], c, 1) for t, c in spec.outputs.items()})

    def forward(self, maps):
        return {task: layer(maps[0]) for task, layer in self.of_task.items()}, {}


@pytest.fixture(autouse=True)
def own_decoder(monkeypatch):
    monkeypatch.setattr(decoders, "DECODERS", dict(decoders.DECODERS))
    register_decoder("one_convolution", OneConvolution)


def built(preset, decoder, **more):
    torch.manual_seed(0)
    sizes = SMALLER_RIVALS.get(preset) or SMALL_SIZES | SMALLER.get(preset, {})
    return create_model(preset, decoder=decoder, **sizes, **more)


def images(height=64, width=96, batch=1):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


class Final(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).final


@pytest.mark.parametrize(
    ("decoder", "preset"),
    [
        (decoder, preset)
        if decoder == "mtlsi" or preset == "tiny"
        else pytest.param(decoder, preset, marks=pytest.mark.slow)
        for decoder in (*BUILT_IN, "one_convolution")
        for preset in PRESETS
        if PRESETS[preset].decoder in ("mtlsi", decoder)  # a rival's preset is for the rival
    ],
)
def test_contract(decoder, preset, tmp_path):
    model = built(preset, decoder).train()
    model.backbone.requires_grad_(False)  # what backbones learn is no matter of decoders, and takes longest
    output = model(images(70, 101))  # any size, a batch of one
    expected = {task: (1, channels, 70, 101) for task, channels in CHANNELS.items()}
    assert {task: tuple(x.shape) for task, x in output.final.items()} == expected
    assert {task: tuple(x.shape) for task, x in output.coarse.items()} == {
        task: expected[task] for task in output.coarse
    }
    sum(x.square().mean() for x in (*output.final.values(), *output.coarse.values())).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.decoder.parameters())

    model.eval()
    final, coarse = model.decoder(model.backbone(images()))
    assert {task: x.shape[-2:] for task, x in final.items()} == dict.fromkeys(CHANNELS, (16, 24))
    assert set(coarse) <= set(CHANNELS)
    with torch.no_grad():
        whole = model(images())
        again, some = model(images()), model(images(), tasks=("normals", "depth"))
    assert set(some.final) == {"depth", "normals"}
    assert set(some.coarse) <= {"depth", "normals"}
    for task, value in whole.final.items():
        assert torch.equal(again.final[task], value)
        if task in some.final:
            torch.testing.assert_close(some.final[task], value, atol=1e-4, rtol=1e-4)

    model.save_pretrained(tmp_path)
    loaded = MTLSINet.from_pretrained(tmp_path)
    assert set(loaded.state_dict()) == set(model.state_dict())
    with torch.no_grad():
        for task, value in loaded(images()).final.items():
            assert torch.equal(value, whole.final[task])


@pytest.mark.parametrize(
    ("decoder", "tasks"),
    [
        ("mtlsi", None),
        *(pytest.param(decoder, None, marks=pytest.mark.slow) for decoder in BUILT_IN if decoder != "mtlsi"),
        pytest.param("mtlsi", ("depth", "boundary"), marks=pytest.mark.slow),
        ("one_convolution", ("depth",)),
    ],
)
def test_every_decoder_exports_whole_and_in_part_with_a_free_batch(decoder, tasks):
    model = built("tiny", decoder, backbone="test_efficientnet").eval().for_tasks(tasks)  # quickly traced
    with torch.no_grad():
        exported = torch.export.export(
            Final(model), (images(batch=2),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=8)},)
        )
        for batch in (1, 3):
            ours, expected = exported.module()(images(batch=batch)), model(images(batch=batch)).final
            assert set(ours) == set(expected) == set(tasks or CHANNELS)
            for task, value in expected.items():
                torch.testing.assert_close(ours[task], value, atol=1e-4, rtol=1e-4)


@dataclass(frozen=True)
class Widths:
    width: int = 8
    hidden: tuple[int, ...] = ()


def test_a_decoder_of_ones_own_reads_its_options():
    read = []
    register_decoder("wide", lambda spec: read.append(spec.options(Widths)) or OneConvolution(spec))
    create_model("tiny", decoder="wide")
    create_model("tiny", decoder="wide", decoder_options={"hidden": [3, 4]})
    assert read == [Widths(), Widths(hidden=(3, 4))]
    with pytest.raises(MistakeError, match="decoder wide has no option 'depth'; expected some of width, hidden"):
        create_model("tiny", decoder="wide", decoder_options={"depth": 3})
    for value in (2.5, "8", True):
        with pytest.raises(MistakeError, match=f"option width of decoder wide: {value!r}; expected a whole number"):
            create_model("tiny", decoder="wide", decoder_options={"width": value})


@pytest.mark.parametrize("decoder", BUILT_IN)
def test_no_built_in_decoder_takes_an_unknown_option(decoder):
    with pytest.raises(MistakeError, match=f"decoder {decoder} has no option 'colour'"):
        create_model("tiny", decoder=decoder, decoder_options={"colour": "red"})


def test_tasks_of_heads_only_never_meet():
    """What changes one task's weights changes no other task's prediction."""
    model = built("tiny", "heads_only").eval()
    with torch.no_grad():
        before = model(images()).final
        model.decoder.pyramid.refine.spatial[1] += 1  # depth
        after = model(images()).final
    moved = [task for task in CHANNELS if not torch.equal(before[task], after[task])]
    assert moved == ["depth"]


def test_deep_supervision_gives_heads_only_coarse_predictions_and_leaves_the_final_ones_as_they_are():
    torch.manual_seed(0)
    plain = create_model("tiny", decoder="heads_only").eval()
    deep = create_model("tiny", decoder="heads_only", decoder_options={"deep_supervision": "areas"}).eval()
    missing, unexpected = deep.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert missing
    assert all(name.startswith("decoder.pyramid.predict.") for name in missing)
    with torch.no_grad():
        without, found = plain(images()), deep(images())
    assert without.coarse == {}
    assert {task: x.shape[1] for task, x in found.coarse.items()} == CHANNELS
    for task, x in without.final.items():
        assert torch.equal(found.final[task], x)
    with pytest.raises(MistakeError, match="deep_supervision: 'some'; expected one of all, areas, none"):
        create_model("tiny", decoder="heads_only", decoder_options={"deep_supervision": "some"})


def test_unknown_and_taken_names_are_refused():
    with pytest.raises(MistakeError, match=r"unknown decoder 'invptt'; expected one of mtlsi, heads_only, .*one_conv"):
        create_model("tiny", decoder="invptt")
    with pytest.raises(MistakeError, match="decoder 'mtlsi' is built in"):
        register_decoder("mtlsi", OneConvolution)
