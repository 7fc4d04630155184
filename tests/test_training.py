"""Training in this process, on one Ray Train worker and on two: each leaves a whole bundle, and learns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WriteTable

from distributed.ingest.fleet import row_of
from distributed.runs.progress import Progress, silent
from distributed.storage.bundles import read_bundle
from distributed.storage.location import locate
from distributed.tables.labelled import freeze_labelled
from distributed.training import teaching
from distributed.training.options import TrainingJob, TrainingOptions
from distributed.training.rank import Notice, Rank
from distributed.training.teaching import teach_head
from distributed.training.train import train_model
from model.errors import BundleError, InputError
from model.pose_model import PoseModel, make_spec
from model.skeleton import LSP
from model.synthetic import Sample

pytestmark = pytest.mark.slow


@pytest.fixture
def labelled(samples: list[Sample], write_table: WriteTable) -> str:
    rows = [row_of(sample) for sample in samples]
    rows[5]["image"] = b"not an image"
    return write_table("labelled", rows, is_labelled=True, row_group_bytes=100_000)


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
        "estimator": "hourglass-small",
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


def test_training_in_process_learns_and_counts_what_it_could_not_read(labelled: str, tmp_path: Path) -> None:
    record = train(labelled, tmp_path / "out", epochs=4)
    losses = [epoch["pose_loss"] for epoch in record["metrics"]["history"]]
    assert len(losses) == 4
    assert losses[-1] < 0.5 * losses[0]
    assert record["unreadable_per_epoch"] == {"undecodable": 1}
    bundle = read_bundle(locate(str(tmp_path / "out")))
    assert bundle.spec.method == "ll++"
    assert bundle.training["options"]["seed"] == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["kind"] == "bundle"


def test_the_same_seed_gives_the_same_bundle(labelled: str, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        train(labelled, tmp_path / name, epochs=1, seed=int(name == "c"))
    ids = [read_bundle(locate(str(tmp_path / name))).bundle_id for name in ("a", "b", "c")]
    assert ids[0] == ids[1] != ids[2]


def test_a_finished_training_is_not_run_again_and_another_is_refused(labelled: str, tmp_path: Path) -> None:
    train(labelled, tmp_path / "out", epochs=1, config={"epochs": 1})
    assert train(labelled, tmp_path / "out", epochs=1, config={"epochs": 1})["was_done"]
    with pytest.raises(InputError, match=r"holds another run; differing: epochs \(was 1, is 2\)"):
        train(labelled, tmp_path / "out", epochs=2, config={"epochs": 2})


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


def test_the_bundle_does_not_depend_on_how_the_work_is_spread(labelled: str, tmp_path: Path) -> None:
    for threads in (1, 3):
        train(labelled, tmp_path / str(threads), epochs=1, decode_threads=threads)
    one, three = (read_bundle(locate(str(tmp_path / name))).bundle_id for name in ("1", "3"))
    assert one == three


def test_a_batch_too_small_for_the_workers_is_refused(labelled: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--batch-size: expected two images a worker, for 5 workers, found 8 for all"):
        train(labelled, tmp_path / "out", workers=5)


def test_too_many_unreadable_images_stop_the_training(labelled: str, tmp_path: Path) -> None:
    message = r"expected at most 1.0% unreadable images \(--max-error-rate\), found 1 among 48: {'undecodable': 1}"
    with pytest.raises(InputError, match=message):
        train(labelled, tmp_path / "out", max_error_rate=0.01)


@pytest.fixture
def validation(samples: list[Sample], write_table: WriteTable) -> str:
    rows = [{**row_of(sample), "sample_id": f"other {sample.sample_id}"} for sample in samples]
    rows[3]["image"] = b"not an image"
    return write_table("validation", rows, is_labelled=True, row_group_bytes=100_000)


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
    train(labelled, tmp_path / "again", method="keypoint")
    assert read_bundle(locate(str(tmp_path / "again"))).bundle_id == bundle.bundle_id


def taught_weights(labelled: str, *, index: int, num_ranks: int) -> dict[str, torch.Tensor]:
    """What one of some ranks has taught the keypoint head of an untrained model."""
    torch.manual_seed(0)
    model = PoseModel(make_spec("hourglass-small", method="keypoint", skeleton=LSP))
    manifest = freeze_labelled(locate(labelled), skeleton=LSP)
    out = locate(labelled).join("out")  # nothing is written
    job = TrainingJob(labelled=manifest, validation=None, out=out, spec=model.spec, options=TrainingOptions(epochs=1))
    rank = Rank(
        index=index,
        world_size=num_ranks,
        attempt=1,
        device=torch.device("cpu"),
        wrap=lambda model: model,
        read_epoch=lambda _: iter(()),
        look_up=lambda: Notice.NONE,
        count_rows=lambda *_: None,
        count_from=lambda _: None,
        end_epoch=lambda _: None,
    )
    teach_head(job, rank, model)
    return model.loss_head.state_dict()


def one_of_two(index: int, labelled: str, place: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}", rank=index, world_size=2)
    torch.save(taught_weights(labelled, index=index, num_ranks=2), f"{place}.{index}")
    torch.distributed.destroy_process_group()


def test_two_ranks_teach_one_head_all_rows(labelled: str, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_of_two, (labelled, str(tmp_path / "rank")), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank.{index}", weights_only=True) for index in (0, 1))
    alone = taught_weights(labelled, index=0, num_ranks=1)
    assert first["plain.loss_scale"] > 0
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    for name in ("plain.mean", "plain.scale", "mirrored.mean", "mirrored.scale"):
        torch.testing.assert_close(first[name], alone[name], rtol=1e-3, atol=1e-4)


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


def test_what_watchers_read_has_each_epoch_once(labelled: str, tmp_path: Path) -> None:
    train(labelled, tmp_path / "out", epochs=2)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[0]["pairs_per_step"] == pytest.approx(8 / 2, rel=0.05)  # one image is unreadable
    assert lines[0]["num_rows"] == 48
    assert lines[0]["num_dropped"] == 0
    events = scalars(tmp_path / "out" / "tensorboard")
    assert events["pose_loss"] == [(line["epoch"], pytest.approx(line["pose_loss"])) for line in lines]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would show, by name: steps and values."""
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
@pytest.mark.parametrize("workers", [1, 2])
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


def test_a_head_is_taught_on_an_augmented_copy_also_after_a_fit_without_augmentation(
    labelled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lessons: list[tuple[torch.Tensor, torch.Tensor]] = []
    real = teaching.teach

    def spy(judge: Any, plain: Any, augmented: Any, *, seed: int) -> None:
        lessons.append((plain.inputs, augmented.inputs))
        real(judge, plain, augmented, seed=seed)

    monkeypatch.setattr(teaching, "teach", spy)
    train(labelled, tmp_path / "out", epochs=1, method="keypoint")
    assert lessons
    assert all(plain.shape == copy.shape and not torch.equal(plain, copy) for plain, copy in lessons)
