"""FiftyOne: a dataset on disk that `fiftyone.Dataset.from_dir(OUT, dataset_type=fiftyone.types.FiftyOneDataset)` loads.

The package is an extra: what is made of its classes is here, and which of them is asked for by name.
"""

from __future__ import annotations

import importlib
from typing import Any

from distributed.reporting.items import Exported, Item, relative_box, relative_points
from model.errors import InputError
from model.skeleton import Skeleton

FIELD = "predicted"  # of a sample: its pose; and the name of the skeleton


def load_fiftyone() -> Any:
    """The package.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module("fiftyone")
    except ImportError as error:
        raise InputError(
            "export fiftyone: expected the package fiftyone, found none: pip install 'lossight[fiftyone]'"
        ) from error


def write_dataset(fiftyone: Any, exported: Exported, *, folder: str, paths: list[str], are_ours: bool) -> None:
    """Writes the dataset into a folder.

    Args:
        fiftyone: the package.
        exported: what it holds.
        folder: where.
        paths: of the images, one an item.
        are_ours: the images are copies that the dataset may take; else they stay where they are.
    """
    dataset = fiftyone.Dataset()  # in FiftyOne's own database, until it is written
    try:
        dataset.skeletons = {FIELD: fiftyone.KeypointSkeleton(**skeleton_fields(exported.skeleton))}
        dataset.info = {"bundle_id": exported.bundle_id, "selection": exported.fingerprint}
        dataset.add_samples(
            [_sample(fiftyone, item, path) for item, path in zip(exported.items, paths, strict=True)], progress=False
        )
        dataset.save()
        dataset.export(
            export_dir=folder,
            dataset_type=fiftyone.types.FiftyOneDataset,
            export_media="move" if are_ours else False,
            overwrite=False,
            progress=False,
        )
    finally:
        dataset.delete()


def skeleton_fields(skeleton: Skeleton) -> dict[str, Any]:
    """Names and limbs as FiftyOne wants them."""
    return {"labels": list(skeleton.keypoint_names), "edges": [list(limb) for limb in skeleton.limbs]}


def sample_fields(item: Item) -> dict[str, Any]:
    """What a sample says beside its labels; an absent value is left out, for FiftyOne learns types from values."""
    fields = {
        "lossight_id": item.sample_id,  # `sample_id` is what FiftyOne's own views of patches add
        "rank": item.rank,
        "predicted_loss": item.predicted_loss,
        "expected_pck": item.expected_pck,
        "group_name": item.group,  # `group` is FiftyOne's own
        "reason": item.reason,
        "pool_metadata": item.metadata or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def keypoint_fields(item: Item) -> dict[str, Any] | None:
    """Points as shares of the image's sides, and their confidence."""
    if item.pose is None:
        return None
    return {"label": "person", "points": relative_points(item), "confidence": item.pose[:, 2].tolist()}


def box_fields(item: Item) -> dict[str, Any]:
    """The box as shares of the image's sides: left, top, width, height."""
    return {"label": "person", "bounding_box": list(relative_box(item))}


def _sample(fiftyone: Any, item: Item, path: str) -> Any:
    labels: dict[str, Any] = {"box": fiftyone.Detections(detections=[fiftyone.Detection(**box_fields(item))])}
    fields = keypoint_fields(item)
    if fields is not None:
        labels[FIELD] = fiftyone.Keypoints(keypoints=[fiftyone.Keypoint(**fields)])
    return fiftyone.Sample(filepath=path, tags=[item.reason], **sample_fields(item), **labels)
