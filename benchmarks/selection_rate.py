"""What does selecting 10,000 of 100 M scored rows cost, against DuckDB and Polars on the same files?

Tables are made once, as `write_part` lays them out: parts sorted by loss, row groups of 32,768 rows, zstd, page
checksums; and once more with the rows of each part in no order. Every measurement is a process of its own with two
threads: seconds of the query alone, by the clock and of its CPUs (which other work on the machine disturbs less), bytes
that its reads gave it (/proc/self/io), its greatest memory. Engines take turns; medians are shown. All give the same
rows, or the benchmark stops.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PART_ROWS = 2_000_000
ROW_GROUP_ROWS = 32_768
NUM_GROUPS = 100_000
FILES_PER_PART = 50
THREADS = 2
BUDGET, CAP = 10_000, 5
TIMEOUT_S = 300
# "plain" is how write_part writes: pyarrow's defaults. "lean" suits the reading of best rows: no dictionaries
# of values that never repeat, and small pages, of which a reader of few rows decodes few.
LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lean": {
        "use_dictionary": ["group", "error", "pool_file"],
        "use_byte_stream_split": ["predicted_loss", "confidence"],
        "data_page_size": 64 * 2**10,
        "write_batch_size": 1024,
    },
}
COLUMNS = ["sample_id", "group", "predicted_loss", "pool_file", "pool_row"]


def make_table(place: Path, *, num_rows: int, is_sorted: bool, layout: str) -> Path:
    """The folder of a scores table; made if it is not there."""
    suffix = "" if layout == "plain" else f"-{layout}"
    folder = place / f"{'sorted' if is_sorted else 'unsorted'}-{num_rows}{suffix}"
    if (folder / "run.json").exists():
        return folder
    paths = []
    for number, start in enumerate(range(0, num_rows, PART_ROWS)):
        paths.append(f"parts/part-{number:04d}.parquet")
        path = folder / paths[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_part(path, make_part(number, min(PART_ROWS, num_rows - start), is_sorted=is_sorted), layout)
    record = {"kind": "scores", "bundle_id": "b", "pool_fingerprint": "p", "parts": paths}
    (folder / "run.json").write_text(json.dumps({**record, "num_rows": num_rows, "num_scored": num_rows}))
    return folder


def make_part(number: int, num_rows: int, *, is_sorted: bool) -> pa.Table:
    """Scores of some drives: losses of a long-tailed distribution whose scale differs from drive to drive."""
    rng = np.random.default_rng(number)
    drive = rng.integers(0, NUM_GROUPS, num_rows)
    scale = (0.5 + np.random.default_rng(0).random(NUM_GROUPS, dtype=np.float32))[drive]
    loss = (rng.standard_gamma(2.0, num_rows, dtype=np.float32) * scale).astype(np.float32)
    order = np.argsort(-loss, kind="stable") if is_sorted else np.arange(num_rows)
    drive, loss = drive[order], loss[order]
    frame = np.arange(num_rows)[order] + number * PART_ROWS
    names = pa.array([f"night-{number:03d}/part-{i:05d}.parquet" for i in range(FILES_PER_PART)])
    ids = digits(b"f000-c00-v00-d000000-000000000", {13: (drive, 6), 21: (frame, 9)}, num_rows)
    pool_file = pa.DictionaryArray.from_arrays(pa.array((frame % FILES_PER_PART).astype(np.int32)), names)
    return pa.table(
        {
            "sample_id": ids,
            "group": digits(b"v00-d000000", {5: (drive, 6)}, num_rows),
            "predicted_loss": pa.array(loss),
            "confidence": pa.array(rng.random(num_rows, dtype=np.float32)),
            "error": pa.nulls(num_rows, pa.string()),
            "pool_file": pool_file,
            "pool_row": pa.array((frame // FILES_PER_PART).astype(np.int64)),
        }
    )


def digits(template: bytes, numbers: dict[int, tuple[np.ndarray, int]], num_rows: int) -> pa.Array:
    """Texts of one length: the template with numbers written over it, each so many digits from its place on."""
    text = np.tile(np.frombuffer(template, np.uint8), (num_rows, 1))
    for place, (values, width) in numbers.items():
        rest = values.copy()
        for index in range(place + width - 1, place - 1, -1):
            rest, digit = np.divmod(rest, 10)
            text[:, index] = 48 + digit
    offsets = np.arange(num_rows + 1, dtype=np.int32) * len(template)
    return pa.StringArray.from_buffers(num_rows, pa.py_buffer(offsets), pa.py_buffer(text.tobytes()))


def write_part(path: Path, rows: pa.Table, layout: str) -> None:
    """A part as distributed.tables.scores.write_part writes it, but for the layout."""
    draft = path.with_suffix(".draft")
    options = {"compression": "zstd", "write_page_checksum": True, **LAYOUTS[layout]}
    with pq.ParquetWriter(draft, rows.schema, **options) as writer:
        writer.write_table(rows, row_group_size=ROW_GROUP_ROWS)
    draft.rename(path)


def run_lossight(folder: Path, cap: int | None) -> list[str]:
    """The ids that this package selects, from run.json to the selected rows."""
    from distributed.selection.candidates import Candidates
    from distributed.selection.filters import FilterSpec
    from distributed.storage.location import locate
    from distributed.tables.scores_reader import read_parts

    record = json.loads((folder / "run.json").read_text())
    parts = read_parts([(locate(str(folder)), record)])
    rows = Candidates(parts, FilterSpec(), num_scored=record["num_scored"]).best(k=BUDGET, max_per_group=cap)
    return rows["sample_id"].to_pylist()


def run_duckdb(folder: Path, cap: int | None) -> list[str]:
    """The same in SQL."""
    import duckdb

    duckdb.execute(f"SET threads TO {THREADS}")
    columns = ", ".join(f'"{name}"' for name in COLUMNS)
    order = "ORDER BY predicted_loss DESC, sample_id"
    rank = f'QUALIFY row_number() OVER (PARTITION BY "group" {order}) <= {cap}' if cap else ""
    table = f"read_parquet('{folder}/parts/*.parquet')"
    query = f"SELECT {columns} FROM {table} WHERE error IS NULL {rank} {order} LIMIT {BUDGET}"  # noqa: S608
    return duckdb.sql(query).arrow().read_all()["sample_id"].to_pylist()


def run_polars(folder: Path, cap: int | None) -> list[str]:
    """The same with a lazy frame."""
    import polars as pl

    rows = pl.scan_parquet(f"{folder}/parts/*.parquet").filter(pl.col("error").is_null()).select(COLUMNS)
    if cap is not None:
        rank = pl.struct(-pl.col("predicted_loss"), "sample_id").rank("ordinal").over("group")
        rows = rows.filter(rank <= cap)
    best = rows.top_k(BUDGET, by=["predicted_loss", "sample_id"], reverse=[False, True])
    found = best.collect(engine="streaming")
    return found.sort(["predicted_loss", "sample_id"], descending=[True, False])["sample_id"].to_list()


ENGINES = {"lossight": run_lossight, "DuckDB": run_duckdb, "Polars": run_polars}


def measure(engine: str, folder: Path, cap: int | None) -> dict[str, Any]:
    """Seconds, bytes read and peak memory of a query, in a process of its own; or why there are none."""
    arguments = [sys.executable, __file__, "--one", engine, str(folder), str(cap or 0)]
    environment = {**os.environ, "POLARS_MAX_THREADS": str(THREADS), "PYTHONPATH": str(Path(__file__).parents[1])}
    try:
        done = subprocess.run(
            arguments, env=environment, capture_output=True, check=False, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"over {TIMEOUT_S} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"ended by {-done.returncode}"])[-1][:80]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_one(engine: str, folder: Path, cap: int | None) -> None:
    """Prints what a query took; imports are nobody's time."""
    for module in {"lossight": ["distributed.selection.candidates"], "DuckDB": ["duckdb"], "Polars": ["polars"]}[
        engine
    ]:
        importlib.import_module(module)
    pa.set_cpu_count(THREADS)
    before, cpu, started = bytes_read(), time.process_time(), time.perf_counter()
    ids = ENGINES[engine](folder, cap)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {"seconds": seconds, "cpu": cpu, "bytes": bytes_read() - before, "peak": peak, "digest": digest}
    print(json.dumps(found))


def bytes_read() -> int:
    """That read calls of this process have given it so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def compare(folder: Path, cap: int | None, *, engines: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """The median figures of each engine, which take turns; one that fails is left out of later rounds."""
    found: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    for _ in range(rounds):
        for engine in engines:
            if not (found[engine] and "failed" in found[engine][-1]):
                found[engine].append(measure(engine, folder, cap))
    results = [each for runs in found.values() for each in runs if "failed" not in each]
    if len({each["digest"] for each in results}) > 1:
        raise SystemExit(f"{folder.name}, cap {cap}: the engines differ about what is best")
    return {engine: median(runs) for engine, runs in found.items()}


def median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each figure; or why there is none."""
    if "failed" in runs[-1]:
        return runs[-1]
    return {name: statistics.median(run[name] for run in runs) for name in ("seconds", "cpu", "bytes", "peak")}


def show(folder: Path, cap: int | None, found: dict[str, dict[str, Any]]) -> None:
    """The lines of a table."""
    size = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
    ours = found["lossight"]
    for engine, run in found.items():
        start = f"| {folder.name} | {cap or 'none'} | {engine} "
        if "failed" in run:
            print(f"{start}| {run['failed']} | | | |", flush=True)
            continue
        print(
            f"{start}| {run['seconds']:.2f} | {ours['seconds'] / run['seconds']:.3f} | "
            f"{run['cpu']:.2f} | {ours['cpu'] / run['cpu']:.3f} | {run['bytes'] / 2**20:.0f} "
            f"({run['bytes'] / size:.1%}) | {run['peak'] / 2**20:.0f} |",
            flush=True,
        )


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-rows", type=int, nargs="+", default=[10_000_000, 100_000_000])
    parser.add_argument("--unsorted-rows", type=int, nargs="*", default=[10_000_000, 100_000_000])
    parser.add_argument("--capped-rows", type=int, default=10_000_000, help="most for the window queries of others")
    parser.add_argument("--layout", choices=LAYOUTS, default="plain")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()) / "lossight-bench" / "selection")
    parser.add_argument("--one", nargs=3, metavar=("ENGINE", "FOLDER", "CAP"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        engine, folder, cap = arguments.one
        run_one(engine, Path(folder), int(cap) or None)
        return
    sizes = [(number, True) for number in arguments.num_rows] + [(number, False) for number in arguments.unsorted_rows]
    print(
        "| table | cap | engine | s | lossight ÷ it | CPU s | lossight ÷ it | MiB read | peak MiB |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    for number, is_sorted in sizes:
        folder = make_table(arguments.place, num_rows=number, is_sorted=is_sorted, layout=arguments.layout)
        for cap in (None, CAP):
            engines = list(ENGINES) if cap is None or number <= arguments.capped_rows else ["lossight"]
            show(folder, cap, compare(folder, cap, engines=engines, rounds=arguments.rounds))


if __name__ == "__main__":
    main()
