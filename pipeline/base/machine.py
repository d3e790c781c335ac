"""What this process may use of the machine: cores and memory, by affinity and control groups.

A container's quota or a scheduler's affinity allows less than the machine has, and what counts the machine's cores
starts threads that stand in each other's way. Nothing here imports numpy or torch: their environment is set before.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")
# One thread a worker: the cores are shared out between processes, and a matrix product split over another number of
# threads would round differently.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS")
WAIT_VARIABLE = "OMP_WAIT_POLICY"  # GNU's and Intel's OpenMP both read it


# ---- threads


def set_thread_variables() -> None:
    """One thread a library, here and in spawned workers; to be called before numpy or torch is imported."""
    for name in THREAD_VARIABLES:
        os.environ.setdefault(name, "1")
    os.environ.setdefault(WAIT_VARIABLE, "PASSIVE")


def use_allowed_cores() -> None:
    """As many threads as cores are allowed, which sleep where they wait; for before numpy or torch is imported.

    What the user has set stays. By default threads spin where they wait for the last one, and on a core that others use
    too they spin in its way.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(cores()))  # MKL and OpenBLAS follow it
    os.environ.setdefault(WAIT_VARIABLE, "PASSIVE")


# ---- cores and memory


def cores() -> int:
    """How many cores this process may use, at least one: the least of `core_limits`."""
    return min(core_limits().values())


def memory_bytes(root: Path = ROOT) -> int:
    """Memory this process may still take, in bytes. What the file cache would give back counts as free."""
    import psutil

    return min([int(psutil.virtual_memory().available), *_free_in_groups(root)])


def core_limits(root: Path = ROOT) -> dict[str, int]:
    """Cores by what limits them: the machine, this process's affinity and, where it has one, its CPU quota.

    A quota is rounded down, but never to none. root: the folder `proc` and the control groups lie in.
    """
    found = {"machine": os.cpu_count() or 1}
    if hasattr(os, "sched_getaffinity"):
        found["affinity"] = len(os.sched_getaffinity(0))
    quotas = [quota for group in control_groups("cpu", root) if (quota := _quota(group)) is not None]
    if quotas:
        found["quota"] = max(1, int(min(quotas)))
    return found


def memory_limits(root: Path = ROOT) -> dict[str, int]:
    """Bytes by what limits them, used or not: the machine and, where it is less, this process's control group."""
    import psutil

    found = {"machine": int(psutil.virtual_memory().total)}
    limits = [limit for group in control_groups("memory", root) if (limit := _memory_limit(group)) is not None]
    if limits and min(limits) < found["machine"]:
        found["control group"] = min(limits)
    return found


def processor(root: Path = ROOT) -> str:
    """The processor's name; its architecture where the system does not tell."""
    return _processor_field("model name", root) or platform.processor() or platform.machine()


def vector_instructions(root: Path = ROOT) -> list[str]:
    """Which of AVX2, AVX-512, AVX512-BF16 and AMX the processor has; none where the system does not tell."""
    flags = _processor_field("flags", root).split()
    names = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX512-BF16", "amx_tile": "AMX"}
    return [name for flag, name in names.items() if flag in flags]


def described_processor(root: Path = ROOT) -> str:
    """Its name and instructions, for results: what computes faster for them must not be taken for faster code."""
    found = ", ".join(vector_instructions(root))
    return f"{processor(root)} ({found})" if found else processor(root)


def _processor_field(wanted: str, root: Path) -> str:
    """What the system says of the first processor; empty where it says nothing."""
    for line in _lines(root / "proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() == wanted and value.strip():
            return value.strip()
    return ""


# ---- control groups


def control_groups(controller: str, root: Path = ROOT) -> Iterator[Path]:
    """This process's control groups that may limit `controller`, each with its ancestors as far as they are mounted.

    Version 2 has one tree for all controllers, version 1 a tree each, and a machine may have both. Paths and mounts are
    those that this process sees, so a container's namespace makes no difference.
    """
    mounts = list(_mounts(root))
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        unified = number == "0" and not controllers
        if not unified and controller not in controllers.split(","):
            continue
        for top, mounted, options in mounts:
            if not PurePosixPath(path).is_relative_to(mounted) or ".." in PurePosixPath(path).parts:
                continue  # ".." leads out of what is visible here
            if options is None if unified else options is not None and controller in options:
                group = top / PurePosixPath(path).relative_to(mounted)
                yield group
                for above in group.parents:
                    if not above.is_relative_to(top):
                        break
                    yield above


def _mounts(root: Path) -> Iterator[tuple[Path, str, list[str] | None]]:
    """Mounted trees of control groups: where, which group is at the top, and version 1's controllers."""
    for line in _lines(root / "proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")
        if len(fields) >= 5 and len(kind) >= 3 and kind[0] in ("cgroup", "cgroup2"):
            mounted, place = (re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), text) for text in fields[3:5])
            yield root / place.lstrip("/"), mounted, kind[2].split(",") if kind[0] == "cgroup" else None


def _quota(group: Path) -> float | None:
    """Cores a group may use by its quota of CPU time; None without one."""
    words = " ".join(_lines(group / "cpu.max")).split()
    if not words:
        words = [*_lines(group / "cpu.cfs_quota_us"), *_lines(group / "cpu.cfs_period_us")]
    quota, period = map(_number, words) if len(words) == 2 else (None, None)
    return quota / period if quota and period else None


def _memory_limit(group: Path) -> int | None:
    limit = _read_number(group / "memory.max")
    return _read_number(group / "memory.limit_in_bytes") if limit is None else limit


def _free_in_groups(root: Path) -> Iterator[int]:
    """Bytes that each group with a limit has left."""
    for group in control_groups("memory", root):
        if (limit := _memory_limit(group)) is not None:
            used = _read_number(group / "memory.current") or _read_number(group / "memory.usage_in_bytes") or 0
            stat = dict(line.split(" ", 1) for line in _lines(group / "memory.stat") if " " in line)
            # Version 1 counts what lies in groups below under another name.
            cache = _number(stat.get("total_inactive_file", stat.get("inactive_file", ""))) or 0
            yield max(0, limit - max(0, used - cache))


def _read_number(path: Path) -> int | None:
    lines = _lines(path)
    return _number(lines[0]) if lines else None


def _number(text: str) -> int | None:
    """A count; None for what is none, such as "max" or version 1's -1."""
    return int(text) if re.fullmatch(r"[0-9]{1,30}", text) else None


def _lines(path: Path) -> list[str]:
    """A file's lines; none where it cannot be read."""
    try:
        return path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
