from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mtlsi.config import DataConfig, RunConfig, TrainConfig, check_size, split_names
from mtlsi.errors import MistakeError


def changed(config: RunConfig, where: str, value: Any) -> RunConfig:
    """``config`` with the field ``where``, such as train.lr, at ``value``."""
    part, _, name = where.rpartition(".")
    if not part:
        return replace(config, **{name: value})
    return replace(config, **{part: replace(getattr(config, part), **{name: value})})


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("depth", ("depth",)),
        ("depth,normals", ("depth", "normals")),
        (" depth , normals ", ("depth", "normals")),
        ("[depth, normals]", ("depth", "normals")),
        ("['depth', \"normals\"]", ("depth", "normals")),
        (["depth", "normals"], ("depth", "normals")),
        ((), ()),
    ],
)
def test_names_are_a_sequence_or_one_string(given, names):
    assert split_names(given) == names
    assert DataConfig(tasks=given).tasks == names
    assert RunConfig(plugins=given).plugins == names


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("float32", "float32"), ("fp32", "float32"), ("bfloat16", "bfloat16"), ("bf16", "bfloat16"), ("auto", "auto")],
)
def test_a_precision_has_one_name_whichever_way_it_is_spelled(spelling, name):
    options = TrainConfig(precision=spelling)
    assert options.precision == name
    options.check()


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        ("train.optimizer", "sgd", "expected one of adamw, adam"),
        ("train.schedule", "linear", "expected one of poly, cosine"),
        ("train.loss_at", "middle", "expected one of prediction, image"),
        ("train.ema", 1.0, "below 1"),
        ("train.ema", -0.1, "at least 0"),
        ("train.precision", "float16", "expected one of float32, bfloat16, auto"),
        ("train.iterations", 0, "at least 1"),
        ("train.batch_size", 0, "at least 1"),
        ("train.accumulate", -1, "at least 1"),
        ("train.log_every", 0, "at least 1"),
        ("data.size_hw", (64, 68), "multiples of the decoder's stride 8"),
        ("data.size_hw", (32, 64), "64 or more"),
        ("preset", "huge", "unknown preset"),
        ("model", {"width": 3}, "unknown model size"),
        ("model", {"decoder_stride": 0}, "decoder_stride"),
        ("data.num_train", 0, "num_train"),
        ("data.num_val", 0, "num_val"),
        ("data.num_train", 1_000_001, "num_train 1000001; expected 1000000 at most"),
        ("data.num_val", 9 * 10**12, "num_val 9000000000000; expected 1000000 at most"),
        ("data.num_workers", -1, "num_workers"),
        ("data.num_workers", 1_000_000, "expected at most 512"),
        ("data.zoom", (2.0, 1.0), "zoom"),
        ("data.zoom", (0.0, 1.0), "zoom"),
        ("data.image_hw", (0, 64), "image_hw"),
        ("data.image_hw", (16_392, 64), "image_hw .16392, 64.; expected at most 16384 a side"),
        ("data.image_hw", (8192, 8200), "image_hw .8192, 8200.; expected .* and 33554432 pixels"),
        ("data.size_hw", (100_000, 100_000), "size_hw .100000, 100000.; expected at most 16384 a side"),
        ("data.size_hw", (16_384, 16_384), "size_hw .16384, 16384.; expected .* and 33554432 pixels"),
        ("data.resize", "fit", "expected one of stretch, keep_ratio"),
        ("train.class_weights", "even", "expected from_shares"),
        ("train.lr", -1.0, "lr"),
        ("train.warmup", -1, "warmup"),
        ("train.clip_norm", 0.0, "clip_norm"),
        ("train.evaluate_every", -1, "evaluate_every"),
        ("train.checkpoint_every", -1, "checkpoint_every"),
        ("train.evaluate_images", -5, "evaluate_images"),
        ("train.final_images", -1, "final_images"),
        ("seed", -1, "seed"),
        ("train.lr", float("inf"), "train.lr inf; expected a number"),
        ("train.weight_decay", float("nan"), "train.weight_decay nan; expected a number"),
        ("train.loss_weights", {"depth": float("inf")}, "train.loss_weights .*inf.*; expected"),
        ("data.class_limit", float("nan"), "data.class_limit nan; expected"),
    ],
)
def test_settings_that_cannot_be_trained_with_are_refused_by_name(where, value, told):
    RunConfig().check()
    with pytest.raises(MistakeError, match=told) as caught:
        changed(RunConfig(), where, value).check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(1, 64), (64, -1), (16_385, 2), (2, 16_385), (16_384, 2049), (10**18, 10**18)])
def test_a_size_at_which_no_network_sees_images_is_refused(size):
    for sound in ((2, 2), (16_384, 2048), (2048, 16_384)):
        check_size("it", sound)
    with pytest.raises(MistakeError, match=r"^--size \S+; expected"):
        check_size(f"--size {size[0]}x{size[1]}", size)
