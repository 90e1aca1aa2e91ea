from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from mtlsi.drawing.plots import Point, plot_curves, plot_precision_recall, plot_scores, save_figure
from mtlsi.errors import MistakeError
from mtlsi.tasks import TASKS, Task


def write_metrics(path: Path, lines: list[dict], end: str = "") -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + end)
    return path


def test_curves_are_drawn_from_a_run_that_was_stopped_and_resumed(tmp_path):
    lines = [{"step": s, "loss": 5 / s, "loss/depth": 2 / s, "lr": 1e-3} for s in (1, 2, 3, 2, 3, 4)]
    scores = [{"step": 4, "val/depth/RMSE": 0.8, "val/depth/absRel": 0.2, "note": "words"}]
    drawn = plot_curves(
        write_metrics(tmp_path / "metrics.jsonl", lines + scores, '{"step": 5, "lo'), tmp_path / "a.png"
    )
    with Image.open(drawn) as image:
        seen = np.asarray(image.convert("RGB"))
    assert seen.shape[1] > 2 * seen.shape[0]  # two plots beside each other: losses, depth
    assert seen.std() > 5
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "a.png"}


def test_what_a_balance_gave_and_how_gradients_lie_is_drawn_where_it_was_logged(tmp_path):
    plain = [{"step": s, "loss": 5 / s, "loss/depth": 2 / s} for s in (1, 2, 3)]
    weights = [{**line, "balance/depth": 1.5, "balance/normals": 0.5} for line in plain]
    gradients = [
        {"step": 2, "gradient_norm/depth": 0.1, "gradient_norm/normals": 3.0, "gradient_cosine/depth/normals": -0.2},
        {"step": 4, "gradient_norm/depth": 0.2, "gradient_norm/normals": 2.0},
    ]
    widths = []
    for name, lines in (("plain", plain), ("weights", weights), ("both", weights + gradients)):
        drawn = plot_curves(write_metrics(tmp_path / f"{name}.jsonl", lines), tmp_path / f"{name}.png")
        with Image.open(drawn) as image:
            widths.append(image.size)
    one, two, four = widths  # panels; three in a row
    assert two == (pytest.approx(2 * one[0], abs=2), one[1])
    assert four == (pytest.approx(3 * one[0], abs=2), pytest.approx(2 * one[1], abs=2))


def test_what_no_run_logs_is_not_drawn(tmp_path):
    plain = [{"step": step, "loss": 5 / step, "val/depth/RMSE": 1 / step} for step in (1, 2, 3)]
    odd = {
        "step": 3,
        **{"gradient_cosine/depth" + "/depth" * number: 0.5 for number in (0, 2, 3, 300)},
        "gradient_norm/depth/normals": 1.0,
        "balance/": 1.0,
    }
    huge = [
        {"step": step, "loss": sign * 1.7e308, "val/depth/RMSE": sign * 1.7e308} for step, sign in ((4, 1), (5, -1))
    ]
    images = [
        plot_curves(write_metrics(tmp_path / f"{name}.jsonl", lines), tmp_path / f"{name}.png").read_bytes()
        for name, lines in (("plain", plain), ("odd", [*plain, odd, *huge]))
    ]
    assert images[0] == images[1]


def test_a_later_line_for_a_step_replaces_the_earlier(tmp_path):
    once = write_metrics(tmp_path / "once.jsonl", [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.0}])
    again = write_metrics(
        tmp_path / "again.jsonl", [{"step": s, "loss": v} for s, v in ((1, 9.0), (2, 7.0), (1, 3.0), (2, 1.0))]
    )
    images = [plot_curves(path, path.with_suffix(".png")).read_bytes() for path in (once, again)]
    assert images[0] == images[1]


def test_metrics_with_nothing_to_draw_are_refused(tmp_path):
    with pytest.raises(MistakeError, match="cannot be read"):
        plot_curves(tmp_path / "missing.jsonl", tmp_path / "a.png")
    with pytest.raises(MistakeError, match="no loss and no score"):
        plot_curves(write_metrics(tmp_path / "m.jsonl", [{"step": 1, "lr": 0.1}]), tmp_path / "a.png")


def test_a_precision_recall_curve_runs_where_its_points_say(tmp_path):
    recall = np.linspace(0.05, 0.95, 60)
    flat, falling = (tmp_path / name for name in ("flat.png", "falling.png"))
    plot_precision_recall(recall, np.full(60, 0.6), flat, ods=(0.95, 0.6))
    plot_precision_recall(recall, 1 - recall, falling, ods=(0.5, 0.5))

    def rows_of_the_line(path):
        with Image.open(path) as image:
            seen = np.asarray(image.convert("RGB")).astype(int)
        blue = np.abs(seen - (0x2B, 0x6C, 0xB0)).max(-1) < 40
        columns = np.flatnonzero(blue.any(0))
        return [np.flatnonzero(blue[:, c]).mean() for c in columns[20:-20]]

    assert np.ptp(rows_of_the_line(flat)) < 4
    rows = rows_of_the_line(falling)
    assert rows[-1] - rows[0] > 200  # downwards to the right
    assert {path.name for path in tmp_path.iterdir()} == {"flat.png", "falling.png"}


def test_scores_are_drawn_where_they_are_one_panel_per_task(tmp_path):
    points = [
        Point("low", 1.0, {"depth": 0.5, "semseg": 10.0}, {"depth": 0.01}),
        Point("high", 3.0, {"depth": 0.9, "semseg": None}, {}),
    ]
    one = plot_scores(points, ["depth"], "GFLOP", tmp_path / "one.png")
    with Image.open(one) as image:
        seen = np.asarray(image.convert("RGB")).astype(int)
    seen = seen[:, : int(0.83 * seen.shape[1])]  # without the legend
    centres = []
    for tint in ((0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)):
        rows, columns = np.nonzero(np.abs(seen - tint).max(-1) < 30)
        centres.append((columns.mean(), rows.mean()))
    assert centres[0][0] < centres[1][0] - 100  # low is at the left, and below
    assert centres[0][1] > centres[1][1] + 100
    two = plot_scores(points, ["depth", "semseg"], "GFLOP", tmp_path / "two.png")
    with Image.open(one) as narrow, Image.open(two) as wide:
        assert wide.width > 1.5 * narrow.width


def test_steps_of_one_quantity_are_joined_and_levels_run_across(tmp_path):
    points = [Point(f"k{k}", k, {"depth": score}, {}) for k, score in ((8, 0.5), (16, 0.7), (32, 0.6))]

    def blue(**options):
        with Image.open(plot_scores(points, ["depth"], "K", tmp_path / "k.png", **options)) as image:
            seen = np.asarray(image.convert("RGB")).astype(int)
        return (np.abs(seen - (0x1F, 0x77, 0xB4)).max(-1) < 60).any(0).sum()

    assert blue(joined=True) > 3 * blue()  # a line from the first to the last
    plain = plot_scores(points, ["depth"], "K", tmp_path / "a.png", joined=True).read_bytes()
    level = [Point("heads", 0.0, {"depth": 0.55}, {})]
    assert plot_scores(points, ["depth"], "K", tmp_path / "a.png", joined=True, levels=level).read_bytes() != plain


def test_the_end_of_the_name_says_what_a_plot_is_written_as(tmp_path):
    recall = np.linspace(0.05, 0.95, 9)

    def drawn(name):
        return plot_precision_recall(recall, 1 - recall, tmp_path / name, ods=(0.5, 0.5)).read_bytes()

    assert drawn("a.pdf").startswith(b"%PDF-")
    assert drawn("a.pdf").rstrip().endswith(b"%%EOF")
    assert b"<svg" in drawn("a.svg")
    assert drawn("a.PNG").startswith(b"\x89PNG")
    assert drawn("a.pdf") == drawn("b.pdf")  # no date in it
    for name in ("a.jpg", "a"):
        with pytest.raises(
            MistakeError, match=rf"{name}: of no known kind; expected a name that ends in .png, .pdf, .svg"
        ):
            drawn(name)
    curves = plot_curves(write_metrics(tmp_path / "m.jsonl", [{"step": 1, "loss": 3.0}]), tmp_path / "c.pdf")
    assert curves.read_bytes().startswith(b"%PDF-")


def test_scores_that_are_not_defined_leave_a_gap_in_the_curves(tmp_path):
    lines = [{"step": s, "loss": 2.0 / s, "val/depth/RMSE": None if s == 2 else 1.0 / s} for s in (1, 2, 3)]
    without = [{name: x for name, x in line.items() if x is not None} for line in lines]
    images = [
        plot_curves(write_metrics(tmp_path / f"{i}.jsonl", of), tmp_path / f"{i}.png").read_bytes()
        for i, of in enumerate((lines, without))
    ]
    assert images[0] == images[1]


def test_the_best_evaluation_is_ringed_and_the_kept_step_is_a_line(tmp_path):
    lines = [{"step": s, "val/depth/RMSE": v} for s, v in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 3.0))]
    metrics = write_metrics(tmp_path / "m.jsonl", lines)

    def dark(**options):
        """Columns with near-black pixels inside the axes, counted."""
        with Image.open(plot_curves(metrics, tmp_path / "m.png", **options)) as image:
            seen = np.asarray(image.convert("L")).astype(int)
        h, w = seen.shape
        return (seen[int(0.3 * h) : int(0.8 * h), int(0.15 * w) : int(0.95 * w)] < 70).sum(0)

    without, kept = dark(), dark(best_step=3)
    added = np.flatnonzero(kept - without > 20)  # a dotted line from top to bottom, at one place
    assert 0 < np.ptp(added) + 1 < 6
    where = added.mean() / len(without)
    assert 0.5 < where < 0.8  # two thirds of the way from the first step to the last


AS_WRITTEN = ("price $_$", r"cost in $, or in $\euro", r"\$5", "$x^2$", "floor [wood]")


@pytest.mark.parametrize("written", AS_WRITTEN)
def test_titles_are_drawn_as_they_are_written(tmp_path, written):
    """Letter by letter in the SVG, whose texts are then no paths, wherever a person's own text may stand."""
    figure = Figure()
    axes = figure.subplots()
    axes.plot([1, 2], [1, 1000], label=written)
    axes.set(title=written, xlabel=written, yscale="log")
    axes.set_xticks([1, 2], [written, "2"])
    axes.legend()
    figure.suptitle(written)
    with rc_context({"svg.fonttype": "none"}):
        drawn = save_figure(figure, tmp_path / "a.svg").read_text()
    texts = [
        "".join(text.itertext()) for text in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert texts.count(written) == 5
    assert not any("mathdefault" in text for text in texts)  # 10 to the power of 2 is one


def test_the_curves_of_a_task_of_any_title_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "cost", Task("cost", kind="value", title="price $_$", unit="$\\euro$"))
    lines = [{"step": s, "loss": 5 / s, "loss/cost": 2 / s, "val/cost/RMSE": 1.0} for s in (1, 2)]
    assert plot_curves(write_metrics(tmp_path / "metrics.jsonl", lines), tmp_path / "a.png").is_file()
