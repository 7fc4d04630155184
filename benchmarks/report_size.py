"""Size of the report of a full selection, and the seconds to write it and to open it in a browser.

Photographs are told by their folder: synthetic frames compress better than what a camera sees.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from distributed.reporting.report import write_report
from distributed.runs.progress import silent
from distributed.storage.location import locate
from distributed.tables.parquet import Row, write_rows
from model.synthetic import generate_fleet

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))  # for the browser, and selections made by hand
_RUNS = 5
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Prints bytes and seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-selected", type=int, default=10_000)
    parser.add_argument("--photos", type=Path, help="a folder of JPEG files below any folders; else synthetic frames")
    options = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        selection = _make_selection(folder, _images(options.photos), count=options.num_selected)
        page = folder / "report.html"
        started, before = time.perf_counter(), time.process_time()
        record = write_report(selection, out=str(page), progress=silent)
        print(f"{record['num_pictures']} pictures, {record['num_poses']} poses: {record['num_bytes'] / 1e6:.1f} MB")
        seconds, cpus = time.perf_counter() - started, time.process_time() - before
        print(f"written in {seconds:.1f} s ({cpus:.1f} s of CPUs), poses {record['poses']}")
        _open(page, folder)


def _open(page: Path, folder: Path) -> None:
    """Seconds until the page can be used; those of all CPUs say the same on a machine that does other things too."""
    from browser import browsing, find_browser

    if find_browser() is None:
        print("no chromium: opening was not measured")
        return
    for run in range(_RUNS):
        with browsing(folder / f"profile-{run}") as tab:
            tab.resize(1280, 900)
            before = _cpu_s()
            seconds = tab.open(page)
            opened, load = _cpu_s() - before, os.getloadavg()[0]
            before = _cpu_s()
            tab.evaluate(_FILTER)
            print(
                f"opened in {seconds:.2f} s ({opened:.2f} s of CPUs; load {load:.0f}), {_times(tab.evaluate(_TIMING))}"
            )
            filtered = _cpu_s() - before
            print(f"  errors {tab.errors}; by group {tab.evaluate(_SHOWN)}, {filtered:.2f} s of CPUs")


def _cpu_s() -> float:
    """CPU seconds that the processes below this one have used, user and system."""
    ticks, parents = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        number = int(stat.parent.name)
        parents[number], ticks[number] = int(fields[1]), int(fields[11]) + int(fields[12])
    below, found = {os.getpid()}, 0
    while found != len(below):
        found = len(below)
        below |= {number for number, parent in parents.items() if parent in below}
    return sum(ticks[number] for number in below - {os.getpid()}) / _TICKS_PER_S


_TIMING = "performance.getEntriesByType('navigation').map(t => [t.domInteractive, t.loadEventEnd])[0]"
_FILTER = "(() => { const box = document.getElementById('filter-group'); box.value = 'drive-0007';"
_FILTER += " box.dispatchEvent(new Event('input')); })()"
_SHOWN = "document.getElementById('shown').textContent"


def _times(milliseconds: list[float]) -> str:
    interactive, loaded = (value / 1000 for value in milliseconds)
    return f"interactive after {interactive:.2f} s, loaded after {loaded:.2f} s"


def _images(photos: Path | None) -> list[bytes]:
    if photos is not None:
        return [path.read_bytes() for path in sorted(photos.rglob("*.jpg"))]
    return [sample.image for sample in generate_fleet(seed=0, num_samples=2000, unreadable_share=0.0)]


def _make_selection(folder: Path, images: list[bytes], *, count: int) -> str:
    """A published selection of so many rows, with scores that keep keypoints and metadata; nothing is predicted."""
    from picked import PICKED_POOL, make_bundle, publish

    rng = np.random.default_rng(0)

    def rows() -> Iterator[Row]:
        for index in range(count):
            yield {
                "sample_id": f"vehicle-{index % 97:03d}/2026-11-24/camera-front/{index:09d}",
                "image": images[index % len(images)],
                "group": f"drive-{index // 8:04d}",
                "camera": ("front", "rear", "left", "right")[index % 4],
                "light": ("day", "dusk", "night")[int(rng.integers(3))],
            }

    write_rows(locate(str(folder / "pool")), rows(), PICKED_POOL)
    make_bundle(folder / "model")
    return publish(folder, budget=count)


if __name__ == "__main__":
    main()
