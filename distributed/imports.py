"""Imports: the check that the package `distributed` is ours (Dask's has the same name), and pandas, left out."""

from __future__ import annotations

import os
import sys

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


def leave_pandas_out() -> None:
    """Lets pyarrow do without pandas in this process, which no code of ours uses: its import is a third of a `select`.

    pyarrow imports it, where it is installed, when it first makes an array of a list, which could be one of pandas'.
    """
    if "pandas" in sys.modules:
        return
    import pyarrow as pa

    sys.meta_path.insert(0, _NoPandas)
    try:
        pa.array([0])  # pyarrow looks for pandas now, and never again
    finally:
        sys.meta_path.remove(_NoPandas)


class _NoPandas:
    """A finder of modules that finds no pandas."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)
