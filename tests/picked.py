"""A selection with its scores, pool and bundle, made by hand: losses and poses are given, no model runs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from distributed.runs.record import begin_run, publish_run
from distributed.schema import FILE_ID, POOL, scores_schema
from distributed.selection.select import SelectionOptions, select_samples
from distributed.storage.bundles import write_bundle
from distributed.storage.location import locate, write_bytes
from distributed.tables.manifest import freeze_pool
from distributed.tables.parquet import Row, write_rows
from distributed.tables.reader import read_file
from distributed.tables.scores import merge_quantiles, sum_errors, write_part
from model.bundle import dump_bundle, load_bundle
from model.calibration import Calibration
from model.pose_model import PoseModel, make_spec
from model.skeleton import LSP

METADATA = pa.schema([pa.field("camera", pa.string()), pa.field("light", pa.string())])
PICKED_POOL = pa.schema([*POOL, *METADATA])
CALIBRATION = Calibration(
    predicted_loss=(-1.0, 0.0, 1.0),
    true_loss=(0.1, 0.2, 0.3),
    pck=(0.9, 0.6, 0.2),
    failure_share=(0.0, 0.2, 0.8),
    num_images=500,
)


MISSES = np.float16([k / 16 for k in range(LSP.num_keypoints)])  # of each keypoint, in every image


def make_pool(folder: Path, rows: Sequence[Row], *, row_group_bytes: int = 20_000) -> None:
    """Writes rows as FOLDER/pool, in small row groups."""
    write_rows(locate(str(folder / "pool")), rows, PICKED_POOL, row_group_bytes=row_group_bytes)


def make_bundle(folder: Path, *, calibration: Calibration | None = CALIBRATION) -> None:
    """Writes an untrained small model as a bundle."""
    torch.manual_seed(0)
    model = PoseModel(make_spec("hourglass-small", method="ll++conv", skeleton=LSP))
    write_bundle(locate(str(folder)), dump_bundle(model, training={}, metrics={}, calibration=calibration))


def losses_of(count: int) -> list[float]:
    """Predicted losses from 1 down to −1, by the order of the pool."""
    return np.linspace(1, -1, count).astype(np.float32).tolist()


def pose_of(index: int) -> list[float]:
    """x, y and peak of each keypoint of the pool's row of this number: different for each, in whole pixels."""
    return [value for k in range(LSP.num_keypoints) for value in (20 + k + index % 7, 30 + 3 * k, (k + 1) / 16)]


def publish(
    folder: Path,
    *,
    budget: int,
    with_keypoints: bool = True,
    with_misses: bool = False,
    with_metadata: bool = True,
    failed: int = 0,
    pose: Callable[[int], list[float]] = pose_of,
    **options: Any,
) -> str:
    """Publishes FOLDER/scores of FOLDER/pool by FOLDER/model, selects from them, and returns FOLDER/selection.

    The last `failed` rows of the pool are undecodable. `pose` gives x, y and peak of each keypoint of a pool row.
    """
    out, model, pool = (locate(str(folder / name)) for name in ("scores", "model", "pool"))
    files = {name: (folder / "model" / name).read_bytes() for name in ("weights.safetensors", "bundle.json")}
    bundle = load_bundle(files)
    manifest = freeze_pool(pool, metadata=METADATA.names)
    columns = ["sample_id", "group", "captured_at", *METADATA.names]
    found = pa.concat_tables(rows for file in manifest.files for rows in read_file(manifest, file, columns=columns))
    rows = _scores(
        found,
        failed=failed,
        with_keypoints=with_keypoints,
        with_misses=with_misses,
        with_metadata=with_metadata,
        calibration=bundle.calibration,
        pose=pose,
    )
    ids = {file.path: file.file_id for file in manifest.files}
    rows = rows.append_column(
        FILE_ID, pa.array([ids[path] for path in rows["pool_file"].to_pylist()]).dictionary_encode()
    )
    config = {"pool": pool.uri, "model": model.uri, "out": out.uri, "actors": "1", "gpus_per_actor": 0}
    begin_run(out, config)
    write_bytes(out.join("manifest.json"), json.dumps(manifest.as_json()).encode())
    parts = [write_part(out, rows)]
    errors = sum_errors(parts)
    record = {
        "kind": "scores",
        "bundle_id": bundle.bundle_id,
        "calibration": bundle.calibration and dataclasses.asdict(bundle.calibration),
        "config": config,
        "pool": pool.absolute_uri,
        "model": model.absolute_uri,
        "pool_fingerprint": manifest.fingerprint,
        "parts": [part.path for part in parts],
        "part_footers": [part.footer for part in parts],
        "num_rows": len(rows),
        "num_scored": len(rows) - failed,
        "num_new_rows": len(rows),
        "num_restarts": 0,
        "errors": {reason: count.num_rows for reason, count in errors.items()},
        "error_examples": {reason: list(count.examples) for reason, count in errors.items()},
        "bad_files": {},
        "loss_quantiles": list(merge_quantiles(parts)),
        "warnings": ["a doubt about the bundle"],
        "seconds": 2.0,
        "stage_seconds": {"compute": 1.0, "decode": 0.5},
        "images_per_second": len(rows) / 2,
    }
    publish_run(out, record)
    options = {"min_gap": 0, **options}  # all images are of a few seconds
    selection = str(folder / "selection")
    select_samples(
        out.uri,
        out=selection,
        options=SelectionOptions(budget=budget, **options),
        config={"scores": [out.uri], "out": selection, "budget": budget, **options},
    )
    return selection


def _scores(
    found: pa.Table,
    *,
    failed: int,
    with_keypoints: bool,
    with_misses: bool,
    with_metadata: bool,
    calibration: Calibration | None,
    pose: Callable[[int], list[float]],
) -> pa.Table:
    count = len(found)
    is_scored = [index < count - failed for index in range(count)]
    schema = scores_schema(
        metadata=METADATA if with_metadata else pa.schema([]),
        num_keypoints=LSP.num_keypoints if with_keypoints else None,
    )
    values = {
        "predicted_loss": [loss if ok else None for loss, ok in zip(losses_of(count), is_scored, strict=True)],
        "expected_pck": [
            float(calibration.expected_pck(np.float32(loss))) if ok and calibration else None
            for loss, ok in zip(losses_of(count), is_scored, strict=True)
        ],
        "confidence": [0.5 if ok else None for ok in is_scored],
        "error": [None if ok else "undecodable" for ok in is_scored],
        "keypoints": [np.float16(pose(index)) if ok else None for index, ok in enumerate(is_scored)],
        "keypoint_miss": [MISSES if ok and with_misses else None for ok in is_scored],
        **{name: found[name].to_pylist() for name in found.column_names},
    }
    return pa.table([pa.array(values[field.name], field.type) for field in schema], schema=schema)
