"""Leeds Sports Pose and its extension: `images/` and `joints.mat`, as published."""

from __future__ import annotations

import io

import numpy as np
import scipy.io

from distributed.ingest.options import IngestOptions
from distributed.ingest.reference import Found, Reference
from distributed.storage.location import Location, first_line, locate, read_bytes
from model.errors import InputError
from model.skeleton import LSP

# The axes of `joints` in joints.mat: LSP is (3, 14, images), its extension (14, 3, images).
_TO_IMAGES_FIRST = {"lsp": (2, 1, 0), "lspet": (2, 0, 1)}
_IMAGE_NAME = {"lsp": "im{:04d}.jpg", "lspet": "im{:05d}.jpg"}


def find_leeds(options: IngestOptions) -> Found:
    """Every image of the data set.

    The third value of a joint means *occluded* in LSP, where each has coordinates, and *labelled* in its extension.

    Raises:
        InputError: joints.mat is not there, damaged or of another layout.
    """
    name, source = options.kind, locate(options.source)
    joints = _read_joints(source.join("joints.mat"))
    axes = _TO_IMAGES_FIRST[name]
    if joints.ndim != 3 or joints.shape[axes[1]] != LSP.num_keypoints or joints.shape[axes[2]] != 3:
        raise InputError(f"{source.uri}/joints.mat: expected joints of {name}, found an array of {joints.shape}")
    per_image = joints.transpose(axes)  # (images, K, 3)
    flag = per_image[:, :, 2] > 0
    visibility = np.where(flag, 1, 2) if name == "lsp" else np.where(flag, 2, 0)
    references = [
        Reference(
            sample_id=f"{name}-{file[:-4]}",
            image=source.join("images", file),
            keypoints=per_image[index, :, :2],
            visibility=visibility[index].astype(np.uint8),
        )
        for index, file in ((i, _IMAGE_NAME[name].format(i + 1)) for i in range(len(per_image)))
    ]
    return Found(references=references, skeleton=LSP)


def _read_joints(location: Location) -> np.ndarray:
    data = read_bytes(location)
    try:
        joints: np.ndarray = scipy.io.loadmat(io.BytesIO(data))["joints"]
    except Exception as error:  # SciPy lets through whatever a damaged file makes it stumble over
        raise InputError(f"{location.uri}: expected 'joints' in a .mat file: {first_line(error)}") from error
    return joints
