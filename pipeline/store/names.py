"""What people call a key on a command line: the key, its beginning, a kind, or a kind and a teacher or table."""

from __future__ import annotations

import difflib

from recon.pipeline.base.errors import UserError
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.store.keys import KINDS
from recon.pipeline.store.records import Ref

SHORTEST = 4  # digits of a key's beginning
_OFFERED = 6


def named_keys(ref: Ref) -> dict[str, tuple[str, str]]:
    """All that a ref names -> (kind, key): "points", "captions/facts", "targets/demo", in the ref's order."""
    named = {kind: (kind, key) for kind, key in ref.keys.items()}
    several = ("captions", ref.captions), ("targets", ref.targets), ("lifted", ref.lifted), ("text", ref.text)
    for kind, parts in several:
        named |= {f"{kind}/{part}": (kind, key) for part, key in parts.items()}
    return named


def list_refs(store: FeatureStore) -> list[Ref]:
    """Every ref, by name. UserError for a damaged one."""
    found = []
    for path in sorted((store.path / "refs").glob("[!.]*.json")):
        try:
            found.append(store.ref(path.stem))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: damaged ref ({error}); `recon-pipeline retry` restores it") from error
    return found


def resolve_key(store: FeatureStore, text: str) -> tuple[str, str]:
    """(kind, key) of what `text` names.

    A key or its beginning (4 digits or more), a kind ("points"; "targets": the first teacher's) or "kind/name" as the
    refs have it, or a key behind its kind ("views/3f2a"). UserError if there is none, which offers the nearest
    names, or more than one.
    """
    parts = text.split("/")
    if len(parts) > 2 or not all(parts) or any(part in (".", "..") for part in parts) or "\\" in text or "\0" in text:
        raise UserError(f"{text!r} is no key: write a key, its beginning, a kind, or a kind and a name (targets/demo)")
    keys = store.list_keys()
    refs = list_refs(store)
    found = {named_keys(ref)[text] for ref in refs if text in named_keys(ref)}
    if not found and text in KINDS:
        firsts = [next((pair for pair in named_keys(ref).values() if pair[0] == text), None) for ref in refs]
        found = {pair for pair in firsts if pair} or {pair for pair in keys if pair[0] == text}
    if not found:
        kind, start = (parts[0], parts[1]) if len(parts) == 2 else ("", text)
        matching = [pair for pair in keys if kind in ("", pair[0]) and pair[1].startswith(start)]
        whole = {pair for pair in matching if pair[1] == start}
        if matching and not whole and len(start) < SHORTEST:
            raise UserError(f"{store.path}: {text!r} is too short: give {SHORTEST} digits of the key or more")
        found = whole or set(matching)
    if not found:
        raise _unknown(store, text, keys, refs)
    if len(found) > 1:
        several = ", ".join(f"{kind}/{key}" for kind, key in sorted(found))
        raise UserError(f"{store.path}: {text!r} may be {several}: name one of them")
    pair = found.pop()
    if pair not in keys:
        raise UserError(f"{store.path}: {text!r} is {pair[0]}/{pair[1]}, of which nothing is there; compute it again")
    return pair


def _unknown(store: FeatureStore, text: str, keys: list[tuple[str, str]], refs: list[Ref]) -> UserError:
    """The error for a name that means nothing, with those nearest to it."""
    names = list(dict.fromkeys(name for ref in refs for name in named_keys(ref)))
    names += [key if "/" not in text else f"{kind}/{key}" for kind, key in keys]
    near = difflib.get_close_matches(text, names, n=3, cutoff=0.5)
    if not names:
        return UserError(f"{store.path}: no key {text!r}: the store holds none yet")
    if near:
        return UserError(f"{store.path}: no key {text!r}; did you mean {', '.join(near)}?")
    more = ", ..." if len(names) > _OFFERED else ""
    return UserError(f"{store.path}: no key {text!r}; it holds {', '.join(names[:_OFFERED])}{more}")
