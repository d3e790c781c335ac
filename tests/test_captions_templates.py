"""Templates of class prompts: a file's slots are filled as written, and one that cannot be filled is named by its line.

A template without a slot would give every class the same feature, which no later stage could notice.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.words import article
from recon.pipeline.caption.templates import check_template, read_templates, templates_of
from recon.pipeline.store.prompts import EARLIER_PROMPTS, class_prompts, fill
from tests.miniature_meshes import message

ULIP = Path(__file__).resolve().parents[1] / "data_manifests" / "templates" / "ulip.txt"
METADATA = Path(__file__).resolve().parents[2] / "shared" / "metadata" / "ulip_templates.json"


def test_ulips_templates_ship() -> None:
    templates = read_templates(ULIP)
    assert len(templates) == 64
    prompts = class_prompts("night_stand", templates)
    assert prompts[0] == "a point cloud model of night stand."
    assert prompts[-1] == "a painting of a night stand."
    assert len(set(prompts)) == 64


@pytest.mark.skipif(not METADATA.is_file(), reason="ULIP's own file is not at hand")
def test_the_shipped_templates_are_ulips_own_which_can_be_named_too() -> None:
    assert read_templates(METADATA) == read_templates(ULIP)


def test_slots_and_articles() -> None:
    assert fill("a photo of {article} {name}", name="airplane") == "a photo of an airplane"
    assert fill("{article} {word} {name} and {article} {}", word="old", name="hut") == "an old hut and a hut"
    assert fill("a photo of a {}.", name="airplane") == "a photo of a airplane."  # as written: ULIP's has no article


@given(st.text("abc aeiou", min_size=1, max_size=12).map(lambda t: " ".join(t.split()) or "x"))
def test_the_prompts_of_earlier_refs_are_what_they_were(name: str) -> None:
    """Filled by hand as they were then: stores made with them must stay good."""
    by_hand = [template.format(article=article(name), name=name) for template in EARLIER_PROMPTS]
    assert len(set(by_hand)) == 60
    assert class_prompts(name, EARLIER_PROMPTS) == by_hand
    assert class_prompts(name) == class_prompts(name, templates_of("release"))


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("a photo", "no slot {name} or {}"),
        ("a {nmae}", "no slot is called {nmae}; there are {name}, {article}"),
        ("a {name} {", "a brace that belongs to no slot"),
        ("{0.__class__} {name}", "a brace that belongs to no slot"),
    ],
)
def test_templates_that_cannot_be_filled(template: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^" + ".*") as error:
        check_template(template)
    assert told in str(error.value)
    file = tmp_path / "t.txt"
    file.write_text(f"# mine\n\na {{}}\n{template}\n")
    with pytest.raises(UserError, match=rf"^{file}:4: .*$") as named:
        read_templates(file)
    assert told in str(named.value)


def test_files_of_templates(tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("\ufeff# two\n  a {}  \n\nthe {name}\na {}\n", encoding="utf-8")
    assert read_templates(text) == ("a {}", "the {name}")
    listed = tmp_path / "t.json"
    listed.write_text(json.dumps({"a": ["a {}"], "b": ["a {}"]}))
    assert read_templates(listed) == ("a {}",)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("t.txt", b"# none\n", "holds no template; write one a line"),
        ("t.txt", b"a {}\n\xff\n", "not UTF-8"),
        ("t.json", b"[", "not JSON"),
        ("t.json", b'{"a": ["a {}"], "b": ["b {}"]}', "2 different lists"),
        ("t.json", b'["a {}", 3]', "must be a list of strings"),
        ("t.json", b"{}", "0 different lists"),
        ("none.txt", None, "cannot be read"),
    ],
)
def test_files_that_are_none(name: str, content: bytes | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    said = message(lambda: read_templates(path))
    assert said.startswith(str(path)) and told in said
