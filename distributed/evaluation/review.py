"""Was it a good selection? Its failures against a random draw's, its hard slices, and a sheet of its images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distributed.evaluation.arms import compare_arms
from distributed.evaluation.rows import evaluate_rows
from distributed.evaluation.summary import summarise
from distributed.runs.progress import Progress, silent
from distributed.selection.select import read_selection
from distributed.storage.bundles import read_bundle
from distributed.storage.location import locate, write_bytes
from distributed.tables.labelled import freeze_labelled
from distributed.tables.manifest import Manifest
from distributed.tables.reader import read_file
from model.draw import Tile, contact_sheet, encode_png

_SHEET_TILES = 48


def review_selection(
    *, truth: str, model: str, selection: str, sheet: str, progress: Progress = silent
) -> dict[str, Any]:
    """Metrics of a selection whose labels are known, and a contact sheet of its first images with predicted poses.

    Args:
        truth: location of a labelled table that holds the pool's rows; its `slices` column (lists of strings) says what
            is hard about a row.
        model: location of the bundle that scored.
        selection: location of the selection.
        sheet: location of the PNG to write.
        progress: told of every batch.

    Returns:
        `summarise` and `compare_arms` in one, and `slices`: each slice's share of the pool and of the selection.
    """
    bundle = read_bundle(locate(model))
    manifest = freeze_labelled(locate(truth), skeleton=bundle.spec.skeleton)
    selected = read_selection(locate(selection))
    evaluated = evaluate_rows(bundle, manifest, progress=progress)
    first = selected.slice(0, _SHEET_TILES)
    tiles = _tiles(first, evaluated, _read_columns(manifest, first["sample_id"], ["sample_id", "image"]))
    write_bytes(locate(sheet), encode_png(contact_sheet(tiles, skeleton=bundle.spec.skeleton)))
    return {
        **summarise(evaluated, spec=bundle.spec),
        **compare_arms(evaluated, selected),
        "slices": _slice_shares(manifest, selected),
    }


def _tiles(first: pa.Table, evaluated: pa.Table, images: pa.Table) -> list[Tile]:
    """One tile a selected row, by rank; its caption is rank and predicted loss."""
    row_of = {sample_id: row for row, sample_id in enumerate(evaluated["sample_id"].to_pylist())}
    image_of = dict(zip(images["sample_id"].to_pylist(), images["image"], strict=True))
    tiles = []
    for rank, sample_id, loss in zip(
        *(first[name].to_pylist() for name in ("rank", "sample_id", "predicted_loss")), strict=True
    ):
        keypoints = np.asarray(evaluated["keypoints"][row_of[sample_id]].as_py(), np.float32).reshape(-1, 2)
        image = image_of[sample_id].as_buffer().to_pybytes()
        tiles.append(Tile(image=image, keypoints=keypoints, caption=f"{rank}  loss {loss:.2f}"))
    return tiles


def _slice_shares(manifest: Manifest, selected: pa.Table) -> dict[str, dict[str, float]]:
    rows = _read_columns(manifest, None, ["sample_id", "slices"])
    chosen = rows.filter(pc.is_in(rows["sample_id"], value_set=selected["sample_id"].combine_chunks()))
    names = sorted(set(pc.list_flatten(rows["slices"]).to_pylist()))
    return {name: {"pool": _share(rows, name), "selection": _share(chosen, name)} for name in names}


def _share(rows: pa.Table, name: str) -> float:
    hits = sum(name in slices for slices in rows["slices"].to_pylist())
    return hits / max(1, len(rows))


def _read_columns(manifest: Manifest, wanted: pa.ChunkedArray | None, columns: list[str]) -> pa.Table:
    """Columns of all rows, or of those with the wanted ids."""
    tables = []
    for file in manifest.files:
        for rows in read_file(manifest, file, columns=columns):
            keep = pc.is_in(rows["sample_id"], value_set=wanted.combine_chunks()) if wanted is not None else None
            tables.append((rows if keep is None else rows.filter(keep)).select(columns))
    return pa.concat_tables(tables, promote_options="default")
