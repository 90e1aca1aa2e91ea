from __future__ import annotations

import numpy as np
import pytest
import torch

from mtlsi.errors import MistakeError
from mtlsi.model.build import create_model
from mtlsi.model.pretrained import packaged_models
from mtlsi.page.models import SCALES, Models
from mtlsi.prediction.predictor import Predictor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    model = create_model("tiny", tasks=("depth", "normals"), input_size=(64, 96))
    own = tmp_path_factory.mktemp("models") / "own"
    model.save_pretrained(own)
    return str(own)


def test_given_models_come_first_and_packaged_ones_follow_once(folder):
    models = Models([folder, "nyud", "nyud-mobilenetv2"], device="cpu")
    assert models.names[:3] == [folder, "nyud-efficientnet-lite2", "nyud-mobilenetv2"]
    assert sorted(models.names[1:]) == packaged_models()
    assert models.tasks(folder) == ("depth", "normals")


def test_working_sizes_are_the_predictors(folder):
    models = Models([folder], device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8)
    for scale, factor in SCALES.items():
        shown = models.predictor(folder, scale)
        assert shown.working_size == (64 * factor, 96 * factor)
        alone = Predictor(shown.model, device="cpu", working_size=(int(64 * factor), int(96 * factor)))
        np.testing.assert_array_equal(shown(image)["depth"], alone(image)["depth"])
    assert models.predictor(folder).working_size == (64, 96)


@pytest.mark.parametrize("name", ["/etc", "somebody/model", "../models"])
def test_a_browser_cannot_name_other_models(folder, name):
    models = Models([folder], device="cpu")
    with pytest.raises(MistakeError, match="not offered here"):
        models.predictor(name)
    with pytest.raises(MistakeError, match="not offered here"):
        models.predictor(folder, "huge")


def test_a_model_that_is_not_there_is_said_at_the_start(tmp_path):
    with pytest.raises(MistakeError, match="not a folder"):
        Models([str(tmp_path / "missing")])
