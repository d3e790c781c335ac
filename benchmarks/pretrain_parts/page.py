"""The tables of benchmarks/pretrain.py."""

from collections.abc import Iterable
from typing import Any

PARTS = (
    *("data", "teachers", "grouping", "embedding", "encoder", "decoder", "losses", "model, one graph"),
    *("backward", "optimiser", "other"),
)


def markdown(result: dict[str, Any]) -> str:
    on_cpu = result["capability"] is not None
    against = list(result["rows"][0]["speedup_over"])
    sheet = ["of the datasheet"] if result["datasheet"] else []
    head = [
        *("row", "precision", f"{'CPU ' if on_cpu else ''}seconds a step (low to high)", "samples/s"),
        *(f"times as fast as {name}" for name in against),
        *("GFLOP a sample", "MFU", *sheet, "peak MB"),
    ]
    steps = [
        [
            row["row"],
            row["precision"],
            span(row["seconds"], 4),
            f"{row['samples_per_second']:.1f}",
            *(span(row["speedup_over"][name], 3) for name in against),
            f"{row['flops_per_sample'] / 1e9:.2f}",
            f"{row['mfu']:.1%}",
            *([percent(row["mfu_of_datasheet"])] if sheet else []),
            "?" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}",
        ]
        for row in result["rows"]
    ]
    parts = [part for part in PARTS if any(part in row["parts"] for row in result["rows"])]
    shares = [
        [row["row"], *(f"{row['parts'][part]:.4g}" if part in row["parts"] else "" for part in parts)]
        for row in result["rows"]
    ]
    floors = [
        [
            name,
            span(floor["seconds"], 4),
            span(floor["ratio"], 3),
            span(floor["seconds_with_memory"], 4),
            span(floor["ratio_with_memory"], 3),
            f"{floor['share_of_flops']:.1%}",
            f"{sum(one['times'] for one in floor['products'])} of {len(floor['products'])} shapes",
        ]
        for name, floor in result["floors"].items()
    ]
    floor_head = [
        *("row", "floor, seconds", "step over floor", "floor with memory at hand", "step over that"),
        *("of the counted operations", "products"),
    ]
    return "\n".join(
        [
            *about(result, on_cpu),
            *("", *table(head, steps)),
            *("", "Seconds by part, medians:", "", *table(["row", *parts], shares)),
            *("", *about_floor(), "", *table(floor_head, floors), ""),
        ]
    )


def about(result: dict[str, Any], on_cpu: bool) -> list[str]:
    packages = ", ".join(f"{name} {number or 'absent'}" for name, number in result["versions"].items())
    before, after = result["load"]
    rates = ", ".join(f"{rate / 1e9:.4g} GFLOP/s in {name}" for name, rate in result["rates"].items())
    hardware = f"{result['device']} ({result['capability']})" if on_cpu else result["device"]
    sheet = f"; the datasheet has {result['datasheet'] / 1e12:.0f} TFLOP/s in bfloat16" if result["datasheet"] else ""
    return [
        f"`{result['command']}` on {hardware}, {result['threads']} CPU thread(s); {packages}; seed {result['seed']}; "
        f"load average {before:.1f} before and {after:.1f} after; {result['date']}.",
        "",
        f"{result['size'].capitalize()}, batch {result['batch']}, {result['num_points']} points, "
        f"{result['rounds']} rounds of all rows by turns, medians (low to high). "
        f"Online: {result['teachers']}; random weights, pictures and tokens given ready. "
        "MFU: matrix products and convolutions of the forward and backward pass, the teachers' too, counted by "
        "torch.utils.flop_counter (grouping and Chamfer distances are not), over the rate of a large square product "
        f"measured in the same run: {rates}{sheet}. "
        "Peak MB: weights, optimiser and what a step adds, without the teachers' weights.",
    ]


def about_floor() -> list[str]:
    return [
        "Floor: every matrix product of the step, forward and backward, timed alone at its shapes and strides, times "
        "how often the step has it; attention's as plain batched products. As a step calls it, a product's result is "
        "new memory; with memory at hand, it is written where an earlier result lay."
    ]


def table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def span(values: dict[str, float], digits: int) -> str:
    """Median (low to high)."""
    median, low, high = (f"{values[name]:.{digits}g}" for name in ("median", "low", "high"))
    return f"{median} ({low} to {high})"
