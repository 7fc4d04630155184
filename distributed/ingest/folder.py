"""A folder of images, a row each: the path below it is the id, the folder it lies in the group."""

from __future__ import annotations

import os
from collections import Counter

from pyarrow import fs

from distributed.ingest.options import IngestOptions
from distributed.ingest.reference import Found, Reference
from distributed.storage.location import HIDDEN, list_files, locate
from model.errors import InputError

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
_MOST_ENDINGS = 8  # that are told apart among the files passed over


def find_images(options: IngestOptions) -> Found:
    """Every image below a folder, by path. Other files are passed over and counted by their ending, or as hidden.

    Raises:
        InputError: there is no such folder, or no image in it.
    """
    source = locate(options.source)
    if source.info().type == fs.FileType.File:
        raise InputError(f"{source.uri}: expected a folder of images, found a file")
    references, passed_over = [], Counter[str]()
    for file in list_files(source, suffix="", with_hidden=True):
        path = file.path[len(source.path) + 1 :]
        ending = os.path.splitext(path)[1].lower()
        if any(name.startswith(HIDDEN) for name in path.split("/")):
            passed_over["hidden"] += 1
        elif ending not in _ENDINGS:
            passed_over[ending or "without ending"] += 1
        else:
            image = source.join(*path.split("/"))
            references.append(Reference(sample_id=path, image=image, group=os.path.dirname(path) or None))
    skipped = dict(passed_over.most_common(_MOST_ENDINGS))
    if others := passed_over.total() - sum(skipped.values()):
        skipped["others"] = others
    if not references:
        raise InputError(f"{source.uri}: expected images ({', '.join(_ENDINGS)}), found none (passed over: {skipped})")
    return Found(references=references, skipped=skipped)
