"""Files that a submitted job takes along: the code of this checkout and its configuration file. Never data.

That is its Python packages and the modules at its top, and in them only code: whatever else lies in a checkout, such as
pools, outputs, notes and keys, stays here. Every machine of the cluster reads data where it is.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

from model.errors import InputError

CONFIG_NAME = "submitted.yaml"  # under which the job finds the file that --config named

_TOP_FILES = frozenset({"pyproject.toml", "requirements.lock"})  # beside modules, at the top of the checkout
_LEFT_OUT = frozenset({"tests", "benchmarks"})  # packages or not, no job imports them
_SUFFIXES = (".py", ".html", ".css", ".js")  # what our packages hold
_MAX_BYTES = 20 * 2**20  # our code is 1 MiB; each machine of the cluster fetches it from the head's memory


def stage_checkout(checkout: str, to: str, *, config: str | None = None) -> None:
    """Copies what a job needs of the checkout into an empty folder, and the configuration file as `CONFIG_NAME`.

    Raises:
        InputError: that would be more than code can be.
    """
    files = _shipped_files(Path(checkout))
    _check_size(checkout, files)
    for path in files:
        target = Path(to, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(checkout, path), target)
    if config is not None:
        shutil.copyfile(config, Path(to, CONFIG_NAME))


def _shipped_files(checkout: Path) -> dict[Path, int]:
    """Sizes in bytes, by path below the checkout."""
    found: dict[Path, int] = {}
    for folder, names, files in os.walk(checkout):  # links to folders are not followed: they lead out of the checkout
        below = Path(folder).relative_to(checkout)
        if below == Path():
            names[:] = [name for name in names if _is_package(checkout / name) and name not in _LEFT_OUT]
            files = [name for name in files if name in _TOP_FILES or name.endswith(".py")]  # noqa: PLW2901
        names[:] = sorted(name for name in names if not name.startswith((".", "__pycache__")))
        for name in sorted(files):
            path = Path(folder, name)
            if _is_code(name) and path.is_file():  # no sockets, no dangling links
                found[below / name] = path.stat().st_size
    return found


def _is_package(folder: Path) -> bool:
    return (folder / "__init__.py").is_file()


def _is_code(name: str) -> bool:
    return not name.startswith(".") and (name.endswith(_SUFFIXES) or name in _TOP_FILES)


def _check_size(checkout: str, files: dict[Path, int]) -> None:
    total = sum(files.values())
    if total <= _MAX_BYTES:
        return
    by_entry: Counter[str] = Counter()
    for path, size in files.items():
        by_entry[path.parts[0]] += size
    largest = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in by_entry.most_common(3))
    raise InputError(
        f"{checkout}: expected at most {_MAX_BYTES / 2**20:.0f} MiB of code to ship, found {total / 2**20:.0f} MiB "
        f"({largest}): move what no job needs out of the checkout"
    )
