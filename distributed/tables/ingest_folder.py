"""A folder of images without labels."""

from __future__ import annotations

import os

from pyarrow import fs

from distributed.storage.location import Location, list_files
from distributed.tables.reference import Found, Reference
from model.errors import InputError

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def find_images(source: Location) -> Found:
    """Every JPEG and PNG below a folder; the path below it is the id, the folder it lies in the group.

    Raises:
        InputError: it is no folder, or has no image.
    """
    if source.info().type == fs.FileType.File:
        raise InputError(f"{source.uri}: expected a folder of images, found a file")
    images = [info for info in list_files(source, suffix="") if info.path.lower().endswith(_IMAGE_SUFFIXES)]
    if not images:
        raise InputError(f"{source.uri}: expected images ({', '.join(_IMAGE_SUFFIXES)}), found none")
    references = []
    for info in images:
        sample_id = info.path[len(source.path) + 1 :]
        image = source.join(*sample_id.split("/"))
        references.append(Reference(sample_id=sample_id, image=image, group=os.path.dirname(sample_id) or None))
    return Found(references=references)
