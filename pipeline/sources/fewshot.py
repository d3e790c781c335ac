"""Few-shot classification: folds of a few classes with a few shapes each, published or drawn from ModelNet40.

root/                                  without `pool`: the pickles that Point-BERT's family of models is measured on
  5way_10shot/0.pkl ... 9.pkl          {"train": [(points [P, 6], label in the fold, label)], "test": [...]}

With `pool` the root is that source's own, and the folds are drawn from its train and test shapes by a seed.

Splits are named fold0-train, fold0-test, fold1-train, ...; a shape in several folds is a row in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from recon.pipeline.base.errors import UserError
from recon.pipeline.shapes.cloud import Cloud
from recon.pipeline.shapes.mesh import Mesh, MeshError
from recon.pipeline.sources.clouds import class_of, cloud_of, folder, row_of
from recon.pipeline.sources.hdf5 import Hdf5Source
from recon.pipeline.sources.modelnet import ModelNetFpsSource, ModelNetOffSource, ModelNetTextSource
from recon.pipeline.sources.safe_pickle import load_pickle
from recon.pipeline.sources.source import Listed, Source, stamp

Pool = ModelNetOffSource | ModelNetTextSource | ModelNetFpsSource | Hdf5Source


class FewShotSource(Source):
    """Folds of `way` classes with `shot` training shapes each."""

    layout: Literal["fewshot"]
    way: int = Field(ge=2)
    shot: int = Field(ge=1)
    folds: int = Field(default=10, ge=1)
    tests: int = Field(default=20, ge=1)
    """Test shapes a class; published folds have their own number."""
    seed: int = 0
    """Of the draw from `pool`."""
    classes: tuple[str, ...] = ()
    """In the order of the labels in published folds."""
    pool: Annotated[Pool, Field(discriminator="layout")] | None = None
    """What to draw from; None: the folds are published ones."""

    @property
    def has_meshes(self) -> bool:
        """As the pool, where folds are drawn from one; published folds have none."""
        return self.pool is not None and self.pool.has_meshes

    @property
    def has_clouds(self) -> bool:
        """As the pool, where folds are drawn from one; published folds are clouds."""
        return self.pool is None or self.pool.has_clouds

    def shapes(self, root: Path) -> list[Listed]:
        """Fold by fold, the training shapes first."""
        if self.pool is not None:
            return self._draw(self.pool.shapes(root))
        folder(root, f"{self._folder}/0.pkl")
        listed = []
        for fold in range(self.folds):
            path = root / self._folder / f"{fold}.pkl"
            mark = stamp(path)
            for part, samples in _read_fold(path, mark).items():
                for row, sample in enumerate(samples):
                    category = self._category(sample, f"{path}, {part} {row}")
                    source = f"{self._folder}/{path.name}:{part}:{row}"
                    listed.append(Listed(f"fold{fold}-{part}/{row:04d}", category, f"fold{fold}-{part}", source, mark))
        return listed

    def mesh_file(self, root: Path, reference: str) -> tuple[Path, Path] | None:
        """The pool's; None for published folds."""
        return None if self.pool is None else self.pool.mesh_file(root, reference)

    def mesh(self, root: Path, reference: str) -> Mesh:
        """The pool's."""
        assert self.pool is not None
        return self.pool.mesh(root, reference)

    def cloud(self, root: Path, reference: str) -> Cloud:
        """The pool's, or a row of a published fold. MeshError for what is no array [P, 3] or [P, 6]."""
        if self.pool is not None:
            return self.pool.cloud(root, reference)
        part_of, row = row_of(reference)
        name, _, part = part_of.rpartition(":")
        points = _read_fold(root / name, stamp(root / name))[part][row][0]
        if not isinstance(points, np.ndarray):
            raise MeshError("wrong-shape", f"{reference}: is no array")
        return cloud_of(points, self.up, self.front, reference)

    def recipe(self) -> dict[str, Any]:
        """The pool's, where there is one: which fold a shape is in does not change it."""
        if self.pool is not None:
            return {"layout": self.layout, "pool": self.pool.recipe()}
        return super().recipe()

    def problems(self, root: Path) -> list[str]:
        """Published folds that are not of the announced size, and what the pool says."""
        if self.pool is not None:
            return self.pool.problems(root)
        lines = []
        for fold in range(self.folds):
            path = root / self._folder / f"{fold}.pkl"
            samples = _read_fold(path, stamp(path))["train"]
            ways = len({self._category(sample, str(path)) for sample in samples})
            if (ways, len(samples)) != (self.way, self.way * self.shot):
                lines.append(f"{path}: {len(samples)} training shapes of {ways} classes")
        return lines

    @property
    def _folder(self) -> str:
        return f"{self.way}way_{self.shot}shot"

    def _category(self, sample: Sequence[Any], where: str) -> str:
        """The last entry names the class or is its number among all."""
        return sample[2] if isinstance(sample[2], str) else class_of(sample[2], self.classes, where)

    def _draw(self, pool: list[Listed]) -> list[Listed]:
        """Seeded folds, each drawn on its own: another number of folds leaves the first ones as they are."""
        needed = {"train": self.shot, "test": self.tests}
        held: dict[tuple[str, str], list[Listed]] = {}
        for item in sorted(pool, key=lambda item: item.uid):
            held.setdefault((item.category, item.split or ""), []).append(item)
        known = sorted({item.category for item in pool})
        classes = [name for name in known if all(len(held.get((name, s), [])) >= n for s, n in needed.items())]
        if len(classes) < self.way:
            raise UserError(
                f"field 'source': {self.way} way wants that many classes with {self.shot} train and {self.tests} test "
                f"shapes, the pool has {len(classes)} of {len(known)}; lower way, shot or tests"
            )
        listed = []
        for fold in range(self.folds):
            rng = np.random.default_rng([self.seed, fold])
            chosen = [classes[i] for i in sorted(rng.permutation(len(classes))[: self.way])]
            for part, count in needed.items():
                for name in chosen:
                    shapes = held[name, part]
                    for i in sorted(rng.permutation(len(shapes))[:count]):
                        split = f"fold{fold}-{part}"
                        listed.append(replace(shapes[i], uid=f"{split}/{shapes[i].uid}", split=split))
        return listed


@lru_cache(maxsize=16)
def _read_fold(path: Path, mark: str) -> dict[str, list[Any]]:
    """A fold's samples by split, once a process and state of the file."""
    held = load_pickle(path)
    if not isinstance(held, dict) or any(not isinstance(held.get(part), list) for part in ("train", "test")):
        raise UserError(f"{path}: holds no dict with the lists train and test; it is no file of this layout")
    for part in ("train", "test"):
        for row, sample in enumerate(held[part]):
            if not isinstance(sample, list | tuple) or len(sample) != 3:
                raise UserError(f"{path}: {part} {row} is no triple of points, label and class")
    return {part: held[part] for part in ("train", "test")}
