"""The command that serves a page on a run and a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recon.pipeline.base.errors import UserError
from recon.trainer.commands.opening import beside, console_of, index_of
from recon.trainer.commands.options import (
    ColumnsOption,
    DeviceChoice,
    DeviceOption,
    EmaOption,
    RefOption,
    RunOption,
    SearchedStore,
    WeightsOption,
)


def serve(
    store: SearchedStore,
    run: RunOption,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    host: Annotated[str, typer.Option(help="The one address to serve on; others than this machine's own are seen.")] = (
        "127.0.0.1"
    ),
    root: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the data set's files lie; embedded shapes need none.")
    ] = None,
    upload_mb: Annotated[int, typer.Option(min=1, help="The largest file that may be sent, in MB.")] = 64,
    columns: ColumnsOption = None,
    weights: WeightsOption = None,
    ref: RefOption = None,
    device: DeviceOption = DeviceChoice.auto,
    ema: EmaOption = False,
) -> None:
    """Serve a page on this machine: shapes, views, captions, a map, attention, and search by words, shapes and files.

    It asks no other machine for anything. Ctrl-C ends it.
    """
    console = console_of(run)
    try:
        from recon.trainer.show.serve.app import Limits, listen
        from recon.trainer.show.serve.app import serve as serve_app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        raise UserError("needs starlette and uvicorn: pip install 'recon-pointcloud[serve]'") from None
    from recon.trainer.data.files import columns_of
    from recon.trainer.show.serve.collection import Collection
    from recon.trainer.show.serve.layout import layout_of
    from recon.trainer.show.serve.worker import Reader

    if root is not None and not root.is_dir():
        raise UserError(f"--root {root}: no such folder")
    names, limits, bound = columns_of(columns), Limits(upload_mb), listen(host, port)
    student, probe = beside(store, run, ref, device, ema)
    known = index_of(console, run, student, probe)
    layout, reader = layout_of(known, console.print), Reader(limits.reading_seconds)
    collection = Collection(run, student, probe, known, layout, reader, root, weights, names)
    reader.start()
    collection.attended_cloud(0)  # a model's first pass takes seconds, which nobody should wait for in a page
    name = f"[{host}]" if ":" in host else host
    console.print(f"{len(known)} shapes on http://{name}:{bound.getsockname()[1]}/ (Ctrl-C ends it)")
    try:
        serve_app(collection, limits, bound, host, console.print)
    except KeyboardInterrupt:
        console.print("ended")


COMMANDS = (serve,)
