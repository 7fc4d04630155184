"""A billion rows without their bytes: how fast does the driver hand out work, at which cost in memory and time?

The pool is virtual: files of 10,000 rows of 128 KiB, with row counts, sizes and versions as a store would list them.
Actors of a real Ray score it with known answers: they read and write nothing, and tell the logbook of every 1,024 rows
as a GPU's scorer does. All else is the pipeline itself. Beside it, in the same run, a Ray Data pipeline of as many
items that does nothing at all: the ceiling. With --freeze, real files in a real S3 server behind a proxy that answers
late; with --known, real files of a disk that are known already.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distributed.runs.logbook import Log
from distributed.scoring.ledger import check_complete, choose_parts, merge_parts, missing_segments
from distributed.scoring.options import ScoringOptions
from distributed.scoring.pipeline import bins_of
from distributed.storage.location import list_files, locate, write_bytes
from distributed.tables.manifest import Manifest, PoolFile, Segment, freeze_pool, read_manifest
from distributed.tables.reader import Bin
from distributed.tables.scores import ErrorCount, Held, ScoresPart, find_parts, index_parts, merge_quantiles, sum_errors

FILE_ROWS, GROUP_ROWS, ROW_BYTES = 10_000, 500, 128 * 2**10
PART_ROWS = 100_000
EMPTY_EVERY = 1000  # of the rows of a file, one is an empty image


def virtual_pool(num_rows: int, folder: str = "s3://bucket/pool") -> Manifest:
    """A manifest as `freeze_pool` would give it."""
    os.environ.setdefault("AWS_REGION", "us-east-1")
    groups = FILE_ROWS // GROUP_ROWS
    files = tuple(
        PoolFile(
            path=f"date=2026-11-{number % 28 + 1:02d}/drive-{number % 97:03d}/part-{number:06d}.parquet",
            size=FILE_ROWS * ROW_BYTES + number,
            version=f"{number:032x}-16",
            row_group_rows=(GROUP_ROWS,) * groups,
            row_group_bytes=(GROUP_ROWS * ROW_BYTES,) * groups,
            footer=f"{number:016x}",
        )
        for number in range(num_rows // FILE_ROWS)
    )
    return Manifest(location=locate(folder), files=files, bad_files=())


class FakeBinScorer:
    """Gives the parts of a bin with known answers, at once."""

    def __init__(self, log: Log, *, call_rows: int) -> None:
        self._log, self._call_rows = log, call_rows

    def __call__(self, bin_: Bin) -> list[ScoresPart]:
        """The parts; each batch is begun and finished as a real one is."""
        parts = []
        for segments in in_parts(bin_):
            num_rows = sum(stop - first for _, first, stop in segments)
            for start in range(0, num_rows, self._call_rows):
                batch = f"{segments[0].file.path}:{segments[0].start + start}"
                self._log.begin(batch)
                self._log.add(min(self._call_rows, num_rows - start), {})
                self._log.add_seconds("compute", 0.4)
                self._log.finish(batch)
            parts.append(known_part(segments))
            self._log.keep(bin_.name, parts[-1])
        return parts


def in_parts(bin_: Bin) -> Iterator[list[Segment]]:
    """The rows of a bin as many as a part has."""
    waiting: list[Segment] = []
    for file, start, stop in bin_.segments:
        waiting.append(Segment(file, start, stop))
        if sum(last - first for _, first, last in waiting) >= PART_ROWS:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def known_part(segments: list[Segment]) -> ScoresPart:
    """A part as its writer hands it on: losses 0 … 1, one row in a thousand an empty image."""
    num_rows = sum(stop - start for _, start, stop in segments)
    empty = sum(len(range(-(-start // EMPTY_EVERY), -(-stop // EMPTY_EVERY))) for _, start, stop in segments)
    return ScoresPart(
        path=f"parts/part-{segments[0].file.file_id}-{segments[0].start:06d}.parquet",
        footer="0" * 16,
        num_rows=num_rows,
        num_bytes=num_rows * 60,
        files={file.file_id: Held(path=file.path, ranges=((start, stop),)) for file, start, stop in segments},
        errors={"empty": ErrorCount(num_rows=empty, examples=("a",))} if empty else {},
        damaged_files={},
        loss_quantiles=tuple(number / 127 for number in range(128)),
    )


class NoOp:
    """Does nothing to an item."""

    def __call__(self, item: Any) -> int:
        """Nothing."""
        del item
        return 0


def measure(num_rows: int, *, actors: int, call_rows: int) -> dict[str, float]:
    """Each step of a run on a virtual pool, in this process; and the ceiling."""
    import ray

    from distributed.cluster.connection import connect
    from distributed.cluster.work import on_actors, watched

    found: dict[str, float] = {"rows": num_rows}
    manifest = timed(found, "manifest", lambda: virtual_pool(num_rows))
    found["files"] = len(manifest.files)
    options = ScoringOptions(
        actors=str(max(actors, 400)), batch_size=256
    )  # bins as for the cluster that such a pool needs
    bins = timed(found, "bins", lambda: bins_of(manifest.segments, options))
    found["tasks"] = len(bins)
    connect()
    pool = {"min_size": actors, "max_size": actors, "cpus": 0.01, "gpus": 0}
    with watched(lambda _: None) as log:
        marks = Marks()
        parts = []
        for some in on_actors(lambda: FakeBinScorer(log, call_rows=call_rows), bins, **pool):
            parts += some
            marks(sum(part.num_rows for part in some))
        told = log.read().num_rows
    found |= {f"ours_{name}": value for name, value in marks.read().items()}
    found["told"] = told
    ceiling = Marks()
    for bin_, _ in zip(bins, on_actors(NoOp, bins, **pool), strict=True):
        ceiling(bin_.num_rows)
    found |= {f"ceiling_{name}": value for name, value in ceiling.read().items()}
    ray.shutdown()
    timed(found, "choose", lambda: choose_parts(parts, manifest, published=[]))
    expect([], timed(found, "missing", lambda: missing_segments(manifest, parts)))
    current = {file.file_id for file in manifest.files}
    merged = timed(found, "merge", lambda: merge_parts(manifest.location, parts, current=current, run_all=joined))
    timed(found, "complete", lambda: check_complete(manifest, merged, without=[]))
    expect(num_rows, sum(part.num_rows for part in merged))
    expect(num_rows // EMPTY_EVERY, sum_errors(merged)["empty"].num_rows)
    expect(0.5, round(merge_quantiles(merged)[64], 1))
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def joined(merge: Any, groups: list[list[ScoresPart]]) -> list[ScoresPart]:
    """Each group as one part: the ledger's own merge, but for the rows."""
    del merge
    return [join_ledgers(group) for group in groups]


def join_ledgers(group: list[ScoresPart]) -> ScoresPart:
    """The part that a merge of these would write."""
    ranges: dict[str, list[tuple[int, int]]] = {}
    paths = {}
    for part in group:
        for file_id, held in part.files.items():
            ranges.setdefault(file_id, []).extend(held.ranges)
            paths[file_id] = held.path
    empty = sum(part.errors["empty"].num_rows for part in group if part.errors)
    return ScoresPart(
        path=f"merged-{group[0].path}",
        footer=group[0].footer,
        num_rows=sum(part.num_rows for part in group),
        num_bytes=sum(part.num_bytes for part in group),
        files={file_id: Held(path=paths[file_id], ranges=tuple(sorted(each))) for file_id, each in ranges.items()},
        errors={"empty": ErrorCount(num_rows=empty, examples=("a",))} if empty else {},
        damaged_files={},
        loss_quantiles=group[0].loss_quantiles,
    )


class Marks:
    """Rate and processor time of this process between the first result and the last."""

    def __init__(self) -> None:
        self._started, self._cpu = time.perf_counter(), time.process_time()
        self._times: list[tuple[float, int]] = []

    def __call__(self, num_rows: int) -> None:
        """So many rows more are done."""
        self._times.append((time.perf_counter(), num_rows))

    def read(self) -> dict[str, float]:
        """Rows a second after the first result, tasks a second, processor seconds a million rows, seconds in all."""
        num_rows = sum(rows for _, rows in self._times)
        steady = self._times[-1][0] - self._times[0][0]
        return {
            "rate": sum(rows for _, rows in self._times[1:]) / steady,
            "tasks_per_s": (len(self._times) - 1) / steady,
            "cpu_per_million": (time.process_time() - self._cpu) / num_rows * 1e6,
            "seconds": time.perf_counter() - self._started,
        }


def expect(known: Any, found: Any) -> None:
    """Passes if the answer is the known one."""
    if found != known:
        raise RuntimeError(f"expected {known}, found {found}")


def timed(found: dict[str, float], step: str, run: Any) -> Any:
    """The result of the step; its seconds are added."""
    started = time.perf_counter()
    result = run()
    found[f"{step}_s"] = time.perf_counter() - started
    return result


def measure_known(place: Path, *, num_files: int) -> dict[str, float]:
    """Seconds to freeze a pool of known files on a disk, and to find that all of it is scored."""
    found: dict[str, float] = {"files": num_files}
    pool, out = place / "pool", place / "out"
    virtual = virtual_pool(num_files * FILE_ROWS, folder=str(pool))
    for file in virtual.files:
        path = pool / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    stored = {file.path[len(str(pool)) + 1 :]: file for file in list_files(locate(str(pool)), suffix=".parquet")}
    files = [
        PoolFile(**{**file.as_json(), "size": stored[file.path].size, "version": stored[file.path].version})
        for file in virtual.files
    ]
    kept, location = locate(str(out)).join("manifest.json"), locate(str(pool))
    manifest = Manifest(location=location, files=tuple(sorted(files, key=lambda file: file.path)), bad_files=())
    timed(found, "write_manifest", lambda: write_bytes(kept, manifest.as_bytes()))
    parts = [known_part(some) for some in in_parts(Bin(segments=tuple(manifest.segments)))]
    for part in parts:
        write_bytes(locate(str(out)).join(*part.path.split("/")), b"")
    timed(found, "write_index", lambda: index_parts(locate(str(out)), parts))
    earlier = timed(found, "read_manifest", lambda: read_manifest(kept, location))
    again = timed(found, "list", lambda: freeze_pool(location, earlier=earlier))
    timed(found, "fingerprint", lambda: again.fingerprint)
    found_parts = timed(found, "find_parts", lambda: find_parts(locate(str(out))))
    chosen = timed(found, "choose", lambda: choose_parts(found_parts, again, published=[]))
    expect([], timed(found, "missing", lambda: missing_segments(again, chosen)))
    found["parts"], found["total_s"] = (
        len(parts),
        sum(found[f"{step}_s"] for step in ("read_manifest", "list", "fingerprint", "find_parts", "choose", "missing")),
    )
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def measure_freeze(place: Path, *, num_files: int, latency_s: float) -> dict[str, float]:
    """Seconds to freeze files of ten rows in an S3 server whose answers come late."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from distributed.schema import POOL

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from conftest import plain_rows, s3_server

    found: dict[str, float] = {"files": num_files, "latency_ms": latency_s * 1000}
    with s3_server(place) as uri:
        pool = locate(f"{uri}/pool")

        def put(number: int) -> None:
            sink = pa.BufferOutputStream()
            rows = [{**row, "sample_id": f"{number}-{row['sample_id']}"} for row in plain_rows(10, image_bytes=10_000)]
            pq.write_table(pa.Table.from_pylist(rows, POOL), sink, write_page_checksum=True, compression="none")
            write_bytes(pool.join(f"{number:06d}.parquet"), sink.getvalue().to_pybytes())

        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(16) as threads:
            list(threads.map(put, range(num_files)))
        command = [sys.executable, __file__, "--late-proxy", os.environ["AWS_ENDPOINT_URL_S3"], str(latency_s)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as proxy:
            os.environ["AWS_ENDPOINT_URL_S3"] = str(proxy.stdout and proxy.stdout.readline()).strip()
            late = locate(f"{uri}/pool")
            cpu = time.process_time()
            manifest = timed(found, "freeze", lambda: freeze_pool(late))
            found["cpu_s"] = time.process_time() - cpu
            timed(found, "again", lambda: freeze_pool(late, earlier=manifest))
            counted, _ = proxy.communicate("\n")
            found |= {f"requests_{name}": count for name, count in json.loads(counted).items()}
        expect(num_files * 10, manifest.num_rows)
    return found


def run_late_proxy(upstream: str, latency_s: float) -> None:
    """Passes requests on, late, until a line comes; prints its endpoint, and at the end its counts."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from faultproxy import FaultProxy

    with FaultProxy(upstream, uri="", latency_s=latency_s).running() as proxy:
        print(proxy.endpoint, flush=True)
        sys.stdin.readline()
        print(json.dumps(proxy.counts), flush=True)


def main() -> None:
    """Prints a line of JSON for each size, and lists."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[10**6, 10**7, 10**8])
    parser.add_argument("--actors", type=int, default=16)
    parser.add_argument("--call-rows", type=int, default=4096, help="rows of a call of a scorer")
    parser.add_argument("--known", type=int, default=0, help="files of a disk that are known already")
    parser.add_argument("--freeze", type=int, default=0, help="files to freeze behind the late proxy")
    parser.add_argument("--latency-s", type=float, default=0.04)
    parser.add_argument("--only", type=int, help="this many rows in this process")
    parser.add_argument("--late-proxy", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.late_proxy:
        run_late_proxy(arguments.late_proxy[0], float(arguments.late_proxy[1]))
    elif arguments.only:
        print(json.dumps(measure(arguments.only, actors=arguments.actors, call_rows=arguments.call_rows)))
    else:
        for num_rows in arguments.rows:
            command = [sys.executable, __file__, "--only", str(num_rows), "--actors", str(arguments.actors)]
            command += ["--call-rows", str(arguments.call_rows)]
            print(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1], flush=True
            )
        with tempfile.TemporaryDirectory() as place:
            if arguments.known:
                print(json.dumps(measure_known(Path(place), num_files=arguments.known)), flush=True)
            if arguments.freeze:
                found = measure_freeze(Path(place), num_files=arguments.freeze, latency_s=arguments.latency_s)
                print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
