"""Teachers of one's own, named by import path: checked against the protocol before anything is computed."""

from __future__ import annotations

import json
from typing import Any

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.named import import_named
from recon.pipeline.base.wording import said
from recon.pipeline.teachers import Teacher, TeacherSpec, trouble


def load_custom(spec: TeacherSpec, device: str) -> Teacher:
    """The class that `spec.model` ("package.module:Class") names, made with (spec, device); see `Teacher`."""
    try:
        own = import_named(spec.model)
    except UserError as error:
        raise trouble(spec, "model", str(error)) from error
    try:
        teacher: Teacher = own(spec, device)
        problem = _problem(teacher)
    except UserError:
        raise
    except Exception as error:  # a class may raise anything
        message = f"{spec.model} does not start: {type(error).__name__}: {said(error)}"
        raise trouble(spec, "model", message) from error
    if problem:
        raise trouble(spec, "model", f"{spec.model} is no teacher: {problem}; see recon.pipeline.teachers.Teacher")
    return teacher


def _problem(teacher: Any) -> str:
    """What keeps an object from being a Teacher, or ""."""
    missing = [name for name in ("recipe", "embed_images") if not callable(getattr(teacher, name, None))]
    if callable(getattr(teacher, "embed_texts", None)) and not callable(getattr(teacher, "text_recipe", None)):
        missing.append("text_recipe")
    if missing:
        return f"it has no method {' nor '.join(missing)}"
    shape = getattr(teacher, "shape", None)
    if not isinstance(shape, tuple) or len(shape) not in (1, 2) or not all(type(n) is int and n > 0 for n in shape):
        return f"its shape is {shape!r}, not (dim,) or (tokens, dim)"
    recipes = {"recipe": teacher.recipe()}
    if hasattr(teacher, "embed_texts"):
        recipes["text_recipe"] = teacher.text_recipe()
    for name, recipe in recipes.items():
        if not isinstance(recipe, dict) or not all(isinstance(recipe.get(field), str) for field in ("kind", "weights")):
            return f"its {name} is no dictionary with the strings 'kind' and 'weights'"
        # Another class's key must not be met by chance.
        if recipe["kind"] in ("open_clip", "timm"):
            return f"its {name} says it is of kind {recipe['kind']!r}"
        if json.loads(json.dumps(recipe)) != recipe:
            return f"its {name} has values that JSON does not keep"
    return ""
