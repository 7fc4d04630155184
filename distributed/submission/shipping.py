"""What a submitted job takes along: the code of this checkout and its configuration file. Never data.

Data stays where it is, and every machine of the cluster reads it there; so a checkout that is too large holds something
that does not belong into it.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

from model.errors import InputError

CONFIG_NAME = "submitted.yaml"  # under which the job finds the file that --config named

# At the top of the checkout: what no job on a cluster imports or reads.
_LEFT_OUT = frozenset({"tests", "benchmarks", "docs", "deploy", "demo", "runs", "build", "dist", "node_modules"})
_NEVER = ("__pycache__", ".")  # prefixes of names anywhere: caches, .git, .venv, and files of secrets such as .env
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
        left_out = _LEFT_OUT if below == Path() else frozenset()
        names[:] = sorted(name for name in names if _is_shipped(name) and name not in left_out)
        for name in sorted(filter(_is_shipped, files)):
            path = Path(folder, name)
            if path.is_file():  # no sockets, no dangling links
                found[below / name] = path.stat().st_size
    return found


def _is_shipped(name: str) -> bool:
    return not name.startswith(_NEVER) and not name.endswith(".egg-info")


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
        f"({largest}): move data out of the checkout"
    )
