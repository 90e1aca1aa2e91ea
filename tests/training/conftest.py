from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def undrawn_in_every_module(undrawn):
    """A second of each run."""
