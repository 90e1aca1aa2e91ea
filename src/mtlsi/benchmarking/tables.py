"""What a benchmark found, for people: one table for the whole, one for its parts, one for the sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from mtlsi.evaluation.report import plain_cell
from mtlsi.streams import write_line

NOT_MEASURED = "not measured"


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """The report of ``mtlsi.benchmark.benchmark``, on one or two screens."""
    for line in _heading(report):
        write_line(console, line)
    console.print(whole_table(report))
    for line in _remarks(report):
        write_line(console, line)
    console.print(part_table(report))
    if report["scaling"] is not None:
        console.print(size_table(report["scaling"]))


def whole_table(report: Mapping[str, Any]) -> Table:
    """The backbone alone and the whole, for every mode and batch."""
    height, width = report["size_hw"]
    title = f"{report['model']} at {height}x{width}, {report['dtype']}: ms, median (lowest-highest)"
    table = Table(title=plain_cell(title, "table.title"))
    table.add_column("mode")
    for name in ("batch", "backbone", "whole", "ratio", "images/s"):
        table.add_column(name, justify="right")
    for row in report["whole"]:
        times = _spread(row["backbone_ms"]), _spread(row["whole_ms"])
        table.add_row(row["mode"], str(row["batch"]), *times, f"{row['ratio']:.2f}", f"{row['images_per_s']:.2f}")
    return table


def part_table(report: Mapping[str, Any]) -> Table:
    """Every part's size, operations and time, and its share of what the machine allows."""
    table = Table(title="parts, one image, eager; allowed: what the machine's rates would need")
    table.add_column("part", no_wrap=True)
    for name in ("params (M)", "GFLOP", "ms", "of time", "allowed ms", "reached"):
        table.add_column(name, justify="right")
    whole_ms = sum(part["ms"]["median"] for part in report["parts"])
    for part in report["parts"]:
        known = part["allowed_ms"] is not None
        table.add_row(
            part["part"],
            f"{part['parameters'] / 1e6:.3g}",
            f"{part['gflop']:.3g}",
            _short(part["ms"]["median"]),
            f"{part['ms']['median'] / whole_ms:.0%}",
            f"{part['allowed_ms']:.2f}" if known else "",
            f"{part['share_of_roofline']:.0%}" if known else "",
        )
    return table


def size_table(scaling: Mapping[str, Any]) -> Table:
    """Time and memory over the sizes; the last row says how they grow."""
    table = Table(title="growth with the size, one image, eager, ms (median)")
    for name in ("size", "pixels", "backbone", "whole", "decoder", "memory (MB)"):
        table.add_column(name, justify="right")
    for row in scaling["sizes"]:
        times = row["backbone_ms"]["median"], row["whole_ms"]["median"], row["decoder_ms"]
        size = f"{row['size_hw'][0]}x{row['size_hw'][1]}"
        table.add_row(size, str(row["pixels"]), *map(_short, times), _megabytes(row["peak_memory_mb"]))
    table.add_section()
    exponents = [scaling[f"{name}_fit"] for name in ("decoder_ms", "peak_memory_mb")]
    shown = ["not fitted" if fit is None else f"pixels^{fit['exponent']:.2f}" for fit in exponents]
    table.add_row("grows as", "", "", "", *shown)
    return table


def _heading(report: Mapping[str, Any]) -> list[str]:
    machine, totals, rates = report["machine"], report["totals"], report["rates"]
    place = machine.get("accelerator") or f"{machine['cpu']}, {machine['threads']} threads"
    products = ", ".join(f"{rate:.0f} GFLOP/s in {name}" for name, rate in rates["matrix_gflop_per_s"].items())
    memory = report["peak_memory_mb"]
    return [
        f"{place}, torch {machine['torch']}: matrix products {products}; copies {rates['copy_gb_per_s']:.1f} GB/s",
        f"tasks: {', '.join(report['tasks'])}; weights: {report['weights']}",
        _split("parameters", {name: f"{count / 1e6:.3g} M" for name, count in totals["parameters"].items()}),
        _split("operations", {name: f"{count:.3g} GFLOP" for name, count in totals["gflop"].items()}) + ", 2 x MAC",
        f"peak activation memory: {NOT_MEASURED if memory is None else f'{memory:.0f} MB'}",
    ]


def _split(what: str, counts: Mapping[str, str]) -> str:
    return f"{what}: {counts['total']} (backbone {counts['backbone']}, decoder {counts['decoder']})"


def _remarks(report: Mapping[str, Any]) -> list[str]:
    lines = []
    for row in report["whole"]:
        if "graph_breaks" in row:
            reasons = "".join(f"; {' '.join(reason.split())[:120]}" for reason in dict.fromkeys(row["graph_breaks"]))
            lines.append(f"compiled, batch {row['batch']}: {len(row['graph_breaks'])} graph breaks{reasons}")
    lines += [
        f"{failed['mode']}, batch {failed['batch']}: did not work here ({failed['reason']})"
        for failed in report["failed"]
    ]
    if report["training"] is not None:
        training = report["training"]
        size = f"{training['size_hw'][0]}x{training['size_hw'][1]}"
        lines.append(
            f"training step, batch {training['batch']} at {size}: {_spread(training['step_ms'])} ms, "
            f"{training['images_per_s']:.2f} images/s"
        )
    return lines


def _spread(ms: Mapping[str, float]) -> str:
    median, lowest, highest = (_short(ms[name]) for name in ("median", "lowest", "highest"))
    return f"{median} ({lowest}-{highest})"


def _short(ms: float) -> str:
    return f"{ms:.1f}" if ms < 1000 else f"{ms:.0f}"


def _megabytes(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.0f}"
