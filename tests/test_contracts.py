"""docs/contracts.md names tests that exist, and each contract of docs/design.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"
TEXT = (DOCS / "contracts.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(test_\w+\.py::test_\w+)`", TEXT))))
def test_a_named_test_exists_and_is_not_left_to_the_night(name: str) -> None:
    file, _, function = name.partition("::")
    found = re.search(rf"^((?:@.*\n(?:[ )].*\n)*)*)def {function}\(", (TESTS / file).read_text(encoding="utf-8"), re.M)
    assert found, f"expected {name}, found none"
    assert not re.search(r"^@pytest\.mark\.nightly$", found[1], re.M)


def test_each_contract_of_the_design_is_named() -> None:
    design = (DOCS / "design.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| (.+?) \| .*`test_", TEXT, re.M)
    titles = re.findall(r"^## (.+) \(C\)$", design, re.M) + re.findall(r"\*\*(.+?)(?: \(C\)\.?\*\*|\*\* \(C\))", design)
    assert titles
    assert {title.strip(". ") for title in titles} <= set(named)
