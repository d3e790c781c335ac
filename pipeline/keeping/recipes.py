"""Why two keys are two: their recipes compared field by field, through the keys upstream of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from recon.pipeline.base.digests import canonical_json
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.keys import KINDS

Resolve = Callable[[str, str], dict[str, Any] | None]

_WIDTH = 60  # characters of a value that a line shows
_CONTEXT = 12  # of them before the first difference of two long values
_ELEMENTS = 3  # differing elements of a list that get a line each


def recipe_diff(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Lines such as "render.resolution: 96 -> 128", by field; none exactly if both give one key."""
    return list(_differences("", a, b))


def recipe_diff_expanded(a: dict[str, Any], b: dict[str, Any], resolve: Resolve) -> list[str]:
    """The same with upstream keys followed: "views.render.resolution: 96 -> 128" instead of two digests.

    `resolve(kind, key)` gives an upstream recipe, or None where it is not to be had.
    """
    lines: list[str] = []
    for name in sorted({*a, *b}):
        before, after = a.get(name), b.get(name)
        if name in KINDS and isinstance(before, str) and isinstance(after, str) and before != after:
            recipes = resolve(name, before), resolve(name, after)
            if recipes[0] is not None and recipes[1] is not None:
                inner = recipe_diff_expanded(recipes[0], recipes[1], resolve)
                lines += [f"{name}.{line}" for line in inner]
                if inner:
                    continue
        lines += recipe_diff({name: a[name]} if name in a else {}, {name: b[name]} if name in b else {})
    return lines


def explain(store_a: FeatureStore, kind: str, key_a: str, store_b: FeatureStore, key_b: str) -> list[str]:
    """Why two keys of a kind are two, in the fields of their recipes and of what they were computed from."""

    def resolve(kind: str, key: str) -> dict[str, Any] | None:
        for store in (store_a, store_b):
            if (store.path / kind / key / "zarr.json").is_file():
                return store.recipe(kind, key)
        return None

    return recipe_diff_expanded(store_a.recipe(kind, key_a), store_b.recipe(kind, key_b), resolve)


def _differences(name: str, a: Any, b: Any) -> Iterator[str]:
    if _text(a) == _text(b):  # not a == b: to Python 1, 1.0 and True are one, to a key they are three
        return
    if isinstance(a, dict) and isinstance(b, dict):
        for field in sorted({*a, *b}):
            inner = f"{name}.{field}" if name else str(field)
            yield from _differences(inner, a.get(field, _Absent), b.get(field, _Absent))
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = [(i, x, y) for i, (x, y) in enumerate(zip(a, b, strict=True)) if _text(x) != _text(y)]
        for i, x, y in pairs[:_ELEMENTS]:
            yield from _differences(f"{name}[{i}]", x, y)
        if len(pairs) > _ELEMENTS:
            yield f"{name}: {len(pairs)} of {len(a)} elements differ"
    else:
        sizes = f" ({len(a)} -> {len(b)} elements)" if isinstance(a, list) and isinstance(b, list) else ""
        yield "{}: {} -> {}{}".format(name, *_shortened(_text(a), _text(b)), sizes)


class _Absent:
    """Stands for a field that a recipe does not have."""


def _text(value: Any) -> str:
    return "absent" if value is _Absent else canonical_json(value)


def _shortened(a: str, b: str) -> tuple[str, str]:
    """Both texts cut to the part where they begin to differ."""
    if max(len(a), len(b)) <= _WIDTH:
        return a, b
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    start = max(same - _CONTEXT, 0)

    def cut(text: str) -> str:
        return "…" * (start > 0) + text[start : start + _WIDTH] + "…" * (len(text) > start + _WIDTH)

    return cut(a), cut(b)
