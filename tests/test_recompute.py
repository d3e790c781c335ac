"""What counts as rounding when a row is computed again, and what the command says of what does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from recon.pipeline.base.errors import MachineError
from recon.pipeline.execution.engine import run_stage
from recon.pipeline.execution.executor import InProcess
from recon.pipeline.execution.recompute import _rounding, recompute
from recon.pipeline.execution.stage import Block, Row
from recon.pipeline.rendering.render import Renderer
from recon.pipeline.store import FeatureStore
from tests.test_engine import Squares, rows_of
from tests.test_pipeline import folder_manifest
from tests.test_store_cli import Shell, own, shell  # noqa: F401 (fixtures)
from tests.toy_stage import register

DRAW = np.random.default_rng(0)
RGB = DRAW.integers(60, 200, (2, 96, 96, 3), np.uint8)
DEPTH = DRAW.uniform(2, 4, (2, 96, 96)).astype(np.float16)
FEAT = DRAW.normal(size=(2, 64)).astype(np.float16)
XYZ = DRAW.normal(size=(200, 3)).astype(np.float32)


def edges(by: int) -> NDArray[np.uint8]:
    """Every hundredth pixel column off: 1% of the picture."""
    again = RGB.copy()
    again[:, :, 50] = again[:, :, 50] + by
    return again


def part() -> NDArray[np.uint8]:
    """One part of a shape, 1% of the picture, in another colour."""
    again = RGB.copy()
    again[:, :10, :10, 0] ^= 196
    return again


@pytest.mark.parametrize(
    ("kind", "column", "stored", "again", "rounding"),
    [
        ("views", "rgb", RGB, RGB + 1, False),  # a level everywhere is another light
        ("views", "rgb", RGB, RGB + (DRAW.random(RGB.shape) < 0.3).astype(np.uint8), True),
        ("views", "rgb", RGB, edges(40), True),
        ("views", "rgb", RGB, part(), False),
        ("views", "rgb", RGB, 255 - RGB, False),
        ("views", "alpha", RGB[..., 0], edges(40)[..., 0], True),
        ("views", "normal", RGB.view(np.int8), RGB.view(np.int8) // 2, False),
        ("points", "color", RGB[0, 0], RGB[0, 0] ^ 1, False),
        ("points", "part", RGB[0, 0], RGB[0, 0] ^ 1, False),  # an index has no rounding
        ("points", "order", np.arange(9, dtype=np.uint16), np.arange(9, dtype=np.uint16)[::-1], False),
        ("views", "depth", DEPTH, DEPTH + np.float16(0.002), True),
        ("views", "depth", DEPTH, DEPTH + np.float16(0.1), False),
        ("targets", "feat", FEAT, FEAT * np.float16(1.01), True),
        ("targets", "feat", FEAT, FEAT * np.float16(3.1), False),  # of the same direction: other weights
        ("targets", "feat", FEAT, FEAT[::-1], False),
        ("targets", "feat", FEAT, np.stack([FEAT[0], FEAT[1] + np.float16(0.2)]), False),  # one view of two
        ("targets", "feat", FEAT, np.full_like(FEAT, np.nan), False),
        ("points", "xyz", XYZ, XYZ * np.float32(1.00001), True),
        ("points", "xyz", XYZ, XYZ * np.float32(1.01), False),
        ("points", "xyz", XYZ, XYZ[:100], False),
        ("views", "frame", np.array([0, 0, 0, 1.0]), np.array([0, 0, 0, 1.1]), False),
        ("captions", "caption", np.array(["a chair"]), np.array(["a table"]), False),
    ],
)
def test_rounding_is_less_than_any_change(
    kind: str, column: str, stored: NDArray[Any], again: NDArray[Any], rounding: bool
) -> None:
    assert _rounding(kind, column, stored, again) is rounding


class Failing(Squares):
    """Raises when it computes one row alone, as `recompute` has it do."""

    error: Exception

    def compute(self, store: FeatureStore, key: str, rows: Sequence[Row], lane: int) -> Block:
        if len(rows) == 1:
            raise self.error
        return super().compute(store, key, rows, lane)


def test_what_cannot_be_computed_now_is_different_and_the_machines_fault_is_raised(tmp_path: Path) -> None:
    store, rows, stage = register(tmp_path / "s.zarr", ["a", "b"]), rows_of(["1", "2"]), Failing()
    run_stage(store, stage, rows, InProcess())
    Failing.error = RuntimeError("a library's own words")
    found = recompute(store, stage, rows, 1, seed=0)
    assert {one.verdict for one in found} == {"different"}
    assert {one.reason for one in found} == {"RuntimeError: a library's own words"}
    Failing.error = ImportError("no package")
    with pytest.raises(MachineError, match="a package is missing here"):
        recompute(store, stage, rows, 1, seed=0)


@pytest.mark.slow
def test_another_picture_is_told_and_fails(
    own: Path,  # noqa: F811
    small_manifest: Path,
    shell: Shell,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ("verify", own, "--recompute", "2", "-m", small_manifest)
    status, out, _ = shell(*words)
    assert status == 0
    assert " rgb: equal\n" in out
    draw = Renderer.render_some
    monkeypatch.setattr(Renderer, "render_some", lambda *words: replace(views := draw(*words), rgb=255 - views.rgb))
    status, out, err = shell(*words)
    assert (status, err) == (1, "")
    assert "rgb: different: max error or cells that differ: " in out
    assert ": sound\n" in out  # nothing is damaged: it is another picture
    last = out.splitlines()[-1]
    assert last.startswith("2 of ")
    assert "recomputed values differ from the store's (views): " in last
    report = shell.json(*words, status=1)
    verdicts = {(line["stage"], line["column"]): line["verdict"] for line in report["recomputed"]}
    assert [where for where, verdict in verdicts.items() if verdict == "different"] == [("views", "rgb")]
    assert verdicts["views", "depth"] == "equal"


@pytest.mark.slow
def test_a_material_edited_since_is_no_agreement(clip_config: Path, tmp_path: Path, shell: Shell) -> None:  # noqa: F811
    """Rows whose files changed are not compared, which is said and counts: the store is not what would be made now."""
    box = tmp_path / "meshes" / "box"
    box.mkdir(parents=True)
    corners = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"
    (box / "a.obj").write_text(f"mtllib a.mtl\nusemtl m\n{corners}")
    (box / "a.mtl").write_text("newmtl m\nKd 1 0 0\n")
    manifest, store = folder_manifest(tmp_path, clip_config), tmp_path / "s.zarr"
    where = ("-m", manifest, "--root", tmp_path / "meshes")
    assert shell("render", *where, "-s", store, "--workers", "0")[0] == 0
    words = ("verify", store, "--recompute", "1", *where)
    assert shell(*words)[0] == 0
    (box / "a.mtl").write_text("newmtl m\nKd 0 0 1\n")
    status, output, _ = shell(*words)
    told = (
        "meshes: 1 finished rows were made from other inputs than there are now: not compared, nor what hangs on them"
    )
    assert (status, output.splitlines()[-1]) == (1, told)
    assert shell("render", *where, "-s", store, "--workers", "0")[0] == 0
    assert shell(*words)[0] == 0
