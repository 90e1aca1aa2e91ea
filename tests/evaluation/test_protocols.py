from __future__ import annotations

import json
import re
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from mtlsi.config import DataConfig
from mtlsi.errors import MistakeError
from mtlsi.evaluation.constant import Constant
from mtlsi.evaluation.evaluate import evaluate, evaluate_from_command
from mtlsi.evaluation.one_image import predict_image
from mtlsi.evaluation.protocols import PROTOCOLS, Showing, padded, showing_by, showing_of
from mtlsi.model.build import create_model
from mtlsi.model.network import Output, fit_to_image
from mtlsi.options.measuring import EvaluateOptions, MeasureOptions
from mtlsi.tasks import TASK_SETS


def test_the_published_sizes():
    assert (
        str(showing_of("invpt", "nyud"))
        == "protocol invpt: images as stored, 480x640 cut to 425x560, padded to 448x576"
    )
    assert str(showing_of("invpt", "pascal")) == "protocol invpt: images as stored, padded to 512x512"
    assert (
        str(showing_of("atrc", "nyud")) == "protocol atrc: images as stored, 480x640 cut to 425x560, padded to 425x560"
    )
    assert str(showing_of("mti-net", "nyud")) == "protocol mti-net: images resized to 480x640"
    for name, task_set in TASK_SETS.items():  # the project's own sizes are those of the InvPT line
        assert showing_of("invpt", name).pad_hw == task_set.size_hw


def test_the_flags_help_names_every_protocol():
    from docstring_parser import parse_from_object

    helps = {param.arg_name: param.description or "" for param in parse_from_object(MeasureOptions).params}
    assert set(PROTOCOLS) <= set(re.findall(r"[\w-]+", helps["protocol"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "sota"}, "--protocol sota; expected one of invpt, atrc, mti-net"),
        ({"protocol": "invpt", "data": "folder"}, "--data folder; expected nyud or pascal"),
        ({"protocol": "invpt", "size_hw": (448, 576)}, "give one of them"),
        ({"protocol": "invpt", "resize": "keep_ratio"}, "--resize and --protocol both say how"),
        ({"resize": "fit"}, "--resize 'fit'; expected one of stretch, keep_ratio"),
        ({"depth_range_m": (5.0, 1.0)}, "--depth-range 5 1"),
    ],
)
def test_what_no_protocol_says_is_refused_before_anything_is_loaded(options, message):
    with pytest.raises(MistakeError, match=message) as caught:
        evaluate_from_command(EvaluateOptions("no such model", **options))
    assert "\n" not in str(caught.value)


def test_padding_puts_the_image_in_the_middle_and_refuses_larger_ones():
    image = torch.ones(3, 5, 8)
    found, box = padded(image, (8, 11), "a")
    assert box == (1, 1, 5, 8)  # the odd row and column go to the bottom and the right
    expected = torch.zeros(3, 8, 11)
    expected[:, 1:6, 1:9] = 1
    assert torch.equal(found, expected)
    assert padded(image, None, "a") == (image, (0, 0, 5, 8))
    with pytest.raises(MistakeError, match="image a is 5x8, the protocol pads to 8x7"):
        padded(image, (8, 7), "a")


class Rooms:
    """Two sizes of images that tell where they are: red rises with the row, green with the column; depth is their sum."""

    tasks, classes, derived, boundary_tolerance = ("depth",), {}, (), 0.01
    sizes = ((41, 50), (30, 61), (41, 50))

    def __len__(self):
        return 3

    def __getitem__(self, index):
        height, width = self.sizes[index]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        image = torch.stack([rows, columns, torch.zeros_like(rows)]).to(torch.uint8)
        return {"image": image, "depth": (rows + columns + 1.0)}

    def name(self, index):
        return f"room {index}"


class Reads(nn.Module):
    """Gives the depth that the image says, at the size asked for; padding reads as the mean colour's."""

    tasks, classes = ("depth",), {}

    def __init__(self):
        super().__init__()
        self.shown = []

    def forward(self, images, tasks, *, full_size):  # noqa: ARG002
        self.shown.append(tuple(images.shape))
        assert full_size  # else the cut would fall between cells
        mean, std = (torch.tensor(x).view(2, 1, 1) for x in ((0.485, 0.456), (0.229, 0.224)))
        depth = (255 * (images[:, :2] * std + mean)).sum(1, keepdim=True) + 1
        return Output(fit_to_image({"depth": depth}, images.shape[-2:], full_size=True), {})


def test_predictions_are_cut_back_to_the_image_before_they_are_compared():
    reads = Reads()
    config = DataConfig(image_hw=None, num_workers=0)
    scores = evaluate(reads, Rooms(), config, showing=Showing(pad_hw=(48, 64)), batch_size=3)  # type: ignore[arg-type]
    assert reads.shown == [(3, 3, 48, 64)]  # padded images have one size
    assert scores["depth"]["RMSE"] == pytest.approx(0, abs=1e-3)
    with pytest.raises(MistakeError, match="image room 1 is 30x61, the protocol pads to 48x60"):
        evaluate(reads, Rooms(), config, showing=Showing(pad_hw=(48, 60)))  # type: ignore[arg-type]


def test_what_a_protocol_resizes_to_is_what_the_model_sees():
    class Flat(nn.Module):
        tasks, classes = ("depth",), {}

        def forward(self, images, tasks, *, full_size):  # noqa: ARG002
            shown.append(tuple(images.shape[-2:]))
            return Output({"depth": torch.ones(len(images), 1, 4, 4)}, {})

    shown = []
    config = DataConfig(image_hw=(8, 12), num_workers=0)
    evaluate(Flat(), Rooms(), config, showing=Showing((16, 20)), indices=[0])  # type: ignore[arg-type]
    evaluate(Flat(), Rooms(), config, indices=[0])  # type: ignore[arg-type]
    assert shown == [(16, 20), (8, 12)]


def test_a_kept_ratio_is_padded_for_the_network_and_cut_off_before_it_is_scored():
    reads, rooms = Reads(), Rooms()
    config = DataConfig(image_hw=(96, 90), resize="keep_ratio", num_workers=0)
    seen = []
    scores = evaluate(
        reads,
        rooms,  # type: ignore[arg-type]
        config,
        batch_size=3,
        on_image=lambda _, decoded, __: seen.append(decoded["depth"][0]),
    )
    assert reads.shown == [(3, 3, 96, 90)]  # images of mixed shapes share a batch
    errors = []
    for index, (height, width) in enumerate(((74, 90), (44, 90), (74, 90))):
        sample = rooms[index]
        small = sample["image"].permute(1, 2, 0).numpy()
        large = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR), np.float64)
        depth = torch.from_numpy(large[..., :2].sum(-1) + 1)[None, None]
        expected = torch.nn.functional.interpolate(depth, sample["depth"].shape, mode="bilinear")[0, 0]
        assert (seen[index] - expected).abs().max() < 2.1  # two channels, rounded to whole numbers here
        errors.append((seen[index] - sample["depth"]).square().flatten())
    assert scores["depth"]["RMSE"] == pytest.approx(float(torch.cat(errors).mean().sqrt()), rel=1e-5)
    assert scores["depth"]["RMSE"] < 1
    assert str(showing_by(config)) == "images resized by one factor into 96x90, padded to 96x90"


def test_what_is_drawn_of_an_image_is_what_was_measured():
    network = create_model("tiny", tasks=("depth",), input_size=(64, 64)).eval()
    for resize in ("stretch", "keep_ratio"):
        config = DataConfig(image_hw=(64, 64), resize=resize, num_workers=0)
        measured = {}
        evaluate(
            network,
            Rooms(),  # type: ignore[arg-type]
            config,
            on_image=lambda index, decoded, _, measured=measured: measured.update({index: decoded["depth"][0]}),
        )
        drawn = predict_image(network, Rooms(), config, 1)  # type: ignore[arg-type]
        np.testing.assert_allclose(drawn.predicted["depth"], measured[1].numpy(), atol=2e-2)
        assert drawn.photo.shape == (30, 61, 3)


def test_the_best_constant_is_the_same_however_images_are_shown():
    constant, whole = Constant(Rooms()), DataConfig(image_hw=None, num_workers=0)  # type: ignore[arg-type]
    plain = evaluate(constant, Rooms(), whole)["depth"]["RMSE"]  # type: ignore[arg-type]
    padded_to = evaluate(constant, Rooms(), whole, showing=Showing(pad_hw=(48, 64)))  # type: ignore[arg-type]
    assert padded_to["depth"]["RMSE"] == pytest.approx(plain, rel=1e-6)


def test_a_part_may_be_cut_out_with_its_labels():
    reads, rooms = Reads(), Rooms()
    showing = Showing(pad_hw=(32, 64), cut=((41, 50), (3, 5, 30, 40)))
    seen = []
    scores = evaluate(
        reads,
        rooms,  # type: ignore[arg-type]
        DataConfig(image_hw=None, num_workers=0),
        showing=showing,
        indices=[0, 1],
        on_image=lambda _, decoded, __: seen.append(decoded["depth"][0]),
    )
    assert reads.shown == [(2, 3, 32, 64)]
    assert scores["depth"]["RMSE"] == pytest.approx(0, abs=1e-3)
    assert seen[0].shape == (30, 40)
    assert float(seen[0][0, 0]) == pytest.approx(3 + 5 + 1, abs=1e-3)
    assert seen[1].shape == (30, 61)  # another size: whole


def test_a_protocol_stands_in_the_tables_and_in_the_file(nyud_root, tmp_path, capsys):
    network = create_model("tiny", dataset="nyud", input_size=(64, 64))
    network.save_pretrained(tmp_path / "model")
    with pytest.raises(MistakeError, match=r"is 48x64; expected the 425x560 that the protocol was published on"):
        evaluate_from_command(
            EvaluateOptions(str(tmp_path / "model"), data="nyud", root=str(nyud_root), protocol="invpt", tasks="depth")
        )
    for folder, suffix in (("images", "jpg"), ("depth", "png"), ("segmentation", "png")):
        for path in (nyud_root / folder).glob(f"*.{suffix}"):
            with Image.open(path) as image:
                image.resize((560, 425), Image.Resampling.NEAREST).save(path)
    options = EvaluateOptions(
        str(tmp_path / "model"),
        data="nyud",
        root=str(nyud_root),
        protocol="invpt",
        tasks="depth",
        limit=1,
        json_path=tmp_path / "scores.json",
    )
    evaluate_from_command(options, console=Console(width=160))
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("protocol invpt: images as stored, 480x640 cut to 425x560, padded to 448x576") == 2
    written = json.loads((tmp_path / "scores.json").read_text())
    assert (written["protocol"], written["shown_at"]) == ("invpt", [448, 576])
    assert (written["resized_to"], written["padded_to"]) == (None, [448, 576])
    assert set(written["scores"]) == {"depth"}


def test_stored_images_of_nyud_are_cut_to_the_published_part(nyud_root, tmp_path):
    network = create_model("tiny", dataset="nyud", input_size=(64, 64))
    network.save_pretrained(tmp_path / "model")
    for folder, suffix in (("images", "jpg"), ("depth", "png"), ("segmentation", "png")):
        for name, size in (("0003", (640, 480)), ("0004", (700, 480))):
            path = nyud_root / folder / f"{name}.{suffix}"
            with Image.open(path) as image:
                image.resize(size, Image.Resampling.NEAREST).save(path)
    options = EvaluateOptions(str(tmp_path / "model"), data="nyud", root=str(nyud_root), protocol="atrc", tasks="depth")
    options = replace(options, save=tmp_path / "saved")
    with pytest.raises(
        MistakeError, match="image 0004 is 480x700; expected the 425x560 that the protocol was published on, or 480x640"
    ):
        evaluate_from_command(options)
    evaluate_from_command(replace(options, limit=1), console=Console(file=StringIO()))
    assert np.load(tmp_path / "saved" / "depth" / "0003.npy").shape == (425, 560)
