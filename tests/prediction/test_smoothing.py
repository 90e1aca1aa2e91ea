from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from by_colour import predictor
from mtlsi.errors import MistakeError
from mtlsi.model.build import create_model
from mtlsi.prediction.predictor import Predictor
from mtlsi.prediction.smoothing import Smoothed
from random_weights import draw_weights


def network(**options):
    torch.manual_seed(0)
    model = create_model("tiny", tasks=("depth", "normals"), input_size=(64, 96), **options)
    draw_weights(model.decoder, std=0.3)
    return model


def clip(count=4, size_hw=(64, 96), seed=0):
    """Noise, each frame of another colour."""
    draw = np.random.default_rng(seed)
    colours = draw.integers(0, 200, (count, 1, 1, 3))
    return list((colours + draw.integers(0, 56, (count, *size_hw, 3))).astype(np.uint8))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for task, array in found.items():
        np.testing.assert_array_equal(array, expected[task], err_msg=task)


def difference(found, expected):
    return max(np.abs(found[task] - expected[task]).max() for task in expected)


@pytest.fixture(scope="module")
def plain():
    return Predictor(network(), device="cpu")


def test_zero_is_the_predictor_bit_for_bit(plain):
    smoothed = Smoothed(plain)
    for frame in clip():
        assert_same(smoothed(frame), plain(frame))


@pytest.mark.parametrize("shares", [{"context": 0.8}, {"outputs": 0.5}, {"context": 0.6, "outputs": 0.6}], ids=str)
def test_a_clips_first_frame_is_the_predictors_and_the_next_are_not(plain, shares):
    frames, smoothed = clip(), Smoothed(plain, **shares)
    seen = [smoothed(frame) for frame in frames]
    assert_same(seen[0], plain(frames[0]))
    for frame, found in zip(frames[1:], seen[1:], strict=True):
        assert difference(found, plain(frame)) > 1e-3
    smoothed.reset()
    for frame, found in zip(frames, seen, strict=True):
        assert_same(smoothed(frame), found)


def test_another_size_begins_another_clip(plain):
    """Also where both sizes are one to the network."""
    small, large = clip(2), clip(2, (128, 192))
    smoothed = Smoothed(plain, context=0.8, outputs=0.5)
    for frames in (small, large, small):
        assert_same(smoothed(frames[0]), plain(frames[0]))
        assert difference(smoothed(frames[1]), plain(frames[1])) > 1e-3


def test_clips_in_threads_of_their_own_do_not_mix(plain):
    clips = [clip(6, seed=seed) for seed in range(3)]

    def predicted(frames):
        smoothed = Smoothed(plain, context=0.8, outputs=0.5)
        return [smoothed(frame) for frame in frames]

    expected = [predicted(frames) for frames in clips]
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(predicted, clips))
    for one, other in zip(found, expected, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs)


def test_predictor_and_network_stay_as_they_are(plain):
    frame = clip(1)[0]
    before, weights = plain(frame), {name: value.clone() for name, value in plain.model.state_dict().items()}
    smoothed = Smoothed(plain, context=0.8, outputs=0.5)
    for other in clip(3, seed=5):
        smoothed(other)
    assert_same(plain(frame), before)
    assert all(torch.equal(value, weights[name]) for name, value in plain.model.state_dict().items())


def test_outputs_are_averaged_before_they_are_decoded(photo):
    """ByColour's depth is linear in the colour; its classes are those of the mean logits, not of most frames."""
    frames = [np.zeros_like(photo) for _ in range(3)]
    for frame, (red, green, blue) in zip(frames, [(250, 0, 100), (100, 130, 200), (100, 120, 50)], strict=True):
        frame[:] = red, green, blue
    smoothed = Smoothed(predictor(), outputs=0.5)
    found = [smoothed(frame) for frame in frames]
    np.testing.assert_allclose(found[2]["depth"], 10 / 255 * (0.25 * 100 + 0.25 * 200 + 0.5 * 50), rtol=1e-4)
    red, green = np.average([(250, 0), (100, 130), (100, 120)], axis=0, weights=(0.25, 0.25, 0.5))
    assert red > green
    assert (found[2]["semseg"] == 0).all()
    assert (predictor()(frames[2])["semseg"] == 1).all()
    np.testing.assert_allclose(np.linalg.norm(found[2]["normals"], axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(found[2]["boundary"], 1 / (1 + np.exp(-8 * (red / 255 - 0.5))), atol=1e-4)


def test_a_task_left_out_of_a_frame_begins_again(photo):
    smoothed = Smoothed(predictor(), outputs=0.5)
    smoothed(photo)
    smoothed(photo[::-1].copy(), "semseg")
    expected = predictor()(photo[:, ::-1].copy())
    assert_same(smoothed(photo[:, ::-1].copy(), "depth"), {"depth": expected["depth"]})


def test_broken_frames(photo, monkeypatch, tmp_path):
    smoothed, other = Smoothed(predictor(), outputs=0.5), photo[::-1].copy()
    smoothed(photo)
    (tmp_path / "broken.png").write_bytes(b"words")
    with pytest.raises(MistakeError, match=r"broken\.png: not a whole image"):
        smoothed(tmp_path / "broken.png")
    after = smoothed(other)["depth"]
    np.testing.assert_allclose(after, (predictor()(photo)["depth"] + predictor()(other)["depth"]) / 2, atol=1e-5)
    network = smoothed._network

    def broken(images, **options):
        output = network(images, **options)
        output.final["depth"] = torch.full_like(output.final["depth"], torch.nan)
        return output

    monkeypatch.setattr(smoothed, "_network", broken)
    with pytest.raises(MistakeError, match="depth is not finite"):
        smoothed(other)
    monkeypatch.setattr(smoothed, "_network", network)
    assert_same(smoothed(photo), predictor()(photo))


def test_stands_for_a_predictor(plain):
    smoothed = Smoothed(plain, context=0.8)
    assert (smoothed.tasks, smoothed.classes, smoothed.colours) == (plain.tasks, plain.classes, plain.colours)
    assert smoothed.training_camera == plain.training_camera
    identities = {
        plain.identity,
        *(Smoothed(plain, context=a, outputs=b).identity for a, b in ((0.8, 0.0), (0.0, 0.8))),
    }
    assert len(identities) == 3


@pytest.mark.parametrize("share", [1.0, -0.5, float("nan")])
def test_other_shares_are_refused_in_one_line(plain, share):
    for name in ("context", "outputs"):
        with pytest.raises(MistakeError, match=f"smoothing of {name} .*; expected 0") as caught:
            Smoothed(plain, **{name: share})
        assert "\n" not in str(caught.value)


def test_what_has_no_context_or_no_raw_outputs_is_told():
    heads = Predictor(network(decoder="heads_only"), device="cpu")
    for without in (heads, predictor()):
        with pytest.raises(MistakeError, match="no fusion, whose context is smoothed"):
            Smoothed(without, context=0.5)
    frames = clip(2)
    smoothed = Smoothed(heads, outputs=0.5)
    assert_same(smoothed(frames[0]), heads(frames[0]))
    assert difference(smoothed(frames[1]), heads(frames[1])) > 1e-3
    with pytest.raises(MistakeError, match="an exported graph gives finished predictions"):
        Smoothed(object(), outputs=0.5)  # type: ignore[arg-type]
