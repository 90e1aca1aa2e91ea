"""Networks whose parts can be told from their absence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mtlsi.model.build import create_model
from mtlsi.model.network import MTLSINet
from random_weights import at_usual_scale


@pytest.fixture(scope="session")
def active_network() -> Callable[..., MTLSINet]:
    """Makes a ``tiny`` of a form, with other sizes, whose tokens differ and matter, as they hardly do before training."""

    def make(form: str, **sizes: Any) -> MTLSINet:
        torch.manual_seed(0)
        network = at_usual_scale(create_model("tiny", form=form, **sizes)).eval()
        decoder: Any = network.decoder
        with torch.no_grad():
            for parameter in decoder.parameters():
                if not parameter.any():  # the refined form starts from plain heads
                    parameter.uniform_(-0.5, 0.5)
            if form == "paper":
                decoder.distiller.assign.reduce.weight.mul_(100)
            for parameter in (*decoder.fusion.queries.parameters(), decoder.fusion.key_value.weight):
                parameter.mul_(10)  # else positions attend to the same
            for block in decoder.cross_window:
                block.token_query.weight.mul_(10)
                block.token_key_value.weight.mul_(10)
        return network

    return make
