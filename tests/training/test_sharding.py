from __future__ import annotations

import pytest
import torch

from mtlsi.model.build import create_model
from mtlsi.training.sharding import parts_of


def network(backbone: str):
    with torch.device("meta"):
        return create_model("tiny", tasks=("depth",), backbone=backbone)


@pytest.mark.parametrize(
    ("backbone", "number"),
    [("vit_tiny_patch16_224", 12), ("swin_tiny_patch4_window7_224", 12), ("mobilenetv2_035", 7), ("resnet18", 4)],
)
def test_a_backbone_is_made_whole_block_by_block_and_the_decoder_as_one(backbone, number):
    made = network(backbone)
    *blocks, decoder = parts_of(made)
    assert decoder is made.decoder
    assert len(blocks) == number
    held = [parameter for block in blocks for parameter in block.parameters()]
    assert len({id(x) for x in held}) == len(held)  # no block lies in another one
    assert sum(x.numel() for x in held) > 0.8 * sum(x.numel() for x in made.backbone.body.parameters())


def test_a_backbone_that_is_recomputed_as_one_is_made_whole_as_one():
    made = network("mobilenetv2_035")
    made.recompute(True)
    assert parts_of(made) == [made.backbone.body, made.decoder]
    made = network("vit_tiny_patch16_224")
    made.recompute(True)
    assert len(parts_of(made)) == 13
