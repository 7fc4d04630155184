"""Labels given back every morning, through the commands alone, against the same budget drawn at random.

A synthetic fleet whose model knows everyday frames meets hard slices. Each night `triage` follows the champion's
pointer and exports for Label Studio. An annotator, who is the truth but for some poses with left and right exchanged,
writes what the tool would export. Then `ingest --selection`, `evaluate --selection`, `train` on all that is labelled,
and `promote`. In the other arm `select --strategy random` draws the rows; the same annotator labels them, the training
is the same, nothing is promoted. Both arms run at once. Run again, it goes on where it was.

OUT/fleet                start, pool (with its labels: the truth) and test, as `lossight simulate` makes them
OUT/pool                 date=..., the nights, without labels
OUT/held-out, OUT/test   drives of the fleet's test in turn: for `promote`, and for the figures
OUT/start-model          trained on the start alone
OUT/ARM                  labelled/, models/NIGHT, test/NIGHT (evaluations), commands.log, and what the commands leave
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch

from distributed.evaluation.rows import evaluate_rows
from distributed.ingest.fleet import write_fleet_cycle
from distributed.simulation.data import near_duplicate_share
from distributed.storage.bundles import read_bundle
from distributed.storage.location import locate
from distributed.tables.labelled import freeze_labelled
from model.skeleton import LSP

_FIRST = datetime.date(2026, 11, 2)
_TRUTH = ["keypoints", "visibility", "slices"]  # columns that a pool has not
_ROWS = 250  # of a row group
_BATCH = 16  # by default of `train`
_DONE, _DEGRADED = 0, 5


class Nights:
    """The fleet of a benchmark, and the commands on it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out: Path = options.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.dates = [_FIRST + datetime.timedelta(days=night) for night in range(options.nights)]
        self.make_tables()
        self.truth = _files_of(self.out / "fleet" / "pool")

    def make_tables(self) -> None:
        """Writes start, nights, held-out and test rows, once."""
        options = self.options
        write_fleet_cycle(
            str(self.out / "fleet"),
            seed=options.seed,
            num_start=options.start,
            num_pool=options.nights * options.night_rows,
            per_slice=2 * options.per_slice,  # half of them are held out
            num_easy=2 * options.per_slice,
        )
        if (self.out / "pool").exists():
            return
        whole = _files_of(self.out / "fleet" / "test").to_table()
        drives = whole["group"].unique().sort()
        for half, name in enumerate(("held-out", "test")):
            _write(self.out / name, whole.filter(pc.is_in(whole["group"], value_set=drives[half::2])))
        rows = _files_of(self.out / "fleet" / "pool").to_table()
        for night, date in enumerate(self.dates):
            part = rows.slice(night * options.night_rows, options.night_rows)
            _write(self.out / "unfinished" / f"date={date}", part.drop_columns(_TRUTH))
        (self.out / "unfinished").rename(self.out / "pool")

    def run(self, command: str, *words: str | Path, done: Path, log: Path) -> None:
        """Runs a command unless what it publishes is there.

        Raises:
            SystemExit: it failed.
        """
        if not (done / "run.json").exists():
            self.call(command, *words, log=log)

    def call(self, command: str, *words: str | Path, log: Path, allowed: tuple[int, ...] = (_DONE,)) -> list[str]:
        """The lines that a command printed."""
        line = [command, *map(str, words)]
        started = time.monotonic()
        found = subprocess.run([sys.executable, "-m", "jobs.cli", *line], capture_output=True, text=True, check=False)
        seconds = time.monotonic() - started
        print(f"{datetime.datetime.now():%H:%M:%S} {log.parent.name}: {command} {seconds:.1f} s", file=sys.stderr)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as stream:
            stream.write(f"$ lossight {' '.join(line)}\n{found.stdout}{found.stderr}[{found.returncode}]\n\n")
        if found.returncode not in allowed:
            raise SystemExit(f"lossight {' '.join(line)}\n{found.stdout}{found.stderr}exit code {found.returncode}")
        return found.stdout.splitlines()

    def train(self, labelled: Path, model: Path, *, log: Path) -> None:
        """Trains on all rows of a folder: for about as many steps, however many rows there are."""
        num_epochs = max(1, round(self.options.steps * _BATCH / _files_of(labelled).count_rows()))
        machine = ["--workers", "0", "--cpus-per-worker", "1"]
        fit = ["--estimator", "hourglass-small", "--learning-rate", "4e-3", "--augmentation", "none"]
        epochs = ["--epochs", str(num_epochs), "--seed", str(self.options.seed)]
        self.run("train", "--labelled", labelled, "--out", model, *fit, *epochs, *machine, done=model, log=log)

    def test(self, model: Path, out: Path, *, log: Path) -> None:
        """Evaluates a model on the test rows."""
        words = ["--labelled", self.out / "test", "--model", model, "--out", out, "--slices", "slices"]
        self.run("evaluate", *words, done=out, log=log)

    def start(self) -> None:
        """The first model, and the first champion."""
        log = self.out / "start" / "commands.log"
        self.train(self.out / "fleet" / "start", self.out / "start-model", log=log)
        self.test(self.out / "start-model", self.out / "start-test", log=log)
        pointer = self.out / "triaged" / "champion.json"
        if not pointer.exists():
            self.promote(self.out / "start-model", self.out / "triaged" / "promoted-0.txt", log=log)

    def promote(self, model: Path, said: Path, *, log: Path) -> None:
        """Asks once whether a model is the next champion, and keeps the answer."""
        if said.exists():  # by now the champion may be a later one
            return
        words = ["--champion", self.out / "triaged" / "champion.json", "--challenger", model]
        words += ["--on", self.out / "held-out", "--slices", "slices"]
        lines = self.call("promote", *words, log=log, allowed=(_DONE, _DEGRADED))
        said.parent.mkdir(parents=True, exist_ok=True)
        said.write_text(next(line for line in lines if line.partition(":")[0] in ("moved", "not moved")))

    def models(self, arm: str) -> list[Path]:
        """The model that each night begins with, of an arm that promotes nothing; and the last."""
        later = [self.out / arm / "models" / str(night + 1) for night in range(self.options.nights)]
        return [self.out / "start-model", *later]

    def triaged(self) -> None:
        """All nights of the arm with predicted losses."""
        place, pool = self.out / "triaged", self.out / "pool"
        log, champion, triage = place / "commands.log", place / "champion.json", place / "triage"
        for night, date in enumerate(self.dates):
            folder, selection = triage / "nights" / str(date), triage / "selections" / str(date)
            words = ["--pool", pool, "--model", champion, "--out", triage, "--date", str(date)]
            words += ["--budget", str(self.options.budget), "--control-share", str(self.options.control_share)]
            self.run("triage", *words, "--exports", "label-studio", done=folder, log=log)
            back = self.give_back(place, night, selection, folder / "export" / "label-studio", log=log)
            words = ["--selection", selection, "--labelled", back, "--model", champion]
            self.run("evaluate", *words, "--out", folder / "evaluation", done=folder / "evaluation", log=log)
            scores = next(folder.glob("scores-*"))
            words = ["--scores", scores, "--budget", str(self.options.budget), "--min-gap", "0"]
            plain = place / "plain" / str(night + 1)
            self.run("select", *words, "--out", plain, done=plain, log=log)
            model = self.models("triaged")[night + 1]
            self.train(place / "labelled", model, log=log)
            self.promote(model, place / f"promoted-{night + 1}.txt", log=log)
            self.test(model, place / "test" / str(night + 1), log=log)
        self.call("report", "--run", triage / "nights" / str(self.dates[-1]), log=log)  # with the lift of each night

    def drawn(self) -> None:
        """All nights of the arm whose rows are drawn at random."""
        place = self.out / "random"
        log = place / "commands.log"
        for night, date in enumerate(self.dates):
            scores, selection, export = (place / name / str(night + 1) for name in ("scores", "selections", "exports"))
            before, model = self.models("random")[night : night + 2]
            pool = self.out / "pool" / f"date={date}"
            self.run("score", "--pool", pool, "--model", before, "--out", scores, done=scores, log=log)
            words = ["--scores", scores, "--budget", str(self.options.budget), "--strategy", "random"]
            self.run("select", *words, "--seed", str(night), "--out", selection, done=selection, log=log)
            words = ["label-studio", "--selection", selection, "--pool", pool, "--out", export]
            self.run("export", *words, done=export, log=log)
            self.give_back(place, night, selection, export, log=log)
            self.train(place / "labelled", model, log=log)
            self.test(model, place / "test" / str(night + 1), log=log)

    def give_back(self, place: Path, night: int, selection: Path, export: Path, *, log: Path) -> Path:
        """Annotates an export and ingests it into the arm's labelled table; returns where."""
        start = place / "labelled" / "start"
        if not start.exists():
            shutil.copytree(self.out / "fleet" / "start", start)
        project, back = place / f"project-{night + 1}.json", place / "labelled" / f"night-{night + 1}"
        if not project.exists():
            tasks = json.loads((export / "tasks.json").read_text())
            project.write_text(json.dumps(self.annotate(tasks, seed=night)))
        words = ["label-studio", "--selection", selection, "--source", project, "--out", back]
        self.run("ingest", *words, done=back, log=log)
        return back

    def annotate(self, tasks: list[dict[str, Any]], *, seed: int) -> list[dict[str, Any]]:
        """The tasks as Label Studio exports them once somebody has placed the true keypoints in each, some wrong."""
        rows = self.rows_of([task["data"]["sample_id"] for task in tasks])
        labels = dict(zip(rows["sample_id"].to_pylist(), rows.select(_TRUTH).to_pylist(), strict=True))
        num_wrong = round(self.options.wrong_share * len(tasks))
        wrong = set(np.random.default_rng([self.options.seed, seed]).permutation(len(tasks))[:num_wrong].tolist())
        annotated = []
        for number, task in enumerate(tasks):
            size = {key: task["predictions"][0]["result"][0][key] for key in ("original_width", "original_height")}
            result = _pose(labels[task["data"]["sample_id"]], size, swapped=number in wrong)
            answer = {"id": number, "completed_by": 1, "was_cancelled": False, "result": result}
            annotated.append({"id": number, **task, "annotations": [answer]})
        return annotated

    def rows_of(self, ids: list[str]) -> pa.Table:
        """The pool's rows of some ids, with their labels."""
        return self.truth.to_table(filter=ds.field("sample_id").isin(ids))

    def true_loss(self, night: int, ids: list[str], bundle: str) -> float:
        """Mean true loss of some rows, by the bundle that the night was scored with."""
        place = self.out / "triaged" / "judged" / str(night + 1)
        _write(place, self.rows_of(ids))
        evaluated = evaluate_rows(read_bundle(locate(bundle)), freeze_labelled(locate(str(place)), skeleton=LSP))
        return float(np.nanmean(evaluated["true_loss"].to_numpy()))


def _files_of(folder: Path) -> ds.Dataset:
    """The Parquet files of a table, without the records beside them."""
    return ds.dataset(sorted(map(str, folder.glob("**/*.parquet"))))


def _write(folder: Path, rows: pa.Table) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, folder / "part-0.parquet", row_group_size=_ROWS)


def _pose(labels: dict[str, Any], size: dict[str, int], *, swapped: bool) -> list[dict[str, Any]]:
    """The regions of a pose: a point for each labelled keypoint, and a choice for each that is occluded."""
    places = np.asarray(labels["keypoints"], np.float64).reshape(-1, 2) / list(size.values()) * 100
    names = list(LSP.keypoint_names)
    for a, b in LSP.flip_pairs if swapped else ():
        names[a], names[b] = names[b], names[a]
    regions = []
    for index, (name, (x, y), visibility) in enumerate(zip(names, places.tolist(), labels["visibility"], strict=True)):
        about = {"id": str(index), "to_name": "image", **size, "image_rotation": 0}
        point = {"x": x, "y": y, "width": 0.75, "keypointlabels": [name]}
        if visibility:
            regions.append({**about, "type": "keypointlabels", "from_name": "keypoints", "value": point})
        if visibility == 1:
            regions.append({**about, "type": "choices", "from_name": "visibility", "value": {"choices": ["occluded"]}})
    return regions


def _record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def _pcks(folder: Path) -> tuple[float, float]:
    """PCK of all test rows, and the mean of the hard slices."""
    metrics = _record(folder)
    hard = [each["pck"] for each in metrics["slices"] if each["column"] == "slices" and each["value"]]
    return metrics["pck"], float(np.mean(hard))


def show(nights: Nights) -> None:
    """Prints the table."""
    place = nights.out / "triaged"
    print("| night | labels back | PCK, picks | random | hard slices, picks | random ", end="")
    print("| near-duplicates, picks | without gap | true loss ÷ plain order | lift (95 %) | champion |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    every, hard = _pcks(nights.out / "start-test")
    print(f"| start | - | {every:.3f} | {every:.3f} | {hard:.3f} | {hard:.3f} | - | - | - | - | the start's |")
    for night, date in enumerate(nights.dates):
        name, folder = str(night + 1), place / "triage" / "nights" / str(date)
        picked, plain = (
            pq.read_table(where / "selection.parquet")
            for where in (place / "triage" / "selections" / str(date), place / "plain" / name)
        )
        (mine, my_hard), (theirs, their_hard) = (
            _pcks(nights.out / arm / "test" / name) for arm in ("triaged", "random")
        )
        index = nights.truth.to_table(columns=["sample_id", "group", "captured_at"])
        near = [near_duplicate_share(index, each["sample_id"].to_pylist(), []) for each in (picked, plain)]
        by_loss = picked.filter(pc.not_equal(picked["reason"], "control"))["sample_id"].to_pylist()
        bundle = json.loads((folder / "config.json").read_text())["inputs"]["bundle"]
        losses = [
            nights.true_loss(night, ids, bundle) for ids in (by_loss, plain["sample_id"].to_pylist()[: len(by_loss)])
        ]
        arms = _record(folder / "evaluation")["selection"]
        low, high = ("-" if each is None else f"{each:.1f}" for each in arms["lift_interval"])
        lift = "-" if arms["lift"] is None else f"{arms['lift']:.1f}"
        counts = [_record(nights.out / arm / "labelled" / f"night-{name}")["num_rows"] for arm in ("triaged", "random")]
        print(
            f"| {name} | {counts[0]}, {counts[1]} | {mine:.3f} | {theirs:.3f} | {my_hard:.3f} | {their_hard:.3f} "
            f"| {near[0]:.1%} | {near[1]:.1%} | {losses[0] / losses[1]:.3f} | {lift} ({low} to {high}) "
            f"| {(place / f'promoted-{name}.txt').read_text().partition(':')[0]} |"
        )
    print()
    for night in range(nights.options.nights + 1):
        print(f"{night}: {(place / f'promoted-{night}.txt').read_text()}")


def main() -> None:
    """Runs both arms and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where everything goes; a run that was killed goes on")
    parser.add_argument("--nights", type=int, default=5)
    parser.add_argument("--start", type=int, default=1500, help="labelled rows before the first night")
    parser.add_argument("--night-rows", type=int, default=3000)
    parser.add_argument("--per-slice", type=int, default=300, help="test images of each slice; as many are held out")
    parser.add_argument("--budget", type=int, default=100, help="rows labelled a night")
    parser.add_argument("--control-share", type=float, default=0.1, help="of the picks: drawn, to measure the lift")
    parser.add_argument("--wrong-share", type=float, default=0.05, help="poses that the annotator gets wrong")
    parser.add_argument("--steps", type=int, default=2400, help="of each training, to the nearest epoch")
    parser.add_argument("--seed", type=int, default=0)
    nights = Nights(parser.parse_args())
    nights.start()
    with ThreadPoolExecutor(2) as arms:
        for arm in [arms.submit(nights.triaged), arms.submit(nights.drawn)]:
            arm.result()
    torch.set_num_threads(1)
    show(nights)


if __name__ == "__main__":
    main()
