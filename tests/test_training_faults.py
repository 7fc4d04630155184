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

from distributed.runs.lease import hold
from distributed.runs.progress import Progress, silent
from distributed.storage.bundles import read_bundle
from distributed.storage.location import locate
from distributed.tables.fleet import row_of
from distributed.training import fitting
from distributed.training.checkpoint import FOLDER
from distributed.training.options import TrainingOptions
from distributed.training.rank import Notice, Rank
from distributed.training.train import train_model
from model.errors import InputError, LeaseError, StoppedError
from model.synthetic import Sample

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
    from distributed.schema import labelled as schema
    from distributed.tables.parquet import TableWriter

    folder = tmp_path_factory.mktemp("labelled")
    with TableWriter(locate(str(folder)), schema=schema(14), row_group_bytes=50_000) as writer:
        for sample in samples[:24]:
            writer.write(row_of(sample))
    return str(folder)


def train(
    labelled: str,
    out: Path | str,
    *,
    workers: int | tuple[int, int] = 0,
    progress: Progress = silent,
    should_stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> dict[str, Any]:
    span = (workers, workers) if isinstance(workers, int) else workers
    quick = {"estimator": "hourglass-small", "augmentation": "light", "epochs": EPOCHS, "batch_size": 4}
    return train_model(
        labelled,
        out=str(out),
        options=TrainingOptions(**{**quick, "cpus_per_worker": 1, **options}, min_workers=span[0], max_workers=span[1]),
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
        ("distributed.training.train.delete_checkpoints", 1),
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
    if function != "distributed.training.train.delete_checkpoints":  # published already: only the sweeping is missing
        assert_whole(out)


def test_a_process_killed_for_good_goes_on_with_the_same_command(
    labelled: str, tmp_path: Path, undisturbed: str
) -> None:
    out = tmp_path / "out"
    options = "--workers 0 --estimator hourglass-small --augmentation light --batch-size 4 --learning-rate 1e-3"
    command = [sys.executable, "-m", "jobs.train", "--labelled", labelled, "--out", str(out), *options.split()]
    command += ["--epochs", str(EPOCHS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[1]
    ) as process:
        until(lambda: list((out / FOLDER).glob("e0002-*.json")), alive=process)
        process.send_signal(signal.SIGKILL)
    assert not (out / "run.json").exists()
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert_whole(out)
    assert id_of(out) == undisturbed
    again = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False
    )
    assert again.returncode == 0
    assert again.stdout.startswith("already there")


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
    out, asked = tmp_path / "out", iter([False, True])
    with pytest.raises(StoppedError, match="stopped; the same command goes on from the checkpoint"):
        train(labelled, out, should_stop=lambda: next(asked, True))
    assert [path.name for path in (out / FOLDER).glob("*.json")] == [
        "e0001-b000004-a0001.json",
        "e0001-b000000-a0001.json",
    ]
    train(labelled, out)
    assert_whole(out)
    assert id_of(out) == undisturbed


def test_a_notice_of_preemption_leaves_one_checkpoint_and_the_training_goes_on(
    labelled: str, tmp_path: Path, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "_STEPS_BETWEEN_LOOKS", 2)
    saved, save = [], fitting.save_checkpoint
    fit_rank = fitting.fit_rank

    def note(out: Any, state: Any, *rest: Any, **named: Any) -> None:
        saved.append((state.epoch, state.batch))
        save(out, state, *rest, **named)

    def fit_on_a_doomed_machine(job: Any, rank: Rank) -> None:
        fields = {name: getattr(rank, name) for name in rank.__dataclass_fields__}
        fit_rank(job, Rank(**{**fields, "look_up": lambda: Notice.PREEMPTION}))

    monkeypatch.setattr(fitting, "save_checkpoint", note)
    monkeypatch.setattr("distributed.training.train.fit_rank", fit_on_a_doomed_machine)
    train(labelled, tmp_path / "out")
    assert saved == [(epoch, batch) for epoch in range(EPOCHS) for batch in (2, 6)] or saved == [
        step for epoch in range(EPOCHS) for step in ((epoch, 2), (epoch + 1, 0))
    ]
    assert id_of(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("damage", ["flip", "cut", "lose"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    labelled: str, tmp_path: Path, undisturbed: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        killed_at("distributed.training.fitting.write_journal", 3, patch)
        with pytest.raises(KilledError):
            train(labelled, out)
    newest = out / FOLDER / "e0003-b000000-a0001.safetensors"
    data = bytearray(newest.read_bytes())
    data[-100] ^= 1
    if damage == "lose":
        newest.unlink()
    else:
        newest.write_bytes(data if damage == "flip" else data[:-50])
    train(labelled, out)
    assert "checkpoint e0003-b000000-a0001 is damaged; taking the one before" in caplog.text
    assert_whole(out)
    assert id_of(out) == undisturbed


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
    message = rf"found others in step 3 of epoch 2: the training diverged; {out}/last is the bundle of the epoch before"
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

    def kill_one() -> None:
        killed.extend(workers_of_this_process()[:1])
        os.kill(killed[0], signal.SIGKILL)

    record = train(labelled, tmp_path / "out", workers=2, progress=once_at_epoch(1, kill_one))
    assert killed
    assert_whole(tmp_path / "out")
    assert {entry["num_workers"] for entry in record["metrics"]["history"]} == {2}


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_training_that_can_end_in_nothing_useful_is_not_tried_again(
    labelled: str, tmp_path: Path, samples: list[Sample], write_table: WriteTable
) -> None:
    rows = [row_of(sample) for sample in samples[:24]]
    for row in rows[::3]:
        row["image"] = b"not an image"
    damaged = write_table("damaged", rows, is_labelled=True)
    with pytest.raises(InputError, match=r"expected at most 5.0% unreadable images \(--max-error-rate\)"):
        train(damaged, tmp_path / "out", workers=2)
    assert not (tmp_path / "out" / "run.json").exists()


@pytest.mark.ray
@pytest.mark.s3
@pytest.mark.usefixtures("local_ray")
def test_a_store_that_is_busy_for_ten_seconds_during_a_checkpoint_costs_nothing(
    labelled: str, s3_proxy: FaultProxy
) -> None:
    out = f"{s3_proxy.uri}/training/out"
    times: list[float] = []

    def be_busy() -> None:
        s3_proxy.fail("slow_down", path=FOLDER)
        times.append(time.monotonic())
        threading.Timer(10, lambda: (times.append(time.monotonic()), s3_proxy.heal())).start()

    record = train(labelled, out, workers=1, progress=once_at_epoch(1, be_busy))
    assert [entry["epoch"] for entry in record["metrics"]["history"]] == list(range(1, EPOCHS + 1))
    assert len(times) == 2  # it ended after the store was well again, not before
    assert read_bundle(locate(out)).training["epoch"] == EPOCHS
    assert not locate(f"{out}/{FOLDER}").exists
