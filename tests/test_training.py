"""Training in this process, on one Ray Train worker and on two: each leaves a whole bundle, and learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import WriteTable

from distributed.runs.progress import silent
from distributed.storage.bundles import read_bundle
from distributed.storage.location import locate
from distributed.tables.fleet import row_of
from distributed.training.fitting import TrainingOptions
from distributed.training.train import train_model
from model.errors import InputError
from model.synthetic import Sample


@pytest.fixture
def labelled(samples: list[Sample], write_table: WriteTable) -> str:
    rows = [row_of(sample) for sample in samples]
    rows[5]["image"] = b"not an image"
    return write_table("labelled", rows, is_labelled=True, row_group_bytes=100_000)


def train(labelled: str, out: Path, *, config: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    defaults = {
        "estimator": "hourglass-small",
        "head": "gap",
        "augmentation": "none",
        "learning_rate": 3e-3,
        "epochs": 2,
        "batch_size": 8,
        "cpus_per_worker": 1,
    }
    return train_model(
        labelled,
        out=str(out),
        options=TrainingOptions(**{**defaults, **options}),
        config=config or {},
        progress=silent,
    )


def test_training_in_process_learns_and_counts_what_it_could_not_read(labelled: str, tmp_path: Path) -> None:
    record = train(labelled, tmp_path / "out", workers=0, epochs=4)
    losses = [epoch["pose_loss"] for epoch in record["metrics"]["history"]]
    assert len(losses) == 4
    assert losses[-1] < 0.5 * losses[0]
    assert record["unreadable_per_epoch"] == {"undecodable": 1}
    bundle = read_bundle(locate(str(tmp_path / "out")))
    assert bundle.spec.head == "gap"
    assert bundle.training["options"]["seed"] == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["kind"] == "bundle"


def test_the_same_seed_gives_the_same_bundle(labelled: str, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        train(labelled, tmp_path / name, workers=0, epochs=1, seed=int(name == "c"))
    ids = [read_bundle(locate(str(tmp_path / name))).bundle_id for name in ("a", "b", "c")]
    assert ids[0] == ids[1] != ids[2]


def test_a_finished_training_is_not_run_again_and_another_is_refused(labelled: str, tmp_path: Path) -> None:
    train(labelled, tmp_path / "out", workers=0, epochs=1, config={"epochs": 1})
    assert train(labelled, tmp_path / "out", workers=0, epochs=1, config={"epochs": 1})["was_done"]
    with pytest.raises(InputError, match=r"holds another run; differing: epochs \(was 1, is 2\)"):
        train(labelled, tmp_path / "out", workers=0, epochs=2, config={"epochs": 2})


def test_a_keypoint_that_is_never_labelled_is_named(
    samples: list[Sample], write_table: WriteTable, tmp_path: Path
) -> None:
    rows = [row_of(sample) for sample in samples[:4]]
    for row in rows:
        row["visibility"] = [2] * 13 + [0]
    table = write_table("labelled", rows, is_labelled=True)
    with pytest.raises(InputError, match="never: \\['head_top'\\]"):
        train(table, tmp_path / "out", workers=0)
    assert not (tmp_path / "out").exists()


def test_a_training_that_diverges_or_has_nothing_to_learn_from_leaves_no_bundle(
    labelled: str, samples: list[Sample], write_table: WriteTable, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="--learning-rate: expected finite losses"):
        train(labelled, tmp_path / "diverged", workers=0, learning_rate=1e15)
    broken = [{**row_of(sample), "image": b"broken"} for sample in samples[:8]]
    table = write_table("broken", broken, is_labelled=True)
    with pytest.raises(InputError, match="expected keypoints inside readable images, found none"):
        train(table, tmp_path / "nothing", workers=0)
    for name in ("diverged", "nothing"):
        assert not (tmp_path / name / "bundle.json").exists()


def test_the_bundle_does_not_depend_on_how_the_work_is_spread(labelled: str, tmp_path: Path) -> None:
    for threads in (1, 3):
        train(labelled, tmp_path / str(threads), workers=0, epochs=1, decode_threads=threads)
    one, three = (read_bundle(locate(str(tmp_path / name))).bundle_id for name in ("1", "3"))
    assert one == three


def test_a_batch_too_small_for_the_workers_is_refused(labelled: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--batch-size: expected two images a worker, found 8 for all"):
        train(labelled, tmp_path / "out", workers=5)


def test_validation_metrics_are_in_the_bundle(labelled: str, tmp_path: Path) -> None:
    options = TrainingOptions(
        estimator="hourglass-small", head="conv", augmentation="light", epochs=1, batch_size=16, workers=0
    )
    out = str(tmp_path / "out")
    train_model(labelled, validation=labelled, out=out, options=options, config={}, progress=silent)
    validation = read_bundle(locate(out)).metrics["validation"]
    assert validation["num_rows"] == 48
    assert validation["num_errors"] == 1
    assert set(validation["spearman"]) == {"predicted_loss", "confidence"}


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("workers", [1, 2])
def test_training_on_ray_train_leaves_a_bundle_and_no_records_of_ray(
    labelled: str, tmp_path: Path, workers: int
) -> None:
    told: list[tuple[int, int]] = []

    def progress(stage: str, done: int, total: int, *, num_errors: int = 0, note: str = "") -> None:
        told.append((done, num_errors))

    record = train_model(
        labelled,
        out=str(tmp_path / "out"),
        options=TrainingOptions(
            estimator="hourglass-small",
            augmentation="none",
            epochs=2,
            batch_size=8,
            workers=workers,
            cpus_per_worker=1,
        ),
        config={},
        progress=progress,
    )
    history = record["metrics"]["history"]
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    assert history[1]["pose_loss"] < history[0]["pose_loss"]
    assert told[-1] == (96, 2)  # 48 rows in two epochs, the unreadable one in each
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "bundle.json",
        "config.json",
        "run.json",
        "weights.safetensors",
    ]
    assert record["unreadable_per_epoch"] == {"undecodable": 1}
