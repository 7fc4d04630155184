"""Training in this process, on one Ray Train worker and on two: each leaves a whole bundle, and learns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WriteTable
from faulty import write_labelled

from distributed.ingest.fleet import row_of
from distributed.runs.progress import Progress, silent
from distributed.storage.bundles import read_bundle
from distributed.storage.location import locate
from distributed.training import teaching
from distributed.training.options import TrainingOptions
from distributed.training.train import train_model
from model.errors import BundleError, InputError
from model.synthetic import Sample

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def labelled(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> str:
    """48 rows, one of them unreadable."""
    rows = [row_of(sample) for sample in samples]
    rows[5]["image"] = b"not an image"
    return write_labelled(tmp_path_factory.mktemp("labelled") / "table", rows, row_group_bytes=100_000)


@pytest.fixture(scope="module")
def validation(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> str:
    """48 other rows, one of them unreadable."""
    rows = [{**row_of(sample), "sample_id": f"other {sample.sample_id}"} for sample in samples]
    rows[3]["image"] = b"not an image"
    return write_labelled(tmp_path_factory.mktemp("validation") / "table", rows, row_group_bytes=100_000)


def train(
    labelled: str,
    out: Path,
    *,
    workers: int = 0,
    validation: str | None = None,
    config: dict[str, Any] | None = None,
    progress: Progress = silent,
    should_stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> dict[str, Any]:
    defaults = {
        "estimator": "tiny_poses:tiny",
        "method": "ll++",
        "augmentation": "none",
        "learning_rate": 3e-3,
        "epochs": 2,
        "batch_size": 8,
        "cpus_per_worker": 1,
        "max_error_rate": 0.1,
        "workers": workers,
    }
    return train_model(
        labelled,
        validation=validation,
        out=str(out),
        options=TrainingOptions(**{**defaults, **options}),
        config=config or {},
        progress=progress,
        should_stop=should_stop,
    )


@pytest.fixture(scope="module")
def trained(labelled: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A training of four epochs: its output, and its record."""
    out = tmp_path_factory.mktemp("trained") / "out"
    return out, train(labelled, out, epochs=4, config={"epochs": 4})


def test_training_in_process_learns_and_counts_what_it_could_not_read(trained: tuple[Path, dict[str, Any]]) -> None:
    out, record = trained
    losses = [epoch["pose_loss"] for epoch in record["metrics"]["history"]]
    assert len(losses) == 4
    assert losses[-1] < 0.5 * losses[0]
    assert record["unreadable_per_epoch"] == {"undecodable": 1}
    bundle = read_bundle(locate(str(out)))
    assert bundle.spec.method == "ll++"
    assert bundle.training["options"]["seed"] == 0
    assert json.loads((out / "run.json").read_text())["kind"] == "bundle"


def test_a_finished_training_is_not_run_again_and_another_is_refused(
    labelled: str, trained: tuple[Path, dict[str, Any]]
) -> None:
    out, _ = trained
    assert train(labelled, out, epochs=4, config={"epochs": 4})["was_done"]
    with pytest.raises(InputError, match=r"holds another run; differing: epochs \(was 4, is 2\)"):
        train(labelled, out, epochs=2, config={"epochs": 2})


def test_what_watchers_read_has_each_epoch_once(trained: tuple[Path, dict[str, Any]]) -> None:
    out, _ = trained
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert lines[0]["pairs_per_step"] == pytest.approx(8 / 2, rel=0.05)  # one image is unreadable
    assert lines[0]["num_rows"] == 48
    assert lines[0]["num_dropped"] == 0
    events = scalars(out / "tensorboard")
    assert events["pose_loss"] == [(line["epoch"], pytest.approx(line["pose_loss"])) for line in lines]


def test_the_bundle_depends_on_the_seed_and_not_on_how_the_work_is_spread(labelled: str, tmp_path: Path) -> None:
    for name, changes in {"a": {}, "b": {"decode_threads": 3}, "c": {"seed": 1}}.items():
        train(labelled, tmp_path / name, epochs=1, **changes)
    ids = [read_bundle(locate(str(tmp_path / name))).bundle_id for name in ("a", "b", "c")]
    assert ids[0] == ids[1] != ids[2]


def test_a_keypoint_that_is_never_labelled_is_named(
    samples: list[Sample], write_table: WriteTable, tmp_path: Path
) -> None:
    rows = [row_of(sample) for sample in samples[:4]]
    for row in rows:
        row["visibility"] = [2] * 13 + [0]
    table = write_table("labelled", rows, is_labelled=True)
    with pytest.raises(InputError, match="never: \\['head_top'\\]"):
        train(table, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_training_that_diverges_or_has_nothing_to_learn_from_leaves_no_bundle(
    labelled: str, samples: list[Sample], write_table: WriteTable, tmp_path: Path
) -> None:
    message = (
        r"--learning-rate: expected finite numbers, found other losses in step \d of epoch 1: the training diverged$"
    )
    with pytest.raises(InputError, match=message):
        train(labelled, tmp_path / "diverged", learning_rate=1e15)
    broken = [{**row_of(sample), "image": b"broken"} for sample in samples[:8]]
    table = write_table("broken", broken, is_labelled=True)
    with pytest.raises(InputError, match="expected keypoints inside readable images, found none"):
        train(table, tmp_path / "nothing", max_error_rate=1.0)
    for name in ("diverged", "nothing"):
        assert not (tmp_path / name / "bundle.json").exists()


def test_a_batch_too_small_for_the_workers_is_refused(labelled: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--batch-size: expected two images a worker, for 5 workers, found 8 for all"):
        train(labelled, tmp_path / "out", workers=5)


def test_too_many_unreadable_images_stop_the_training(labelled: str, tmp_path: Path) -> None:
    message = r"expected at most 1.0% unreadable images \(--max-error-rate\), found 1 among 48: {'undecodable': 1}"
    with pytest.raises(InputError, match=message):
        train(labelled, tmp_path / "out", max_error_rate=0.01)


def test_validation_rows_choose_the_best_epoch_and_calibrate_it(
    labelled: str, validation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.calibration.MIN_IMAGES", 40)
    record = train(labelled, tmp_path / "out", validation=validation, epochs=3, method="keypoint")
    bundle = read_bundle(locate(str(tmp_path / "out")))
    assert bundle.calibration is not None
    assert bundle.metrics["validation"]["num_rows"] == 48
    assert bundle.metrics["validation"]["num_errors"] == 1
    assert set(bundle.metrics["validation"]["spearman"]) >= {"predicted_loss", "confidence"}
    losses = [epoch["validation_loss"] for epoch in record["metrics"]["history"]]
    assert record["epoch"] == losses.index(min(losses)) + 1
    assert bundle.metrics["validation"]["mean_true_loss"] == pytest.approx(min(losses))
    last = read_bundle(locate(str(tmp_path / "out" / "last")))
    assert (last.training["epoch"], bundle.training["epoch"]) == (3, record["epoch"])


def test_without_validation_rows_a_keypoint_head_is_calibrated_on_those_that_taught_it(
    labelled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.calibration.MIN_IMAGES", 40)
    train(labelled, tmp_path / "out", method="keypoint")
    bundle, last = (read_bundle(locate(str(tmp_path / name))) for name in ("out", "out/last"))
    assert bundle.calibration is not None
    assert bundle.calibration.num_images == 47  # one is unreadable
    bundle.model.check_taught()
    with pytest.raises(BundleError, match="expected a finished training"):
        last.model.check_taught()


def test_without_a_better_epoch_for_as_long_as_patience_lasts_the_training_ends(
    labelled: str, validation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 2.0, 0.5])  # what weights give depends on the order of the rows
    monkeypatch.setattr("distributed.training.fitting.validate", lambda *_: {"validation_loss": next(losses)})
    record = train(labelled, tmp_path / "out", validation=validation, epochs=4, patience=1)
    assert [epoch["validation_loss"] for epoch in record["metrics"]["history"]] == [3, 1, 2]
    assert record["epoch"] == 2


def test_validation_rows_that_are_trained_on_are_refused(
    labelled: str, samples: list[Sample], write_table: WriteTable, tmp_path: Path
) -> None:
    rows = [row_of(sample) for sample in samples[40:44]]
    for row in rows[1:]:
        row["sample_id"] = f"other {row['sample_id']}"
    shared = write_table("shared", rows, is_labelled=True)
    message = rf"expected rows that are not trained on, found 1 of .*: \['{samples[40].sample_id}'\]"
    with pytest.raises(InputError, match=message):
        train(labelled, tmp_path / "out", validation=shared)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars that TensorBoard would show, by name: steps and values."""
    from tensorboardX.proto.event_pb2 import Event

    (file,) = folder.iterdir()
    data, found = file.read_bytes(), {}
    while data:  # records: length, its checksum, an event, its checksum
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.nightly), 2])
def test_training_on_ray_train_leaves_a_bundle_and_no_records_of_ray(
    labelled: str, validation: str, tmp_path: Path, workers: int
) -> None:
    told: list[tuple[int, int]] = []

    def progress(stage: str, done: int, total: int, *, num_errors: int = 0, note: str = "") -> None:
        told.append((done, num_errors))

    record = train(labelled, tmp_path / "out", workers=workers, validation=validation, progress=progress)
    history = record["metrics"]["history"]
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    assert history[1]["pose_loss"] < history[0]["pose_loss"]
    assert told[-1] == (96, 2)  # 48 rows in two epochs, the unreadable one in each
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".lease.json",
        "bundle.json",
        "config.json",
        "last",
        "metrics.jsonl",
        "run.json",
        "tensorboard",
        "trained_ids.parquet",
        "weights.safetensors",
    ]
    assert record["unreadable_per_epoch"] == {"undecodable": 1}
    assert record["metrics"]["validation"]["num_rows"] == 48  # of all workers' shares, none lost
    rows_of_one = -(-8 // workers)
    assert history[0]["pairs_per_step"] == pytest.approx(workers * (rows_of_one // 2), rel=0.1)


def test_a_head_is_taught_on_the_rows_as_they_are_and_on_a_degraded_copy(
    labelled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lessons: list[Any] = []
    real = teaching.teach

    def spy(judge: Any, lesson: Any, *, seed: int) -> None:
        lessons.append(lesson)
        real(judge, lesson, seed=seed)

    monkeypatch.setattr(teaching, "teach", spy)
    train(labelled, tmp_path / "out", epochs=1, method="keypoint")
    assert lessons
    for lesson in lessons:
        assert len(lesson.inputs) == 2 * 47  # of 48 rows one can't be read
        half = len(lesson.inputs) // 2
        for values in (lesson.inputs, lesson.keypoint_loss):
            assert not torch.equal(values[:half].nan_to_num(), values[half:].nan_to_num())
        is_labelled = lesson.keypoint_loss.isfinite()
        assert torch.equal(is_labelled[:half], is_labelled[half:])  # the keypoints stay where they are
