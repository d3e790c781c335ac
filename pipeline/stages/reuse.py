"""More views without computing the old ones again: what another preset's key holds of the same camera is copied.

A key names all of its cameras, so a preset with more views is another key. Its rows take over whatever a finished row
of a key that differs in nothing but the cameras has of theirs; the bits are those that computing would give. The
clean draw of targets is likewise taken from a key whose other draws are augmented in another way.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

from recon.pipeline.base.digests import canonical_json, digest_of
from recon.pipeline.execution.stage import Row
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.receipts import Receipt
from recon.pipeline.store.shards import read_rows, shard_rows
from recon.pipeline.teachers.loaded import PROBE
from recon.pipeline.teachers.probe import difference


def without_cameras(store: FeatureStore, kind: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe of views or targets with the list of cameras, direct or upstream, left out.

    For targets also whether normals are drawn: the teachers see none of them.
    """
    if kind == "targets":
        views = without_cameras(store, "views", store.recipe("views", recipe["views"]))
        seen = {name: value for name, value in views["render"].items() if name != "normals"}
        return {**recipe, "views": {**views, "render": seen}}
    return {**recipe, "render": {name: value for name, value in recipe["render"].items() if name != "cameras"}}


def _of_draw(store: FeatureStore, kind: str, recipe: dict[str, Any], lane: int) -> dict[str, Any]:
    """What of a recipe a view's bits in a draw hang on: on no camera but its own, and if clean on no augmentation."""
    rest = without_cameras(store, kind, recipe)
    if kind == "targets" and lane == 0:
        teacher = {name: value for name, value in rest["teacher"].items() if name != "augmentation"}
        rest = {**rest, "teacher": teacher, "seed": None}
    return rest


def donors(store: FeatureStore, kind: str, recipe: dict[str, Any], lane: int = 0) -> Donors:
    """The other keys of `kind` that hold the same bits of a draw for a camera that they share."""
    own, wanted = digest_of(recipe), canonical_json(_of_draw(store, kind, recipe, lane))
    found = []
    for there, key in store.list_keys():
        if there == kind and key != own:
            other = store.recipe(kind, key)
            if "views" in recipe and "views" not in other:
                continue  # features that came with a data set: of no views that are known
            if canonical_json(_of_draw(store, kind, other, lane)) == wanted and _alike(store, kind, key, own):
                found.append((key, _cameras(store, kind, other)))
    return Donors(store, kind, found, _cameras(store, kind, recipe))


def _alike(store: FeatureStore, kind: str, donor: str, own: str) -> bool:
    """Whether the models that made two keys did one thing with the fixed inputs, as far as both keys tell."""
    if kind != "targets" or not (store.path / kind / own / "zarr.json").is_file():
        return True
    held, now = (cast(Any, store.kind_group(kind, key).attrs.get(PROBE)) for key in (donor, own))
    precision = store.recipe(kind, own)["teacher"].get("precision", "fp32")
    return not held or not now or not difference(held, now, precision)


class Donors:
    """Where single views of a row can be copied from."""

    def __init__(
        self, store: FeatureStore, kind: str, found: list[tuple[str, list[list[float]]]], cameras: list[list[float]]
    ) -> None:
        self.store, self.kind = store, kind
        # (donor, [(own view, the donor's view)])
        self.shared = [
            (key, [(cameras.index(camera), there) for there, camera in enumerate(held) if camera in cameras])
            for key, held in found
        ]
        self.read = lru_cache(maxsize=4)(self._read)
        self._receipt = lru_cache(maxsize=4)(self._read_receipt)
        self._rows_a_shard = lru_cache(maxsize=4)(self._find_rows)

    def views_of(self, row: Row, lane: int) -> dict[int, tuple[str, int]]:
        """Own view -> (donor key, its view), for those a donor has finished from the same inputs."""
        held: dict[int, tuple[str, int]] = {}
        for key, pairs in self.shared:
            receipt = self._receipt(key, lane, row.index // self._rows_a_shard(key))
            at = row.index - receipt.rows[0] if receipt else -1
            if receipt and at < len(receipt.ok) and receipt.ok[at] and receipt.inputs[at] == row.inputs:
                held |= {own: (key, there) for own, there in pairs}
        return held

    def _read(self, key: str, name: str, row: int, lane: int | None = None) -> Any:
        """All views of a finished row of a donor's column."""
        return read_rows(self.store.column(self.kind, key, name), [row], lane)[0]

    def _find_rows(self, key: str) -> int:
        """Of a shard of a donor: its pictures may be more or fewer, and so its rows."""
        name = self.store.columns(self.kind, key)[0].name
        return shard_rows(self.store.column(self.kind, key, name), 0 if self.kind == "targets" else None)

    def _read_receipt(self, key: str, lane: int, shard: int) -> Receipt | None:
        return Receipt.read(self.store.receipt_path(key, lane, shard))


def _cameras(store: FeatureStore, kind: str, recipe: dict[str, Any]) -> list[list[float]]:
    views = store.recipe("views", recipe["views"]) if kind == "targets" else recipe
    return cast(list[list[float]], views["render"]["cameras"])
