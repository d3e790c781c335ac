"""What a process may use, read from control groups as containers and schedulers lay them out."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from recon.pipeline.base import machine
from recon.pipeline.base.machine import core_limits, memory_bytes, memory_limits

ROOT = Path(__file__).resolve().parents[1]
V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = (
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "37 31 0:33 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd"
)
UNLIMITED = "9223372036854771712\n"


def tree(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    """A root folder with these /proc/self/cgroup, /proc/self/mountinfo and files under /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup + "\n")
    (root / "proc/self/mountinfo").write_text(f"23 1 0:21 / /proc rw - proc proc rw\n{mounts}\n")
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


# ---- cores


@pytest.mark.parametrize(
    ("cgroup", "mounts", "files", "quota"),
    [
        ("0::/", V2, {"cpu.max": "max 100000\n"}, None),
        ("0::/", V2, {"cpu.max": "250000 100000\n"}, 2),  # in a container's own namespace
        ("0::/", V2, {"cpu.max": "50000 100000\n"}, 1),
        ("0::/a.slice/b", V2, {"a.slice/b/cpu.max": "max 100000\n", "a.slice/cpu.max": "300000 100000\n"}, 3),
        ("0::/a/b", V2, {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "60000 20000\n", "cpu.max": "9 1\n"}, 3),
        ("0::/a", V2, {"b/cpu.max": "100000 100000\n"}, None),  # another's
        ("0::/gone", V2, {"cpu.max": "200000 100000\n"}, 2),
        ("3:cpu,cpuacct:/", V1, {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "9\n"}, None),
        (
            "9:memory:/m\n3:cpu,cpuacct:/job\n1:name=systemd:/job",
            V1,
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "150000\n",
                "cpu,cpuacct/job/cpu.cfs_period_us": "50000\n",
                "memory/job/cpu.cfs_quota_us": "50000\n",
                "memory/job/cpu.cfs_period_us": "50000\n",
            },
            3,
        ),
        (  # version 1 in a container whose mount begins at its own group
            "3:cpu,cpuacct:/docker/abc/inner",
            V1.replace("0:29 / ", "0:29 /docker/abc "),
            {"cpu,cpuacct/cpu.cfs_quota_us": "200000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
            2,
        ),
        (  # both, as where systemd has the empty tree of version 2 beside the others
            "3:cpu,cpuacct:/job\n0::/job",
            V1 + "\n" + V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified"),
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "500000\n",
                "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
                "unified/cpu.max": "400000 100000\n",
            },
            4,
        ),
        ("0::/", V2.replace("/sys/fs/cgroup ", "/sys/fs/c\\040g "), {"../c g/cpu.max": "200000 100000\n"}, 2),
    ],
)
def test_the_smallest_quota_holds(
    tmp_path: Path, cgroup: str, mounts: str, files: dict[str, str], quota: int | None
) -> None:
    assert core_limits(tree(tmp_path, cgroup, mounts, files)).get("quota") == quota


STRANGE = [
    "",
    "\n",
    "max",
    "100000",
    "0 100000\n",
    "100000 0\n",
    "a b\n",
    "-5 100000\n",
    "1 2 3\n",
    "1" * 5000,
    "²3 1\n",
]


@pytest.mark.parametrize("text", STRANGE)
def test_a_strange_file_is_no_limit(tmp_path: Path, text: str) -> None:
    files = {"cpu.max": text, "memory.max": text, "memory.current": "?", "memory.stat": "inactive_file\n\nx"}
    root = tree(tmp_path, "0::/", V2, files)
    assert "quota" not in core_limits(root)
    if text != "100000":
        assert "control group" not in memory_limits(root)
        assert memory_bytes(root) > 0


@pytest.mark.parametrize("cgroup", ["", "0", "::", "0::", "0::/../../other", "0::relative", "\x00:cpu:/"])
@pytest.mark.parametrize("mounts", ["", "- cgroup2", "1 2 3 - cgroup2 cgroup2 rw", " - ", V2 + "\nnonsense"])
def test_strange_tables_are_no_limit(tmp_path: Path, cgroup: str, mounts: str) -> None:
    root = tree(tmp_path, cgroup, mounts, {"../other/cpu.max": "100000 100000\n", "cpu.max": "max 100000\n"})
    assert "quota" not in core_limits(root)


def test_no_control_groups_are_no_limit(tmp_path: Path) -> None:
    assert core_limits(tmp_path).keys() <= {"machine", "affinity"}
    assert memory_limits(tmp_path) == {"machine": psutil.virtual_memory().total}
    assert 0 < memory_bytes(tmp_path) <= psutil.virtual_memory().total


def test_a_folder_in_a_files_place_is_no_limit(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/", V2, {"cpu.max/x": "", "memory.max/x": ""})
    assert "quota" not in core_limits(root)
    assert "control group" not in memory_limits(root)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_cores_are_those_of_the_affinity() -> None:
    one = min(os.sched_getaffinity(0))
    code = f"import os, sys; os.sched_setaffinity(0, {{{one}}})\n"
    code += "from recon.pipeline.base.machine import cores, core_limits\n"
    code += "sys.exit(0 if cores() == 1 == core_limits()['affinity'] else f'{cores()} of {core_limits()}')"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_cores_are_the_smallest_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "core_limits", lambda: {"machine": 64, "affinity": 8, "quota": 3})
    assert machine.cores() == 3


# ---- memory


def test_memory_is_what_the_tightest_group_has_left(tmp_path: Path) -> None:
    files = {
        "a/b/memory.max": "max\n",
        "a/b/memory.current": "900000\n",
        "a/memory.max": "4000000\n",
        "a/memory.current": "3500000\n",
        "a/memory.stat": "anon 1200000\nfile 2000000\ninactive_file 1800000\nactive_file 200000\n",
        "memory.max": "5000000\n",
        "memory.current": "3500000\n",
    }
    root = tree(tmp_path, "0::/a/b", V2, files)
    assert memory_limits(root)["control group"] == 4_000_000
    assert memory_bytes(root) == 1_500_000  # of the outer group: 5.0 - 3.5; the inner has 4.0 - (3.5 - 1.8) left


def test_memory_of_version_1_counts_the_groups_below(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": UNLIMITED,
        "memory/memory.usage_in_bytes": "99999999\n",
        "memory/job/memory.limit_in_bytes": "3000000\n",
        "memory/job/memory.usage_in_bytes": "2000000\n",
        "memory/job/memory.stat": "cache 1\ninactive_file 1\ntotal_inactive_file 500000\n",
    }
    root = tree(tmp_path, "7:memory:/job\n3:cpu,cpuacct:/", V1, files)
    assert memory_limits(root)["control group"] == 3_000_000
    assert memory_bytes(root) == 1_500_000


def test_a_group_without_limit_leaves_the_machines_memory(tmp_path: Path) -> None:
    root = tree(tmp_path, "7:memory:/", V1, {"memory/memory.limit_in_bytes": UNLIMITED})
    assert memory_limits(root) == {"machine": psutil.virtual_memory().total}


def test_a_group_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/", V2, {"memory.max": "1000\n", "memory.current": "2000\n"})
    assert memory_bytes(root) == 0


# ---- the processor


@pytest.mark.parametrize(
    ("info", "described"),
    [
        (
            "processor\t: 0\nmodel name\t: AMD EPYC 9R14\nflags\t\t: fpu avx2 avx512f avx512_bf16 avx512bw\n\n"
            "processor\t: 1\nmodel name\t: another\nflags\t\t: amx_tile\n",
            "AMD EPYC 9R14 (AVX2, AVX-512, AVX512-BF16)",
        ),
        ("model name\t: Xeon\nflags\t: amx_bf16 amx_tile avx2 avx512f\n", "Xeon (AVX2, AVX-512, AMX)"),
        ("model name\t: old\nflags\t: avx avx2_not\n", "old"),
        ("model name\t: Neoverse\nFeatures\t: asimd bf16\n", "Neoverse"),
    ],
)
def test_results_name_the_processor_and_its_instructions(tmp_path: Path, info: str, described: str) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(info)
    assert machine.described_processor(tmp_path) == described


def test_a_system_that_tells_nothing_has_an_architecture(tmp_path: Path) -> None:
    assert machine.described_processor(tmp_path) in (platform.processor(), platform.machine())
    assert machine.vector_instructions(tmp_path) == []


# ---- threads


def first_import(module: str, *arguments: str, **set_by_user: str) -> dict[str, str]:
    """The environment `python -m module arguments` has when it first imports numpy or torch, and then ends."""
    code = (
        "import json, os, runpy, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('numpy', 'torch'):\n"
        "            sys.stdout.write(json.dumps(dict(os.environ)))\n"
        "            sys.stdout.flush()\n"
        "            os._exit(7)\n"
        "sys.meta_path.insert(0, Watch())\n"
        f"runpy.run_module({module!r}, run_name='__main__')\n"
    )
    names = (*machine.THREAD_VARIABLES, machine.WAIT_VARIABLE)
    environment = {name: value for name, value in os.environ.items() if name not in names} | set_by_user
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    return found


TRAIN = ("recon.trainer", "pretrain", "--recipe", "demo", "--store", "none.zarr", "--run", "none")
COMPUTE = ("recon.pipeline", "all", "--manifest", "none.toml", "--store", "none.zarr")


def test_the_trainer_takes_the_allowed_cores_before_torch_loads() -> None:
    found = first_import(*TRAIN)
    assert found["OMP_NUM_THREADS"] == str(machine.cores())
    assert found["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "MKL_NUM_THREADS" not in found  # which would take precedence over what a user says of OpenMP


def test_the_pipeline_takes_one_thread_before_torch_loads() -> None:
    found = first_import(*COMPUTE)
    assert {found[name] for name in machine.THREAD_VARIABLES} == {"1"}
    assert found["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize("command", [TRAIN, COMPUTE], ids=["trainer", "pipeline"])
def test_what_the_user_has_set_stays(command: tuple[str, ...]) -> None:
    found = first_import(*command, OMP_NUM_THREADS="3", OMP_WAIT_POLICY="ACTIVE")
    assert (found["OMP_NUM_THREADS"], found["OMP_WAIT_POLICY"]) == ("3", "ACTIVE")


def test_counting_cores_loads_neither_numpy_nor_torch() -> None:
    code = "import sys; from recon.pipeline.base.machine import cores, memory_bytes; cores(), memory_bytes()\n"
    code += "sys.exit('numpy' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
