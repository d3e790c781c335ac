"""Captions: counts, grammar, and that they say what the facts say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon.pipeline.base.words import article
from recon.pipeline.caption.facts import describe
from recon.pipeline.store.prompts import CLASS_PROMPTS, class_prompts

CHAIR: dict[str, Any] = {
    "category": "chair",
    "main_material": "red fabric",
    "phrases": ["with armrests", "on a swivel base", "with a high back"],
    "materials": {"seat": "red fabric", "back": "red fabric", "base": "chrome", "wheel": "black rubber"},
}


RELEASED = Path(__file__).resolve().parents[2] / "shared" / "metadata" / "recon_prompts.json"


def test_class_prompts_are_the_releases_sixty_and_distinct() -> None:
    assert len(CLASS_PROMPTS) == 60
    prompts = class_prompts("chair")
    assert len(set(prompts)) == 60
    assert prompts[:4] == ["chair.", "chair with white background.", "chair with black context.", "A chair."]
    assert prompts[-1] == "A 3D rendering image of a chair with black context."
    # Written down once, so that no slip of the pen changes them; the digest is of the release's own table.
    assert (
        hashlib.sha256("\n".join(prompts).encode()).hexdigest()
        == "7552ad1c65a79caff8c452ca474c2628c9eec5fecf17b840fbd1ecbcb5ec0340"
    )


@pytest.mark.skipif(not RELEASED.is_file(), reason="the release's own table is not at hand")
@pytest.mark.parametrize("name", ["airplane", "flower_pot", "trash bin"])
def test_class_prompts_are_those_of_the_releases_table(name: str) -> None:
    table = json.loads(RELEASED.read_text(encoding="utf-8"))
    assert class_prompts(name) == [before + name + after for before in table["prefixes"] for after in table["suffixes"]]


def test_class_prompts_keep_the_releases_grammar_and_the_data_sets_spelling() -> None:
    assert "A image of a airplane." in class_prompts("airplane")
    assert "A point cloud of night_stand with white background." in class_prompts("night_stand")


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("oak table", "an"),
        ("chair", "a"),
        ("Airplane", "an"),
        ("uniform", "a"),
        ("umbrella", "an"),
        ("hourglass", "an"),
        ("house", "a"),
        ("8-seat bench", "an"),
        ("euro", "a"),
        ("ukulele", "a"),
        ("earphone", "an"),
    ],
)
def test_article_follows_the_sound(phrase: str, expected: str) -> None:
    assert article(phrase) == expected


def test_describe_adds_detail_step_by_step() -> None:
    assert describe(CHAIR) == [
        "a red fabric chair",
        "a red fabric chair with armrests",
        "a red fabric chair with armrests, on a swivel base and with a high back",
        "a chair in red fabric, chrome and black rubber",
    ]


def test_describe_starts_with_the_right_article() -> None:
    oak = {**CHAIR, "main_material": "oak", "materials": {"seat": "oak"}}
    assert all(line.startswith("an oak chair") for line in describe(oak))
    assert describe({"category": "airplane", "phrases": ["with two engines"]}) == [
        "an airplane",
        "an airplane with two engines",
    ]


def test_describe_knows_nothing_of_a_shape_without_facts() -> None:
    assert describe({}) == []


def test_a_repeated_with_is_said_once() -> None:
    facts = {"category": "faucet", "phrases": ["with a spout", "with two knobs", "on a foot", "with a hose"]}
    assert describe(facts)[-1] == "a faucet with a spout, two knobs, on a foot and with a hose"


def test_describe_says_a_single_trait_once() -> None:
    assert describe({**CHAIR, "phrases": ["on a swivel base"], "materials": {}}) == [
        "a red fabric chair",
        "a red fabric chair on a swivel base",
    ]


words = st.text("abcdefghij ", min_size=1, max_size=12).map(lambda text: text.strip() or "x")


@given(category=words, main=words, phrases=st.lists(words, max_size=4), materials=st.lists(words, max_size=4))
def test_captions_are_distinct_deterministic_and_true(
    category: str, main: str, phrases: list[str], materials: list[str]
) -> None:
    facts = {
        "category": category,
        "main_material": main,
        "phrases": phrases,
        "materials": {f"part{row}": name for row, name in enumerate(materials)},
    }
    captions = describe(facts)
    assert captions == describe(dict(reversed(facts.items())))
    assert 1 <= len(captions) == len(set(captions)) <= 4
    assert all(category in line and line == line.strip() for line in captions)
    # One caption tells every trait, and one every material.
    assert any(all(phrase in line for phrase in phrases) for line in captions)
    assert len(set(materials)) < 2 or any(all(name in line for name in materials) for line in captions)
