"""Imports: the package named `distributed` is ours, and each layer does without those above."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import distributed
from distributed.imports import CHECKOUT, check_is_ours
from model.errors import InputError


def test_our_package_passes() -> None:
    check_is_ours(str(distributed.__file__), where="here")
    assert Path(str(distributed.__file__)).parent.parent == Path(CHECKOUT)


def test_another_package_of_that_name_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "site-packages" / "distributed" / "__init__.py"
    (tmp_path / "site-packages" / "model").mkdir(parents=True)  # jobs is still missing
    with pytest.raises(InputError, match=rf"^a worker: expected lossight's package 'distributed', found {other}"):
        check_is_ours(str(other), where="a worker")


def test_scoring_and_what_it_needs_import_without_ray_and_extras() -> None:
    names = (
        "scoring.score",
        "tables.labelled",
        "evaluation.evaluate",
        "selection.select",
        "ingest.ingest",
        "ingest.fleet",
        "evaluation.review",
    )
    assert_imports_without(["ray", "transformers"], ["model.bundle", *(f"distributed.{name}" for name in names)])


def test_what_finds_that_nothing_is_to_be_done_imports_without_pytorch_and_scipy() -> None:
    names = (
        "scoring.score",
        "training.train",
        "selection.select",
        "evaluation.evaluate",
        "reporting.report",
        "reporting.export",
        "triage.triage",
        "doctor.machine",
    )
    assert_imports_without(["ray", "torch", "scipy", "matplotlib", "s3fs"], [f"distributed.{name}" for name in names])


def test_pyarrow_does_without_pandas_once_it_is_left_out() -> None:
    script = (
        "import sys; from distributed.imports import leave_pandas_out; leave_pandas_out(); import pyarrow as pa; "
        "pa.table({'a': [1, None]}).to_pylist(); assert 'pandas' not in sys.modules; import pandas"
    )
    found = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, check=False)
    assert found.returncode == 0, found.stderr.decode()


def assert_imports_without(absent: list[str], modules: list[str]) -> None:
    script = f"import sys; sys.modules.update(dict.fromkeys({absent})); import {', '.join(modules)}"
    found = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, check=False)
    assert found.returncode == 0, found.stderr.decode()
