"""Cost of a nightly triage beyond its scoring and selecting, and its growth with the triage's history.

One night of a pool is scored and selected from, by the two calls alone and by triage, in turns, in one process, with a
stand-in for the model that costs nothing: the hardest case, since all else is dearer then. Triage has a history of so
many nights before, whose selections it excludes and whose scores it compares with; report and exports are off.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pools import make_pool
from scoring_rate import NearFreeScorer, make_model

import distributed.scoring.pipeline
from distributed.runs.progress import silent
from distributed.runs.record import begin_run, publish_run
from distributed.schema import SELECTION
from distributed.scoring.options import ScoringOptions
from distributed.scoring.score import score_pool
from distributed.selection.options import SelectionOptions
from distributed.selection.select import SELECTION_FILE, select_samples
from distributed.storage.bundles import read_bundle_id
from distributed.storage.location import locate, write_bytes
from distributed.tables.history import record_night
from distributed.triage.nights import find_nights, freeze_night
from distributed.triage.options import TriageOptions
from distributed.triage.triage import triage_nights

_NIGHT = datetime.date(2026, 11, 25)
_BUDGET = 500
_SELECTION = SelectionOptions(budget=_BUDGET, max_per_group=50, control_share=0.1)


class Seconds(NamedTuple):
    """Seconds by the clock, and of this process's CPUs: on a machine with other work, these make the better ratio."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Seconds:
        """Since some moment."""
        return cls(time.perf_counter(), time.process_time())

    def since(self, started: Seconds) -> Seconds:
        """Between two moments."""
        return Seconds(self.wall - started.wall, self.cpu - started.cpu)


def score_and_select(pool: str, model: str, out: Path) -> Seconds:
    """Seconds of the two calls by themselves."""
    started = Seconds.now()
    scores = str(out / "scores")
    arguments: dict[str, Any] = {"config": {}, "progress": silent, "options": ScoringOptions(debug=True)}
    score_pool(f"{pool}/date={_NIGHT}", model=model, out=scores, **arguments)
    select_samples(scores, out=str(out / "selection"), options=_SELECTION, config={})
    return Seconds.now().since(started)


def triage(pool: str, model: str, out: Path) -> Seconds:
    """Seconds of the same as a night of a triage."""
    options = TriageOptions(
        pool=pool,
        model=model,
        out=str(out),
        debug=True,
        **_SELECTION.model_dump(),
        drift_columns=("group",),
        date=_NIGHT,
        first_night=_NIGHT,
        keep_days=7,
        report=False,
    )
    started = Seconds.now()
    (record,) = triage_nights(options, today=_NIGHT, progress=silent)
    seconds = Seconds.now().since(started)
    assert record["num_selected"] == _BUDGET, record  # noqa: S101
    return seconds


def make_history(pool: str, model: str, out: Path, *, num_nights: int) -> None:
    """Leaves what a triage of so many nights would have left, but for the scores, which retention removes."""
    place, bundle_id = locate(str(out)), read_bundle_id(locate(model))
    source = locate(pool)
    begin_run(place, {}, inputs={"kind": "triage", "pool": f"{source.filesystem.type_name}://{source.path}"})
    rng = np.random.default_rng(0)
    for number in range(num_nights, 0, -1):
        date = _NIGHT - datetime.timedelta(days=number)
        write_bytes(source.join(f"date={date}", "a.parquet"), b"triaged already, and never read again")
        freeze_night(place.join("nights"), date, find_nights(source), since=date)
        publish_run(place.join("nights", f"{date}"), {"kind": "night"})
        chosen = place.join("selections", f"{date}")
        begin_run(chosen, {})
        ids = [f"{date}-{row:04d}" for row in range(_BUDGET)]
        columns = {"rank": range(1, _BUDGET + 1), "sample_id": ids}
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        pq.write_table(pa.Table.from_pylist(rows, SELECTION), out / "selections" / f"{date}" / SELECTION_FILE)
        publish_run(chosen, {"kind": "selection"})
    for number in range(min(num_nights, 30), 0, -1):
        losses = np.sort(rng.normal(100, 30, 128)).tolist()
        row = dict.fromkeys(("num_files", "num_late_files", "num_bad_files", "num_rows", "num_selected"), 0)
        row |= {"night": _NIGHT - datetime.timedelta(days=number), "bundle_id": bundle_id, "num_scored": 20_000}
        record_night(
            place.join("history.parquet"),
            {**row, "error_rate": 0.0, "loss_quantiles": losses, "slices": [], "drift": []},
        )


def main() -> None:
    """Prints a table for each length of history."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-nights", type=int, nargs="+", default=[7, 365])
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()) / "lossight-bench")
    arguments = parser.parse_args()
    distributed.scoring.pipeline.LossScorer = NearFreeScorer
    model = str(arguments.place / "model")
    make_model(model)
    for num_nights in arguments.num_nights:
        place = Path(tempfile.mkdtemp(dir=arguments.place))
        night = make_pool(arguments.place / f"night-{arguments.num_rows}", num_rows=arguments.num_rows, num_files=4)
        shutil.copytree(night, place / "pool" / f"date={_NIGHT}")
        make_history(str(place / "pool"), model, place / "history", num_nights=num_nights)
        print(f"\n{arguments.num_rows} rows, {num_nights} nights before\n")
        print("| round | score + select, s (CPU s) | triage, s (CPU s) | ratio | ratio of CPU s |")
        print("|---|---|---|---|---|")
        ratios = []
        for index in range(arguments.rounds):
            shutil.copytree(place / "history", place / f"triage-{index}")
            runs = [(score_and_select, place / f"alone-{index}"), (triage, place / f"triage-{index}")]
            if index % 2:  # whoever is first pays for cold caches
                runs.reverse()
            seconds = {run: run(str(place / "pool"), model, out) for run, out in runs}
            alone, whole = seconds[score_and_select], seconds[triage]
            ratios.append(Seconds(whole.wall / alone.wall, whole.cpu / alone.cpu))
            times = f"{alone.wall:.1f} ({alone.cpu:.1f}) | {whole.wall:.1f} ({whole.cpu:.1f})"
            print(f"| {index + 1} | {times} | {ratios[-1].wall:.3f} | {ratios[-1].cpu:.3f} |", flush=True)
        wall, cpu = (statistics.median(each) for each in zip(*ratios, strict=True))
        print(f"\nmedian of the ratios: {wall:.3f}, of CPU seconds {cpu:.3f}")
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
