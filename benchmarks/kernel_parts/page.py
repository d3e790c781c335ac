"""The markdown table of benchmarks/kernels.py, and the versions that its results and kernel_calls.py's name."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from kernel_parts.clock import Timing


def versions(*packages: str) -> dict[str, str | None]:
    """Of Python, torch and these; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "torch": torch.__version__}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def markdown(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row["contestants"]))
    head = ["op", "size", *(f"{name}, ms (low to high)" for name in names), "ratio", "extra MB", "plain's", "repeats"]
    if "rates" in facts:
        head += ["device us", "plain's", "floor us", "binds", "share of floor"]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for row in rows:
        timings = {name: Timing(**values) for name, values in row["contestants"].items()}
        ours, plain = timings["ours"], timings["plain torch"]
        cells = [row["op"], row["size"], *(timings[name].span() if name in timings else "-" for name in names)]
        cells += [f"{row['ratio']:.2f}"]
        cells += [*("?" if t.extra_mb is None else f"{t.extra_mb:.0f}" for t in (ours, plain)), str(ours.repeats)]
        if "rates" in facts:
            cells += ["-" if t.device_ms is None else f"{t.device_ms * 1e3:.1f}" for t in (ours, plain)]
            cells += [f"{row['floor_ms'] * 1e3:.1f}", row["binds"], f"{row['share_of_floor']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*about(facts), "", *lines]) + "\n"


def about(facts: dict[str, Any]) -> list[str]:
    packages = ", ".join(f"{name} {number or 'absent'}" for name, number in facts["versions"].items())
    before, after = facts["load"]
    lines = [
        f"`{facts['command']}` on {facts['device']}, {facts['threads']} CPU thread(s); {packages}; "
        f"seed {facts['seed']}; load average {before:.1f} before and {after:.1f} after; {facts['date']}.",
        "",
        "Ratio: the best of all others but the naive loop over ours. * marks times of a part of the clouds, scaled to "
        "all of them. torch-cluster's Chamfer and interpolation are its kNN with K = 1 and 3, then plain torch; "
        "so are those of pykdtree, SciPy and faiss. fpsample bucket starts at a point of its own choice. "
        "The cases of 8192 points have 32 clouds, all others ReCon's 128 (x 38 or 19 groups).",
    ]
    if "left_out" in facts:
        lines += ["", f"Not begun within the time allowed: {', '.join(facts['left_out'])}."]
    if "rates" in facts:
        flops, copied = (f"{rate / 1e12:.2f}" for rate in facts["rates"])
        lines += [
            "",
            f"Device time is that of CUDA graph replay. Floor: the larger of flops / {flops} TFLOP/s (float32 matrix "
            f"product without TF32, measured here) and bytes / {copied} TB/s (copy, measured here). Flops: 8 a pair of "
            "points, and 1 for each comparison it needs; bytes: each input read and each output written once. Share of "
            "floor: floor over device time.",
        ]
    else:
        lines += ["", "GPU figures are open; one line fills them in: `python benchmarks/kernels.py --device cuda`."]
    return lines
