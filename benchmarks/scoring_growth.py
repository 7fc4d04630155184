"""Does scoring stay linear from 10,000 to 100,000 rows, and its memory flat? How fast is a resumed run at its work?

A near-free model, so that the pipeline is what is measured. Every size runs in a process of its own, with its own Ray;
peaks are those of resident memory without what is shared, looked at five times a second. For the resumed run: how long
it takes to know that all of 1,000 files is scored already.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ray
import scoring_rate
from pools import make_pool
from ray import cloudpickle

import distributed.scoring.pipeline
from distributed.cluster.connection import connect
from distributed.runs.progress import silent
from distributed.scoring.ledger import choose_parts, missing_segments
from distributed.scoring.options import ScoringOptions
from distributed.scoring.score import score_pool
from distributed.storage.location import locate
from distributed.tables.manifest import freeze_pool, read_manifest
from distributed.tables.scores import find_parts

_POLL_S = 0.2


class Peaks:
    """The highest memory of this process and of each scoring actor, watched while a block runs."""

    def __init__(self) -> None:
        self.driver, self.actors = 0, dict[int, int]()
        self._is_over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peaks:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._is_over.wait(_POLL_S):
            self.driver = max(self.driver, private_mib(os.getpid()))
            for pid in actor_pids():
                self.actors[pid] = max(self.actors.get(pid, 0), private_mib(pid))


def actor_pids() -> list[int]:
    """The processes of this machine that score."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"LossScorer" in (folder / "cmdline").read_bytes() or b"MapBatches" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def private_mib(pid: int) -> int:
    """Resident memory without what is shared, such as the object store."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    values = dict(line.split(":", 1) for line in lines)
    return int(values.get("RssAnon", "0 kB").split()[0]) >> 10


def measure(pool: str, model: str) -> dict[str, Any]:
    """One run on a pool, in this process."""
    cloudpickle.register_pickle_by_value(scoring_rate)
    distributed.scoring.pipeline.LossScorer = scoring_rate.NearFreeScorer
    connect()
    marks = scoring_rate.Marks(scoring_rate.num_rows_of(pool))
    with tempfile.TemporaryDirectory(dir=Path(pool).parent) as out, Peaks() as peaks:
        started = time.perf_counter()
        options = ScoringOptions(decode_threads=1)  # the command's default
        score_pool(pool, model=model, out=f"{out}/scores", options=options, config={}, progress=marks)
        seconds = time.perf_counter() - started
    ray.shutdown()
    return {
        "rows": marks.total,
        "seconds": seconds,
        "start_seconds": marks.first - started,
        "rate": marks.rate(),
        "driver_mib": peaks.driver,
        "actor_mib": max(peaks.actors.values(), default=0),
    }


def measure_scan(place: Path, model: str, *, num_files: int) -> float:
    """Seconds until a run knows that all rows of a pool of many files are done already."""
    pool = make_pool(place / f"pool-{num_files}-files", num_rows=num_files * 10, num_files=num_files)
    distributed.scoring.pipeline.LossScorer = scoring_rate.NearFreeScorer
    out = locate(f"{place}/scan-scores")
    score_pool(pool, model=model, out=out.uri, options=ScoringOptions(debug=True), config={}, progress=silent)
    started = time.perf_counter()
    known = read_manifest(out.join("manifest.json"), locate(pool))
    manifest = freeze_pool(locate(pool), earlier=known)
    parts = choose_parts(find_parts(out), manifest, published=[])
    if missing_segments(manifest, parts):
        raise RuntimeError("expected nothing to do")
    return time.perf_counter() - started


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()) / "lossight-bench")
    parser.add_argument("--only", help="measure this pool in this process, and print JSON")
    arguments = parser.parse_args()
    model = str(arguments.place / "model")
    if arguments.only:
        print(json.dumps(measure(arguments.only, model)))
        return
    scoring_rate.make_model(model)
    print("| rows | s | of it start, s | steady images/s | driver peak, MiB | actor peak, MiB |")
    print("|---|---|---|---|---|---|")
    for num_rows in arguments.sizes:
        pool = make_pool(arguments.place / f"pool-{num_rows}", num_rows=num_rows, num_files=4)
        command = [sys.executable, __file__, "--place", str(arguments.place), "--only", pool]
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout.splitlines()[-1])
        print(
            f"| {found['rows']} | {found['seconds']:.1f} | {found['start_seconds']:.1f} | {found['rate']:.0f} | "
            f"{found['driver_mib']} | {found['actor_mib']} |",
            flush=True,
        )
    seconds = measure_scan(arguments.place, model, num_files=arguments.files)
    print(f"\n{arguments.files} files of 10 rows, all scored: known after {seconds:.1f} s")


if __name__ == "__main__":
    main()
