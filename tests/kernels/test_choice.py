import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mtlsi import kernels
from mtlsi.errors import MistakeError
from mtlsi.kernels import choice, cpu_attention, cpu_linear, cpu_tokens, default, reference


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Nothing is measured yet; ``times`` says how long each call takes, and the calls are counted."""
    monkeypatch.setenv("MTLSI_CACHE", str(tmp_path))
    monkeypatch.delenv("MTLSI_KERNELS", raising=False)
    monkeypatch.setattr(choice, "_measured", {})
    asked = []

    def times(cpu, plain):
        monkeypatch.setattr(choice, "_time", lambda calls: asked.append(calls) or {"cpu": cpu, "default": plain})
        return asked

    return times


X = torch.zeros(1, 2, 3, 4)
WEIGHT = torch.zeros(2, 4, 5)


def test_the_environment_and_the_context_force_a_mode(monkeypatch):
    for mode, form in (("reference", reference), ("default", default), ("cpu", cpu_linear)):
        monkeypatch.setenv("MTLSI_KERNELS", mode)
        assert choice.choose("task_linear", X, WEIGHT) is form.task_linear
    with kernels.use("reference"):
        assert choice.choose("task_linear", X, WEIGHT) is reference.task_linear
    with kernels.use("cpu_grouped"):
        assert choice.choose("task_linear", X, WEIGHT) is cpu_linear.task_linear
        assert choice.choose("attention", X, X, X, 2, None) is default.attention
    monkeypatch.setenv("MTLSI_KERNELS", "fast")
    with pytest.raises(MistakeError, match="MTLSI_KERNELS=fast; expected one of auto, cpu, default, graph, reference"):
        kernels.task_linear(X, WEIGHT)
    with pytest.raises(MistakeError, match="kernels 'fast'"), kernels.use("fast"):
        pass


def test_on_another_device_the_default_form_runs():
    with kernels.use("cpu"):
        assert choice.choose("task_linear", X.to("meta"), WEIGHT.to("meta")) is default.task_linear


@pytest.mark.parametrize(("plain_ms", "chosen"), [(10.0, cpu_linear), (8.0, cpu_linear), (5.0, default)])
def test_a_cpu_form_gives_way_only_where_it_is_clearly_slower(measured, plain_ms, chosen):
    asked = measured(10.0, plain_ms)
    for _ in range(2):
        assert choice.choose("task_linear", X, WEIGHT) is chosen.task_linear
    assert choice.choose("task_linear_chunks", X, WEIGHT, WEIGHT, 2) is chosen.task_linear_chunks
    assert len(asked) == 1


def test_a_choice_is_kept_with_the_cpus_name_and_read_again(measured, monkeypatch, tmp_path):
    asked = measured(10.0, 1.0)
    choice.choose("task_linear", X, WEIGHT)
    ((machine, kept),) = json.loads((tmp_path / "kernels.json").read_text()).items()
    assert choice.cpu_name() in machine
    assert kept["cpu_grouped"]["cpu_form"] is False
    monkeypatch.setattr(choice, "_measured", {})
    assert choice.choose("task_linear", X, WEIGHT) is default.task_linear
    assert len(asked) == 1


def test_of_two_processes_that_measure_at_once_both_take_the_choice_that_was_kept_first(
    measured, monkeypatch, tmp_path
):
    """Else a run that is resumed would take another form, and other last digits, than it began with."""
    measured(10.0, 1.0)  # here the default form is the faster one
    ours = choice._time

    def time_beside_another(calls):
        kept = {choice._machine(): {"cpu_grouped": {"cpu_form": True}}}
        (tmp_path / "kernels.json").write_text(json.dumps(kept))
        return ours(calls)

    monkeypatch.setattr(choice, "_time", time_beside_another)
    assert choice.choose("task_linear", X, WEIGHT) is cpu_linear.task_linear
    ((_, kept),) = json.loads((tmp_path / "kernels.json").read_text()).items()
    assert kept["cpu_grouped"] == {"cpu_form": True}


@pytest.mark.parametrize("content", ["", "[]", '{"x": 1}', "{", '{"": {"cpu_grouped": 3}}'])
def test_a_damaged_file_is_measured_again(measured, tmp_path, content):
    (tmp_path / "kernels.json").write_text(content)
    asked = measured(1.0, 1.0)
    assert choice.choose("task_linear", X, WEIGHT) is cpu_linear.task_linear
    assert len(asked) == 1


def test_a_cache_that_cannot_be_written_is_done_without(measured, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MTLSI_CACHE", str(tmp_path / "file" / "below"))
    measured(1.0, 1.0)
    assert choice.choose("task_linear", X, WEIGHT) is cpu_linear.task_linear


def test_measuring_moves_no_random_numbers_and_leaves_no_mode():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with torch.inference_mode():
        choice._time(kernels.probes.linear)
        assert torch.is_inference_mode_enabled()
    assert torch.equal(torch.rand(3), expected)


def test_what_counts_operations_does_not_count_the_measurement(monkeypatch, tmp_path):
    monkeypatch.setenv("MTLSI_CACHE", str(tmp_path))
    monkeypatch.setattr(choice, "_measured", {})
    monkeypatch.delenv("MTLSI_KERNELS", raising=False)  # a forced form is not measured
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        kernels.task_linear(torch.zeros(1, 2, 3, 4), torch.zeros(2, 4, 5))
    assert counter.get_total_flops() == 2 * 2 * 3 * 4 * 5
    assert (tmp_path / "kernels.json").is_file()


def test_attention_takes_the_form_for_its_arguments():
    low = X.bfloat16()
    wide, many = torch.zeros(1, 1, 4, 64), torch.zeros(1, 1, 200, 64)
    with kernels.use("cpu"):
        assert choice.choose("attention", low, low, low, 2, None) is cpu_attention.written_out
        with torch.no_grad():
            assert choice.choose("attention", wide, many, many, 2, None) is cpu_attention.chunked
        assert choice.choose("attention", wide, many, many, 2, None) is default.attention  # a gradient may be wanted
        trained = wide.bfloat16().requires_grad_()
        assert choice.choose("attention", trained, many, many, 2, None) is cpu_attention.written_out


def test_a_batch_of_small_images_is_not_taken_image_by_image():
    one, two, large = torch.zeros(1, 1, 4, 8), torch.zeros(2, 1, 4, 8), torch.zeros(2, 1, choice.MANY_POSITIONS, 8)
    with kernels.use("cpu"):
        for x, form in ((one, cpu_attention), (two, default), (large, cpu_attention)):
            assert choice.choose("attend_and_expand", [x]) is form.attend_and_expand
        for x, form in ((one, cpu_tokens), (two, default), (large, cpu_tokens)):
            assert choice.choose("assign_tokens", x) is form.assign_tokens
