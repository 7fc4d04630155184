"""The selected rows as pool and scores hold them: images, metadata and poses; and how many rows have which value.

Pool rows are found by file and number; row groups are pruned, checksums verified, ids compared. A file that is gone,
damaged or another one costs its own rows, each with the reason; a store that fails ends the call.

# N selected rows, K keypoints
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distributed.evaluation.slices import MOST_VALUES, is_sliceable, texts_by_row, values_of
from distributed.runs.progress import Progress
from distributed.schema import POOL, REFERENCE, SCORES
from distributed.storage.location import Location
from distributed.tables.manifest import PoolFile, Segment, freeze_file
from distributed.tables.parquet import open_table
from distributed.tables.reader import Bin, boxes, image_buffers, read_bin
from distributed.tables.scores_reader import ReadablePart, open_part, read_group
from model.errors import InputError, RunFailedError

if TYPE_CHECKING:
    from model.bundle import Bundle

INDEX = "index"  # column: the place of the row in the selection
_ROWS = 64
_OF_POOLS = {*POOL.names, *REFERENCE.names[1:], "keypoints", "visibility", "embedding", INDEX}  # that are no metadata
_OF_SCORES = {*SCORES.names, "keypoints", "keypoint_miss", "embedding"}
_MOST_POOL_ROWS = 5_000_000  # read for their metadata where the scores have none: seconds from a disk

# Arithmetic that predicting again may cost a report: about ten minutes of two CPU cores.
_REPORT_FLOPS = 2e13
_DECODE_THREADS = 2

PoseSource = Literal["scores", "predicted", "none"]
Metadata = dict[str, dict[int, tuple[str, ...]]]  # column -> place of the selected row -> values


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Location of the images of a selection."""

    location: Location
    image_root: Location | None = None  # that references are below; None: the pool's own folder
    footers: Mapping[str, str] = field(default_factory=dict)  # by file, the expected hash of its footer, if known


@dataclass
class Missing:
    """Selected rows whose pool rows were not found, and why."""

    reasons: dict[int, str] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Rows by reason, the most frequent first."""
        return dict(sorted(Counter(self.reasons.values()).items(), key=lambda item: (-item[1], item[0])))


Pick = Callable[[pa.Schema], list[str]]  # names of the columns, beside the contract's, that are wanted of a file


def read_rows(
    pools: list[Pool], selected: pa.Table, *, missing: Missing, progress: Progress, pick: Pick | None = None
) -> Iterator[pa.Table]:
    """The pool rows of the selected ones, some at a time, file by file: `POOL`, metadata and `INDEX`.

    Each row is looked for in all pools until one has its id at its place; `missing` learns of those that none has.

    Args:
        pools: where the rows may lie.
        selected: the selection, or some rows of one.
        missing: learns of the rows that no pool has.
        progress: told of every batch.
        pick: the further columns to read; default: `metadata_columns`.

    Raises:
        RunFailedError: the store failed.
    """
    found = np.zeros(len(selected), bool)
    for pool in pools:
        for rows in _gathered(_read_pool(pool, selected, np.flatnonzero(~found), missing, pick or metadata_columns)):
            found[rows[INDEX].to_numpy()] = True
            for index in rows[INDEX].to_pylist():  # now: whoever reads them may find their images unreadable
                missing.reasons.pop(index, None)
            progress("images", int(found.sum()), len(selected))
            yield rows


def _gathered(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows, at least `_ROWS` at a time where files agree on their columns: a model computes whole batches."""
    waiting: list[pa.Table] = []
    for table in tables:
        if waiting and (not waiting[0].schema.equals(table.schema) or sum(map(len, waiting)) >= _ROWS):
            yield pa.concat_tables(waiting)
            waiting = []
        waiting.append(table)
    if waiting:
        yield pa.concat_tables(waiting)


def _read_pool(
    pool: Pool, selected: pa.Table, wanted: NDArray[np.int64], missing: Missing, pick: Pick
) -> Iterator[pa.Table]:
    paths = selected["pool_file"].to_pylist()
    ordered = sorted(wanted.tolist(), key=lambda index: paths[index] or "")
    for path, group in itertools.groupby(ordered, key=lambda index: paths[index] or ""):
        indices = pa.array([*group], pa.int64())
        left, reason = set(indices.to_pylist()), "another sample is in its place"
        try:
            for rows in _read_file(pool, path, selected.take(indices).append_column(INDEX, indices), pick):
                left -= set(rows[INDEX].to_pylist())
                yield rows
        except InputError as error:
            reason = str(error)
        except RunFailedError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            reason = "the file is gone"
        missing.reasons.update(dict.fromkeys(left, f"{path}: {reason}"))


def _read_file(pool: Pool, path: str, own: pa.Table, pick: Pick) -> Iterator[pa.Table]:
    """The rows of a file that are the wanted ones, by number and id."""
    names = path.split("/")
    if set(names) & {"", ".", ".."}:
        raise InputError("expected a path below the pool")
    where = pool.location.join(*names)
    stored = where.stat()
    if stored is None:
        raise InputError("the file is gone")
    file, metadata = freeze_file(where, stored, path=path, schema=POOL, pick=lambda reader: pick(reader.schema_arrow))
    if pool.footers.get(path, file.footer) != file.footer:
        raise InputError("the file has changed since it was scored")
    keys = zip(own["pool_row"].to_pylist(), own["sample_id"].to_pylist(), strict=True)
    wanted = dict(zip(keys, own[INDEX].to_pylist(), strict=True))
    bin_ = Bin(segments=tuple(_segments(file, np.unique(own["pool_row"].to_numpy()))))
    for rows in read_bin(pool.location, bin_, columns=[*POOL.names, *metadata], images=pool.image_root):
        keys = zip(rows["pool_row"].to_pylist(), rows["sample_id"].to_pylist(), strict=True)
        indices = pa.array([wanted.get(key) for key in keys], pa.int64())
        if indices.null_count < len(indices):
            hits = rows.drop_columns(["pool_file", "pool_row"]).append_column(INDEX, indices)
            yield hits.filter(indices.is_valid())


def _segments(file: PoolFile, numbers: NDArray[np.int64]) -> Iterator[Segment]:
    """The row groups that hold any of these rows, adjacent ones as one."""
    ends = np.cumsum(file.row_group_rows)
    groups = np.unique(np.searchsorted(ends, numbers[numbers < file.num_rows], side="right"))
    for run in np.split(groups, np.flatnonzero(np.diff(groups) > 1) + 1):
        if len(run):
            yield Segment(file, int(ends[run[0]] - file.row_group_rows[run[0]]), int(ends[run[-1]]))


def metadata_columns(schema: pa.Schema) -> list[str]:
    """The columns of a pool, beside the contract's, that have values to show."""
    return [each.name for each in schema if each.name not in _OF_POOLS and is_sliceable(each.type)]


def metadata_of(parts: Sequence[ReadablePart]) -> list[str]:
    """The columns of metadata that all parts of the scores have."""
    names = [each.name for each in parts[0].schema if each.name not in _OF_SCORES and is_sliceable(each.type)]
    return [name for name in names if all(name in part.schema.names for part in parts)]


@dataclass(frozen=True, kw_only=True)
class ScoredRows:
    """Values of the scores, by the place of a selected row; empty where the scores have no such column."""

    keypoints: dict[int, NDArray[np.float32]] = field(default_factory=dict)  # (K, 3) x, y, trust; see `Poses`
    metadata: Metadata = field(default_factory=dict)


def read_scored_rows(parts: Sequence[ReadablePart], selected: pa.Table) -> ScoredRows:
    """Keypoints and metadata of the selected rows. Row groups that can't hold their losses are not read.

    Raises:
        InputError: a part is damaged.
        RunFailedError: the store failed.
    """
    found = ScoredRows(metadata={name: {} for name in metadata_of(parts)})
    ids = selected["sample_id"].combine_chunks()
    losses = np.sort(selected["predicted_loss"].to_numpy())
    for part in parts:
        columns = [name for name in ("keypoints", "keypoint_miss", *found.metadata) if name in part.schema.names]
        for rows, places in _hits(part, losses, ids, columns) if columns else ():
            if "keypoints" in columns:
                found.keypoints.update(zip(places, _keypoints(rows), strict=True))
            for name, values in found.metadata.items():
                values.update(zip(places, texts_by_row(rows[name]), strict=True))
    return found


def _hits(
    part: ReadablePart, losses: NDArray[np.float32], ids: pa.Array, columns: list[str]
) -> Iterator[tuple[pa.Table, list[int]]]:
    """Rows of a part that were selected, and their places in the selection."""
    first = np.searchsorted(losses, part.least, side="left")
    end = np.searchsorted(losses, part.greatest, side="right")
    with open_part(part) as reader:
        for group in np.flatnonzero(first < end).tolist():
            places = pc.index_in(read_group(reader, part, group, ["sample_id"])["sample_id"], value_set=ids)
            is_hit = pc.is_valid(places)
            if pc.any(is_hit).as_py():
                yield read_group(reader, part, group, columns).filter(is_hit), places.filter(is_hit).to_pylist()


def _keypoints(rows: pa.Table) -> list[NDArray[np.float32]]:
    """(K, 3) of each row: x, y and trust."""
    keypoints = _halves(rows["keypoints"]).reshape(len(rows), -1, 3)
    if "keypoint_miss" in rows.column_names:
        keypoints[..., 2] = _trust(keypoints[..., 2], _halves(rows["keypoint_miss"]))
    return [*keypoints]


def _trust(peaks: NDArray[np.float32], miss: NDArray[np.float32]) -> NDArray[np.float32]:
    """Trust in each keypoint, 0 to 1: 1 - P(miss) where that is known, else its heatmap's peak."""
    return np.where(np.isnan(miss), peaks, 1 - miss)


def _halves(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """(N, size) of a column of fixed-size lists; NaN where there is none."""
    values = column.combine_chunks()
    missing = [float("nan")] * values.type.list_size
    flat = [row.as_py() or missing for row in values] if values.null_count else values.flatten()
    return np.asarray(flat, np.float32).reshape(len(values), -1)


class Poses:
    """Gives the pose of each pool row of a selection.

    Args:
        stored: (K, 3) x, y, trust by the place of a selected row, where the scores have them.
        bundle: predicts the poses where the scores have none; None: then there is no pose.
        num_rows: how many poses, the best ranks first, predicting may cost; None: all.

    Attributes:
        source: where the poses are from.
    """

    def __init__(
        self, stored: dict[int, NDArray[np.float32]], *, bundle: Bundle | None, num_rows: int | None = None
    ) -> None:
        self.source: PoseSource = "scores" if stored else "predicted" if bundle else "none"
        self._num_rows = num_rows
        self._stored = stored
        self._predictor = None
        if bundle and not stored:
            from model.predictor import Predictor  # PyTorch: seconds that stored poses need not cost

            self._predictor = Predictor(bundle, decode_threads=_DECODE_THREADS)

    def of(self, rows: pa.Table) -> list[NDArray[np.float32] | None]:
        """(K, 3) x, y in image pixels and trust of each pool row; None where there is none."""
        places = rows[INDEX].to_pylist()
        if self._predictor is None:
            return [self._stored.get(place) for place in places]
        chosen = [row for row, place in enumerate(places) if self._num_rows is None or place < self._num_rows]
        result: list[NDArray[np.float32] | None] = [None] * len(places)
        images, regions = image_buffers(rows), boxes(rows)
        found = self._predictor.predict([images[row] for row in chosen], [regions[row] for row in chosen])
        trust = _trust(found.peaks, found.miss)
        for row, keypoints, trusted, error in zip(chosen, found.keypoints, trust, found.errors, strict=True):
            if error is None:
                result[row] = np.concatenate([keypoints, trusted[:, None]], axis=1)
        return result


def affordable_rows(bundle: Bundle) -> int:
    """Number of images whose poses a report may predict with this bundle."""
    from model.roofline import flops_per_image

    return int(_REPORT_FLOPS / flops_per_image(bundle.model, input_size=bundle.spec.input_size))


class Totals(NamedTuple):
    """Rows by value of the metadata columns that have at most `MOST_VALUES`."""

    num_rows: int
    counts: dict[str, Counter[str]]  # column -> value -> rows


def count_scores(parts: Sequence[ReadablePart], names: Sequence[str]) -> Totals:
    """Rows of scores tables by value of the metadata columns, failed rows too.

    Raises:
        InputError: a part is damaged.
        RunFailedError: the store failed.
    """

    def tables() -> Iterator[pa.Table]:
        for part in parts:
            with open_part(part) as reader:
                for group in range(len(part.group_rows)):
                    yield read_group(reader, part, group, list(names))

    return _count(tables, names)


def count_pool(pool: Pool, names: Sequence[str], *, num_rows: int) -> Totals | None:
    """The same from the files of a pool that were scored; None where they are too many rows, or not all readable."""
    if num_rows > _MOST_POOL_ROWS or not pool.footers:
        return None

    def tables() -> Iterator[pa.Table]:
        for path in pool.footers:
            with open_table(pool.location.join(*path.split("/"))) as reader:
                for group in range(reader.num_row_groups):
                    yield reader.read_row_group(group, columns=list(names))

    try:
        return _count(tables, names)
    except (InputError, RunFailedError, KeyError):
        return None


def _count(tables: Callable[[], Iterator[pa.Table]], names: Sequence[str]) -> Totals:
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    num_rows = 0
    for rows in tables():
        num_rows += len(rows)
        for name in list(counts):
            found = values_of(rows[name])
            numbers = np.bincount(found.codes, minlength=len(found.names)).tolist()
            counts[name].update(dict(zip(found.names, numbers, strict=True)))
            if len(counts[name]) > MOST_VALUES:
                del counts[name]
    return Totals(num_rows, counts)
