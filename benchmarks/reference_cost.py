"""CPU seconds of scoring a pool whose rows refer to their images against those of the same rows with bytes, in turns.

Each run is a process of its own (`lossight score --debug`), user and system time of which are counted.
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
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from distributed.schema import POOL, REFERENCE
from distributed.storage.location import Location, locate, write_bytes
from distributed.tables.manifest import freeze_pool
from distributed.tables.reader import read_file


def main() -> None:
    """Prints a line a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pool", required=True, help="a pool with bytes, whose images are copied")
    parser.add_argument("--model", required=True)
    parser.add_argument("--images", help="where the copies go, a folder or an s3:// URI; default: a temporary folder")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = locate(options.images or str(folder / "images"))
        _refer(options.pool, root, folder / "references")
        print(f"load {os.getloadavg()[0]:.1f}")
        for run in range(options.runs):
            for arm, pool in (("bytes", options.pool), ("references", str(folder / "references"))):
                more = ["--image-root", root.uri] if arm == "references" else []
                out = folder / f"{arm}-{run}"
                _score([*more, "--pool", pool, "--model", options.model, "--out", str(out)], out, name=f"{run} {arm}")
        print(f"load {os.getloadavg()[0]:.1f}")
        is_same = _scores(folder / "bytes-0").equals(_scores(folder / "references-0"))
        print(f"the scores are {'the same, to the bit' if is_same else 'others'}")


def _refer(pool: str, root: Location, out: Path) -> None:
    """Copies the images, and writes a table of one row group that refers to them."""
    manifest, rows = freeze_pool(locate(pool)), []
    for file in manifest.files:
        for table in read_file(manifest, file, columns=POOL.names):
            for row in table.to_pylist():
                place = root.join(f"{row['sample_id']}.jpg")
                write_bytes(place, row["image"] or b"")
                uri, size = place.absolute_uri, len(row["image"] or b"")
                rows.append({**row, "image_uri": uri, "image_size": size})
    schema = pa.schema([*(each for each in POOL if each.name != "image"), *REFERENCE])
    out.mkdir()
    pq.write_table(
        pa.Table.from_pylist([{n: row.get(n) for n in schema.names} for row in rows], schema), out / "a.parquet"
    )


def _score(arguments: list[str], out: Path, *, name: str) -> None:
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "jobs.cli", "score", "--debug", "--max-error-rate", "1", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - started
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    peak = after.ru_maxrss / 1024  # of all runs until now
    record = json.loads((out / "run.json").read_text())
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in record["stage_seconds"].items())
    print(
        f"{name}: {record['num_rows']} rows, {user + system:.1f} s of CPU ({user:.1f} + {system:.1f}), "
        f"{seconds:.1f} s; peak {peak:.0f} MiB so far; {stages}",
        flush=True,
    )


def _scores(out: Path) -> pa.Table:
    parts = json.loads((out / "run.json").read_text())["parts"]
    table = pa.concat_tables([pq.read_table(out / part) for part in parts]).sort_by("sample_id")
    return table.select(["sample_id", "predicted_loss", "expected_pck", "confidence", "error"]).combine_chunks()


if __name__ == "__main__":
    main()
