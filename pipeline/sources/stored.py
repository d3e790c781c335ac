"""The `[[features.stored]]` tables of a manifest: features that came in a data set's files, named like a teacher's."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from recon.pipeline.base.settings import Strict

PictureField = Literal["image_feat", "thumbnail_feat"]
Variant = Literal["original", "prompt_avg"]


class StoredFeatures(Strict):
    """What tables of pictures' and of words' features share."""

    name: str = Field(min_length=1)
    dim: int = Field(ge=1, le=1 << 16)
    """Width of a feature."""
    model: str = ""
    """Which model the files say they were made by. They hold no digest of it, so this is a claim."""


class StoredImages(StoredFeatures):
    """Features of pictures."""

    of: Literal["image"] = "image"
    field: Annotated[
        tuple[PictureField, ...],
        Field(min_length=1),
        BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    ] = ("image_feat",)
    """Of the files: one, or several whose features are put one behind another."""
    views: int = Field(default=12, ge=1, le=4096)
    """Of image_feat; of a shape that has more, the first. A thumbnail is one."""
    partial: bool = False
    """A shape that lacks some of them, or has zeros in their place, keeps the others: the column `present` tells which.
    Otherwise it is set aside."""

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        if len(set(self.field)) < len(self.field):
            raise ValueError("names a field twice; remove one")
        if self.field == ("thumbnail_feat",) and self.views != 1:
            raise ValueError("thumbnail_feat is one picture; set views = 1")
        return self

    @property
    def counts(self) -> dict[PictureField, int]:
        """Features a shape by field, in order."""
        return {field: self.views if field == "image_feat" else 1 for field in self.field}

    @property
    def num(self) -> int:
        """V: features a shape."""
        return sum(self.counts.values())

    @property
    def masked(self) -> bool:
        """Whether a finished shape may lack some."""
        return self.partial

    def recipe(self) -> dict[str, Any]:
        """What decides the numbers. Of one field and nothing masked it is what earlier versions wrote."""
        field = self.field[0] if len(self.field) == 1 else list(self.field)
        more = {"partial": True} if self.partial else {}
        return {"kind": "stored", "field": field, "dim": self.dim, "views": self.views, "model": self.model, **more}


class StoredTexts(StoredFeatures):
    """Features of the shapes' own texts, in the order in which captions of kind "stored" are taken."""

    of: Literal["text"]
    variant: Variant = "original"
    """prompt_avg: the mean over prompts around the text. Retrieved texts, which have none, give their original."""
    keep: int = Field(default=8, ge=1, le=64)
    """T: at most so many a shape, the first ones."""

    @property
    def num(self) -> int:
        """T: features a shape."""
        return self.keep

    @property
    def masked(self) -> bool:
        """Shapes have texts in different numbers."""
        return True

    def recipe(self) -> dict[str, Any]:
        """What decides the numbers, beside which texts there are."""
        fixed = {"kind": "stored", "of": "text", "dim": self.dim, "model": self.model}
        return {**fixed, "variant": self.variant, "keep": self.keep}


def _of(table: Any) -> str:
    return str(table.get("of", "image") if isinstance(table, dict) else getattr(table, "of", "image"))


AnyStored = Annotated[
    Annotated[StoredImages, Tag("image")] | Annotated[StoredTexts, Tag("text")],
    Discriminator(
        _of, custom_error_type="of", custom_error_message='of = "image" or "text" says what they are features of'
    ),
]
