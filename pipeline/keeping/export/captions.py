"""Exports of the captions alone, as JSON lines: what each says, where it comes from and what it was made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recon.pipeline.keeping.export.table import Progress, Table
from recon.pipeline.store.records import Caption

FIELDS = {
    "uid": "the shape's, in its dataset",
    "caption": "the text; with uid, what a `[[captions]]` table of kind file reads again",
    "category": "the shape's class",
    "split": "the shape's",
    "table": "of the manifest",
    "source": "the table's kind",
    "view": "which view it was written of; null: of no single one",
    "score": "cosine with what the ranking or choosing teacher saw; null: not compared",
    "model": "SHA-256 of the weights that wrote or chose it; null: no model did",
    "seed": "of the captioner; null: nothing was drawn",
}


def write_captions(
    table: Table, folder: Path, trace: dict[str, Any], shard_rows: int, progress: Progress
) -> dict[str, Any]:
    """captions.jsonl: one line a caption that counts, shape by shape, tables in the manifest's order."""
    captions = table.store.caption_records(table.ref)
    with (folder / "captions.jsonl").open("w", encoding="utf-8") as file:
        for number, (row, record) in enumerate(zip(table.rows, table.records, strict=True), 1):
            file.writelines(_line(record, caption) for caption in captions[row] if caption.kept)
            progress(number, len(table))
    return {"captions.jsonl": FIELDS}


def _line(record: dict[str, Any], caption: Caption) -> str:
    fields = {
        "uid": record["uid"],
        "caption": caption.text,
        "category": record["category"],
        "split": record["split"],
        "table": caption.table,
        "source": caption.source,
        "view": caption.view,
        "score": None if caption.score is None else round(caption.score, 6),
        "model": caption.model,
        "seed": caption.seed,
    }
    return json.dumps(fields, ensure_ascii=False) + "\n"
