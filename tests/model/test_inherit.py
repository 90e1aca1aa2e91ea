"""What a network takes over from another one, against the two networks' own predictions and weights."""

from __future__ import annotations

import pytest
import torch

from mtlsi.errors import MistakeError
from mtlsi.model.build import create_model
from mtlsi.model.inherit import describe, inherit
from mtlsi.nn.layers import Predictions
from random_weights import draw_weights

ROOM = ("wall", "floor", "bed")
HALL = ("floor", "door", "wall", "lamp")


def drawn(seed, **sizes):
    """A network in evaluation whose every weight and statistic is drawn."""
    torch.manual_seed(seed)
    network = create_model("tiny", input_size=(64, 64), **sizes)
    return draw_weights(network, std=0.2)


def predictions(network):
    with torch.no_grad():
        return network(torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(5)))


@pytest.mark.parametrize(
    "sizes",
    [{}, {"form": "paper"}, {"queries": "dense"}, {"queries": "shared"}]
    + [{"decoder": name} for name in ("taskexpert", "invpt", "atrc")],
    ids=str,
)
def test_the_same_tasks_in_another_order_predict_the_same(sizes):
    """Every weight must have found its place, those that mix tasks among them."""
    old = drawn(0, tasks=("depth", "normals", "boundary"), **sizes)
    new = drawn(1, tasks=("boundary", "depth", "normals"), **sizes)
    assert inherit(new, old) == dict.fromkeys(new.tasks, "all")
    ours, theirs = predictions(new), predictions(old)
    for kind in ("final", "coarse"):
        for task, expected in getattr(theirs, kind).items():
            torch.testing.assert_close(getattr(ours, kind)[task], expected, atol=1e-4, rtol=1e-4)


def test_one_task_of_many_predicts_the_same_where_none_meet():
    old = drawn(0, tasks=("depth", "boundary", "normals"), decoder="heads_only")
    new = drawn(1, tasks=("boundary",), decoder="heads_only")
    assert inherit(new, old) == {"boundary": "all"}
    expected = predictions(old).final["boundary"]
    torch.testing.assert_close(predictions(new).final["boundary"], expected, atol=1e-4, rtol=1e-4)


def test_plain_heads_of_shared_tasks_predict_the_same_beside_a_new_one():
    old = drawn(0, tasks=("depth", "normals"), decoder="heads_only")
    new = drawn(1, tasks=("saliency", "normals"), decoder="heads_only")
    before = {name: x.clone() for name, x in new.named_parameters()}
    found = inherit(new, old)
    assert found == {"saliency": "new", "normals": "all"}
    assert describe(found) == "saliency: new; normals: all"
    torch.testing.assert_close(
        predictions(new).final["normals"], predictions(old).final["normals"], atol=1e-4, rtol=1e-4
    )
    layer = next(x for x in new.modules() if isinstance(x, Predictions)).of_task["saliency"]
    names = [name for name, x in new.named_parameters() if x is layer.weight]
    assert torch.equal(layer.weight, before[names[0]])


def test_more_tasks_take_over_what_the_shared_ones_say_to_one_another():
    old, new = drawn(0, tasks=("depth", "normals")), drawn(1, tasks=("boundary", "normals", "depth"))
    before = (
        new.decoder.heads.mix.across.weight[:, :, 0, 0].detach().unflatten(0, (3, -1)).unflatten(2, (3, -1)).clone()
    )
    inherit(new, old)
    after = new.decoder.heads.mix.across.weight[:, :, 0, 0].unflatten(0, (3, -1)).unflatten(2, (3, -1))
    theirs = old.decoder.heads.mix.across.weight[:, :, 0, 0].unflatten(0, (2, -1)).unflatten(2, (2, -1))
    for i, task in enumerate(new.tasks):
        for j, other in enumerate(new.tasks):
            shared = task in old.tasks and other in old.tasks
            expected = theirs[old.tasks.index(task), :, old.tasks.index(other)] if shared else before[i, :, j]
            assert torch.equal(after[i, :, j], expected)


def test_classes_of_the_same_name_keep_their_rows():
    old = drawn(0, tasks=("semseg", "depth"), classes={"semseg": ROOM})
    new = drawn(1, tasks=("semseg", "depth"), classes={"semseg": HALL})
    kept = new.decoder.heads.predict.of_task["semseg"].weight.clone()
    assert inherit(new, old) == {"semseg": "2 of 4 classes (new: door, lamp)", "depth": "all"}
    ours, theirs = predictions(new).coarse["semseg"], predictions(old).coarse["semseg"]
    for name in ("wall", "floor"):
        torch.testing.assert_close(ours[:, HALL.index(name)], theirs[:, ROOM.index(name)], atol=1e-4, rtol=1e-4)
    weight = new.decoder.heads.predict.of_task["semseg"].weight
    assert torch.equal(weight[[1, 3]], kept[[1, 3]])
    embed = new.decoder.fusion.embed["semseg"].weight
    assert torch.equal(embed[:, [2, 0]], old.decoder.fusion.embed["semseg"].weight[:, [0, 1]])


def test_as_many_classes_as_channels_are_not_taken_for_channels():
    """``tiny`` has 24 channels: both axes of a weight from classes to channels have as many rows."""
    names = [f"class {number}" for number in range(24)]
    old = drawn(0, tasks=("semseg", "depth"), classes={"semseg": names})
    new = drawn(1, tasks=("semseg", "depth"), classes={"semseg": names[::-1]})
    assert inherit(new, old) == {"semseg": "24 of 24 classes", "depth": "all"}
    ours, theirs = (predictions(network) for network in (new, old))
    torch.testing.assert_close(ours.final["semseg"].flip(1), theirs.final["semseg"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.final["depth"], theirs.final["depth"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("decoder", ["heads_only", "atrc", "invpt", "taskexpert"])
@pytest.mark.parametrize("names", [ROOM[::-1], HALL], ids=["in another order", "with others"])
def test_layers_of_a_task_without_an_axis_of_classes_are_taken_over_whatever_its_classes(decoder, names):
    """What they say of classes that both have is the same but for what classes say to one another."""
    old = drawn(0, decoder=decoder, tasks=("semseg", "depth"), classes={"semseg": ROOM})
    new = drawn(1, decoder=decoder, tasks=("semseg", "depth"), classes={"semseg": names})
    inherit(new, old)
    theirs = old.state_dict()
    for key, ours in new.state_dict().items():
        if "semseg" in key.split(".") and ours.shape == theirs[key].shape and len(names) not in ours.shape:
            assert torch.equal(ours, theirs[key]), key
    if set(names) == set(ROOM):
        found, expected = predictions(new).final["semseg"], predictions(old).final["semseg"]
        torch.testing.assert_close(found.flip(1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "sizes", [{}, {"form": "paper"}, *({"decoder": name} for name in ("heads_only", "taskexpert", "invpt"))], ids=str
)
def test_distances_are_those_of_what_is_shown_smaller(sizes):
    """A photo of half the sides shows everything half as large, and as far away as before."""
    camera = {"focal_px": 100.0, "size_hw": (64, 64)}
    old = drawn(0, tasks=("depth", "normals"), camera=camera, **sizes)
    for changes, factor in (
        ({"input_size": (32, 32), "camera": camera}, 0.5),
        ({"input_size": (32, 128)}, 1.0),  # another camera, or none that is known: the same field of view
        ({"input_size": (16, 64)}, 0.5),
        ({"input_size": (64, 64), "camera": {"focal_px": 300.0, "size_hw": [128, 128]}}, 1.5),
        ({"input_size": (64, 64), "camera": {"focal_px": 200.0, "size_hw": [128, 64]}, "resize": "keep_ratio"}, 1.0),
    ):
        torch.manual_seed(1)
        new = draw_weights(create_model("tiny", tasks=("depth", "normals"), **changes, **sizes), std=0.2)
        found = inherit(new, old)
        assert found == {"depth": "all" if factor == 1 else f"all, its distances times {factor:.2f}", "normals": "all"}
        ours, theirs = predictions(new), predictions(old)
        for kind in ("final", "coarse"):
            for task, expected in getattr(theirs, kind).items():
                expected = expected * (factor if task == "depth" else 1)
                torch.testing.assert_close(getattr(ours, kind)[task], expected, atol=1e-4, rtol=1e-4)


def test_what_does_not_fit_is_said():
    old = create_model("tiny", tasks=("depth",))
    with pytest.raises(MistakeError, match=r"the model has channels 24, the run 32; leave the run's preset"):
        inherit(create_model("tiny", tasks=("depth",), channels=32), old)
    with pytest.raises(MistakeError, match=r"predicts depth; expected one of the run's tasks among them, normals"):
        inherit(create_model("tiny", tasks=("normals",)), old)
    inherit(create_model("tiny", tasks=("depth",), drop_path=0.1), old)  # no size of a weight
