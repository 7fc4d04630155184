"""Ids of rows: hashed alike in every process, and doubled ones found among the hashes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_WORD = 8  # bytes that are taken in at once
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def hash_ids(ids: pa.Array) -> Hashes:
    """(rows,) 64-bit hashes of texts, none of them null; Python's own differ from process to process.

    Source: splitmix64's finaliser (Steele, Lea & Flood, 2014), once for each eight bytes.
    """
    texts = ids.cast(pa.large_binary())
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    content = np.concatenate([np.frombuffer(data or b"", np.uint8), np.zeros(_WORD, np.uint8)])
    words = np.ndarray(len(content) - _WORD + 1, "<u8", content, strides=(1,))  # one begins at every byte
    lengths = np.diff(ends)
    masks = np.array([2 ** (8 * count) - 1 for count in range(_WORD + 1)], np.uint64)
    hashes = _mixed(lengths.astype(np.uint64) + np.uint64(1))
    rows = np.arange(len(lengths))
    for start in range(0, int(lengths.max(initial=0)), _WORD):
        rows = rows[lengths[rows] > start]
        word = words[ends[rows] + start] & masks[np.minimum(lengths[rows] - start, _WORD)]
        hashes[rows] = _mixed(hashes[rows] ^ word)
    return hashes


def _mixed(values: Hashes) -> Hashes:
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    mixed: Hashes = values ^ (values >> np.uint64(31))
    return mixed


def doubled(hashes: Sequence[Hashes]) -> Hashes:
    """The hashes that occur more than once among all, ascending."""
    ordered = np.concatenate([np.empty(0, np.uint64), *hashes])
    ordered.sort()
    found: Hashes = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    return found


def split(hashes: Sequence[Hashes], count: int) -> list[Hashes]:
    """All hashes in so many arrays by their size: equal ones get into the same, whoever splits."""
    ordered = np.sort(np.concatenate([np.empty(0, np.uint64), *hashes]))
    bounds = np.array([2**64 * number // count for number in range(1, count)], np.uint64)
    return np.split(ordered, np.searchsorted(ordered, bounds))
