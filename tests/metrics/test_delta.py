import pytest

from mtlsi.errors import MistakeError
from mtlsi.metrics import delta_m


def test_delta_m_turns_the_sign_where_lower_is_better():
    single = {"semseg": 50.0, "depth": 0.5, "normals": 20.0, "boundary": 80.0}
    multi = {"semseg": 55.0, "depth": 0.45, "normals": 21.0, "boundary": 80.0}
    assert delta_m(multi, single) == pytest.approx((10 + 10 - 5 + 0) / 4)


def test_delta_m_of_the_baseline_is_zero():
    single = {"saliency": 84.5, "parsing": 60.0}
    assert delta_m(single, single) == 0


@pytest.mark.parametrize(
    ("results", "single", "message"),
    [
        ({"depth": 1.0}, {"depth": 1.0, "semseg": 2.0}, "expected the same tasks in both"),
        ({"depth": 1.0}, {"depth": 0.0}, "single-task score of depth: 0.0"),
        ({"depths": 1.0}, {"depths": 1.0}, "unknown task 'depths'"),
    ],
)
def test_delta_m_names_the_mistake(results, single, message):
    with pytest.raises(MistakeError, match=message):
        delta_m(results, single)
