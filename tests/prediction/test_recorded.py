from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import small_backbones  # noqa: F401  registers them
from mtlsi.model.build import create_model
from mtlsi.model.network import MTLSINet, Output
from mtlsi.nn.recording import recorded_into
from mtlsi.prediction import recorded as module
from mtlsi.prediction.predictor import Predictor
from mtlsi.prediction.recorded import MOST, WARM_UP, NotToBeRecordedError, RecordedNetwork, Recording, recorded
from mtlsi.prediction.smoothing import Smoothed

TASKS = ("semseg", "depth", "normals")
CLASSES = {"semseg": ("wall", "floor", "chair")}


def tiny(**sizes) -> MTLSINet:
    torch.manual_seed(0)
    return create_model("tiny", tasks=TASKS, classes=CLASSES, input_size=(64, 64), **sizes).eval()


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape)))


class Told:
    """In the place of a recording: computes what a GPU would, and says how often."""

    made: list[Told]

    def __init__(self, network, images, full_size, _pool):
        self.network, self.shape, self.full_size, self.replayed = network, images.shape, full_size, 0
        Told.made.append(self)

    def stands_for(self, network):
        return network is self.network

    def replay(self, images) -> Output:
        assert images.shape == self.shape
        self.replayed += 1
        return self.network(images, full_size=self.full_size)


@pytest.fixture
def told(monkeypatch):
    """Recordings as told ones, on a machine whose CUDA does nothing."""
    Told.made = []
    monkeypatch.setattr(module, "Recording", Told)
    nothing = {
        "device": lambda _: nullcontext(),
        "synchronize": lambda _: None,
        "current_stream": lambda: SimpleNamespace(cuda_stream=0),
        "is_current_stream_capturing": lambda: False,
        "graph_pool_handle": lambda: (0, 0),
    }
    for name, does in nothing.items():
        monkeypatch.setattr(torch.cuda, name, does)
    return Told.made


def replays(told) -> list[int]:
    return [one.replayed for one in told]


# ---- which networks


class Own(nn.Module):
    """A module that is not the project's."""


def test_a_network_of_ours_on_a_gpu_is_recorded():
    hooked, extended = tiny(), tiny()
    hooked.decoder.register_forward_hook(lambda *_: None)
    extended.backbone.extra = Own()
    gpu = torch.device("cuda")
    assert isinstance(recorded(tiny(), gpu), RecordedNetwork)
    for network, device in ((tiny(), torch.device("cpu")), (hooked, gpu), (extended, gpu), (Own(), gpu)):
        assert recorded(network, device) is network


# ---- when


def test_the_third_pass_of_a_shape_is_recorded_and_replayed_from_then_on(told):
    network = RecordedNetwork(tiny())
    with torch.inference_mode():
        for count in range(1, 6):
            network(images(1, 3, 64, 64))
            assert len(told) == (count > WARM_UP)
        for _ in range(WARM_UP):
            network(images(1, 3, 64, 96))  # another shape counts for itself
    assert replays(told) == [5 - WARM_UP]


def test_a_network_with_folded_norms_is_recorded(told):
    predictor = Predictor(tiny(), device="cpu")
    assert predictor.network is not predictor.model
    network = RecordedNetwork(predictor.network)  # type: ignore[arg-type]
    with torch.inference_mode():
        for _ in range(WARM_UP + 1):
            network(images(1, 3, 64, 64))
    assert len(told) == 1


def test_outputs_are_those_of_the_network(told):
    network = tiny()
    wrapped = RecordedNetwork(network)
    with torch.inference_mode():
        for tasks, full_size in ((None, True), (("depth",), False), (["normals", "semseg"], True)):
            for _ in range(WARM_UP + 1):
                found = wrapped(images(2, 3, 70, 64), tasks, full_size=full_size)
            expected = network(images(2, 3, 70, 64), tasks, full_size=full_size)
            for ours, theirs in ((found.final, expected.final), (found.coarse, expected.coarse)):
                assert list(ours) == list(theirs)
                for task, raw in theirs.items():
                    torch.testing.assert_close(ours[task], raw)
    assert replays(told) == [1, 1, 1]


def test_what_no_recording_stands_for_goes_as_without(told):
    network = RecordedNetwork(tiny())
    for _ in range(WARM_UP + 2):
        network(images(1, 3, 64, 64))  # with gradients
        with torch.inference_mode():
            network(images(1, 3, 64, 64), context=lambda context, normaliser: (context, normaliser))
            network.network.train()
            network(images(2, 3, 64, 64))
            network.network.eval()
    assert told == []


def test_one_autocast_is_not_replayed_for_another(told):
    network = RecordedNetwork(tiny())
    with torch.inference_mode():
        for _ in range(WARM_UP + 1):
            network(images(1, 3, 64, 64))
        with torch.autocast("cpu", torch.bfloat16):
            network(images(1, 3, 64, 64))
    assert replays(told) == [1]


def test_weights_that_are_no_longer_where_they_were_are_recorded_anew(told):
    network = RecordedNetwork(tiny())
    with torch.inference_mode():
        for _ in range(WARM_UP + 1):
            network(images(1, 3, 64, 64), ["depth"])
        with torch.inference_mode(False), torch.no_grad():
            next(network.network.decoder.parameters()).add_(1)  # the slices of a subset are made again
        for _ in range(WARM_UP + 1):
            network(images(1, 3, 64, 64), ["depth"])
    assert replays(told) == [1, 1]
    assert told[0].network is not told[1].network


def test_what_is_switched_on_in_a_part_goes_as_without_and_is_not_recorded(told):
    network = RecordedNetwork(tiny())
    decoder, seen = network.network.decoder, []
    with torch.inference_mode():
        for _ in range(WARM_UP + 1):
            network(images(1, 3, 64, 64))
        decoder.train()  # as a model is that shares its decoder with the copy whose norms are folded
        for _ in range(WARM_UP + 1):
            network(images(2, 3, 64, 64))
        decoder.eval()
        hook = decoder.register_forward_hook(lambda *_: seen.append(True))
        network(images(1, 3, 64, 64))
        assert seen == [True]
        hook.remove()
        network(images(1, 3, 64, 64))
    assert replays(told) == [2]


def test_few_recordings_are_kept_those_that_were_asked_for_last(told):
    network = RecordedNetwork(tiny())
    with torch.inference_mode():
        for width in range(MOST + 1):
            for _ in range(WARM_UP + 1):
                network(images(1, 3, 32, 32 + 32 * width))
                network(images(1, 3, 64, 32))  # all the time
        assert len(told) == MOST + 2
        assert len(network._recordings) == MOST
        before = len(told)
        network(images(1, 3, 64, 32))
        network(images(1, 3, 32, 32))  # has given way
        assert len(told) == before
        assert told[0].replayed + told[1].replayed > MOST


def test_an_album_of_many_shapes_is_not_recorded(told):
    network = RecordedNetwork(tiny())
    with torch.inference_mode():
        for _ in range(WARM_UP + 2):
            for width in range(MOST + 1):
                network(images(1, 3, 32, 32 + 32 * width))
    assert told == []


def test_weights_in_other_places_are_noticed():
    network = tiny()
    recording = object.__new__(Recording)
    recording.network = network
    registries = [x for m in network.modules() for x in (m._parameters, m._buffers)]
    recording.slots = [(registry, name) for registry in registries for name in registry if registry[name] is not None]
    recording.weights = recording._weights()
    with torch.no_grad():
        next(network.decoder.parameters()).add_(1)
    assert recording.stands_for(network)  # in place
    assert not recording.stands_for(tiny())
    for change in (
        lambda: network.load_state_dict(tiny().state_dict(), assign=True),
        lambda: next(network.backbone.modules()).register_buffer("ours", torch.zeros(1)) or network.double(),
        lambda: next(m for m in network.modules() if "running_mean" in m._buffers)._buffers.update(
            running_mean=torch.zeros(16)
        ),
    ):
        recording.weights = recording._weights()
        assert recording.stands_for(network)
        change()
        assert not recording.stands_for(network)


@pytest.mark.usefixtures("told")
def test_a_refused_recording_is_told_once_and_predictions_go_on(monkeypatch):
    def refuse(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(module, "Recording", refuse)
    network = RecordedNetwork(tiny())
    with torch.inference_mode():
        expected = network.network(images(1, 3, 64, 64)).final
        for _ in range(WARM_UP):
            network(images(1, 3, 64, 64))
        with pytest.warns(UserWarning, match="cannot be recorded as a CUDA graph here"):
            network(images(1, 3, 64, 64))
        found = network(images(1, 3, 64, 64)).final  # says nothing: a warning is an error here
    for task, raw in expected.items():
        assert torch.equal(found[task], raw)


@pytest.mark.usefixtures("told")
def test_a_network_that_meets_the_hosts_memory_goes_as_without(monkeypatch):
    def refuse(*_):
        raise NotToBeRecordedError("_to_copy")

    monkeypatch.setattr(module, "Recording", refuse)
    network = RecordedNetwork(tiny())
    with torch.inference_mode():
        for _ in range(WARM_UP + 2):  # and says nothing: it takes as long as ever
            network(images(1, 3, 64, 64))
    assert not network.records


def test_a_replay_that_fails_goes_as_without(told, monkeypatch):
    def fail(*_):
        raise RuntimeError("Offset increment outside graph capture")

    network = RecordedNetwork(tiny())
    with torch.inference_mode():
        for _ in range(WARM_UP + 1):
            expected = network(images(1, 3, 64, 64)).final
        monkeypatch.setattr(Told, "replay", fail)
        with pytest.warns(UserWarning, match="Offset increment"):
            found = network(images(1, 3, 64, 64)).final
    assert len(told) == 1
    for task, raw in expected.items():
        assert torch.equal(found[task], raw)


def test_a_copy_makes_recordings_of_its_own(told):
    network = RecordedNetwork(tiny())
    with torch.inference_mode():
        for _ in range(WARM_UP + 1):
            network(images(1, 3, 64, 64))
        copied = copy.deepcopy(network)
        copied(images(1, 3, 64, 64))
    assert replays(told) == [1]
    assert copied.network is not network.network


# ---- on a GPU

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that records graphs")


def photos(number: int, *size_hw: int) -> list[np.ndarray]:
    generator = np.random.default_rng(number)
    return [generator.integers(0, 256, (*size_hw, 3), dtype=np.uint8) for _ in range(number)]


def close(found, expected, tolerance):
    for task, array in expected.items():
        if array.dtype == np.uint8:
            assert (found[task] != array).mean() <= tolerance, task
        else:
            difference = np.linalg.norm((found[task] - array).astype(np.float64))
            assert difference <= tolerance * np.linalg.norm(array.astype(np.float64)), task


def both(network: MTLSINet, **options) -> tuple[Predictor, Predictor]:
    """A predictor that records, and one that does not."""
    records, plain = (
        Predictor(copy.deepcopy(network), device="cuda", cuda_graph=graph, **options) for graph in (True, False)
    )
    return records, plain


def number_of_recordings(predictor: Predictor) -> int:
    assert isinstance(predictor.network, RecordedNetwork)
    return len(predictor.network._recordings)


DECODERS = ("mtlsi", "heads_only", "atrc", "invpt", "taskexpert")


@needs_gpu
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 3e-2)])
def test_recorded_predictions_are_those_of_the_network(decoder, dtype, tolerance):
    records, plain = both(tiny(decoder=decoder), dtype=dtype)
    for size_hw in ((96, 128), (70, 50)):
        for tasks in (None, "depth"):
            for photo in photos(WARM_UP + 3, *size_hw):
                close(records(photo, tasks), plain(photo, tasks), tolerance)
    assert number_of_recordings(records) == 4


@needs_gpu
@pytest.mark.parametrize(
    "backbone",
    ["convnext_atto", "hrnet_w18_small", "swin_of_five_blocks", "vit_of_four_blocks", "vit_of_four_turned_blocks"],
)
def test_every_kind_of_backbone_is_recorded(backbone):
    records, plain = both(tiny(backbone=backbone))
    for photo in photos(WARM_UP + 3, 96, 128):
        close(records(photo), plain(photo), 1e-3)
    assert number_of_recordings(records) == (backbone != "vit_of_four_turned_blocks")  # rotary embeddings from the host


@needs_gpu
@pytest.mark.parametrize("backbone", ["mobilenetv2_035", "hrnet_w18_small", "tf_efficientnet_lite0"])
def test_norms_are_folded_on_a_gpu_too(backbone):
    """Whose convolutions round to TF32: by that alone deep maps differ by more than a fold may."""
    predictor = Predictor(tiny(backbone=backbone), device="cuda", cuda_graph=False)
    assert predictor.network.backbone.batch_norms() == []  # type: ignore[attr-defined]


@needs_gpu
def test_results_stay_what_they_are_when_the_next_image_is_predicted():
    records, plain = both(tiny())
    pictures = photos(WARM_UP + 4, 96, 128)
    later = [records.maps(photo) for photo in pictures]  # brought to their size afterwards
    assert number_of_recordings(records) == 1
    for maps, photo in zip(later, pictures, strict=True):
        close(dict(maps), plain(photo), 1e-3)


@needs_gpu
def test_threads_share_a_recording():
    records, plain = both(tiny())
    pictures = photos(24, 96, 128)
    with ThreadPoolExecutor(8) as pool:
        for found, photo in zip(pool.map(records, pictures), pictures, strict=True):
            close(found, plain(photo), 1e-3)
    assert number_of_recordings(records) == 1


@needs_gpu
def test_changed_and_moved_weights_are_followed():
    records, plain = both(tiny())
    photo = photos(1, 96, 128)[0]
    for _ in range(WARM_UP + 1):
        records(photo)
    assert number_of_recordings(records) == 1
    for predictor in (records, plain):
        with torch.no_grad():
            for parameter in predictor.model.decoder.parameters():
                parameter.mul_(1.1)
    close(records(photo), plain(photo), 1e-3)
    assert number_of_recordings(records) == 1
    held = []
    for predictor in (records, plain):
        network = getattr(predictor.network, "network", predictor.network)
        places = [x.data_ptr() for x in network.parameters()]
        network.cpu()
        with torch.no_grad():
            for value in (*network.parameters(), *(x for x in network.buffers() if x.is_floating_point())):
                value.mul_(1.05)
        held += [torch.rand_like(x, device="cuda") for x in network.parameters()]  # take the memory where they were
        network.cuda()
        assert [x.data_ptr() for x in network.parameters()] != places
    for _ in range(WARM_UP + 2):
        close(records(photo), plain(photo), 1e-3)
    assert number_of_recordings(records) == 1
    assert held


@needs_gpu
def test_a_graph_that_draws_is_recorded_while_a_recorded_predictor_is_alive():
    """All graphs of a GPU share the state of its random numbers in some versions of torch."""
    records, plain = both(tiny())
    photo = photos(1, 96, 128)[0]
    for _ in range(WARM_UP + 1):
        records(photo)
    x, graph = torch.ones(8, device="cuda"), torch.cuda.CUDAGraph()
    with recorded_into(graph, x.device):
        drawn = torch.nn.functional.dropout(x, 0.5)
    graph.replay()
    assert set(drawn.tolist()) <= {0.0, 2.0}
    close(records(photo), plain(photo), 1e-3)
    assert number_of_recordings(records) == 1


@needs_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_each_of_two_gpus_has_recordings_of_its_own():
    network = tiny()
    predictors = [Predictor(copy.deepcopy(network), device=f"cuda:{i}") for i in (0, 1)]
    expected = Predictor(copy.deepcopy(network), device="cpu")
    for photo in photos(WARM_UP + 3, 96, 128):
        for predictor in predictors:
            close(predictor(photo), expected(photo), 1e-2)
    assert [number_of_recordings(predictor) for predictor in predictors] == [1, 1]


@needs_gpu
def test_a_smoothed_clip_is_recorded_too():
    records, plain = both(tiny())
    ways = [Smoothed(predictor, outputs=0.5) for predictor in (records, plain)]
    for photo in photos(WARM_UP + 3, 96, 128):
        close(ways[0](photo), ways[1](photo), 1e-3)
    assert number_of_recordings(records) == 1
