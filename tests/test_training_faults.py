"""Trainings that are killed, stopped, warned or starved: the bundle is that of a quiet run, no epoch counted twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WriteTable
from faultproxy import FaultProxy

from distributed.ingest.fleet import row_of
from distributed.runs.lease import hold
from distributed.runs.progress import Progress, silent
from distributed.schema import labelled as labelled_schema
from distributed.storage.bundles import read_bundle
from distributed.storage.location import list_files, locate
from distributed.tables.parquet import write_rows
from distributed.training import fitting
from distributed.training.checkpoint import FOLDER
from distributed.training.options import TrainingOptions
from distributed.training.rank import Notice, Rank
from distributed.training.train import train_model
from model.errors import InputError, LeaseError, StoppedError
from model.skeleton import LSP
from model.synthetic import Sample

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[1]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
EPOCHS = 4


class KilledError(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # so that sums have one order
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def labelled(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("labelled") / "table")
    schema = labelled_schema(LSP.num_keypoints)
    rows = [{name: row_of(sample).get(name) for name in schema.names} for sample in samples[:24]]
    write_rows(locate(folder), rows, schema, row_group_bytes=50_000)
    return folder


@pytest.fixture(scope="module")
def validation(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("validation") / "table")
    schema = labelled_schema(LSP.num_keypoints)
    rows = [{name: row_of(sample).get(name) for name in schema.names} for sample in samples[24:36]]
    write_rows(locate(folder), rows, schema, row_group_bytes=50_000)
    return folder


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
    quick = {"estimator": "hourglass-small", "augmentation": "light", "epochs": EPOCHS, "batch_size": 4}
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


@pytest.fixture(scope="module")
def undisturbed(labelled: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The id of the bundle of a quiet run."""
    out = tmp_path_factory.mktemp("quiet") / "out"
    torch.set_num_threads(1)
    train(labelled, out)
    return id_of(out)


@pytest.fixture(scope="module")
def undisturbed_with_validation(labelled: str, validation: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The id of the bundle of a quiet run with validation rows."""
    out = tmp_path_factory.mktemp("quiet") / "out"
    torch.set_num_threads(1)
    train(labelled, out, validation=validation)
    return id_of(out)


def assert_whole(out: Path) -> None:
    """Each epoch once, in the bundle and for those who watch; and nothing left over."""
    epochs = list(range(1, EPOCHS + 1))
    assert [entry["epoch"] for entry in read_bundle(locate(str(out))).metrics["history"]] == epochs
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == epochs
    assert not (out / FOLDER).exists()
    assert (out / "run.json").exists()


def killed_at(name: str, num_calls: int, patch: pytest.MonkeyPatch) -> None:
    """The run ends at the start of a call of this function, as if it were killed."""
    from importlib import import_module

    module = import_module(name.rpartition(".")[0])
    function, calls = getattr(module, name.rpartition(".")[2]), iter(range(1, 1000))

    def call(*arguments: Any, **named: Any) -> Any:
        if next(calls) == num_calls:
            raise KilledError
        return function(*arguments, **named)

    patch.setattr(name, call)


@pytest.mark.parametrize(
    ("function", "num_calls"),
    [
        ("distributed.training.fitting.train_step", 3),  # in the first epoch
        ("distributed.training.fitting.train_step", 9),  # in the second
        ("distributed.training.checkpoint.write_bytes", 4),  # tensors without their record
        ("distributed.training.fitting.write_journal", 2),
        ("distributed.training.fitting.write_last", EPOCHS),
        ("distributed.training.train.publish_run", 1),
        ("distributed.training.checkpoint.delete_checkpoints", 1),
    ],
)
def test_a_training_killed_between_any_two_steps_ends_as_a_quiet_one(
    labelled: str, tmp_path: Path, undisturbed: str, function: str, num_calls: int
) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        killed_at(function, num_calls, patch)
        with pytest.raises(KilledError):
            train(labelled, out)
    train(labelled, out)
    assert id_of(out) == undisturbed
    if not function.endswith("delete_checkpoints"):  # published already: only the sweeping is missing
        assert_whole(out)


def test_a_process_killed_for_good_goes_on_with_the_same_command(
    labelled: str, tmp_path: Path, undisturbed: str
) -> None:
    out = tmp_path / "out"
    command = train_command(labelled, str(out), "--workers", "0")
    environment = ONE_THREAD | dict(os.environ)
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, cwd=CHECKOUT) as process:
        until(lambda: list((out / FOLDER).glob("e0002-*.json")), alive=process)
        process.send_signal(signal.SIGKILL)
    assert not (out / "run.json").exists()
    done, again = (
        subprocess.run(command, env=environment, capture_output=True, text=True, cwd=CHECKOUT, check=False)
        for _ in range(2)
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert_whole(out)
    assert id_of(out) == undisturbed
    assert again.returncode == 0
    assert again.stdout.startswith("already there")


def train_command(labelled: str, out: str, *more: str) -> list[str]:
    options = f"--estimator hourglass-small --augmentation light --batch-size 4 --epochs {EPOCHS}"
    return [sys.executable, "-m", "jobs.train", "--labelled", labelled, "--out", out, *options.split(), *more]


def until(is_true: Callable[[], object], *, alive: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not is_true():
        assert alive.poll() is None, "it ended"
        assert time.monotonic() < deadline
        time.sleep(0.01)


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


@pytest.mark.parametrize("damage", ["flip", "cut", "lose"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    labelled: str, tmp_path: Path, undisturbed: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        killed_at("distributed.training.fitting.train_step", 19, patch)  # the first of the fourth epoch
        with pytest.raises(KilledError):
            train(labelled, out)
    newest = out / FOLDER / "e0003-r00000000-a0001.safetensors"
    data = bytearray(newest.read_bytes())
    data[-100] ^= 1
    if damage == "lose":
        newest.unlink()
    else:
        newest.write_bytes(data if damage == "flip" else data[:-50])
    train(labelled, out)
    assert "checkpoint e0003-r00000000-a0001 is damaged; taking the one before" in caplog.text
    assert_whole(out)
    assert id_of(out) == undisturbed


@pytest.mark.parametrize(
    ("function", "num_calls"),
    [
        ("fitting.save_checkpoint", 2),
        ("fitting.write_last", 3),
        ("checkpoint.write_bytes", 5),
        ("outcome.dump_bundle", EPOCHS + 1),
        ("train.publish_outcome", 1),
    ],
)
def test_with_validation_too_a_training_killed_anywhere_ends_as_a_quiet_one(
    labelled: str,
    validation: str,
    tmp_path: Path,
    undisturbed_with_validation: str,
    function: str,
    num_calls: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        killed_at(f"distributed.training.{function}", num_calls, patch)
        with pytest.raises(KilledError):
            train(labelled, tmp_path / "out", validation=validation)
    assert not (tmp_path / "out" / "bundle.json").exists()
    train(labelled, tmp_path / "out", validation=validation)
    assert id_of(tmp_path / "out") == undisturbed_with_validation
    assert_whole(tmp_path / "out")


def test_without_the_checkpoint_of_the_best_epoch_the_training_goes_on_from_an_earlier_one(
    labelled: str, validation: str, tmp_path: Path, undisturbed_with_validation: str
) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        killed_at("distributed.training.fitting.train_step", 19, patch)  # the first of the fourth epoch
        with pytest.raises(KilledError):
            train(labelled, out, validation=validation)
    newest = json.loads((out / FOLDER / "e0003-r00000000-a0001.json").read_text())
    (out / FOLDER / f"{newest['state']['best']}.json").unlink()
    train(labelled, out, validation=validation)
    assert id_of(out) == undisturbed_with_validation
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

    record = train(labelled, tmp_path / "out", workers=2, progress=once_at_epoch(1, kill_one))
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
        until(lambda: locate(f"{out}/metrics.jsonl").exists, alive=process)  # the first epoch is done
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
