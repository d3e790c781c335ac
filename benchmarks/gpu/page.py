"""The page that `make gpu` ends with and writes."""

import re
from typing import Any


def slug(device: str) -> str:
    """A device's name as file names have it, the same as benchmarks/kernels.py makes of it."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def markdown(record: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    lines = [f"`{record['command']}` on {record['device']}; {packages}; {record['date']}.", ""]
    lines += ["| part | outcome | seconds | |", "| --- | --- | --- | --- |"]
    lines += [f"| {part['name']} | {part['outcome']} | {part['seconds']} | {part['why']} |" for part in record["parts"]]
    if unsound := [check for check in record["checks"] if check["outcome"] in ("failed", "begun")]:
        lines += ["", "Checks that failed:", ""]
        lines += [f"* {check['name']}: {check['message']}" for check in unsound]
    if record["training"]:
        lines += ["", *about_training(record["training"])]
    return "\n".join(lines) + "\n"


def about_training(training: dict[str, Any]) -> list[str]:
    scale = training["scale"]
    lines = [
        f"{scale['steps']} steps of {scale['batch']} clouds of {scale['num_points']} points, width "
        f"{scale['model']['width']}, the same masks in every form; the rate is that of the last three quarters.",
        "",
        "| form | samples/s | first step, s | peak GB allocated | reserved | loss at first | at last |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, run in training["forms"].items():
        if "error" in run:
            lines.append(f"| {name} | failed | | | | | |")
            continue
        allocated, reserved = run["peak_gb"] or ("-", "-")
        total, size = run["losses"]["total"], scale["window"]
        first, last = (sum(part) / size for part in (total[:size], total[-size:]))
        cells = [f"{run['samples_per_second']:.0f}", run["first_step_seconds"], allocated, reserved]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} | {first:.4f} | {last:.4f} |")
    for name, found in training["comparison"].items():
        lines += ["", f"{name}, how far from eager in bfloat16:", "", "| | apart | allowed |", "| --- | --- | --- |"]
        lines += [f"| {what} | {by['apart']:.1e} | {by['allowed']:.1e} |" for what, by in found.items()]
    if training["faults"]:
        lines += ["", *(f"* {fault}" for fault in training["faults"])]
    return lines
