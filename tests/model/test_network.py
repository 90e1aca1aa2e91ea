import copy
import itertools
import json
import os
import subprocess
import sys
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import small_backbones  # noqa: F401 (registers them)
from mtlsi import kernels
from mtlsi.errors import MistakeError
from mtlsi.model.build import create_model
from mtlsi.model.decoder import start_predictions_at
from mtlsi.model.network import MTLSINet
from mtlsi.nn.layers import Predictions
from mtlsi.sizes import PRESETS
from mtlsi.tasks import NYUD40, PARTS7, PASCAL21, TASK_SETS
from random_weights import at_usual_scale

CHANNELS = {
    "nyud": {"semseg": len(NYUD40), "depth": 1, "normals": 3, "boundary": 1},
    "pascal": {"semseg": len(PASCAL21), "parsing": len(PARTS7), "saliency": 2, "normals": 3, "boundary": 1},
}
TOO_LARGE_TO_RUN = [
    ("swin_large", "nyud"),
    ("vit_large", "pascal"),
    ("convnext_tiny", "nyud"),
    ("dinov3_vits16", "pascal"),
    ("dinov2_vitb14", "nyud"),
    ("taskexpert_vit_large", "pascal"),
]
RUNNABLE = [p for p in PRESETS if PRESETS[p].decoder == "mtlsi" and p not in dict(TOO_LARGE_TO_RUN)]
SUBSETS = [s for size in (1, 2, 3) for s in itertools.combinations(CHANNELS["nyud"], size)]


def random_images(height=64, width=96, batch=1, seed=0):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def seeded_model(preset="tiny", **options):
    torch.manual_seed(0)
    return create_model(preset, **options)


def shapes(predictions):
    return {task: tuple(x.shape) for task, x in predictions.items()}


def some_loss(output):
    """A loss that reaches every channel and position of every prediction."""
    predictions = (*output.final.values(), *output.coarse.values())
    return sum((x * torch.randn_like(x)).mean() for x in predictions)


def assert_trains(model, images):
    model.train()
    output = model(images)
    some_loss(output).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} is not reached"
        assert parameter.grad.isfinite().all(), name
    return output


def mistake(call):
    with pytest.raises(MistakeError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def num_parameters(module):
    return sum(p.numel() for p in module.parameters())


def stirred(model):
    """With no weight at zero: where training starts from plain heads, a fresh interaction would be idle."""
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model


@pytest.fixture(scope="module")
def tiny():
    """In evaluation, with statistics that a few images have moved: fresh ones would leave the norms idle."""
    model = at_usual_scale(stirred(seeded_model())).train()  # which are near 1 then, as those of the images are
    with torch.no_grad():
        for seed in range(3):
            model(random_images(batch=2, seed=seed))
    return model.eval()


@pytest.mark.parametrize(
    ("preset", "dataset"),
    [
        (preset, dataset)
        if preset == "tiny" or dataset == "nyud"
        else pytest.param(preset, dataset, marks=pytest.mark.slow)
        for preset in RUNNABLE
        for dataset in TASK_SETS
    ],
)
def test_contract(preset, dataset):
    """Every preset, for both sets of tasks, on one image of an odd size: shapes, finite values, and it all trains."""
    output = assert_trains(seeded_model(preset, dataset=dataset), random_images(70, 101))
    expected = {task: (1, channels, 70, 101) for task, channels in CHANNELS[dataset].items()}
    assert shapes(output.final) == shapes(output.coarse) == expected
    assert all(x.isfinite().all() for x in (*output.final.values(), *output.coarse.values()))


@pytest.mark.parametrize("preset", ["vit_large", "dinov3_vits16", "dinov2_vitb14"])
def test_contract_of_a_plain_vit(preset):
    """The presets' ViTs are too large to run here; one of four blocks takes the same way through the network."""
    small = {
        "vit_large": "vit_of_four_plain_blocks",
        "dinov3_vits16": "vit_of_four_turned_blocks",
        "dinov2_vitb14": "vit_of_four_blocks",
    }
    model = seeded_model(preset, channels=24, num_tokens=32, backbone=small[preset])
    output = assert_trains(model, random_images(70, 101))
    assert shapes(output.final) == {task: (1, channels, 70, 101) for task, channels in CHANNELS["nyud"].items()}


@pytest.mark.parametrize(
    ("preset", "dataset"),
    [
        which if which[0] in ("convnext_tiny", "dinov3_vits16") else pytest.param(*which, marks=pytest.mark.slow)
        for which in TOO_LARGE_TO_RUN
    ],
)
def test_contract_of_the_large_presets_by_their_shapes(preset, dataset):
    """On the meta device: every operation runs, none computes."""
    with torch.device("meta"):
        output = create_model(preset, dataset=dataset).eval()(torch.zeros(2, 3, 70, 101))
    assert shapes(output.final) == {task: (2, channels, 70, 101) for task, channels in CHANNELS[dataset].items()}


PARAMETERS = {
    ("swin_large", "nyud"): (202_066_898, 6_871_454),
    ("swin_large", "pascal"): (203_957_501, 8_762_057),
    ("swin_tiny", "nyud"): (28_657_048, 1_139_230),
    ("hrnet_w18", "nyud"): (4_392_670, 531_950),
    ("vit_large", "nyud"): (309_159_134, 5_470_430),
    ("convnext_tiny", "nyud"): (28_957_822, 1_139_230),
    ("convnext_tiny", "pascal"): (29_301_033, 1_482_441),
    ("dinov3_vits16", "nyud"): (23_767_838, 2_181_662),
    ("dinov3_vits16", "pascal"): (24_109_001, 2_522_825),
    ("dinov2_vitb14", "nyud"): (90_355_070, 3_776_894),
    ("dinov2_vitb14", "pascal"): (91_022_249, 4_444_073),
    ("mobilenetv2_100", "nyud"): (2_576_510, 764_798),
    ("tiny", "nyud"): (371_338, 121_130),
    ("tiny", "pascal"): (410_161, 159_953),
}
"""In all, and outside timm's backbone. The paper: 38.27 M outside Swin-L on NYUDv2; 234 M in all on PASCAL-Context."""


PAPER_PARAMETERS = {("swin_large", "nyud"): (201_883_598, 6_688_154), ("tiny", "nyud"): (361_750, 111_542)}
"""The same in the paper's form."""


@pytest.mark.parametrize(
    ("form", "preset", "dataset"),
    [
        ("refined", preset, dataset)
        if preset == "tiny" or dataset == "nyud"
        else pytest.param("refined", preset, dataset, marks=pytest.mark.slow)
        for preset, dataset in PARAMETERS
    ]
    + [("paper", *which) for which in PAPER_PARAMETERS],
)
def test_parameters_are_counted_exactly(form, preset, dataset):
    with torch.device("meta"):
        model = create_model(preset, dataset=dataset, form=form)
    total = num_parameters(model)
    expected = PARAMETERS if form == "refined" else PAPER_PARAMETERS
    assert (total, total - num_parameters(model.backbone.body)) == expected[preset, dataset]


@pytest.mark.parametrize("fusion", [True, False])
def test_any_subset_of_the_tasks_equals_their_part_of_the_whole(tiny, fusion):
    model = tiny if fusion else stirred(seeded_model(fusion=False)).eval()
    with torch.no_grad():
        whole = model(random_images(32, 64))
        for subset in SUBSETS if fusion else SUBSETS[::3]:
            some = model(random_images(32, 64), tasks=reversed(subset))
            assert set(some.final) == set(some.coarse) == set(subset)
            for task in subset:
                torch.testing.assert_close(some.final[task], whole.final[task], atol=1e-5, rtol=1e-4)
                torch.testing.assert_close(some.coarse[task], whole.coarse[task], atol=1e-5, rtol=1e-4)


OWN = {"read_tokens": "own", "mix": 0}


@pytest.mark.parametrize(
    ("fusion", "options", "on_all"),
    [
        (True, OWN, ("preliminary",)),
        (False, OWN, ()),
        (True, OWN | {"read_tokens": "all"}, ("preliminary", "distiller", "cross_window")),
        (True, OWN | {"mix": 16}, ("preliminary", "distiller", "cross_window", "heads")),
    ],
    ids=["fusion", "no meeting", "tokens", "mix"],
)
def test_what_a_subset_does_not_need_is_not_computed(fusion, options, on_all):
    """Only what comes before the last place where tasks meet works on all of them."""
    model = seeded_model(fusion=fusion, decoder_options=options).eval()
    seen = {}

    def watch(name, module):
        def record(_module, args):
            seen[name] = args[0].shape[1]  # the task axis

        module.register_forward_pre_hook(record)

    watch("preliminary", model.decoder.preliminary.refine)
    watch("distiller", model.decoder.distiller)
    watch("cross_window", model.decoder.cross_window[0])
    watch("heads", model.decoder.heads.refine)
    watch("finish", model.decoder.heads.finish)
    predicted = []
    model.decoder.heads.predict.register_forward_hook(lambda *args: predicted.append(args[-1].shape[1]))
    with torch.no_grad():
        model(random_images(32, 32), tasks=["normals", "depth"])
    parts = ("preliminary", "distiller", "cross_window", "heads", "finish")
    assert seen == {part: 4 if part in on_all else 2 for part in parts}
    assert predicted == [CHANNELS["nyud"]["depth"] + CHANNELS["nyud"]["normals"]]


def test_a_subset_is_made_once_and_again_when_weights_change(tiny):
    model = copy.deepcopy(tiny)
    images = random_images(32, 32)
    with torch.inference_mode():
        assert model.for_tasks(["depth"]) is model.for_tasks(("depth",))
        assert model.for_tasks(model.tasks) is model
        before = model(images, tasks=["depth"]).final["depth"]
    with torch.no_grad():
        for parameter in model.decoder.heads.parameters():
            parameter.mul_(1.5)
    with torch.inference_mode():
        some, whole = (model(images, tasks=tasks).final["depth"] for tasks in (["depth"], None))
    assert not torch.equal(some, before)
    torch.testing.assert_close(some, whole, atol=1e-5, rtol=1e-4)
    model.load_state_dict(tiny.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(model(images, tasks=["depth"]).final["depth"], before)
        some = model.double()(images, tasks=["depth"]).final["depth"]
    assert some.dtype == torch.float64
    torch.testing.assert_close(some.float(), before, atol=1e-4, rtol=1e-4)


def test_gradients_reach_the_weights_through_a_subset(tiny):
    model = copy.deepcopy(tiny)
    model(random_images(32, 32), tasks=["depth"]).final["depth"].sum().backward()
    gradient = model.decoder.heads.predict.of_task["depth"].weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    assert model.decoder.heads.predict.of_task["semseg"].weight.grad is None


FORMS = {
    "stride 8": {},
    "the paper's": {"form": "paper"},
    "the paper's, its tokens centroids": {"form": "paper", "decoder_options": {"tokens": "centroids"}},
    "at one stride": {"decoder_options": {"pool": 1}},
    "stride 4": {"decoder_stride": 4, "context_pool": 3, "window": 5},
    "many tokens and wide heads": {"channels": 64, "num_tokens": 160},
    "two blocks, dense": {"num_blocks": 2, "dense_convolutions": True, "queries": "dense"},
    "shared queries": {"queries": "shared"},
    "no fusion": {"fusion": False},
    "no windows": {"cross_window": False},
    "heads only": {"decoder": "heads_only"},
}


def with_statistics(model):
    """As if it had been trained: fresh statistics would leave the norms idle."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return stirred(model).eval()


def assert_close_by_norm(ours, expected, tolerance):
    for task, value in expected.items():
        assert ours[task].shape == value.shape
        assert (ours[task] - value).norm() < tolerance * value.norm(), task


@cache
def exactly(name):
    """A network of ``FORMS``, images, and what the reference kernels predict of them in float64: once for all forms."""
    model, images = with_statistics(seeded_model(**FORMS[name])), random_images(70, 101, batch=2)
    with torch.no_grad(), kernels.use("reference"):
        return model, images, copy.deepcopy(model).double()(images.double())


@pytest.mark.parametrize("form", ["default", "cpu"])
@pytest.mark.parametrize("name", FORMS)
def test_predictions_are_those_of_the_reference_kernels_in_float64(name, form):
    model, images, exact = exactly(name)
    with torch.no_grad(), kernels.use(form):
        ours = model(images)
    assert_close_by_norm(ours.final, exact.final, 1e-5)
    assert_close_by_norm(ours.coarse, exact.coarse, 1e-5)


def gradients(model, images, form):
    """Of the squares of all predictions, by the decoder's parameters."""
    with kernels.use(form):
        output = model(images)
        sum(y.square().mean() for y in (*output.final.values(), *output.coarse.values())).backward()
    return {name: parameter.grad for name, parameter in model.decoder.named_parameters()}


def to_train(name):
    """In training, by the batch's own statistics; the backbone, which amplifies float32's errors, is left out."""
    model = at_usual_scale(with_statistics(seeded_model(**FORMS[name]))).train()
    model.backbone.eval()
    return model, random_images(64, 96, batch=2)


@cache
def exact_gradients(name):
    """By the reference kernels in float64: once for all forms."""
    model, images = to_train(name)
    return gradients(model.double(), images.double(), "reference")


@pytest.mark.parametrize("form", ["default", "cpu"])
@pytest.mark.parametrize("name", FORMS)
def test_gradients_are_those_of_the_reference_kernels_in_float64(name, form):
    expected = exact_gradients(name)
    largest = max(gradient.norm() for gradient in expected.values())
    for parameter, gradient in gradients(*to_train(name), form).items():
        error, length = (gradient - expected[parameter]).norm(), expected[parameter].norm()
        assert error < 1e-4 * length + 1e-6 * largest, f"{parameter}: {error:.1e} of {length:.1e}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_network_of_another_type_takes_images_of_any_type(tiny, dtype):
    model = copy.deepcopy(tiny).to(dtype)
    with torch.no_grad():
        exact, ours = tiny(random_images(64, 64)), model(random_images(64, 64))
    for task in CHANNELS["nyud"]:
        assert ours.final[task].isfinite().all()
        assert (ours.final[task] - exact.final[task]).norm() < 0.1 * exact.final[task].norm()


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(3, 64, 64), "images of shape (3, 64, 64); expected (batch, 3, height, width): add the batch axis"),
        (torch.zeros(1, 1, 64, 64), "expected (batch, 3, height, width)"),
        (torch.zeros(1, 64, 64, 3), "expected (batch, 3, height, width)"),
        (torch.zeros(1, 3, 0, 64), "expected (batch, 3, height, width)"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "expected ImageNet-normalised floats"),
    ],
)
def test_what_is_no_batch_of_normalised_images_is_refused(tiny, images, said):
    assert said in mistake(lambda: tiny(images))


def test_importing_and_building_change_nothing_in_the_process():
    program = (
        "import ctypes, torch\n"
        "before = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()\n"
        "calls = []\n"
        "load = ctypes.CDLL\n"
        "ctypes.CDLL = lambda *a, **k: calls.append(a) or load(*a, **k)\n"
        "import mtlsi\n"
        "torch.manual_seed(0)\n"
        "mtlsi.create_model('tiny')\n"
        "assert (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()) == before\n"
        "assert (None,) not in calls, 'the C library was asked for something'\n"
        "assert torch.tensor(1e-40).mul(1.0).item() != 0, 'denormals are flushed'\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}  # else always 1
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_a_subset_is_refused_while_training_and_unknown_tasks_always(tiny):
    assert "call model.eval() first" in mistake(lambda: seeded_model().train()(random_images(32, 32), tasks=["depth"]))
    assert "unknown task 'parsing'" in mistake(lambda: tiny(random_images(32, 32), tasks=["parsing"]))
    assert "at least one" in mistake(lambda: tiny(random_images(32, 32), tasks=[]))


@pytest.mark.parametrize(
    "sizes",
    [
        {"fusion": False},
        {"distiller": False},
        {"cross_window": False},
        {"fusion": False, "cross_window": False},
        {"scales": (3,)},
        {"scales": (1, 7)},
        {"num_tokens": 1},
        {"num_blocks": 2},
        {"window": 3},
        {"context_pool": 3},
        {"queries": "dense", "dense_convolutions": True},
        {"queries": "shared"},
        {"decoder_stride": 4},
        {"head_channels": 40},
        {"decoder_stride": 16},
        {"form": "paper"},
        {"decoder_options": {"context": "centroids"}},
        {"form": "paper", "decoder_options": {"context": "centroids"}},
        {"decoder_options": {"fuse_coarse": False}},
        {"decoder_options": {"fuse_onto": "features"}},
        {"decoder_options": {"fuse_onto": "features", "fuse_gradient": False}},
        {"form": "paper", "decoder_options": {"fuse_onto": "features"}},
        {"decoder_options": {"tokens": "shares"}},
        {"decoder_options": {"pool": 1}},
        {"decoder_options": {"pool": 4}},
        {"decoder_options": {"refine": "preliminary"}},
        {"decoder_options": {"zero_start": False, "positions": False}},
        {"decoder_options": {"add_coarse": "none"}},
        {"decoder_options": {"add_coarse": "areas"}},
    ],
    ids=lambda sizes: ",".join(f"{name}={value}" for name, value in sizes.items()),
)
def test_ablations_build_run_and_train(sizes):
    output = assert_trains(seeded_model(**sizes), random_images(40, 33))
    assert shapes(output.final) == {task: (1, channels, 40, 33) for task, channels in CHANNELS["nyud"].items()}


def test_the_refined_form_starts_from_plain_heads():
    """Its first predictions are those of its preliminary features; the paper's form adds something from the start."""
    onto_features = {"fuse_onto": "features"}
    for form, options, same in (("refined", {}, True), ("refined", onto_features, True), ("paper", {}, False)):
        model, seen = seeded_model(form=form, decoder_options=options).eval(), {}
        model.decoder.heads.register_forward_pre_hook(lambda _, args, seen=seen: seen.update(refined=args[0]))
        with torch.no_grad():
            maps = model.backbone(random_images())
            model.decoder(maps)
            assert torch.allclose(seen["refined"], model.decoder.preliminary.features(maps), atol=1e-6) == same


@torch.no_grad()
@pytest.mark.parametrize("decoder", ["mtlsi", "heads_only"])
@pytest.mark.parametrize(
    ("add_coarse", "alone"),
    [
        ("none", {"semseg", "depth", "normals", "boundary"}),
        ("areas", {"boundary"}),
        ("areas_but_values", {"boundary", "depth"}),
    ],
)
def test_final_predictions_are_the_upsampled_coarse_ones_and_what_the_heads_draw(decoder, add_coarse, alone):
    options = {"deep_supervision": "areas", "add_coarse": add_coarse}
    model, images = seeded_model(decoder=decoder, decoder_options=options).eval(), random_images()
    output = model(images, full_size=False)
    model.decoder.add_coarse = "none"
    drawn = model(images, full_size=False).final
    for task, value in output.final.items():
        begun = F.interpolate(output.coarse[task], value.shape[-2:], mode="bilinear", align_corners=False)
        torch.testing.assert_close(value, drawn[task] if task in alone else drawn[task] + begun)


def test_plain_heads_without_coarse_predictions_cannot_begin_at_them():
    with pytest.raises(MistakeError, match="give deep_supervision"):
        seeded_model(decoder="heads_only", decoder_options={"add_coarse": "areas"})


@pytest.mark.parametrize("decoder", ["mtlsi", "heads_only"])
@pytest.mark.parametrize("add_coarse", ["areas", "areas_but_values"])
def test_predictions_start_at_a_value_once_though_two_are_added(decoder, add_coarse):
    options = {"deep_supervision": "areas", "add_coarse": add_coarse}
    model = seeded_model(decoder=decoder, decoder_options=options).eval()
    for task, value in (("depth", torch.tensor(2.5)), ("boundary", torch.tensor(-1.0))):
        start_predictions_at(model.decoder, task, value)
        for predictions in (m for m in model.decoder.modules() if isinstance(m, Predictions)):
            predictions.of_task[task].weight.data.zero_()
        output = model(random_images())
        assert output.final[task].unique().item() == output.coarse[task].unique().item() == value


@pytest.mark.parametrize("deep", ["all", "areas", "none"])
def test_losses_of_coarse_predictions_train_the_features_of_tasks_with_deep_supervision_alone(deep):
    model = seeded_model(decoder_options={"deep_supervision": deep}).train()
    coarse = model(random_images(64, 64, batch=2)).coarse
    sum(x.square().mean() for x in coarse.values()).backward()
    preliminary = model.decoder.preliminary
    assert all(layer.weight.grad.any() for layer in preliminary.predict.of_task.values())
    grad = preliminary.refine.spatial.grad
    trained = {task for i, task in enumerate(model.tasks) if grad is not None and grad[i].any()}
    assert trained == {"all": set(model.tasks), "areas": set(model.tasks) - {"boundary"}, "none": set()}[deep]
    assert any(p.grad is not None and p.grad.any() for p in model.backbone.parameters()) == bool(trained)


@pytest.mark.parametrize(
    "options",
    [{}, {"mix": 0}, {"read_tokens": "own"}, {"mix": 0, "read_tokens": "own"}, {"mix": 0, "fuse_onto": "features"}],
)
def test_a_subset_is_a_slice_of_the_whole_wherever_tasks_meet(options):
    model = seeded_model(decoder_options=options).eval()
    with torch.no_grad():
        for name, parameter in model.decoder.named_parameters():  # what begins at zero must not hide a fault
            if not parameter.any():
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
        whole = model(random_images())
        for tasks in (["depth"], ["semseg", "boundary"]):
            part = model(random_images(), tasks)
            for task in tasks:
                torch.testing.assert_close(part.final[task], whole.final[task], atol=1e-4, rtol=1e-4)


def test_single_choices_make_the_refined_form_the_papers():
    paper = {"tokens": "shares", "pool": 1, "refine": "preliminary"}
    paper |= {"zero_start": False, "positions": False, "deep_supervision": "all", "read_tokens": "own", "mix": 0}
    paper |= {"add_coarse": "none"}
    ours, expected = seeded_model(decoder_options=paper).eval(), seeded_model(form="paper").eval()
    with torch.no_grad():
        for task, value in expected(random_images()).final.items():
            assert torch.equal(ours(random_images()).final[task], value)


def test_a_model_from_before_there_were_forms_has_the_papers(tmp_path):
    seeded_model(form="paper").save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    del described["form"]
    (tmp_path / "config.json").write_text(json.dumps(described))
    loaded = MTLSINet.from_pretrained(tmp_path)
    with torch.no_grad():
        for task, value in seeded_model(form="paper").eval()(random_images()).final.items():
            assert torch.equal(loaded(random_images()).final[task], value)


def test_switched_off_parts_cost_nothing():
    full = num_parameters(seeded_model())
    for part in ("fusion", "distiller", "cross_window"):
        assert num_parameters(seeded_model(**{part: False})) < full


@pytest.mark.parametrize("size", [(70, 101), (33, 64), (20, 31), (1, 1)])
def test_any_size_equals_the_zero_padded_image_cut_to_it(tiny, size):
    height, width = size
    images = random_images(height, width)
    padded = torch.zeros(1, 3, -(-height // 32) * 32, -(-width // 32) * 32)
    padded[..., :height, :width] = images
    with torch.no_grad():
        ours, whole = tiny(images), tiny(padded)
    for task in CHANNELS["nyud"]:
        assert torch.equal(ours.final[task], whole.final[task][..., :height, :width])
        assert torch.equal(ours.coarse[task], whole.coarse[task][..., :height, :width])


def test_full_size_predictions_are_the_networks_own_enlarged(tiny):
    with torch.no_grad():
        own, full = tiny(random_images(64, 96), full_size=False), tiny(random_images(64, 96))
    for small, large in ((own.final, full.final), (own.coarse, full.coarse)):
        for task in CHANNELS["nyud"]:
            expected = F.interpolate(small[task], size=(64, 96), mode="bilinear", align_corners=False)
            torch.testing.assert_close(large[task], expected)


@pytest.mark.parametrize("decoder_stride", [4, 8, 16])
def test_own_size_is_stride_4_and_the_decoders_stride_cut_to_the_image(decoder_stride):
    with torch.no_grad():
        own = seeded_model(decoder_stride=decoder_stride).eval()(random_images(70, 101), full_size=False)
    assert {x.shape[2:] for x in own.final.values()} == {(18, 26)}
    assert {x.shape[2:] for x in own.coarse.values()} == {(-(-70 // decoder_stride), -(-101 // decoder_stride))}


def test_images_of_a_batch_do_not_see_each_other(tiny):
    batch = random_images(64, 64, batch=2)
    with torch.no_grad():
        together, alone = tiny(batch), tiny(batch[1:])
    for task in CHANNELS["nyud"]:
        torch.testing.assert_close(together.final[task][1:], alone.final[task], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: create_model("tinny"), "unknown preset 'tinny'; expected one of swin_large"),
        (lambda: create_model("tiny", dataset="coco"), "unknown dataset 'coco'; expected one of nyud, pascal"),
        (lambda: create_model("tiny", tasks=["depht"]), "unknown task 'depht'"),
        (lambda: create_model("tiny", widow=4), "unknown model size 'widow'; expected some of backbone, channels"),
        (lambda: create_model("tiny", tasks=["parsing"]), "parsing: no class names given"),
        (lambda: create_model("tiny", backbone="mobilenet_v9"), "unknown backbone 'mobilenet_v9'"),
        (lambda: create_model("tiny", channels=10, num_heads=4), "channels 10 are not a multiple of num_heads 4"),
        (lambda: create_model("tiny", decoder_stride=32), "decoder_stride 32; expected 4, 8 or 16"),
        (lambda: create_model("tiny", scales=(2,)), "odd kernel sizes"),
        (lambda: create_model("tiny", form="papper"), "unknown form 'papper'; expected paper or refined"),
        (
            lambda: create_model("tiny", decoder_options={"tokens": "many"}),
            "decoder option tokens: 'many'; expected one of shares, centroids",
        ),
        (lambda: create_model("tiny", decoder_options={"pool": 3}), "decoder option pool: 3; expected one of 1, 2, 4"),
        (
            lambda: create_model("tiny", decoder_options={"zero_start": "no"}),
            "decoder option zero_start: 'no'; expected one of true, false",
        ),
    ],
)
def test_settings_that_make_no_network_are_refused(call, said):
    assert said in mistake(call)


class Sizes(TorchDispatchMode):
    """The most elements that any operation makes, an attention matrix inside a fused operation included."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.numel())
        if "scaled_dot_product" in func.name():
            queries, keys = args[:2]
            self.largest = max(self.largest, queries.shape[:-1].numel() * keys.shape[-2])
        return out


def largest_tensor(call):
    with torch.no_grad(), Sizes() as sizes:
        call()
    return sizes.largest


def test_no_tensor_grows_faster_than_the_image(tiny):
    """Four times the pixels: nothing larger than about four times; a matrix of positions by positions would be 16."""
    small, large = (
        largest_tensor(lambda s=s: tiny(random_images(*s), full_size=False)) for s in ((128, 192), (256, 384))
    )
    assert large / small <= 4.3


def test_the_measure_sees_a_matrix_of_positions_by_positions():
    def attention(n):
        x = torch.randn(1, 2, n, 4)
        return lambda: F.scaled_dot_product_attention(x, x, x)

    assert largest_tensor(attention(256)) / largest_tensor(attention(64)) == 16


def test_bfloat16_stays_finite_and_close(tiny):
    with torch.no_grad():
        exact = tiny(random_images(64, 64))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = tiny(random_images(64, 64))
    for task in CHANNELS["nyud"]:
        assert rough.final[task].isfinite().all()
        error = (rough.final[task].float() - exact.final[task]).square().mean().sqrt()
        assert error < 0.1 * exact.final[task].std()
