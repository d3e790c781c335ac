"""Commands that show or write out what is there: recipes, settings, sizes, runs beside each other, weights."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from recon.pipeline.base.console import Terminal
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.program import JsonOption
from recon.pipeline.base.wording import shown
from recon.trainer.commands.options import EmaOption, OverrideOption, RecipeOption, TextOption, answer


def export(
    source: Annotated[Path, typer.Argument(metavar="RUN|FILE", help="The run's folder, or a checkpoint file.")],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="What to write: a folder (a name without a dot), .onnx, .pt2 (torch.export), or the release's .pth or "
            ".safetensors.",
        ),
    ],
    ema: EmaOption = False,
    json: JsonOption = False,
) -> None:
    """Write a trained model for others: a folder with its card, a program, or the release's checkpoint."""
    from recon.trainer.checkpoints.export import export as write

    found = write(source, output, ema)
    untold = ", ".join(f"{name}={value}" for name, value in found.get("not_in_the_file", {}).items())
    notes = [f"wrote {output}"]
    if untold:
        notes.append(f"the file does not tell {untold}: give that to load_model, and to the release in its settings")
    if "outputs" in found:
        notes.append(f"points [clouds, points, 3] -> {', '.join(found['outputs'])}")
    if "largest_difference" in found:
        notes.append(f"onnxruntime came within {found['largest_difference']:.0e} of the largest value")
    Terminal(stderr=True, soft_wrap=True, highlight=False).print("; ".join(notes))
    if json:
        answer({"output": str(output), **found})


def recipes(json: JsonOption = False) -> None:
    """List the shipped recipes."""
    from recon.trainer.recipe import list_recipes

    found = list_recipes()
    width = max(map(len, found))
    answer(found if json else [f"{name:{width}}  {description}" for name, description in found.items()])


def config(recipe: RecipeOption, overrides: OverrideOption = None) -> None:
    """Print every setting of a run as a recipe: what is not given, with its default."""
    from recon.trainer.recipe import config_to_toml, load_config

    sys.stdout.write(shown(config_to_toml(load_config(recipe, overrides or [])), lines=True))


def sizes(json: JsonOption = False) -> None:
    """Count parameters and operations of each size, beside the paper's table; takes some seconds."""
    from recon.trainer.model.sizes import count_sizes, sizes_table

    found = count_sizes()
    answer(found if json else sizes_table(found))


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of two runs or more.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The page to write.")] = Path("compare.html"),
    json: JsonOption = False,
) -> None:
    """Put runs beside each other: settings that differ, last metrics, probes, and curves, in one page."""
    from recon.trainer.show.compare import for_terminal, write_comparison

    names, tables = write_comparison(runs, output)
    if json:
        told = {
            title: {row: dict(zip(names, cells, strict=True)) for row, cells in rows} for title, rows in tables.items()
        }
        answer(told)
    else:
        Terminal(soft_wrap=True).print(for_terminal(names, tables))
    Terminal(stderr=True, soft_wrap=True).print(f"wrote {output}")


class TableFormat(StrEnum):
    """What a table is written as."""

    markdown = "markdown"
    csv = "csv"
    latex = "latex"
    html = "html"


def table(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, or of several seeds with a summary.json.")
    ],
    form: Annotated[TableFormat, typer.Option("--format", help="What to write it as.")] = TableFormat.markdown,
    output: TextOption = None,
    json: JsonOption = False,
) -> None:
    """Put what was measured beside the published numbers of the same task and data, and say what differs."""
    from recon.trainer.show.table import find_rows, make_table

    text, notes = make_table(runs, form.value)
    for note in notes:
        Terminal(stderr=True, soft_wrap=True, highlight=False).print(note)
    _tell(text, output, {"rows": [row.named() for row in find_rows(runs)[0]], "notes": notes} if json else {})


def card(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.")],
    output: TextOption = None,
    json: JsonOption = False,
) -> None:
    """Write a run's model card: recipe, data and their licences, teachers, scores, how to make it again, limits."""
    from recon.trainer.show.card import card_document, make_card

    _tell(make_card(run), output, card_document(run) if json else {})


def _tell(text: str, output: Path | None, document: dict[str, Any]) -> None:
    """Text into a file, or on standard output, where a document, if there is one, takes its place."""
    from recon.pipeline.base.files import write_atomically

    if document:
        answer(document)
    if output is None:
        sys.stdout.write("" if document else shown(text, lines=True))
        return
    try:
        write_atomically(output, text)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror or error}") from error
    Terminal(stderr=True, soft_wrap=True, highlight=False).print(f"wrote {output}")


COMMANDS = (export, recipes, config, sizes, compare, table, card)
