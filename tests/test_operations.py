"""The runbook and the guide to deployment: every command in them is one that exists, with options that it has."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from jobs.cli import COMMANDS
from jobs.submit import find_options

CHECKOUT = Path(__file__).parent.parent
PAGES = ["docs/operations.md", "deploy/README.md"]


def code_blocks(page: str, *, language: str) -> list[str]:
    text = (CHECKOUT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, flags=re.DOTALL | re.MULTILINE)
    return [block for found, block in blocks if found == language]


def commands(page: str) -> list[str]:
    """The lines of a page's blocks of code that are commands of ours; `sbatch deploy/slurm.sh` takes one too."""
    blocks = code_blocks(page, language="")
    lines = [line.strip().removeprefix("sbatch deploy/slurm.sh ") for block in blocks for line in block.splitlines()]
    own = {f"{name} " for name in COMMANDS}
    return [line for line in lines if line.startswith("lossight ")] + [
        f"lossight {line}" for line in lines if any(line.startswith(name) for name in own)
    ]


def options(command: str) -> set[str]:
    names = {"config", "verbose", *find_options(command).model_fields}
    flags = {f"--{name.rstrip('_').replace('_', '-')}" for name in names}
    return flags | {f"--no-{flag[2:]}" for flag in flags}


def check(words: list[str]) -> None:
    command, *rest = words
    assert command in COMMANDS
    own = rest[: rest.index("--")] if "--" in rest else rest
    flags = {word.partition("=")[0] for word in own if word.startswith("--")}
    assert flags <= options(command)
    if len(own) < len(rest):
        check([own[0], *rest[len(own) + 1 :]])


@pytest.mark.parametrize("line", [line for page in PAGES for line in commands(page)])
def test_every_command_exists(line: str) -> None:
    check(shlex.split(line)[1:])


def test_pages_have_commands_and_their_links_lead_somewhere() -> None:
    for page in PAGES:
        assert len(commands(page)) >= 4
        text = (CHECKOUT / page).read_text(encoding="utf-8")
        anchors = {
            re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
            for title in re.findall(r"^#+ (.*)", text, re.MULTILINE)
        }
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if target.startswith("#"):
                assert target[1:] in anchors, target
            else:
                assert (CHECKOUT / page).parent.joinpath(target.partition("#")[0]).exists(), target


def test_the_policy_is_json_and_grants_nothing_on_everything() -> None:
    (policy,) = code_blocks("docs/operations.md", language="json")
    for statement in json.loads(policy)["Statement"]:
        actions, resources = (
            [value] if isinstance(value, str) else value for value in (statement["Action"], statement["Resource"])
        )
        assert all(action.startswith("s3:") and "*" not in action for action in actions)
        assert "*" not in resources


def test_the_alerts_are_rules_on_metrics_that_there_are() -> None:
    from distributed.runs.remote_log import _METRICS

    (text,) = code_blocks("docs/operations.md", language="yaml")
    rules = [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
    assert all({"alert", "expr", "for", "annotations"} <= rule.keys() for rule in rules)
    used = {name for rule in rules for name in re.findall(r"ray_(lossight_\w+)", rule["expr"])}
    assert used == {name for name, _, _ in _METRICS.values()}


def test_metrics_and_exit_codes_are_those_of_the_code() -> None:
    from distributed.runs.remote_log import _METRICS

    text = (CHECKOUT / "docs" / "operations.md").read_text(encoding="utf-8")
    for name, _, labels in _METRICS.values():
        assert f"| `{name}` | `{labels[0]}`" in text
    assert re.findall(r"^\| (\d+(?:, \d+)*) \|", text, re.MULTILINE) == [
        "0",
        "2",
        "3",
        "4",
        "5",
        "130, 143",
        "1, 134, 137, 139",
    ]
