"""Backbones of transformers: the forms that are traced against timm's, and whole graphs against ``Predictor``."""

from __future__ import annotations

from io import StringIO

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from rich.console import Console
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from torch import nn

import small_backbones  # noqa: F401 (registers them)
from mtlsi.exporting import compare
from mtlsi.exporting.export import export
from mtlsi.exporting.free_shapes import free_shapes
from mtlsi.model.build import create_model
from mtlsi.options.using import ExportOptions
from mtlsi.prediction.graph import GraphPredictor
from mtlsi.prediction.predictor import Predictor
from mtlsi.prediction.shown import Shown

SIZE = (96, 128)


def photo(height, width, seed=0):
    """Smooth and full of colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@torch.no_grad()
def model_with(backbone):
    """A network without interaction, which is traced in seconds, whose predictions differ from place to place."""
    torch.manual_seed(0)
    model = create_model("tiny", dataset="nyud", backbone=backbone, decoder="heads_only", input_size=SIZE)
    for name, parameter in model.named_parameters():
        if ".predict." in name or "relative_position_bias" in name or "pos_embed" in name or "gamma" in name:
            parameter.normal_(std=0.5)
        elif parameter.dim() > 1:
            parameter.mul_(2)
    model.train()
    for seed in range(2):
        batch = np.stack([photo(64, 96, 2 * seed + i) for i in range(2)])
        model(torch.from_numpy(batch).permute(0, 3, 1, 2) / 128 - 1)
    return model.eval()


def exported(model, folder, **options):
    model.save_pretrained(folder / "model")
    out = folder / ("model.pt2" if options.get("format") == "program" else "model.onnx")
    export(ExportOptions(str(folder / "model"), out=out, **options), console=Console(file=StringIO()))
    return out


@pytest.mark.parametrize("size", [(32, 32), (96, 128), (160, 64)])
@pytest.mark.parametrize("backbone", ["swin_of_five_blocks", "vit_of_four_turned_blocks"])
def test_the_forms_that_are_traced_give_timms_maps(backbone, size):
    torch.manual_seed(0)
    strict = {"strict_img_size": False} if backbone.startswith("swin") else {}
    body = timm.create_model(backbone, features_only=True, **strict).eval()
    for name, parameter in body.named_parameters():
        if "relative_position_bias" in name or "gamma" in name:
            nn.init.normal_(parameter)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = body(images)
        free_shapes(body)
        assert any(type(module).__name__.startswith("Free") for module in body.modules())
        for found, map_ in zip(body(images), expected, strict=True):
            torch.testing.assert_close(found, map_, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", ["separate", "max", "min"])
@pytest.mark.parametrize("indexing", ["ij", "xy"])
def test_rotary_embeddings_are_timms(norm, indexing):
    rope = nn.Sequential(RotaryEmbeddingDinoV3(16, normalize_coords=norm, grid_indexing=indexing, grid_offset=0.25))
    expected = rope[0].get_embed((5, 7))
    free_shapes(rope)
    torch.testing.assert_close(rope[0].get_embed((5, 7)), expected)


@pytest.mark.parametrize(
    ("backbone", "tasks"),
    [
        pytest.param("swin_of_five_blocks", "semseg,depth", marks=pytest.mark.slow),
        pytest.param("vit_of_four_blocks", "normals", marks=pytest.mark.slow),
        pytest.param("vit_of_four_turned_blocks", "normals,boundary", marks=pytest.mark.slow),
    ],
)
def test_any_batch_and_size_is_predicted_as_the_predictor_does(backbone, tasks, tmp_path):
    model = model_with(backbone)
    names = tuple(tasks.split(",")) if tasks else model.tasks
    out = exported(model, tmp_path, tasks=tasks)
    assert GraphPredictor(out).tasks == names
    session, predictor = onnxruntime.InferenceSession(out), Predictor(model, device="cpu")
    for batch, height, width in ((1, 96, 128), (2, 131, 97), (1, 200, 300)):
        images = np.stack([photo(height, width, seed) for seed in range(batch)])
        results = dict(zip(names, session.run(list(names), {"image": images}), strict=True))
        for i, expected in enumerate(predictor(list(images), names)):
            moved = [compare.difference(task, np.roll(array, 20, axis=1), array)[0] for task, array in expected.items()]
            assert max(moved) > 1e-2  # there is something to be wrong about
            for task, array in expected.items():
                assert compare.difference(task, results[task][i], array)[0] < 5e-3, (task, images.shape)
    thin = np.stack([photo(20, 300, seed) for seed in range(2)])  # one row of windows and of patches, or two
    expected = compare.under_pytorch(model, thin, names, compare.shown_size((20, 300), Shown(SIZE)))
    for task, array in zip(names, session.run(list(names), {"image": thin}), strict=True):
        assert compare.difference(task, array, expected[task])[0] < 5e-3, task


@pytest.mark.slow
def test_a_program_of_a_transformer_runs_at_other_sizes(tmp_path):
    model = model_with("vit_of_four_turned_blocks")
    out = exported(model, tmp_path, format="program", tasks="depth")
    images = np.stack([photo(96, 64, seed) for seed in range(3)])
    found = torch.export.load(out).module(check_guards=False)(torch.from_numpy(images))
    expected = compare.under_pytorch(model, images, ["depth"], (96, 64))
    np.testing.assert_allclose(found["depth"], expected["depth"], atol=1e-4)
