"""ATRC: each relation against a loop in float64, the published genotypes, and who hears from whom."""

import math

import pytest
import torch

from mtlsi.errors import MistakeError
from mtlsi.model.build import create_model
from mtlsi.model.decoder import start_predictions_at
from mtlsi.model.rivals.atrc_classes import AuxiliaryClasses
from mtlsi.model.rivals.atrc_genotype import PUBLISHED, read_genotype
from mtlsi.model.rivals.atrc_relations import build_relation, linear_attention, local_attention

NYUD = ("semseg", "depth", "normals", "boundary")


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def model_of(genotype=None, **sizes):
    """Tiny, and with a context that counts: it starts at zero."""
    torch.manual_seed(0)
    model = create_model("tiny", decoder="atrc", decoder_options={"genotype": genotype}, **sizes)
    for target in model.decoder.context.targets.values():
        if target.project is not None:
            torch.nn.init.ones_(target.project.norm.weight)
    return model.eval()


def images(height=64, width=96, batch=1):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def mistake(**options):
    with pytest.raises(MistakeError) as error:
        create_model("tiny", decoder="atrc", decoder_options=options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("size_hw", [(3, 5), (8, 8), (11, 18)])
@pytest.mark.parametrize("window", [1, 3, 9])
def test_local_attention_looks_at_the_window_round_each_position(window, size_hw):
    h, w = size_hw
    q, k, v = normal(2, h * w, 6), normal(2, h * w, 6, seed=1), normal(2, h * w, 4, seed=2)
    ours = local_attention(q, k, v, size_hw, window)
    for y in range(h):
        for x in range(w):
            scores, values = [], []
            for j in range(y - window // 2, y + window // 2 + 1):
                for i in range(x - window // 2, x + window // 2 + 1):
                    inside = 0 <= j < h and 0 <= i < w
                    key, value = (z[:, j * w + i] if inside else torch.zeros_like(z[:, 0]) for z in (k, v))
                    scores.append((q[:, y * w + x] * key).sum(-1) / math.sqrt(6))
                    values.append(value)
            shares = torch.stack(scores).softmax(0)[..., None]
            torch.testing.assert_close(ours[:, y * w + x], (shares * torch.stack(values)).sum(0))


def test_linear_attention_is_the_weighted_mean_by_the_products_of_queries_and_keys():
    q, k, v = normal(2, 7, 5).exp(), normal(2, 9, 5, seed=1).exp(), normal(2, 9, 3, seed=2)
    expected = torch.zeros(2, 7, 3, dtype=torch.float64)
    for n in range(7):
        weights = [(q[:, n] * k[:, m]).sum(-1, keepdim=True) for m in range(9)]
        expected[:, n] = sum(weight * v[:, m] for m, weight in enumerate(weights)) / sum(weights)
    torch.testing.assert_close(linear_attention(q, k, v), expected)


def test_a_label_relation_attends_to_the_classes():
    torch.manual_seed(0)
    relation = build_relation("t_label", 6, 4, 9).double().eval()
    target, classes = normal(2, 12, 6), normal(2, 5, 6, seed=1)
    q, k, v = relation.query(target), relation.key(classes), relation.value(classes)
    expected = torch.stack([((q[b] @ k[b].T) / 2).exp() for b in range(2)])  # 2: the root of 4 channels
    expected = expected / expected.sum(-1, keepdim=True) @ v
    torch.testing.assert_close(relation(target, classes, (3, 4)), expected)


@pytest.mark.parametrize(("kind", "namer"), [("t_label", "depth"), ("s_label", "normals")])
def test_labels_gather_the_source_by_the_classes_of_the_target_or_of_the_source(kind, namer):
    table = {target: dict.fromkeys(NYUD, "none") for target in NYUD}
    table["depth"]["normals"] = kind
    context = model_of(table).decoder.context.double()
    features, scores = normal(1, 4, 24, 3, 4), {namer: normal(1, 12, 7, seed=1)}
    ours = context(features, scores)
    by_hand = context.targets["depth"]
    source, own = (features[:, NYUD.index(task)].flatten(2).mT for task in ("normals", "depth"))  # b n c
    weights = scores[namer].exp()
    classes = torch.stack([(weights[..., k, None] * source).sum(1) / weights[..., k, None].sum(1) for k in range(7)], 1)
    read = by_hand.relations["normals"](own, classes, (3, 4))
    expected = by_hand.join(torch.cat((own, by_hand.project(read)), -1)).mT.unflatten(2, (3, 4))
    torch.testing.assert_close(ours[:, 1], expected)


@pytest.mark.parametrize("kind", ["global", "local", "t_label", "s_label"])
def test_a_target_hears_its_sources_and_nobody_else(kind):
    table = {target: dict.fromkeys(NYUD, "none") for target in NYUD}
    table["depth"]["boundary"] = kind
    model = model_of(table)
    norm = model.decoder.features[1]
    with torch.no_grad():
        before = model(images()).final
        norm.bias[-24:] += normal(24).float()  # the features of boundary, the last task
        after = model(images()).final
    assert [task for task in NYUD if not torch.equal(before[task], after[task])] == ["depth", "boundary"]


def test_an_untrained_context_adds_nothing():
    torch.manual_seed(0)
    model = create_model("tiny", decoder="atrc").eval()
    with torch.no_grad():
        before = model(images()).final["depth"]
        model.decoder.features[1].bias[-24:] += 1
        assert torch.equal(model(images()).final["depth"], before)


def test_auxiliary_heads_train_nothing_below_them():
    model = model_of().train()
    output = model(images())
    sum(x.square().mean() for x in output.coarse.values()).backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.decoder.auxiliary.values.parameters())


def test_coarse_predictions_are_read_from_the_classes():
    outputs = {"semseg": 5, "depth": 1, "normals": 3, "boundary": 1, "saliency": 2}
    torch.manual_seed(0)
    auxiliary = AuxiliaryClasses(8, 8, outputs, bins=40).eval()
    for task, head in auxiliary.scores.items():
        torch.nn.init.normal_(head[-1].weight, std=3)
        assert head[-1].out_features == {"semseg": 5, "boundary": 2, "saliency": 2}.get(task, 40)
    with torch.no_grad():
        scores, coarse = auxiliary(torch.randn(2, 8, 3, 4))
    assert {task: x.shape[1] for task, x in coarse.items()} == outputs
    for task in ("semseg", "saliency"):
        assert torch.equal(coarse[task], scores[task].mT.unflatten(2, (3, 4)))
    shares = scores["boundary"].softmax(-1)[..., 1]  # the probability of a boundary, of two classes
    torch.testing.assert_close(coarse["boundary"].sigmoid().flatten(1), shares)
    centres = torch.tensor([0.7 * (10 / 0.7) ** ((k + 0.5) / 40) for k in range(40)])
    expected = scores["depth"].softmax(-1) @ (centres - centres.mean())
    torch.testing.assert_close(coarse["depth"].flatten(1), expected, atol=1e-5, rtol=1e-5)


def test_a_distance_begins_where_it_is_told():
    """As in training, at the median of the training set: neither the classes nor their values move it."""
    model = model_of()
    start_predictions_at(model.decoder, "depth", torch.tensor(2.5))
    with torch.no_grad():
        coarse = model(images()).coarse["depth"]
    assert (coarse - 2.5).abs().max() < 0.25


def test_classes_of_directions_are_spread_over_the_half_sphere_that_faces_the_camera():
    auxiliary = AuxiliaryClasses(8, 8, {"normals": 3}, bins=40)
    directions = auxiliary.values["normals"].of_task["normals"].weight.flatten(1).T
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(40))
    assert (directions[:, 2] >= 0).all()
    torch.testing.assert_close(directions.mean(0), torch.tensor([0, 0, 0.5]), atol=0.02, rtol=0)
    nearest = (directions @ directions.T - 2 * torch.eye(40)).max(1).values.acos().rad2deg()
    assert nearest.min() > 15  # 40 even cells of a half sphere are about 22 degrees wide


def test_published_genotypes():
    assert read_genotype(None, NYUD) == read_genotype("nyud_hrnet18", NYUD)
    assert read_genotype(None, NYUD)["boundary"] == {
        "semseg": "t_label", "depth": "t_label", "normals": "global", "boundary": "t_label",
    }  # fmt: skip
    pascal = read_genotype(None, ("semseg", "parsing", "saliency", "normals", "boundary"))
    assert pascal["semseg"] == {"semseg": "t_label", "parsing": "t_label", "saliency": "s_label", "boundary": "s_label"}
    assert read_genotype("nyud_hrnet48", NYUD)["semseg"] == {"semseg": "t_label", "boundary": "s_label"}
    for tasks, rows in PUBLISHED.values():
        assert [len(row) for row in rows] == [len(tasks)] * len(tasks)


def test_pairs_that_were_never_published_take_the_usual_relations():
    genotype = read_genotype(None, ("depth", "heat"))
    assert genotype == {
        "depth": {"depth": "t_label", "heat": "s_label"},
        "heat": {"depth": "s_label", "heat": "t_label"},
    }


@pytest.mark.parametrize("given", [[1], 3, {"depth": {"depth": ["global"]}}, {"depth": "global"}, "deep"])
def test_what_is_no_genotype_is_refused(given):
    with pytest.raises(MistakeError, match=r"genotype .*; expected"):
        read_genotype(given, ("depth",))


@pytest.mark.parametrize(
    ("genotype", "coarse"),
    [(None, set(NYUD)), ("nyud_hrnet48", {"semseg", "boundary"}), ("global", set()), ("none", set())],
)
def test_auxiliary_heads_are_of_the_tasks_whose_classes_are_read(genotype, coarse):
    assert set(model_of(genotype)(images()).coarse) == coarse


@pytest.mark.parametrize(
    ("preset", "dataset", "parameters"),
    [
        ("atrc_hrnet_w18", "nyud", 1_200_274 + 41 + 123),
        ("atrc_hrnet_w18", "pascal", 1_522_422 + 123),
        ("atrc_hrnet_w48", "nyud", 7_153_827),
    ],
)
def test_parameters_are_those_of_the_authors_code(preset, dataset, parameters):
    """Counted in the authors' heads, plus the values of the classes of depth (41) and normals (123) where they are read."""
    with torch.device("meta"):
        decoder = create_model(preset, dataset=dataset).decoder
    assert sum(p.numel() for p in decoder.parameters()) == parameters


def test_published_sizes_can_be_changed():
    options = {"attention_channels": 8, "auxiliary_channels": 16, "bins": 12, "dropout": 0.0, "window": 3}
    model = create_model("tiny", decoder="atrc", decoder_options=options | {"genotype": "t_label"})
    relation = model.decoder.context.targets["depth"].relations["normals"]
    assert relation.value.linear.out_features == 8
    assert model.decoder.auxiliary.scores["depth"][-1].weight.shape == (12, 16)
    local = create_model("tiny", decoder="atrc", decoder_options=options | {"genotype": "local"}).decoder
    assert {r.window for target in local.context.targets.values() for r in target.relations.values()} == {3}


@pytest.mark.parametrize("stride", [4, 16])
def test_tasks_meet_at_any_stride_and_end_at_4(stride):
    model = model_of(decoder_stride=stride)
    with torch.no_grad():
        final, coarse = model.decoder(model.backbone(images()))
    assert {x.shape[-2:] for x in final.values()} == {(16, 24)}
    assert {x.shape[-2:] for x in coarse.values()} == {(64 // stride, 96 // stride)}


def test_tasks_of_pascal_train():
    torch.manual_seed(0)
    model = create_model("tiny", dataset="pascal", decoder="atrc").train()
    output = model(images(batch=2))
    sum(x.square().mean() for x in (*output.final.values(), *output.coarse.values())).backward()
    assert set(output.coarse) == {"semseg", "parsing", "saliency", "normals", "boundary"}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_recomputing_activations_changes_no_gradient():
    gradients = []
    for recompute in (False, True):
        model = model_of({target: dict.fromkeys(NYUD, "s_label") for target in NYUD}).train()
        model.recompute(recompute)
        torch.manual_seed(1)  # of the dropout
        output = model(images(batch=2))
        sum(x.square().mean() for x in (*output.final.values(), *output.coarse.values())).backward()
        gradients.append({name: p.grad for name, p in model.decoder.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_half_precision_stays_close():
    model = model_of()
    with torch.no_grad():
        exact = model(images()).final
        with torch.autocast("cpu", torch.bfloat16):
            ours = model(images()).final
    for task, value in exact.items():
        assert (ours[task].float() - value).norm() < 0.05 * value.norm(), task


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"genotype": "nyud"},
            "genotype 'nyud'; expected one of nyud_hrnet18, nyud_hrnet48, pascal_hrnet18, global",
        ),
        (
            {"genotype": {"depth": {"depth": "global"}}},
            "genotype for semseg: None; expected a relation to each of semseg, d",
        ),
        (
            {"genotype": {task: dict.fromkeys(NYUD, "near") for task in NYUD}},
            "genotype semseg from semseg: 'near'; expected one of global, local, t_label, s_label, none",
        ),
        ({"window": 4}, "window 4; expected an odd number"),
        ({"bins": 1}, "bins 1; expected at least 2"),
        ({"dropout": 1.0}, "dropout 1.0; expected at least 0 and below 1"),
        ({"attention_channels": 0}, "attention_channels 0; expected at least 1"),
    ],
)
def test_mistakes_in_the_options(options, message):
    assert message in mistake(**options)
