"""Check that the imported package `distributed` is ours: Dask's has the same name."""

from __future__ import annotations

import os

from model.errors import InputError

CHECKOUT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def check_is_ours(imported_from: str, *, where: str) -> None:
    """Passes if the file of an imported `distributed` has our other packages beside it.

    Raises:
        InputError: it is another package.
    """
    beside = os.path.dirname(os.path.dirname(imported_from))
    if not all(os.path.isdir(os.path.join(beside, name)) for name in ("model", "jobs")):
        raise InputError(f"{where}: expected lossight's package 'distributed', found {imported_from} (Dask's?)")
