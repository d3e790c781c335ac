"""What a trained student's use costs on one core: one mesh embedded cold, batches warm, a search over 50,000 shapes.

Run: python benchmarks/use.py [cold warm search] [--quick]. Writes benchmarks/results/use.json and use.md; about three
minutes with no name. A part that is run alone replaces its own entry.

* cold: `recon-train embed` of one GLB in a process of its own, a base student of random weights: seconds until the
  first line stands on the terminal, and until the file is written.
* warm: embedding and both queries' predictions in batches of 32 clouds of 1024 points, against the encoder's forward
  pass over the same clouds, normalised already; by turns, CPU seconds of one thread. Meshes from files beside it.
* search: the nearest 12 of 50,000 unit vectors of 512 numbers, exactly; what making those vectors takes, once for an
  index; and what the shipped demo teacher takes to embed the words.

Times of whole processes are by the clock, beside their CPU seconds; what else ran on the machine is in the load.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from recon.pipeline.base.machine import cores, processor, set_thread_variables  # noqa: E402

set_thread_variables()

import numpy as np  # noqa: E402
import torch  # noqa: E402
import trimesh  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from recon.pipeline.teachers import TeacherSpec, load_teacher  # noqa: E402
from recon.trainer.checkpoints.weights_file import FORMAT  # noqa: E402
from recon.trainer.config import Config  # noqa: E402
from recon.trainer.data.files import read_shape  # noqa: E402
from recon.trainer.data.transforms import normalize  # noqa: E402
from recon.trainer.evaluate.features import Student  # noqa: E402
from recon.trainer.model.recon import ModelConfig, ReCon  # noqa: E402
from recon.trainer.model.teaching import RELEASED_TEACHERS  # noqa: E402
from recon.trainer.use.embedding import describe  # noqa: E402
from recon.trainer.use.index import nearest, unit  # noqa: E402

RESULTS = Path(__file__).parent / "results"
BATCH, NUM_POINTS, SHAPES, WIDTH, TOP, SEED = 32, 1024, 50_000, 512, 12, 0
ROUNDS = 7
FACES = 5120  # of the mesh, a bumpy sphere
TARGETS = {"cold": 10.0, "first_line": 2.0, "warm": 1.1, "search": 0.05}


def student(quick: bool) -> Student:
    """The base model, or a small one, with weights drawn by the seed: their values cost nothing."""
    torch.manual_seed(SEED)
    config = ModelConfig(teachers=RELEASED_TEACHERS, **({"width": 48, "depth": 1, "heads": 3} if quick else {}))
    return Student(Path("random"), ReCon(config).eval(), Config(model=config), {}, {}, torch.device("cpu"))


def mesh_file(folder: Path) -> Path:
    """A sphere with bumps, as GLB."""
    mesh = trimesh.creation.icosphere(subdivisions=4)
    assert len(mesh.faces) == FACES
    mesh.vertices *= 1 + 0.1 * np.sin(7 * mesh.vertices)[:, [1]]
    mesh.export(folder / "mesh.glb")
    return folder / "mesh.glb"


def cold(quick: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        mesh, weights = mesh_file(folder), folder / "step-00000001.safetensors"
        own = student(quick)
        told = {"format": FORMAT, "config": json.dumps(dataclasses.asdict(own.config))}
        save_file(own.model.state_dict(), weights, metadata=told)
        command = [sys.executable, "-m", "recon.trainer", "embed", str(mesh), "--run", str(weights)]
        found: dict[str, list[float]] = {"first_line": [], "wall": [], "cpu": []}
        for _ in range(1 if quick else 3):
            before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
            with subprocess.Popen([*command, "-o", str(folder / "out.npz")], cwd=ROOT, stderr=subprocess.PIPE) as run:
                assert run.stderr is not None
                run.stderr.readline()
                found["first_line"].append(time.monotonic() - started)
                said = run.stderr.read().decode()
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            assert run.returncode == 0, said
            found["wall"].append(time.monotonic() - started)
            found["cpu"].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {name: [round(value, 2) for value in values] for name, values in found.items()}


def turns(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of this process, by turns, after a call of each that does not count."""
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, call in contestants.items():
            started = time.process_time()
            call()
            if number:
                spent[name].append(time.process_time() - started)
    return spent


def warm(quick: bool) -> dict[str, Any]:
    own, count = student(quick), BATCH if quick else 2 * BATCH
    raw = torch.randn(count, NUM_POINTS, 3, generator=torch.Generator().manual_seed(SEED)) * 3 + 1
    ready = normalize(raw)

    @torch.inference_mode()
    def bare() -> None:
        for batch in ready.split(BATCH):
            own.model.forward_features(batch)

    with tempfile.TemporaryDirectory() as folder:
        mesh = mesh_file(Path(folder))
        spent = turns(
            {"bare": bare, "described": lambda: describe(own, raw), "read": lambda: read_shape(mesh, NUM_POINTS)},
            1 if quick else ROUNDS,
        )
    ratios = [a / b for a, b in zip(spent["described"], spent["bare"], strict=True)]
    return {
        "clouds": count,
        "ms_a_cloud": round(1000 * statistics.median(spent["described"]) / count, 2),
        "ms_a_cloud_bare": round(1000 * statistics.median(spent["bare"]) / count, 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_from_to": [round(min(ratios), 3), round(max(ratios), 3)],
        "ms_a_mesh_read": round(1000 * statistics.median(spent["read"]), 2),
    }


def search(quick: bool) -> dict[str, Any]:
    rng, count = np.random.default_rng(SEED), 2000 if quick else SHAPES
    vectors = unit(rng.normal(size=(count, WIDTH)).astype(np.float32))
    queries = iter(unit(rng.normal(size=(100, WIDTH)).astype(np.float32)))
    reader: Any = load_teacher(TeacherSpec(name="demo", kind="open_clip", model="demo"))
    mixed = vectors[::-1]
    contestants: dict[str, Callable[[], Any]] = {
        "prepare": lambda: unit(vectors + 0.25 * mixed),
        "exact": lambda: nearest(vectors, next(queries), TOP),
        "words": lambda: reader.embed_texts(["a chair with armrests"]),
    }
    torch.set_num_threads(1)
    spent = turns(contestants, 3 if quick else 20)
    return {"shapes": count, "dimensions": WIDTH, "top": TOP} | {
        f"ms_{name}": round(1000 * statistics.median(values), 2) for name, values in spent.items()
    }


PARTS: dict[str, Callable[[bool], dict[str, Any]]] = {"cold": cold, "warm": warm, "search": search}


def page(found: dict[str, Any]) -> str:
    """The results as a table."""
    rows = []
    if part := found.get("cold"):
        rows.append(
            (
                "`recon-train embed` of one mesh, cold: first line",
                f"{statistics.median(part['first_line']):.1f} s",
                "2 s",
            )
        )
        wall, cpu = (statistics.median(part[name]) for name in ("wall", "cpu"))
        rows.append(("the same: file written", f"{wall:.1f} s, of CPU {cpu:.1f} s", "10 s"))
    if part := found.get("warm"):
        low, high = part["ratio_from_to"]
        rows.append(
            (
                f"{part['clouds']} clouds of {NUM_POINTS} points, to the bare encoder",
                f"{part['ratio']:.3f} times ({low:.3f} to {high:.3f})",
                "1.1",
            )
        )
        rows.append(
            (
                "a cloud: embedding and predictions; encoder alone",
                f"{part['ms_a_cloud']} ms; {part['ms_a_cloud_bare']} ms",
                "",
            )
        )
        rows.append(
            (f"reading a mesh of {FACES} faces, its farthest points of 8192", f"{part['ms_a_mesh_read']} ms", "")
        )
    if part := found.get("search"):
        rows.append(
            (
                f"exact search over {part['shapes']} shapes, {part['dimensions']} numbers each",
                f"{part['ms_exact']} ms",
                "50 ms",
            )
        )
        rows.append(("once before: mixing and scaling their vectors", f"{part['ms_prepare']} ms", ""))
        rows.append(("embedding the words by the demo teacher", f"{part['ms_words']} ms", ""))
    facts = found["facts"]
    told = f"one thread, base model of random weights, seed {SEED}; load {facts['load']} at the start"
    lines = ["# A student's use", "", f"`python benchmarks/use.py` on {facts['processor']}, {told}.", ""]
    lines += ["| what | measured | to reach |", "| --- | --- | --- |", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join([*lines, "", "Medians; CPU seconds of one thread, but of whole processes by the clock.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="small sizes: whether it runs, not what it takes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: benchmarks/results")
    asked = parser.parse_args()
    if unknown := {*asked.parts} - {*PARTS}:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    path = asked.out / "use.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() and asked.parts else {}
    found["facts"] = {
        "processor": processor(), "cores": cores(), "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
        "seed": SEED, "quick": asked.quick,
    }  # fmt: skip
    for name in asked.parts or PARTS:
        sys.stderr.write(f"{name}\n")
        found[name] = PARTS[name](asked.quick)
    asked.out.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    (asked.out / "use.md").write_text(page(found))
    sys.stdout.write(page(found))


if __name__ == "__main__":
    main()
