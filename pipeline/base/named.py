"""Code of one's own, named in a settings file by "package.module:Name"."""

from __future__ import annotations

import importlib
from typing import Any

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.wording import said


def import_named(path: str) -> Any:
    """What "package.module:Name" names. UserError says what of it cannot be had; importing runs the module's code."""
    module_name, colon, attribute = path.partition(":")
    if not (module_name and colon and attribute):
        raise UserError(f'{path!r} is no import path: write "package.module:Class"')
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module may raise anything
        message = f"cannot import {module_name}: {said(error)}; install it, or put its folder on PYTHONPATH"
        raise UserError(message) from error
    if not hasattr(module, attribute):
        raise UserError(f"{module_name} ({module.__file__}) has no {attribute!r}")
    return getattr(module, attribute)
