"""Small grammar: the article that a word wants, names as one says them."""

from __future__ import annotations

# Spelling misleads where the first sound differs from the first letter.
_CONSONANT_SOUNDS = ("uni", "use", "usu", "uten", "ufo", "uku", "eu", "ewe", "one", "once")
_VOWEL_SOUNDS = ("hour", "honest", "honour", "honor", "heir", "8", "11", "18")


def article(phrase: str) -> str:
    """The indefinite article ("a" or "an") that `phrase` wants in front."""
    word = phrase.lower()
    if word.startswith(_VOWEL_SOUNDS):
        return "an"
    return "an" if word.startswith(tuple("aeiou")) and not word.startswith(_CONSONANT_SOUNDS) else "a"


def spoken(name: str) -> str:
    """A category as one says it: underscores become spaces."""
    return single_spaced(name.replace("_", " "))


def single_spaced(text: str) -> str:
    """The text with single spaces between its words."""
    return " ".join(text.split())
