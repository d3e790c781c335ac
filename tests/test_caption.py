"""Captions: counts, grammar, and that they say what the facts say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.caption import CLASS_PROMPTS, article, class_prompts, describe

CHAIR: dict[str, Any] = {
    "category": "chair",
    "main_material": "red fabric",
    "phrases": ["with armrests", "on a swivel base", "with a high back"],
    "materials": {"seat": "red fabric", "back": "red fabric", "base": "chrome", "wheel": "black rubber"},
}


def test_class_prompts_are_the_releases_sixty_and_distinct() -> None:
    assert len(CLASS_PROMPTS) == 60
    prompts = class_prompts("chair")
    assert len(set(prompts)) == 60
    assert all("chair" in prompt for prompt in prompts)


def test_class_prompts_take_the_article_and_spell_underscores_as_spaces() -> None:
    assert "a photo of an airplane" in class_prompts("airplane")
    assert "a photo of a bathtub" in class_prompts("bathtub")
    assert not any(" a airplane" in prompt or "_" in prompt for prompt in class_prompts("airplane_model"))
    assert "a photo of a microwave oven" in class_prompts("microwave_oven")


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
