"""Layouts of one's own: a manifest's `[source]` names the class by its import path."""

from __future__ import annotations

from typing import Any, get_args

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.named import import_named
from recon.pipeline.sources.source import Source

KIND = "python"


def own_layout(table: dict[str, Any], known: frozenset[str]) -> tuple[type[Source], dict[str, Any]]:
    """The class that `code` ("package.module:Class") names, and the table as its fields.

    UserError for what is no `Source` with a `layout` of its own, which tells its keys from those of `known` ones.
    """
    rest = dict(table)
    code = rest.pop("code", None)
    if not isinstance(code, str):
        raise UserError('code: layout "python" wants the class\'s import path, such as code = "package.module:Class"')
    own = import_named(code)
    if not (isinstance(own, type) and issubclass(own, Source)):
        raise UserError(f"code: {code} is no class derived from recon.pipeline.sources.source.Source")
    literal = get_args(own.model_fields["layout"].annotation)
    if len(literal) != 1 or literal[0] in (*known, KIND):
        raise UserError(f'code: {code} needs a name of its own, such as layout: Literal["{own.__name__.lower()}"]')
    if own.__abstractmethods__:
        raise UserError(f"code: {code} lacks {', '.join(sorted(own.__abstractmethods__))}")
    return own, rest | {"layout": literal[0]}
