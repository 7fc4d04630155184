"""The scores table on storage: parts sorted by predicted loss; only what a run has published is ever read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distributed.runs import read_run
from distributed.schema import SCORES
from distributed.storage import Location, open_atomic
from distributed.tables import open_table

# Rows of a row group: small enough that selection, which reads heads only, reads little; large enough to compress.
ROW_GROUP_ROWS = 32_768


@dataclass(frozen=True, kw_only=True)
class ScoresPart:
    """One written file: where, and what is in it."""

    path: str  # below the run's location
    num_rows: int
    rows_by_file: dict[str, int]  # pool file -> rows
    errors: dict[str, int]  # reason -> rows


def write_part(out: Location, path: str, rows: pa.Table) -> ScoresPart:
    """Writes rows in selection order, failed ones last, with page checksums, and counts them by pool file."""
    order = pc.sort_indices(
        rows, sort_keys=[("predicted_loss", "descending", "at_end"), ("sample_id", "ascending", "at_end")]
    )
    ordered = rows.take(order).unify_dictionaries().cast(SCORES)
    with (
        open_atomic(out.join(*path.split("/"))) as stream,
        pq.ParquetWriter(stream, SCORES, compression="zstd", write_page_checksum=True) as writer,
    ):
        writer.write_table(ordered, row_group_size=ROW_GROUP_ROWS)
    return ScoresPart(
        path=path,
        num_rows=len(rows),
        rows_by_file=_count(rows["pool_file"].cast(pa.string())),
        errors=_count(rows["error"].drop_null()),
    )


def read_scores(location: Location) -> Iterator[pa.Table]:
    """The published parts of a scores table, one row group at a time, checksums verified.

    Raises:
        InputError: there is no published scores table, or a part of it is damaged.
    """
    for part in read_run(location, expected="scores")["parts"]:
        with open_table(location.join(*part.split("/"))) as reader:
            for group in range(reader.num_row_groups):
                yield reader.read_row_group(group)


def _count(values: pa.ChunkedArray) -> dict[str, int]:
    counted = pc.value_counts(values)
    return {item["values"].as_py(): item["counts"].as_py() for item in counted}
