"""The README's list of files is the tree, and says of each module what the module says of itself."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
ROW = re.compile(r"^\| `(?P<path>[^`]+)` \| (?P<what>.+) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def listed() -> dict[str, str]:
    text = (CHECKOUT / "README.md").read_text(encoding="utf-8").partition("## Every file")[2]
    return {row["path"]: row["what"] for row in ROW.finditer(text)}


def test_every_file_is_listed_and_every_listed_file_is_there(listed: dict[str, str]) -> None:
    if not (CHECKOUT / ".git").exists():
        pytest.skip("not a git checkout: nothing tells which files belong to it")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.split("\n")
    assert set(listed) == {path for path in tracked if path and (CHECKOUT / path).exists()}


def test_modules_are_described_by_the_first_lines_of_their_docstrings(listed: dict[str, str]) -> None:
    for path, what in listed.items():
        if path.endswith(".py"):
            docstring = ast.get_docstring(ast.parse((CHECKOUT / path).read_text(encoding="utf-8"))) or ""
            assert (path, what) == (path, " ".join(docstring.split("\n\n")[0].split()))
