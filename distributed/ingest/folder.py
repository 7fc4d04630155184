"""A folder of images, a row each: the path below it is the id, the folder it lies in the group.

A table beside it may say more (`distributed.ingest.sidecar`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

from pyarrow import fs

from distributed.ingest.options import IngestOptions
from distributed.ingest.reference import Found, Reference
from distributed.ingest.sidecar import Entry, Sidecar, read_sidecar
from distributed.storage.location import HIDDEN, Location, list_files, locate
from model.errors import InputError

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
_MOST_ENDINGS = 8  # that are told apart among the files passed over
_NOTHING = Sidecar({}, (), "")
_UNKNOWN = Entry(None, None, None, {})


def find_images(options: IngestOptions) -> Found:
    """Every image below a folder, by path. Other files are passed over and counted by their ending, or as hidden.

    Images without a row in the table of annotations, and rows without an image, are counted in the notes.

    Raises:
        InputError: there is no such folder, or no image in it, or the table of annotations can't be used.
    """
    source = locate(options.source)
    if source.info().type == fs.FileType.File:
        raise InputError(f"{source.uri}: expected a folder of images, found a file")
    paths, passed_over = [], Counter[str]()
    for file in list_files(source, suffix="", with_hidden=True):
        path = file.path[len(source.path) + 1 :]
        ending = os.path.splitext(path)[1].lower()
        if any(name.startswith(HIDDEN) for name in path.split("/")):
            passed_over["hidden"] += 1
        elif ending not in _ENDINGS:
            passed_over[ending or "without ending"] += 1
        else:
            paths.append(path)
    skipped = dict(passed_over.most_common(_MOST_ENDINGS))
    if others := passed_over.total() - sum(skipped.values()):
        skipped["others"] = others
    if not paths:
        raise InputError(f"{source.uri}: expected images ({', '.join(_ENDINGS)}), found none (passed over: {skipped})")
    sidecar = read_sidecar(locate(options.annotations), folder=source) if options.annotations else _NOTHING
    return Found(
        references=[_reference(path, source, sidecar.entries.get(path)) for path in paths],
        columns=sidecar.columns,
        skipped=skipped,
        notes=tuple(_compare(paths, sidecar, options)) if options.annotations else (),
        fingerprint=sidecar.fingerprint or None,
    )


def _reference(path: str, source: Location, entry: Entry | None) -> Reference:
    group, captured_at, box, metadata = entry or _UNKNOWN
    return Reference(
        sample_id=path,
        image=source.join(*path.split("/")),
        group=group or os.path.dirname(path) or None,
        captured_at=captured_at,
        box=box,
        metadata=metadata,
    )


def _compare(paths: list[str], sidecar: Sidecar, options: IngestOptions) -> Iterator[str]:
    """The images without a row and the rows without an image, as sentences.

    Raises:
        InputError: no row is of an image.
    """
    there = {*paths}
    alone = [path for path in paths if path not in sidecar.entries]
    lost = [path for path in sidecar.entries if path not in there]
    if len(alone) == len(paths):
        raise InputError(
            f"{options.annotations}: expected paths below {options.source}, such as {paths[0]!r}, "
            f"found {len(lost)} others{f', such as {lost[0]!r}' if lost else ''}"
        )
    if alone:
        yield f"{len(alone)} images have no row in {options.annotations}, such as {alone[0]!r}"
    if lost:
        yield f"{len(lost)} rows of {options.annotations} have no image, such as {lost[0]!r}"
