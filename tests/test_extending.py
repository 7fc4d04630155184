"""Extensions of docs/extending.md: an estimator, an objective, a label format, a strategy, each in a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import WriteTable, publish_scores, scores_table

from distributed.ingest.fleet import row_of
from distributed.ingest.ingest import FORMATS, Format, ingest
from distributed.ingest.options import IngestOptions
from distributed.ingest.reference import Found, Reference
from distributed.runs.progress import silent
from distributed.selection.candidates import Candidates, Ranked
from distributed.selection.options import SelectionOptions
from distributed.selection.select import read_selection, select_samples
from distributed.selection.strategies import STRATEGIES
from distributed.storage.bundles import read_bundle
from distributed.storage.location import locate
from distributed.training.options import TrainingOptions
from distributed.training.train import train_model
from model.objective import METHODS, Method
from model.synthetic import Sample


def squared_gap_loss(predicted: torch.Tensor, true: torch.Tensor, **_: Any) -> torch.Tensor:
    return (predicted - true.detach()).square().mean()


@pytest.fixture
def labelled_table(write_table: WriteTable, samples: list[Sample]) -> str:
    return write_table("labelled", [row_of(sample) for sample in samples[:16]], is_labelled=True)


def train(labelled_table: str, out: Path, **options: Any) -> str:
    values = {"epochs": 1, "batch_size": 8, "augmentation": "none", "workers": "0", **options}
    given = TrainingOptions.model_construct(**{**TrainingOptions().model_dump(), **values})
    train_model(labelled_table, out=str(out), options=given, config={}, progress=silent)
    return read_bundle(locate(str(out))).spec.method


def test_an_estimator_of_ones_own_package(labelled_table: str, tmp_path: Path) -> None:
    """That of tests/site, where its module lies beside what pip leaves of a package with an entry point."""
    assert train(labelled_table, tmp_path / "out", estimator="tiny_poses:tiny") == "keypoint"


def test_an_objective(labelled_table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "squared", Method(head="gap", ranking_loss=squared_gap_loss))
    assert train(labelled_table, tmp_path / "out", estimator="tiny_poses:tiny", method="squared") == "squared"


def test_a_label_format(tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    def find_numbered(options: IngestOptions) -> Found:
        source = locate(options.source)
        names = ("b.jpg", "a.jpg")
        found = [Reference(sample_id=f"n-{name}", image=source.join(name), group="g") for name in names]
        return Found(references=found)

    monkeypatch.setitem(FORMATS, "numbered", Format(find_numbered, has_labels=False))
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(samples[0].image)
    places = IngestOptions(kind="folder", source=str(tmp_path), out=str(tmp_path / "out"))
    ingest(places.model_copy(update={"kind": "numbered"}))
    (table,) = (tmp_path / "out").glob("*.parquet")
    assert pq.read_table(table)["sample_id"].to_pylist() == ["n-b.jpg", "n-a.jpg"]


def test_a_strategy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def least_confident(candidates: Candidates, budget: int, options: SelectionOptions) -> Ranked:
        del options
        rows = candidates.best(k=100).rows
        order = candidates.fetch(rows, columns=["confidence"])["confidence"].to_numpy().argsort(kind="stable")
        picks = rows.take(order[:budget])
        return Ranked(picks.append_column("reason", pa.array(["unsure"] * len(picks))), num_passed_over=None)

    rows = scores_table([0.1, 0.2, 0.3, 0.4], confidence=[0.9, 0.1, 0.8, 0.2])
    scores = publish_scores(tmp_path / "scores", rows)
    monkeypatch.setitem(STRATEGIES, "unsure", least_confident)
    options = SelectionOptions(budget=2).model_copy(update={"strategy": "unsure"})
    select_samples(scores, out=str(tmp_path / "out"), options=options, config={})
    selected = read_selection(locate(str(tmp_path / "out"))).to_pydict()
    assert selected["sample_id"] == ["a0001", "a0003"]
    assert selected["reason"] == ["unsure", "unsure"]
