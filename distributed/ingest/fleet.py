"""The synthetic fleet as tables: labelled rows, a pool without labels, and the pool's truth kept aside."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from distributed.runs.progress import Progress, silent
from distributed.runs.record import begin_run, publish_run, read_run
from distributed.schema import POOL, labelled
from distributed.storage.location import Location, locate
from distributed.tables.manifest import freeze_pool
from distributed.tables.parquet import Row, write_groups, write_rows
from distributed.tables.reader import plan_bins, read_bin
from model.skeleton import LSP
from model.synthetic import FRAMES_PER_DRIVE, Sample, frames_by_slice, generate_fleet, generate_frames

_METADATA = [pa.field(name, pa.string()) for name in ("vehicle", "camera", "light")]
_FLEET_POOL = pa.schema([*POOL, *_METADATA])
_FLEET_LABELLED = pa.schema([*labelled(LSP.num_keypoints), *_METADATA, pa.field("slices", pa.list_(pa.string()))])

# Some 350 images: a small fleet still has row groups enough to spread and to shuffle.
_ROW_GROUP_BYTES = 4 * 2**20

# Nobody labels consecutive frames, which are nearly the same: the labelled part has each fourth, of more drives.
_LABELLED_STEP = 4
_LABELLED_PER_VALIDATION = 5


def write_fleet(
    place: str, *, seed: int, num_labelled: int, num_pool: int, progress: Progress = silent
) -> dict[str, Any]:
    """Publishes four tables below a location: `labelled`, `validation`, `pool`, and `truth`, the pool's with labels.

    The drives of the pool follow the labelled ones, and those for validation (a fifth as many images as labelled ones)
    follow the pool's. The `slices` column says what is hard about a row. Returns the counts and the time it took when
    it was made.
    """
    out = locate(place)
    known = _write_labelled(
        out.join("labelled"), seed=seed, num_samples=num_labelled, step=_LABELLED_STEP, progress=progress
    )
    first_of_pool = _whole_drives(num_labelled * _LABELLED_STEP)
    truth = _write_labelled(out.join("truth"), seed=seed, num_samples=num_pool, start=first_of_pool, progress=progress)
    validation = _write_labelled(
        out.join("validation"),
        seed=seed,
        num_samples=num_labelled // _LABELLED_PER_VALIDATION,
        start=first_of_pool + _whole_drives(num_pool),
        step=_LABELLED_STEP,
        progress=progress,
    )
    _write_pool_of(out.join("pool"), truth=out.join("truth"))
    num_rows, seconds = (sum(part[name] for part in (known, truth, validation)) for name in ("num_rows", "seconds"))
    return {"num_rows": num_rows, "seconds": seconds, "images_per_second": num_rows / seconds}


def write_fleet_cycle(
    place: str, *, seed: int, num_start: int, num_pool: int, per_slice: int, num_easy: int, progress: Progress = silent
) -> None:
    """Publishes three labelled tables below a location, for cycles of active learning: `start`, `pool` and `test`.

    Drives are apart, as in `write_fleet`. The start has each fourth frame that is in no hard slice: it was labelled
    before the fleet met them. The pool has all frames of its drives, with the fleet's own shares of hard slices. The
    test table has at least `per_slice` images of each hard slice and `num_easy` that are in none. Frames of start and
    test are at least four apart, and none is unreadable.
    """
    out = locate(place)
    start = list(frames_by_slice(seed=seed, first_drive=0, per_slice=0, num_easy=num_start, step=_LABELLED_STEP))
    first_of_pool = start[-1] // FRAMES_PER_DRIVE + 1
    first_of_test = first_of_pool + _whole_drives(num_pool) // FRAMES_PER_DRIVE
    test = frames_by_slice(
        seed=seed, first_drive=first_of_test, per_slice=per_slice, num_easy=num_easy, step=_LABELLED_STEP
    )
    _write_frames(out.join("start"), start, seed=seed, progress=progress)
    _write_labelled(
        out.join("pool"), seed=seed, num_samples=num_pool, start=first_of_pool * FRAMES_PER_DRIVE, progress=progress
    )
    _write_frames(out.join("test"), list(test), seed=seed, progress=progress)


def _write_frames(out: Location, frames: list[int], *, seed: int, progress: Progress) -> None:
    if begin_run(out, {"seed": seed, "num_frames": len(frames), "first": frames[0], "last": frames[-1]}):
        rows = _rows(generate_frames(frames, seed=seed, unreadable_share=0.0), total=len(frames), progress=progress)
        num_rows = write_rows(out, rows, _FLEET_LABELLED, row_group_bytes=_ROW_GROUP_BYTES)
        publish_run(out, {"kind": "table", "table": "labelled", "num_rows": num_rows})


def _whole_drives(num_frames: int) -> int:
    """Frames of as many drives as so many frames need: a drive that lay on two sides would be half known."""
    return -(-num_frames // FRAMES_PER_DRIVE) * FRAMES_PER_DRIVE


def _write_labelled(
    out: Location, *, seed: int, num_samples: int, start: int = 0, step: int = 1, progress: Progress
) -> dict[str, Any]:
    if not begin_run(out, {"seed": seed, "num_samples": num_samples, "start": start, "step": step}):
        return read_run(out, expected="table")
    started = time.monotonic()
    samples = generate_fleet(seed=seed, num_samples=num_samples, start=start, step=step)
    rows = _rows(samples, total=num_samples, progress=progress)
    num_rows = write_rows(out, rows, _FLEET_LABELLED, row_group_bytes=_ROW_GROUP_BYTES)
    record = {"kind": "table", "table": "labelled", "num_rows": num_rows, "seconds": time.monotonic() - started}
    return publish_run(out, record)


def _write_pool_of(out: Location, *, truth: Location) -> None:
    manifest = freeze_pool(truth, schema=_FLEET_LABELLED)
    if not begin_run(out, {}, inputs={"truth_fingerprint": manifest.fingerprint}):
        return
    groups = (
        pa.concat_tables(list(read_bin(manifest.location, bin_, columns=_FLEET_POOL.names))).select(_FLEET_POOL.names)
        for bin_ in plan_bins(manifest.segments, max_bytes=_ROW_GROUP_BYTES)
    )
    publish_run(out, {"kind": "table", "table": "pool", "num_rows": write_groups(out, groups, _FLEET_POOL)})


def row_of(sample: Sample) -> Row:
    """The labelled row of a sample."""
    return {
        "sample_id": sample.sample_id,
        "image": sample.image,
        "box": sample.box,
        "group": sample.group,
        "captured_at": sample.captured_at,
        "keypoints": sample.keypoints.ravel(),
        "visibility": sample.visibility,
        "vehicle": sample.vehicle,
        "camera": sample.camera,
        "light": sample.light,
        "slices": list(sample.slices),
    }


def _rows(samples: Iterator[Sample], *, total: int, progress: Progress) -> Iterator[Row]:
    for index, sample in enumerate(samples):
        progress("fleet", index + 1, total)
        yield row_of(sample)
