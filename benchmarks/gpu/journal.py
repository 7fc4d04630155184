"""Journal: a line of JSON for each measurement that was begun, finished or failed; makes the command resumable."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_ATTEMPTS = 2  # of a measurement that fails or ends its process


class Journal:
    """Measurements of one machine, in a file that only grows.

    Args:
        path: of the file; made where there is none.
        header: what the measurements are of: the machine and the sizes.

    Raises:
        ValueError: the file holds measurements of something else.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self._path = path
        self._lines = _read(path)
        if not self._lines:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append({"header": header})
        found = self._lines[0].get("header")
        if found != json.loads(json.dumps(header)):
            raise ValueError(f"{path.name}: expected measurements of {header}, found those of {found}")

    @property
    def results(self) -> dict[str, dict[str, Any]]:
        """Finished measurements by their names, and `{"error": why}` for those that are given up; in their order."""
        found = {line["name"]: line["result"] for line in self._lines if "result" in line}
        given_up = [name for name in self.failures if self._attempts(name) >= MAX_ATTEMPTS]
        return found | {name: {"error": self.failures[name]} for name in given_up}

    @property
    def failures(self) -> dict[str, str]:
        """The last reason why a measurement that was begun has no result, by the measurement's name."""
        found: dict[str, str] = {}
        for line in self._lines:
            if "result" in line:
                found.pop(line["name"], None)
            elif "name" in line:
                found[line["name"]] = line.get("error", "ended its process")
        return found

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds that each finished measurement took."""
        return {line["name"]: line["seconds"] for line in self._lines if "result" in line}

    def measure(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of `run`, or `{"error": why}`; either is in the file before this returns."""
        self._append({"name": name, "begun": round(time.time())})
        started = time.monotonic()
        try:
            line = {"result": run()}
        except Exception as error:  # one measurement that fails must not cost the others
            line = {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300]}
        self._append({"name": name, **line, "seconds": round(time.monotonic() - started, 2)})
        return line.get("result", line)

    def _attempts(self, name: str) -> int:
        return sum(line.get("name") == name and "begun" in line for line in self._lines)

    def _append(self, line: dict[str, Any]) -> None:
        text = json.dumps(line)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        self._lines.append(json.loads(text))


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file; a last one that was cut off is removed from it."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]
