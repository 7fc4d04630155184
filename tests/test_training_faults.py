"""Trainings that are killed, stopped, warned or starved: the bundle is that of a quiet run, no epoch counted twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import WriteTable
from faultproxy import FaultProxy
from faulty import KilledError, killed_at, until, write_labelled

from distributed.ingest.fleet import row_of
from distributed.runs.lease import hold
from distributed.runs.progress import Progress, silent
from distributed.storage.bundles import read_bundle
from distributed.storage.location import list_files, locate
from distributed.training import fitting
from distributed.training.checkpoint import FOLDER
from distributed.training.options import TrainingOptions
from distributed.training.rank import Notice, Rank
from distributed.training.train import train_model
from jobs.train import main
from model.errors import InputError, LeaseError, StoppedError
from model.synthetic import Sample

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[1]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
EPOCHS = 4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # so that sums have one order
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def labelled(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_labelled(tmp_path_factory.mktemp("labelled") / "table", list(map(row_of, samples[:24])))


@pytest.fixture(scope="module")
def validation(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_labelled(tmp_path_factory.mktemp("validation") / "table", list(map(row_of, samples[24:36])))


def train(
    labelled: str,
    out: Path | str,
    *,
    validation: str | None = None,
    workers: int | tuple[int, int] = 0,
    progress: Progress = silent,
    should_stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> dict[str, Any]:
    span = (workers, workers) if isinstance(workers, int) else workers
    quick = {"estimator": "tiny_poses:tiny", "augmentation": "light", "epochs": EPOCHS, "batch_size": 4}
    return train_model(
        labelled,
        validation=validation,
        out=str(out),
        options=TrainingOptions(
            **{**quick, "cpus_per_worker": 1, **options}, workers=f"{span[0]}:{span[1]}" if span[0] else 0
        ),
        config={"epochs": EPOCHS},
        progress=progress,
        should_stop=should_stop,
    )


def id_of(out: Path | str) -> str:
    return read_bundle(locate(str(out))).bundle_id


class Quiet(NamedTuple):
    """A run that nothing happened to."""

    bundle_id: str
    num_operations: int  # on the store


def train_quietly(out: Path, labelled: str, validation: str | None) -> Quiet:
    torch.set_num_threads(1)
    with killed_at(None) as killer:
        train(labelled, out, validation=validation)
    return Quiet(id_of(out), killer.count)


@pytest.fixture(scope="module")
def quiet(labelled: str, tmp_path_factory: pytest.TempPathFactory) -> Quiet:
    return train_quietly(tmp_path_factory.mktemp("quiet") / "out", labelled, None)


@pytest.fixture(scope="module")
def quiet_with_validation(labelled: str, validation: str, tmp_path_factory: pytest.TempPathFactory) -> Quiet:
    return train_quietly(tmp_path_factory.mktemp("quiet") / "out", labelled, validation)


@pytest.fixture
def undisturbed(quiet: Quiet) -> str:
    """The id of its bundle."""
    return quiet.bundle_id


def assert_whole(out: Path) -> None:
    """Each epoch once, in the bundle and for those who watch; and nothing left over."""
    epochs = list(range(1, EPOCHS + 1))
    assert [entry["epoch"] for entry in read_bundle(locate(str(out))).metrics["history"]] == epochs
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == epochs
    assert not (out / FOLDER).exists()
    assert (out / "run.json").exists()


def killed_in_row(number: int) -> Progress:
    """The run ends before the batch with this row is trained, as if it were killed; an epoch has 24 rows."""

    def progress(stage: str, rows: int, total: int, *, num_errors: int = 0, note: str = "") -> None:
        if rows >= number:
            raise KilledError

    return progress


@pytest.mark.parametrize("is_validated", [False, True])
def test_a_training_killed_at_any_point_ends_as_a_quiet_one(
    labelled: str, validation: str, tmp_path: Path, is_validated: bool, request: pytest.FixtureRequest
) -> None:
    quiet: Quiet = request.getfixturevalue("quiet_with_validation" if is_validated else "quiet")
    tables = {"labelled": labelled, "validation": validation if is_validated else None}
    num_published = 0
    for point in range(quiet.num_operations // 3, quiet.num_operations, quiet.num_operations // 7):
        out = tmp_path / f"{point}"
        with pytest.raises(KilledError), killed_at(point):
            train(out=out, **tables)
        is_published = (out / "run.json").exists()  # only the sweeping is missing
        train(out=out, **tables)
        assert id_of(out) == quiet.bundle_id, point
        num_published += is_published
        if not is_published:
            assert_whole(out)
    assert num_published < 2


@pytest.mark.parametrize("row", [12, 36])
def test_a_training_killed_between_two_batches_ends_as_a_quiet_one(
    labelled: str, tmp_path: Path, undisturbed: str, row: int
) -> None:
    with pytest.raises(KilledError):
        train(labelled, tmp_path / "out", progress=killed_in_row(row))
    train(labelled, tmp_path / "out")
    assert id_of(tmp_path / "out") == undisturbed
    assert_whole(tmp_path / "out")


def test_a_process_killed_for_good_goes_on_with_the_same_command(
    labelled: str, tmp_path: Path, undisturbed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = train_command(labelled, str(out), "--workers", "0")
    with subprocess.Popen(command, env=ONE_THREAD | dict(os.environ), stderr=subprocess.PIPE, cwd=CHECKOUT) as process:
        until(lambda: list((out / FOLDER).glob("e0002-*.json")), process=process)
        process.send_signal(signal.SIGKILL)
    assert not (out / "run.json").exists()
    assert main(command[3:]) == 0
    assert capsys.readouterr().err == ""
    assert_whole(out)
    assert id_of(out) == undisturbed


def train_command(labelled: str, out: str, *more: str) -> list[str]:
    options = f"--estimator tiny_poses:tiny --augmentation light --batch-size 4 --epochs {EPOCHS}"
    return [sys.executable, "-m", "jobs.train", "--labelled", labelled, "--out", out, *options.split(), *more]


def test_a_stop_in_mid_epoch_leaves_a_checkpoint_from_which_it_goes_on_exactly(
    labelled: str, tmp_path: Path, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "_STEPS_BETWEEN_LOOKS", 4)
    out, asked = tmp_path / "out", iter([False, False, True])  # in the first epoch, at its end, in the second
    with pytest.raises(StoppedError, match="stopped; a checkpoint is kept, the same command goes on"):
        train(labelled, out, should_stop=lambda: next(asked, True))
    kept = sorted(path.name for path in (out / FOLDER).glob("*.json"))
    assert kept == ["e0001-r00000000-a0001.json", "e0001-r00000016-a0001.json"]
    train(labelled, out)
    assert_whole(out)
    assert id_of(out) == undisturbed


def test_a_notice_of_preemption_leaves_a_checkpoint_at_once_and_the_training_goes_on(
    labelled: str, tmp_path: Path, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "_STEPS_BETWEEN_LOOKS", 2)
    saved, save = [], fitting.save_checkpoint
    fit_rank = fitting.fit_rank

    def note(out: Any, state: Any, *rest: Any, **named: Any) -> None:
        saved.append((state.epoch, state.rows))
        save(out, state, *rest, **named)

    def fit_on_a_doomed_machine(job: Any, rank: Rank) -> None:
        fields = {name: getattr(rank, name) for name in rank.__dataclass_fields__}
        fit_rank(job, Rank(**{**fields, "look_up": lambda: Notice.PREEMPTION}))

    monkeypatch.setattr(fitting, "save_checkpoint", note)
    monkeypatch.setattr("distributed.training.in_process.fit_rank", fit_on_a_doomed_machine)
    train(labelled, tmp_path / "out")
    assert saved == [place for epoch in range(EPOCHS) for place in ((epoch, 8), (epoch + 1, 0))]
    assert id_of(tmp_path / "out") == undisturbed


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    labelled: str, tmp_path: Path, undisturbed: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KilledError):
        train(labelled, tmp_path / "killed", progress=killed_in_row(3 * 24 + 1))
    newest = Path(FOLDER, "e0003-r00000000-a0001.safetensors")
    data = (tmp_path / "killed" / newest).read_bytes()
    for number, damaged in enumerate((data[:-100] + bytes([data[-100] ^ 1]) + data[-99:], data[:-50], None)):
        out = tmp_path / f"{number}"
        shutil.copytree(tmp_path / "killed", out)
        (out / newest).unlink()
        if damaged is not None:
            (out / newest).write_bytes(damaged)
        caplog.clear()
        train(labelled, out)
        assert "checkpoint e0003-r00000000-a0001 is damaged; taking the one before" in caplog.text
        assert_whole(out)
        assert id_of(out) == undisturbed


def test_without_the_checkpoint_of_the_best_epoch_the_training_goes_on_from_an_earlier_one(
    labelled: str, validation: str, tmp_path: Path, quiet_with_validation: Quiet
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KilledError):
        train(labelled, out, validation=validation, progress=killed_in_row(3 * 24 + 1))
    newest = json.loads((out / FOLDER / "e0003-r00000000-a0001.json").read_text())
    (out / FOLDER / f"{newest['state']['best']}.json").unlink()
    train(labelled, out, validation=validation)
    assert id_of(out) == quiet_with_validation.bundle_id
    assert_whole(out)


def test_weights_that_a_last_step_spoils_are_never_kept(
    labelled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, calls = fitting.train_step, iter(range(1, 1000))

    def spoil(model: torch.nn.Module, *arguments: Any, **named: Any) -> Any:
        losses = step(model, *arguments, **named)
        if next(calls) == 12:  # the last of the second epoch: its losses are those before it
            next(model.parameters()).data.fill_(float("nan"))
        return losses

    monkeypatch.setattr(fitting, "train_step", spoil)
    out = tmp_path / "out"
    with pytest.raises(
        InputError, match=r"found other weights after a step of epoch 2: the training diverged; .*/last"
    ):
        train(labelled, out)
    assert read_bundle(locate(str(out / "last"))).training["epoch"] == 1
    assert [path.name for path in (out / FOLDER).glob("*.json")] == ["e0001-r00000000-a0001.json"]


def test_a_run_that_was_taken_over_publishes_nothing(
    labelled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(self: Any) -> None:
        raise LeaseError("taken over")

    fit_rank = fitting.fit_rank

    def fit_and_lose_the_lease(job: Any, rank: Rank) -> None:
        fit_rank(job, rank)
        monkeypatch.setattr("distributed.runs.lease.Lease.check", lost)

    monkeypatch.setattr("distributed.training.in_process.fit_rank", fit_and_lose_the_lease)
    with pytest.raises(LeaseError, match="taken over"):
        train(labelled, tmp_path / "out")
    assert not (tmp_path / "out" / "bundle.json").exists()


def test_two_trainings_of_one_output_at_once_are_refused(labelled: str, tmp_path: Path) -> None:
    with hold(locate(str(tmp_path / "out"))), pytest.raises(LeaseError, match="another run holds the lease"):
        train(labelled, tmp_path / "out")


def test_a_training_that_diverges_late_keeps_the_last_good_bundle_and_says_the_step(
    labelled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, calls = fitting.train_step, iter(range(1, 1000))

    def diverge(*arguments: Any, **named: Any) -> Any:
        losses = step(*arguments, **named)
        return losses._replace(pose=losses.pose * float("nan")) if next(calls) >= 6 + 3 else losses

    monkeypatch.setattr(fitting, "train_step", diverge)
    out = tmp_path / "out"
    message = (
        rf"found other losses in step 3 of epoch 2: the training diverged; {out}/last is the bundle of the epoch before"
    )
    with pytest.raises(InputError, match=message):
        train(labelled, out)
    assert read_bundle(locate(str(out / "last"))).training["epoch"] == 1
    assert not (out / "run.json").exists()


# On Ray


def workers_of_this_process() -> list[int]:
    """Process ids of Ray Train's workers that this process's Ray has started; there may be other Rays here."""
    parents, names = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(folder.name)] = (folder / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue

    def is_ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and is_ours(parents[pid]))

    return [pid for pid, name in names.items() if b"RayTrainWorker" in name and is_ours(pid)]


def once_at_epoch(epoch: int, act: Callable[[], None]) -> Progress:
    """Progress that acts once, when this epoch is told to be done."""
    done = threading.Event()

    def progress(stage: str, rows: int, total: int, *, num_errors: int = 0, note: str = "") -> None:
        if note.startswith(f"epoch {epoch}/") and not done.is_set():
            done.set()
            act()

    return progress


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_worker_killed_in_the_second_epoch_takes_the_others_back_to_the_checkpoint(
    labelled: str, tmp_path: Path
) -> None:
    killed: list[int] = []
    killed_at_s: list[float] = []

    def kill_one() -> None:
        killed.extend(workers_of_this_process()[:1])
        killed_at_s.append(time.time())
        os.kill(killed[0], signal.SIGKILL)

    record = train(
        labelled, tmp_path / "out", workers=2, progress=once_at_epoch(1, kill_one), estimator="hourglass-small"
    )
    assert killed
    assert_whole(tmp_path / "out")
    first = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["ended_at"] < killed_at_s[0]  # it was not done again
    assert {entry["num_workers"] for entry in record["metrics"]["history"]} == {2}


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("max_failures", [3, pytest.param(0, marks=pytest.mark.nightly)])
def test_a_training_that_can_end_in_nothing_useful_is_not_tried_again(
    labelled: str, max_failures: int, tmp_path: Path, samples: list[Sample], write_table: WriteTable
) -> None:
    rows = [row_of(sample) for sample in samples[:24]]
    for row in rows[::3]:
        row["image"] = b"not an image"
    damaged = write_table("damaged", rows, is_labelled=True)
    with pytest.raises(InputError, match=r"expected at most 5.0% unreadable images \(--max-error-rate\)"):
        train(damaged, tmp_path / "out", workers=2, max_failures=max_failures)
    assert not (tmp_path / "out" / "run.json").exists()


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.s3
def test_a_store_that_is_busy_during_a_checkpoint_costs_nothing(labelled: str, s3_proxy: FaultProxy) -> None:
    """In a process of its own: its workers have the store's credentials in their environment from the start."""
    out = f"{s3_proxy.uri}/training/out"
    command = train_command(labelled, out, "--workers", "1", "--cpus-per-worker", "1")
    with subprocess.Popen(command, env=ONE_THREAD | dict(os.environ), stderr=subprocess.PIPE, cwd=CHECKOUT) as process:
        until(lambda: locate(f"{out}/metrics.jsonl").exists, process=process)  # the first epoch is done
        s3_proxy.fail("slow_down", path=FOLDER)
        threading.Timer(3, s3_proxy.heal).start()
        errors = process.communicate()[1]
    assert process.returncode == 0, errors
    bundle = read_bundle(locate(out))
    assert [entry["epoch"] for entry in bundle.metrics["history"]] == list(range(1, EPOCHS + 1))
    assert s3_proxy.num_failed > 0
    assert not [file.path for file in list_files(locate(out), suffix="") if FOLDER in file.path]


NODE_LOST = """
import json, os, sys, threading
os.environ |= {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
from ray.cluster_utils import Cluster
from jobs import train
from jobs.console import ConsoleProgress
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]  # a worker each
tell = ConsoleProgress.__call__
removed = threading.Event()
def remove_at_second_epoch(self, stage, done, total, *, num_errors=0, note=""):
    if note.startswith("epoch 1/") and not removed.is_set():
        removed.set()
        cluster.remove_node(nodes[0], allow_graceful=False)
    tell(self, stage, done, total, num_errors=num_errors, note=note)
ConsoleProgress.__call__ = remove_at_second_epoch
code = train.main([*sys.argv[1:], "--address", cluster.address])
print("removed" if removed.is_set() else "not removed")
import ray
ray.shutdown()
cluster.shutdown()
sys.exit(code)
"""


@pytest.mark.nightly
@pytest.mark.ray
def test_a_lost_machine_takes_the_training_back_to_the_checkpoint_with_the_workers_that_are_left(
    labelled: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = train_command(labelled, str(out), "--workers", "1:2", "--cpus-per-worker", "2")[3:]
    options += ["--estimator", "hourglass-small"]  # slower than the news of an epoch
    done = subprocess.run(
        [sys.executable, "-c", NODE_LOST, *options],
        env={**os.environ, **ONE_THREAD, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "\nremoved" in done.stdout
    assert_whole(out)
    workers = [entry["num_workers"] for entry in read_bundle(locate(str(out))).metrics["history"]]
    assert (workers[0], workers[-1]) == (2, 1)
