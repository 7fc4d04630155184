"""Seconds and memory of selecting 10,000 of 100 M scored rows, against DuckDB and Polars on the same files.

Tables are made once, as `write_part` lays them out: parts sorted by loss, row groups of 32,768 rows, zstd, page
checksums. Every measurement is a whole process: `lossight select` with its checks and the published selection, or
another engine that is imported, queries and writes the same columns as Parquet (`selection_engines.py`). Its seconds by
the clock and of its CPUs, from start to end; the seconds of the query inside (of lossight: all but imports, options and
the record); bytes that its reads gave it; its greatest memory. Engines take turns; medians are shown. All give the same
rows, or the benchmark stops. A gap has no query: lossight alone is shown.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distributed.tables.parquet import hash_footer

PART_ROWS = 2_000_000
ROW_GROUP_ROWS = 32_768
NUM_GROUPS = 100_000
FILES_PER_PART = 50
THREADS = os.cpu_count() or 1  # lossight takes as many
CHECKOUT = Path(__file__).parents[1]
BUDGET, CAP = 10_000, 5
TIMEOUT_S = 300
LAYOUT: dict[str, Any] = {  # as `write_part` writes
    "compression": "zstd",
    "write_page_checksum": True,
    "use_dictionary": ["group", "error", "pool_file"],
    "use_byte_stream_split": ["predicted_loss", "confidence", "captured_at"],
    "data_page_size": 64 * 2**10,
    "write_batch_size": 1024,
}
FRAME_US, START_US = 100_000, 1_780_000_000_000_000  # frames of a drive follow each other by 0.1 s


def make_table(place: Path, *, num_rows: int) -> Path:
    """The folder of a scores table; made if it is not there."""
    folder = place / f"scores-{num_rows}"
    if (folder / "run.json").exists():
        return folder
    paths = []
    for number, start in enumerate(range(0, num_rows, PART_ROWS)):
        paths.append(f"parts/part-{number:04d}.parquet")
        path = folder / paths[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_part(path, make_part(number, min(PART_ROWS, num_rows - start)))
    record = {
        "kind": "scores",
        "bundle_id": "b",
        "pool_fingerprint": "p",
        "parts": paths,
        "part_footers": [hash_footer(pq.read_metadata(folder / path)) for path in paths],
        "num_rows": num_rows,
        "num_scored": num_rows,
        "loss_quantiles": [],
    }
    (folder / "config.json").write_text("{}")
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def make_part(number: int, num_rows: int) -> pa.Table:
    """Scores of some drives: losses of a long-tailed distribution whose scale differs from drive to drive."""
    rng = np.random.default_rng(number)
    drive = rng.integers(0, NUM_GROUPS, num_rows)
    scale = (0.5 + np.random.default_rng(0).random(NUM_GROUPS, dtype=np.float32))[drive]
    loss = (rng.standard_gamma(2.0, num_rows, dtype=np.float32) * scale).astype(np.float32)
    order = np.argsort(-loss, kind="stable")
    drive, loss = drive[order], loss[order]
    frame = np.arange(num_rows)[order] + number * PART_ROWS
    names = pa.array([f"night-{number:03d}/part-{i:05d}.parquet" for i in range(FILES_PER_PART)])
    ids = digits(b"f000-c00-v00-d000000-000000000", {13: (drive, 6), 21: (frame, 9)}, num_rows)
    pool_file = pa.DictionaryArray.from_arrays(pa.array((frame % FILES_PER_PART).astype(np.int32)), names)
    return pa.table(
        {
            "sample_id": ids,
            "group": digits(b"v00-d000000", {5: (drive, 6)}, num_rows),
            "captured_at": pa.array(START_US + frame * FRAME_US, pa.timestamp("us", tz="UTC")),
            "predicted_loss": pa.array(loss),
            "expected_pck": pa.nulls(num_rows, pa.float32()),
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


def write_part(path: Path, rows: pa.Table) -> None:
    """A part as distributed.tables.scores.write_part writes it, without a ledger."""
    draft = path.with_suffix(".draft")
    with pq.ParquetWriter(draft, rows.schema, **LAYOUT) as writer:
        writer.write_table(rows, row_group_size=ROW_GROUP_ROWS)
    draft.rename(path)


def measure(engine: str, folder: Path, cap: int | None, gap: float) -> dict[str, Any]:
    """Seconds, bytes read and peak memory of a selection, in a process of its own; or why there are none."""
    environment = {**os.environ, "POLARS_MAX_THREADS": str(THREADS), "PYTHONPATH": str(CHECKOUT)}
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "out"
        if engine == "lossight":
            limits = ["--max-per-group", str(cap)] if cap else []
            command = ["-m", "jobs.cli", "select", "--scores", folder, "--out", out, "--budget", BUDGET]
            command += ["--min-gap", gap, *limits]
        else:
            command = [CHECKOUT / "benchmarks" / "selection_engines.py", engine, folder, cap or 0, BUDGET, THREADS, out]
        before, started = bytes_read(), time.perf_counter()
        with (Path(place) / "said").open("w+") as said:
            process = subprocess.Popen([sys.executable, *map(str, command)], env=environment, stdout=said, stderr=said)
            timer = threading.Timer(TIMEOUT_S, process.kill)
            timer.start()
            _, status, usage = os.wait4(process.pid, 0)
            timer.cancel()
            process.returncode = os.waitstatus_to_exitcode(status)
            whole, num_bytes = time.perf_counter() - started, bytes_read() - before
            said.seek(0)
            lines = said.read().splitlines()
        if process.returncode:
            return {"failed": (lines or [f"ended by {-process.returncode}"])[-1][:80]}
        is_ours = engine == "lossight"
        seconds = json.loads((out / "run.json").read_text())["seconds"] if is_ours else float(lines[-1])
        ids = pq.read_table(out / "selection.parquet" if is_ours else out)["sample_id"].to_pylist()
    return {
        "whole": whole,
        "cpu": usage.ru_utime + usage.ru_stime,
        "seconds": seconds,
        "bytes": num_bytes,
        "peak": usage.ru_maxrss * 1024,
        "digest": hashlib.sha256("\n".join(ids).encode()).hexdigest(),
    }


def bytes_read() -> int:
    """Bytes that the read calls of this process, and of its children that have ended, have returned so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def compare(folder: Path, cap: int | None, gap: float, *, engines: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """The median figures of each engine, which take turns; one that fails is left out of later rounds."""
    found: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    for _ in range(rounds):
        for engine in engines:
            if not (found[engine] and "failed" in found[engine][-1]):
                found[engine].append(measure(engine, folder, cap, gap))
    results = [each for runs in found.values() for each in runs if "failed" not in each]
    if len({each["digest"] for each in results}) > 1:
        raise SystemExit(f"{folder.name}, cap {cap}: the engines differ about what is best")
    return {engine: median(runs) for engine, runs in found.items()}


def median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure, or the reason why there is none."""
    if "failed" in runs[-1]:
        return runs[-1]
    names = ("whole", "cpu", "seconds", "bytes", "peak")
    return {name: statistics.median(run[name] for run in runs) for name in names}


def show(folder: Path, cap: int | None, gap: float, found: dict[str, dict[str, Any]]) -> None:
    """The lines of a table."""
    size = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
    ours = found["lossight"]
    for engine, run in found.items():
        start = f"| {folder.name} | {cap or 'none'} | {gap:g} | {engine} "
        if "failed" in run or "failed" in ours:
            print(f"{start}| {run.get('failed', 'done')} | | | | | | | |", flush=True)
            continue
        ratios = [f"{run[name]:.2f} | {ours[name] / run[name]:.2f}" for name in ("whole", "cpu", "seconds")]
        print(
            f"{start}| {' | '.join(ratios)} | {run['bytes'] / 2**20:.0f} ({run['bytes'] / size:.1%}) | "
            f"{run['peak'] / 2**20:.0f} |",
            flush=True,
        )


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-rows", type=int, nargs="+", default=[10_000_000, 100_000_000])
    parser.add_argument("--polars-rows", type=int, default=10_000_000, help="most for Polars, which reads all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()) / "lossight-bench" / "selection")
    arguments = parser.parse_args()
    print(
        "| table | cap | gap s | engine | whole process s | lossight ÷ it | its CPU s | lossight ÷ it | query s | "
        "lossight ÷ it | MiB read | peak MiB |\n"
        f"|{' --- |' * 12}"
    )
    for number in arguments.num_rows:
        folder = make_table(arguments.place, num_rows=number)
        for cap, gap in ((None, 0.0), (CAP, 0.0), (None, 1.0)):
            others = ["DuckDB", "Polars"] if number <= arguments.polars_rows else ["DuckDB"]
            engines = ["lossight", *([] if gap else others)]
            show(folder, cap, gap, compare(folder, cap, gap, engines=engines, rounds=arguments.rounds))


if __name__ == "__main__":
    main()
