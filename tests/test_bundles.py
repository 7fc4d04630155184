"""Bundles at a location: whole, or said to be not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from distributed.storage.bundles import read_bundle, write_bundle
from distributed.storage.location import locate
from model.bundle import load_bundle
from model.description import BUNDLE_FILE, WEIGHTS_FILE
from model.errors import BundleError


def test_a_written_bundle_is_read_as_it_was(tmp_path: Path, bundle_files: dict[str, bytes]) -> None:
    write_bundle(locate(str(tmp_path / "model")), bundle_files)
    found, expected = read_bundle(locate(str(tmp_path / "model"))), load_bundle(bundle_files)
    assert found.bundle_id == expected.bundle_id
    assert found.spec == expected.spec
    assert found.training == {"note": "untrained"}
    pairs = zip(found.model.state_dict().items(), expected.model.state_dict().items(), strict=True)
    assert all(name == other and torch.equal(tensor, twin) for (name, tensor), (other, twin) in pairs)


def test_the_description_is_written_last(bundle_files: dict[str, bytes]) -> None:
    assert list(bundle_files)[-1] == BUNDLE_FILE


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (WEIGHTS_FILE, r"expected a model bundle, found no bundle\.json"),
        (BUNDLE_FILE, r"expected a complete model bundle, found no weights\.safetensors"),
    ],
)
def test_half_a_bundle_is_none(tmp_path: Path, bundle_files: dict[str, bytes], name: str, message: str) -> None:
    write_bundle(locate(str(tmp_path)), {name: bundle_files[name]})
    with pytest.raises(BundleError, match=message):
        read_bundle(locate(str(tmp_path)))


def test_nothing_is_said_to_be_nothing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere: expected a model bundle, found nothing"):
        read_bundle(locate(str(tmp_path / "nowhere")))


def test_altered_weights_are_refused_with_the_location(tmp_path: Path, bundle_files: dict[str, bytes]) -> None:
    weights = bytearray(bundle_files[WEIGHTS_FILE])
    weights[-1] ^= 1
    write_bundle(locate(str(tmp_path)), {**bundle_files, WEIGHTS_FILE: bytes(weights)})
    with pytest.raises(BundleError, match=rf"^{tmp_path}: weights\.safetensors: expected sha256"):
        read_bundle(locate(str(tmp_path)))


@pytest.mark.parametrize("version", [1, 3])
def test_another_format_version_is_refused(version: int, tmp_path: Path, bundle_files: dict[str, bytes]) -> None:
    description = {**json.loads(bundle_files[BUNDLE_FILE]), "format_version": version}
    write_bundle(locate(str(tmp_path)), {**bundle_files, BUNDLE_FILE: json.dumps(description).encode()})
    with pytest.raises(BundleError, match=f"expected format_version 2, found {version}"):
        read_bundle(locate(str(tmp_path)))
