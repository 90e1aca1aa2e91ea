import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlsi.errors import MistakeError
from mtlsi.metrics import AngularError, DepthError, MaxF, MeanIoU, RegressionError

BUILDERS = {
    MeanIoU: lambda: MeanIoU(4),
    DepthError: lambda: DepthError((1.0, 9.0)),
    AngularError: AngularError,
    MaxF: MaxF,
    RegressionError: RegressionError,
}


@pytest.mark.parametrize("kind", BUILDERS)
@given(cuts=st.lists(st.integers(0, 6), max_size=4), seed=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_any_split_into_batches_gives_the_same_scores(kind, cuts, seed, random_batch, scores):
    batch = random_batch(kind, seed=seed)
    whole = scores(BUILDERS[kind](), batch)
    edges = [0, *sorted(cuts), 6]
    parts = [tuple(t[a:b] for t in batch) for a, b in itertools.pairwise(edges)]  # some of them empty
    assert scores(BUILDERS[kind](), *parts) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in BUILDERS if kind is not MeanIoU])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_predictions_that_are_no_numbers_are_refused_where_they_count(kind, value, random_batch):
    prediction, label, valid = random_batch(kind)
    prediction[..., 2, 3], valid[..., 2, 3] = value, False
    metric = BUILDERS[kind]()
    metric.update(prediction, label, valid)
    assert all(torch.isfinite(x) for x in metric.compute().values())
    valid[3, 2, 3] = True
    with pytest.raises(MistakeError, match="NaN or infinite"):
        metric.update(prediction, label, valid)
