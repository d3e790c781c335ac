"""Commands that put a trained student to use: embed files, search a store, name a shape."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.program import JsonOption
from recon.trainer.commands.opening import beside, console_of, index_of, student_of
from recon.trainer.commands.options import (
    ColumnsOption,
    DeviceChoice,
    DeviceOption,
    EmaOption,
    FileOverrideOption,
    FrontOption,
    RefOption,
    RunOption,
    SearchedStore,
    StudentOption,
    UpOption,
    WeightsOption,
    answer,
)

if TYPE_CHECKING:
    from recon.trainer.use.search import Question


def embed(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Meshes, clouds, folders of them, or one store.")
    ],
    run: StudentOption,
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write, .parquet or .npz.")],
    up: UpOption = None,
    front: FrontOption = None,
    columns: ColumnsOption = None,
    ref: RefOption = None,
    device: DeviceOption = DeviceChoice.auto,
    ema: EmaOption = False,
    overrides: FileOverrideOption = None,
    json: JsonOption = False,
) -> None:
    """Embed meshes, clouds or a store's shapes: a row each with uid, embedding, and what each query predicts.

    Files that cannot be read are told of and left out, with exit status 3.
    """
    console = console_of(run)
    from recon.pipeline.store.reader import is_store
    from recon.trainer.data.files import columns_of
    from recon.trainer.use.embedding import check_output, made_by, write_embeddings
    from recon.trainer.use.rows import embed_files, embed_store

    check_output(out)
    names = columns_of(columns)
    student = student_of(run, device, ema, overrides)
    stores = [path for path in paths if is_store(path)]
    if stores and len(paths) > 1:
        raise UserError(f"{stores[0]}: is a store; embed it alone, into a file of its own")
    if stores:
        rows = embed_store(student, stores[0], ref, console.print)
    else:
        rows = embed_files(student, paths, up, front, names, console.print)
    count, width = rows.described.embedding.shape
    made = {**made_by(student), "rows": count, "refused": rows.refused}
    write_embeddings(out, rows.words, rows.described, made)
    console.print(f"wrote {out}: {count} shapes, {width} numbers each")
    if json:
        answer({"output": str(out), **made})
    raise typer.Exit(3 if rows.refused else 0)


def index(
    store: SearchedStore,
    run: RunOption,
    faiss: Annotated[
        bool, typer.Option("--faiss", help="A graph for approximate search too; needs faiss-cpu.")
    ] = False,
    ref: RefOption = None,
    device: DeviceOption = DeviceChoice.auto,
    ema: EmaOption = False,
    json: JsonOption = False,
) -> None:
    """Embed every finished shape of a store into the run's folder, where `retrieve` and `classify` find it.

    An index of the same weights and shapes is left as it is.
    """
    console = console_of(run)
    from recon.trainer.use.index import build_index, open_index
    from recon.trainer.use.search import spaces

    student, probe = beside(store, run, ref, device, ema)
    asked = spaces(run, probe) if faiss else {}
    found = open_index(run, probe)
    if found is None or not {*asked} <= {*found.faiss}:
        found = build_index(run, student, probe, console.print, asked)
    console.print(f"index of {len(found)} shapes in {found.folder}")
    if json:
        answer({"folder": str(found.folder), "shapes": len(found), "faiss": list(found.faiss)})


def retrieve(
    store: SearchedStore,
    run: RunOption,
    text: Annotated[str | None, typer.Option(help='Words, e.g. "a chair with armrests".')] = None,
    image: Annotated[Path | None, typer.Option(help="A picture, as the store's views are.")] = None,
    mesh: Annotated[Path | None, typer.Option(help="A mesh or a cloud.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many shapes.")] = 12,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Their thumbnails, a .png or .html file.")
    ] = None,
    faiss: Annotated[bool, typer.Option("--faiss", help="Search approximately, by `index --faiss`.")] = False,
    up: UpOption = None,
    front: FrontOption = None,
    columns: ColumnsOption = None,
    weights: WeightsOption = None,
    ref: RefOption = None,
    device: DeviceOption = DeviceChoice.auto,
    ema: EmaOption = False,
    json: JsonOption = False,
) -> None:
    """Find the store's shapes nearest to words, a picture or a mesh, by cosine; exact unless `--faiss`."""
    given = [name for name, value in (("--text", text), ("--image", image), ("--mesh", mesh)) if value is not None]
    if len(given) != 1:
        raise UserError(f"{' and '.join(given) or 'nothing'} given: ask by one of --text, --image and --mesh")
    if output is not None and output.suffix not in (".png", ".html"):
        raise UserError(f"-o {output}: its name must end in .png or .html")
    console = console_of(run)
    from recon.pipeline.base.files import write_atomically
    from recon.trainer.data.files import columns_of, own_picture
    from recon.trainer.use import search
    from recon.trainer.use.rows import own_shape
    from recon.trainer.use.words import Teachers

    names = columns_of(columns)
    student, probe = beside(store, run, ref, device, ema)
    asked: Question
    if text is not None:
        asked = search.ask_words(Teachers(run, probe, weights), text)
    elif image is not None:
        asked = search.ask_image(Teachers(run, probe, weights), own_picture(image), str(image))
    else:
        assert mesh is not None
        shape = own_shape(student, mesh, up, front, names)
        asked = search.ask_mesh(student, shape, str(mesh))
        console.print(asked.told)
    known = index_of(console, run, student, probe)
    found = search.answer(probe.store, known, asked, top, faiss)
    if output is not None:
        from recon.trainer.show.answers import answers_page, answers_png, thumbnails

        pictures = thumbnails(probe, [each.row for each in found])
        told = text if text is not None else (image or mesh or Path()).name
        page = answers_png if output.suffix == ".png" else answers_page
        write_atomically(output, page(repr(told), found, pictures))
        console.print(f"wrote {output}")
    lines = [f"{each.cosine:>8.4f}  {each.uid}  ({each.category}, {each.split})" for each in found]
    answer({"asked": asked.told, "found": [each.named() for each in found]} if json else lines)


def classify(
    path: Annotated[Path, typer.Argument(metavar="MESH", help="A mesh or a cloud.")],
    store: SearchedStore,
    run: RunOption,
    classes: Annotated[
        str | None,
        typer.Option(metavar="NAME,...|FILE", help="Names, or a file of one a line; without, the store's categories."),
    ] = None,
    up: UpOption = None,
    front: FrontOption = None,
    columns: ColumnsOption = None,
    split: Annotated[str, typer.Option(help="Split that probabilities are calibrated on.")] = "test",
    weights: WeightsOption = None,
    ref: RefOption = None,
    device: DeviceOption = DeviceChoice.auto,
    ema: EmaOption = False,
    json: JsonOption = False,
) -> None:
    """Name a shape of one's own by words alone, with probabilities and "none of these", calibrated on the store."""
    console = console_of(run)
    import torch

    from recon.trainer.data.files import columns_of
    from recon.trainer.use.embedding import describe
    from recon.trainer.use.index import open_index, unit
    from recon.trainer.use.naming import NONE, calibrate, class_vectors, parse_classes
    from recon.trainer.use.rows import own_shape
    from recon.trainer.use.words import text_space

    held = columns_of(columns)
    student, probe = beside(store, run, ref, device, ema, tested=split)
    space = text_space(run, probe)
    names = parse_classes(classes, probe.split(split).categories)
    shape = own_shape(student, path, up, front, held)
    console.print(f"{path}: {shape.told()}")
    vectors = class_vectors(run, probe, space, names, weights)
    scale = calibrate(run, student, probe, space, open_index(run, probe), len(names))
    console.print(scale.told())
    feature = space.feature(describe(student, torch.from_numpy(shape.points)[None]))
    cosines = vectors @ unit(feature)[0]
    shares, none = scale.probabilities(cosines)
    ranked = sorted(zip(names, shares.tolist(), cosines.tolist(), strict=True), key=lambda each: -each[1])
    found: dict[str, Any] = {
        "file": str(path), "taken": shape.told(), "none": none, "calibration": vars(scale),
        "classes": [{"name": name, "probability": share, "cosine": cosine} for name, share, cosine in ranked],
    }  # fmt: skip
    likely = sorted([*((name, share) for name, share, _ in ranked), (NONE, none)], key=lambda each: -each[1])
    lines = [f"{share:>8.1%}  {name}" for name, share in likely]
    answer(found if json else lines)


COMMANDS = (embed, index, retrieve, classify)
