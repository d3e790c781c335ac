"""Pages for people: one file each, in one style, light and dark, that opens from a disk and fetches nothing."""

from __future__ import annotations

import base64
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, select_autoescape


def render(package: str, template: str, **values: Any) -> str:
    """The page that a template in `package`'s folder makes; it extends `page.html`, which lies here."""
    name, _, folder = package.rpartition(".")
    loaders = [PackageLoader(name, folder), PackageLoader("recon.pipeline", "base")]
    return (
        Environment(loader=ChoiceLoader(loaders), autoescape=select_autoescape())
        .get_template(template)
        .render(**values)
    )


def embedded(png: bytes) -> str:
    """A PNG as the address of itself."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
