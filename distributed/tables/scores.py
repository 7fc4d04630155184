"""The scores table on storage: parts, each a file whose footer has a ledger of the pool rows in it.

A part is sorted by predicted loss and named after the rows it holds, so that a second write of the same rows replaces
it (but for a part with damaged rows, whose name is its own). Parts lie side by side, whoever wrote them and when; only
those that a published run.json names are ever read.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distributed.schema import DAMAGED, FILE_ID, with_captured_at
from distributed.storage.location import (
    Location,
    StoredFile,
    list_drafts,
    list_files,
    open_atomic,
    read_again,
    read_versioned,
    write_bytes,
)
from distributed.storage.threads import ask_at_once
from distributed.tables.parquet import damage_reported, hash_footer, open_table, read_table
from distributed.tables.sketch import Sketch, merge_sketches, sketch
from model.errors import DamagedError, InputError
from model.json_text import parse_json

# Rows of a row group: small enough that selection, which wants the best rows, reads little; large enough to compress.
ROW_GROUP_ROWS = 32_768
NUM_EXAMPLES = 3  # ids kept of each reason
# Measured on 100 million rows: a third smaller than by default, and half the time of a selection. Ids are unique
# and make no dictionary; numbers compress better byte by byte; small pages let a reader stop early.
_LAYOUT: dict[str, Any] = {
    "compression": "zstd",
    "use_byte_stream_split": ["predicted_loss", "confidence", "captured_at"],
    "data_page_size": 64 * 2**10,
    "write_batch_size": 1024,
}
_FOLDER = "parts"
_INDEX = "parts.index"  # a digest, and in JSON: path -> size, version, hash of the footer, ledger
_LEDGER, _DIGEST = b"lossight", b"lossight-digest"  # keys in the footer, which has no checksum of its own

Range = tuple[int, int]  # first row and end


@dataclass(frozen=True, kw_only=True)
class Held:
    """Rows of one pool file that a part holds."""

    path: str  # below the pool's location
    ranges: tuple[Range, ...]  # ascending and apart


@dataclass(frozen=True, kw_only=True)
class ErrorCount:
    """Number of rows with a reason, and their first ids."""

    num_rows: int
    examples: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ScoresPart:
    """One written file and its contents, as its writer hands it on or as its footer is read later."""

    path: str  # below the scores' location
    footer: str  # hash of the footer: a reader that finds another one has a damaged file
    num_rows: int
    num_bytes: int  # in memory
    files: dict[str, Held]  # by file_id
    errors: dict[str, ErrorCount]  # by reason
    damaged_files: dict[str, int]  # path of a pool file -> its rows that could not be read
    loss_quantiles: tuple[float, ...]  # of the predicted losses, ascending; see `Sketch`

    @property
    def num_damaged(self) -> int:
        """Rows that could not be read; another run may be able to."""
        return self.errors[DAMAGED].num_rows if DAMAGED in self.errors else 0

    @property
    def num_scored(self) -> int:
        """Rows with a predicted loss."""
        return self.num_rows - sum(count.num_rows for count in self.errors.values())


def write_part(out: Location, rows: pa.Table) -> ScoresPart:
    """Writes scores rows in selection order, failed ones last, with page checksums and a ledger; returns the part.

    Args:
        out: the scores' location.
        rows: scores rows, at least one, with their `file_id` beside them.
    """
    order = pc.sort_indices(
        rows, sort_keys=[("predicted_loss", "descending", "at_end"), ("sample_id", "ascending", "at_end")]
    )
    errors = _count_errors(rows)
    part = ScoresPart(
        path="",
        footer="",
        num_rows=len(rows),
        num_bytes=rows.nbytes,
        files=_held(rows),
        errors=errors,
        damaged_files=_count_damaged(rows) if DAMAGED in errors else {},
        loss_quantiles=sketch(rows["predicted_loss"].drop_null().to_numpy()).quantiles,
    )
    columns = _columns(rows.schema.remove(rows.schema.get_field_index(FILE_ID)))
    ledger = {"columns": columns, **_ledger_of(part)}
    table = rows.drop_columns([FILE_ID]).take(order).unify_dictionaries()
    text = json.dumps(ledger).encode()
    schema = table.schema.with_metadata({_LEDGER: text, _DIGEST: _digest(text)})
    # The next run makes another part of the rows of a damaged one, and readers of this one must not lose it.
    salt = uuid.uuid4().hex if DAMAGED in errors else ""
    path = f"{_FOLDER}/part-{_digest((json.dumps(ledger['files']) + salt).encode()).decode()}.parquet"
    with (
        open_atomic(out.join(*path.split("/"))) as stream,
        pq.ParquetWriter(
            stream,
            schema,
            write_page_checksum=True,
            use_dictionary=_repetitive(schema),
            **_LAYOUT,
        ) as writer,
    ):
        writer.write_table(table.replace_schema_metadata(schema.metadata), row_group_size=ROW_GROUP_ROWS)
    return _part_of(path, writer.writer.metadata)  # as it was written; nothing is read back


def _ledger_of(part: ScoresPart) -> dict[str, Any]:
    """A part as JSON, but for its name and footer."""
    ledger = {
        "loss_quantiles": part.loss_quantiles,
        "num_rows": part.num_rows,
        "num_bytes": part.num_bytes,
        "files": {file_id: [held.path, held.ranges] for file_id, held in sorted(part.files.items())},
        "errors": {reason: [count.num_rows, count.examples] for reason, count in sorted(part.errors.items())},
    }
    return {**ledger, "damaged_files": part.damaged_files} if part.damaged_files else ledger


def _part_of(path: str, footer: pq.FileMetaData) -> ScoresPart:
    """The part that a footer is of. It may be a damaged one: nothing but its ledger, which has a digest, is read."""
    metadata = footer.metadata
    ledger = parse_json(metadata[_LEDGER])
    columns = _columns(footer.schema.to_arrow_schema())
    if metadata[_DIGEST] != _digest(metadata[_LEDGER]) or ledger["columns"] != columns:
        raise DamagedError(f"{path}: damaged: its ledger is not the one that was written")
    return _parse(path, hash_footer(footer), ledger)


def _parse(path: str, footer: str, ledger: dict[str, Any]) -> ScoresPart:
    return ScoresPart(
        path=path,
        footer=footer,
        num_rows=ledger["num_rows"],
        num_bytes=ledger["num_bytes"],
        files={
            file_id: Held(path=name, ranges=tuple((start, stop) for start, stop in ranges))
            for file_id, (name, ranges) in ledger["files"].items()
        },
        errors={
            reason: ErrorCount(num_rows=count, examples=tuple(examples))
            for reason, (count, examples) in ledger["errors"].items()
        },
        damaged_files=ledger.get("damaged_files", {}),
        loss_quantiles=tuple(ledger["loss_quantiles"]),
    )


def _repetitive(schema: pa.Schema) -> list[str]:
    """The columns of texts that are few, or likely to be."""
    texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_dictionary(field.type)]
    return [name for name in texts if name != "sample_id"]


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest()[:16].encode()


def _columns(schema: pa.Schema) -> dict[str, str]:
    return {field.name: _type_name(field.type) for field in schema}


def _type_name(kind: pa.DataType) -> str:
    """A type as text, but for the names of list items, which Parquet does not keep."""
    if pa.types.is_fixed_size_list(kind):
        return f"{_type_name(kind.value_type)}[{kind.list_size}]"
    return f"{_type_name(kind.value_type)}[]" if pa.types.is_list(kind) else str(kind)


def _held(rows: pa.Table) -> dict[str, Held]:
    ids = rows[FILE_ID].cast(pa.string()).combine_chunks().dictionary_encode()
    paths = rows["pool_file"].cast(pa.string()).combine_chunks()
    codes, numbers = ids.indices.to_numpy(), rows["pool_row"].to_numpy()
    order = np.lexsort((numbers, codes))  # sorted once: a part may hold rows of 100,000 small files
    held = {}
    for own in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        row = int(own[0])
        held[ids[row].as_py()] = Held(path=paths[row].as_py(), ranges=_ranges(numbers[own]))
    return held


def _ranges(numbers: np.ndarray) -> tuple[Range, ...]:
    """Ascending numbers as ranges; a number that occurs twice makes ranges that overlap."""
    breaks = np.flatnonzero(np.diff(numbers) != 1)
    starts = numbers[np.concatenate([[0], breaks + 1])]
    stops = numbers[np.concatenate([breaks, [len(numbers) - 1]])] + 1
    return tuple((int(start), int(stop)) for start, stop in zip(starts, stops, strict=True))


def _count_errors(rows: pa.Table) -> dict[str, ErrorCount]:
    failed = rows.filter(pc.is_valid(rows["error"])).select(["error", "sample_id"])
    counts = {}
    for reason in failed["error"].unique().to_pylist():
        ids = failed["sample_id"].filter(pc.equal(failed["error"], reason))
        counts[reason] = ErrorCount(num_rows=len(ids), examples=_first(ids.to_pylist()))
    return counts


def _count_damaged(rows: pa.Table) -> dict[str, int]:
    damaged = rows.filter(pc.equal(rows["error"], DAMAGED))["pool_file"].cast(pa.string())
    return dict(sorted(Counter(damaged.to_pylist()).items()))


def _first(ids: list[str]) -> tuple[str, ...]:
    return tuple(sorted(ids)[:NUM_EXAMPLES])


def merge_quantiles(parts: Sequence[ScoresPart]) -> tuple[float, ...]:
    """The distribution of all predicted losses, as `Sketch` has it."""
    return merge_sketches(Sketch(part.num_scored, part.loss_quantiles) for part in parts).quantiles


def sum_errors(parts: Sequence[ScoresPart]) -> dict[str, ErrorCount]:
    """The errors of all parts by reason; the examples are the first ids of all."""
    reasons = sorted({reason for part in parts for reason in part.errors})
    found = {reason: [part.errors[reason] for part in parts if reason in part.errors] for reason in reasons}
    return {
        reason: ErrorCount(
            num_rows=sum(count.num_rows for count in counts),
            examples=_first([sample_id for count in counts for sample_id in count.examples]),
        )
        for reason, counts in found.items()
    }


def sum_damaged(parts: Sequence[ScoresPart]) -> dict[str, int]:
    """Damaged rows of each pool file, by path; files without any are left out."""
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.damaged_files)
    return dict(sorted(counts.items()))


def list_parts(out: Location, *, with_drafts: bool = False) -> list[str]:
    """The paths of all parts below a scores location, published or not, whole or damaged; drafts of killed writers."""
    drafts = list_drafts(out.join(_FOLDER)) if with_drafts else []
    return [path[len(out.path) + 1 :] for path in [*(file.path for file in _list_stored(out)), *drafts]]


def _list_stored(out: Location) -> list[StoredFile]:
    try:
        return list_files(out.join(_FOLDER), suffix=".parquet")
    except InputError:  # no such folder yet
        return []


def find_parts(out: Location, *, footers: Mapping[str, str] | None = None) -> list[ScoresPart]:
    """The parts below a scores location, published or not; damaged ones are left out.

    Of parts that are as they were when `index_parts` saw them nothing is read; of others the footers.

    Args:
        out: the scores' location.
        footers: hashes of footers by path, where a record has them: a part with another footer is damaged.
    """
    index = _read_index(out)

    def find(stored: StoredFile) -> ScoresPart | None:
        path = stored.path[len(out.path) + 1 :]
        size, version, *known = index.get(path, ("", "", "", {}))
        return _parse(path, *known) if (size, version) == stored[1:] else _find_part(out, path, stored)

    found = ask_at_once(out, find, _list_stored(out))
    known = footers or {}
    return [part for part in found if part is not None and known.get(part.path, part.footer) == part.footer]


def index_parts(out: Location, parts: Iterable[ScoresPart]) -> None:
    """Keeps the ledgers of parts in one object, so that whoever looks for them need not open them."""
    stored = {file.path[len(out.path) + 1 :]: file for file in _list_stored(out)}
    index = {
        part.path: (stored[part.path].size, stored[part.path].version, part.footer, _ledger_of(part))
        for part in parts
        if part.path in stored
    }
    text = json.dumps(index).encode()
    write_bytes(out.join(_INDEX), _digest(text) + b"\n" + text)


def _read_index(out: Location) -> dict[str, Any]:
    """The index of parts; an empty one where there is none, or a damaged one."""
    found = read_versioned(out.join(_INDEX))
    digest, _, text = (found[0] if found else b"").partition(b"\n")
    index: dict[str, Any] = json.loads(text) if text and digest == _digest(text) else {}
    return index


def _find_part(out: Location, path: str, stored: StoredFile) -> ScoresPart | None:
    def read(where: Location) -> ScoresPart:
        with open_table(where, size=stored.size, version=stored.version) as reader:
            return _part_of(path, reader.metadata)

    try:
        return read_again(read, out.join(*path.split("/")))
    except (InputError, KeyError, TypeError, ValueError):
        return None


def read_part(out: Location, part: ScoresPart) -> pa.Table:
    """All rows of a part, `file_id` beside them, checksums verified.

    Raises:
        InputError: the part is damaged.
    """
    where = out.join(*part.path.split("/"))
    rows = with_captured_at(read_table(where))
    ids = {held.path: file_id for file_id, held in part.files.items()}
    with damage_reported(where.uri):
        paths = rows["pool_file"].cast(pa.string()).combine_chunks().dictionary_encode()
        names = pa.array([ids.get(path, "") for path in paths.dictionary.to_pylist()], pa.string())
        rows = rows.append_column(FILE_ID, pa.DictionaryArray.from_arrays(paths.indices, names))
        # Checksums cover neither footers nor the headers of pages.
        if not len(rows) or rows["pool_row"].null_count or _held(rows) != part.files:
            raise InputError(f"{where.uri}: damaged: its rows are not those that its ledger names")
    return rows
