"""The labelled tables of a simulation: start, pool and test, checked; and the labelled rows of each stage as a folder.

OUT/labelled/KEY/stage-00/…  the start; stage-01/… what the first selection picked; KEY is the hash of the ids
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distributed.evaluation.slices import slice_columns
from distributed.schema import labelled
from distributed.simulation.options import SimulateOptions
from distributed.storage.location import Location, list_files, locate
from distributed.tables.labelled import COLUMNS, freeze_labelled, freeze_with_skeleton, labels_of
from distributed.tables.manifest import Manifest
from distributed.tables.parquet import write_groups
from distributed.tables.reader import plan_bins, read_bin, read_stored
from distributed.tables.references import find_root, with_images
from model.errors import InputError
from model.skeleton import Skeleton

_NEAR = np.timedelta64(1, "s")
_ROW_GROUP_ROWS = 250


@dataclass(frozen=True, kw_only=True)
class Data:
    """The tables of a simulation as they were when it began; travels to its tasks."""

    skeleton: Skeleton
    pool: Manifest
    pool_index: pa.Table  # sample_id, group, captured_at of each row, in the manifest's order
    test: Manifest
    start: Manifest | None  # None: rows of the pool, drawn by seed
    start_ids: dict[int, tuple[str, ...]]  # by seed

    @property
    def fingerprints(self) -> dict[str, str | None]:
        """Fingerprints of the tables: they decide the result besides options."""
        tables = {"pool": self.pool, "test": self.test, "start": self.start}
        return {f"{name}_fingerprint": table.fingerprint if table else None for name, table in tables.items()}


def open_data(options: SimulateOptions) -> Data:
    """The tables, looked into.

    Raises:
        InputError: one can't be used or has a row without labels, a test row is in the pool or the start, or the pool
            is too small for all stages.
    """
    root = find_root(options.image_root)
    pool, skeleton = freeze_with_skeleton(locate(options.pool), named=options.skeleton, image_root=root)
    pool_index = _read_index(options.pool, "pool", pool)
    test = freeze_labelled(locate(options.test), skeleton=skeleton, image_root=root)
    test_index = _read_index(options.test, "test", test)
    if options.slices:
        slice_columns(test, [options.slices])
    if isinstance(options.start, int):
        start, others = None, [("pool", pool_index)]
        check_stages(options, num_pool=len(pool_index) - options.start)
        start_ids = {seed: _draw(pool_index, k=options.start, seed=seed) for seed in options.seeds}
    else:
        check_stages(options, num_pool=len(pool_index))
        start = freeze_labelled(locate(options.start), skeleton=skeleton, image_root=root)
        start_index = _read_index(options.start, "start", start)
        start_ids = dict.fromkeys(options.seeds, tuple(start_index["sample_id"].to_pylist()))
        _check_apart("pool", pool_index, "start", start_index)
        others = [("pool", pool_index), ("start", start_index)]
    for name, index in others:
        _check_apart("test", test_index, name, index)
    return Data(skeleton=skeleton, pool=pool, pool_index=pool_index, test=test, start=start, start_ids=start_ids)


def check_stages(options: SimulateOptions, *, num_pool: int) -> None:
    """Passes if so many pool rows suffice for all stages.

    Raises:
        InputError: they don't.
    """
    wanted = options.stages * options.budget
    if wanted > num_pool:
        raise InputError(
            f"--stages: expected at most the {num_pool} rows that the start leaves of the pool, found "
            f"{options.stages} stages of {options.budget} rows"
        )


def _read_index(uri: str, name: str, manifest: Manifest) -> pa.Table:
    """Ids, groups and times of all rows, none of which may be damaged or without labels."""
    for file in manifest.bad_files:
        raise InputError(f"--{name} {uri}: expected only readable files, found {file.path}: {file.reason}")
    columns = ["sample_id", "group", "captured_at", "keypoints", "visibility"]
    tables = [
        rows for bin_ in plan_bins(manifest.segments) for rows in read_bin(manifest.location, bin_, columns=columns)
    ]
    index = pa.concat_tables(tables, promote_options="default")
    is_bare = ~(labels_of(index).visibility > 0).any(axis=1)
    if is_bare.any():
        first = index["sample_id"][int(np.flatnonzero(is_bare)[0])].as_py()
        raise InputError(
            f"--{name} {uri}: expected labels in every row, found {is_bare.sum()} without, first {first!r}"
        )
    return index.drop_columns(["keypoints", "visibility"])


def _check_apart(name: str, index: pa.Table, other: str, other_index: pa.Table) -> None:
    shared = index["sample_id"].filter(
        pc.is_in(index["sample_id"], value_set=other_index["sample_id"].combine_chunks())
    )
    if len(shared):
        raise InputError(f"--{name}: expected no row of the {other}, found {len(shared)}, first {shared[0].as_py()!r}")


def _draw(index: pa.Table, *, k: int, seed: int) -> tuple[str, ...]:
    order = np.random.default_rng([seed, k]).permutation(len(index))[:k]
    return tuple(index["sample_id"].take(pa.array(np.sort(order))).to_pylist())


def hash_ids(stages: Sequence[Sequence[str]]) -> str:
    """Hash of the ids of a start and of the picks of each stage since."""
    text = "\n\n".join("\n".join(ids) for ids in stages)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_labelled(data: Data, out: Location, stages: Sequence[Sequence[str]]) -> Location:
    """The folder with the labelled rows of a stage: the start and all picks since; nothing is written twice.

    Files of earlier stages are links to those that their own folder has, so each image is written once an arm. A file
    that is there stays as it is: a training that was killed finds the table that it began with.
    """
    folder = out.join("labelled", hash_ids(stages))
    if len(stages) > 1 and not folder.join(_name(len(stages) - 1)).exists:
        earlier = write_labelled(data, out, stages[:-1])
        for stage in range(len(stages) - 1):
            for file in list_files(earlier.join(_name(stage)), suffix=".parquet"):
                target = f"{folder.path}/{_name(stage)}/{file.base_name}"
                os.makedirs(os.path.dirname(target), exist_ok=True)
                if not os.path.exists(target):
                    os.link(file.path, target)
    last = folder.join(_name(len(stages) - 1))
    if not last.exists:
        source = data.start if len(stages) == 1 and data.start else data.pool
        rows = _rows_of(source, stages[-1], labelled(data.skeleton.num_keypoints, skeleton=data.skeleton.name))
        groups = (rows.slice(first, _ROW_GROUP_ROWS) for first in range(0, len(rows), _ROW_GROUP_ROWS))
        write_groups(last, groups, rows.schema)
    return folder


def _name(stage: int) -> str:
    return f"stage-{stage:02d}"


def _rows_of(manifest: Manifest, ids: Sequence[str], schema: pa.Schema) -> pa.Table:
    """The rows of some ids, in the table's order."""
    wanted = pa.array(ids, pa.string())
    found = [
        rows.select(COLUMNS).cast(schema)
        for bin_ in plan_bins(manifest.segments)
        for stored in read_stored(manifest.location, bin_, columns=COLUMNS)
        for rows in with_images(
            stored.filter(pc.is_in(stored["sample_id"], value_set=wanted)), manifest.images, columns=COLUMNS
        )
    ]
    return pa.concat_tables(found).combine_chunks()


def near_duplicate_share(index: pa.Table, picks: Sequence[str], earlier: Sequence[str]) -> float:
    """The share of picks near to another pick, or to a row that was picked earlier: `_NEAR` or less apart in one group.

    Rows without a time are near to all of their group; rows without a group to none. NaN without picks.
    """
    is_pick = pc.is_in(index["sample_id"], value_set=pa.array(picks, pa.string()))
    is_known = pc.or_(is_pick, pc.is_in(index["sample_id"], value_set=pa.array(earlier, pa.string())))
    times: dict[str, list[tuple[np.datetime64, bool]]] = {}
    rows = index.append_column("is_pick", is_pick).filter(is_known)
    stamps = rows["captured_at"].to_numpy().astype("datetime64[us]")
    for group, stamp, picked in zip(rows["group"].to_pylist(), stamps, rows["is_pick"].to_pylist(), strict=True):
        if group is not None:
            times.setdefault(group, []).append((stamp, picked))
    num_near = sum(_count_near(members) for members in times.values())
    return num_near / len(picks) if picks else float("nan")


def _count_near(members: list[tuple[np.datetime64, bool]]) -> int:
    stamps = np.array([stamp for stamp, _ in members])
    is_pick: NDArray[np.bool_] = np.array([picked for _, picked in members])
    gaps = np.abs(stamps[:, None] - stamps[None])
    is_near = (gaps <= _NEAR) | np.isnat(gaps)
    np.fill_diagonal(is_near, False)
    return int((is_near.any(axis=1) & is_pick).sum())
