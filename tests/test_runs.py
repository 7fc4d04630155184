"""A run is visible when its record is, and an output belongs to one run."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest

from distributed.runs.record import (
    begin_run,
    check_usable,
    publish_run,
    read_run,
    run_version,
    unfinished_folders,
)
from distributed.storage.location import Location, StoredFile, locate
from model.errors import InputError, LeaseError

CONFIG: dict[str, Any] = {"pool": "p", "budget": 3, "exclude": ("a", "b"), "seed": None}


def test_a_fresh_run_has_work_to_do_and_leaves_its_configuration(tmp_path: Path) -> None:
    assert begin_run(locate(str(tmp_path / "out")), CONFIG)
    assert json.loads((tmp_path / "out" / "config.json").read_bytes()) == {
        **CONFIG,
        "exclude": ["a", "b"],
        "inputs": {},
    }


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    (tmp_path / ".hidden").touch()
    (tmp_path / "_logs").touch()
    assert begin_run(locate(str(tmp_path)), CONFIG)


def test_a_published_run_is_done_and_stays_as_it_is(tmp_path: Path) -> None:
    out = locate(str(tmp_path))
    begin_run(out, CONFIG)
    record = publish_run(out, {"kind": "table", "num_rows": 3})
    content = (tmp_path / "run.json").read_bytes()
    assert not begin_run(out, CONFIG)
    assert (tmp_path / "run.json").read_bytes() == content
    assert read_run(out, expected="table") == record


def test_an_interrupted_run_works_again(tmp_path: Path) -> None:
    out = locate(str(tmp_path))
    assert begin_run(out, CONFIG)
    (tmp_path / "part.parquet").write_bytes(b"half")
    assert begin_run(out, CONFIG)


@pytest.mark.parametrize(
    ("is_published", "said"), [(True, "holds another run;"), (False, "holds an unfinished other run;")]
)
def test_another_run_is_refused_and_the_differing_keys_are_named(tmp_path: Path, is_published: bool, said: str) -> None:
    out = locate(str(tmp_path))
    begin_run(out, CONFIG)
    if is_published:
        publish_run(out, {"kind": "table"})
    with pytest.raises(InputError) as caught:
        begin_run(out, {**CONFIG, "budget": 4, "added": 1})
    message = str(caught.value)
    assert "added (was None, is 1), budget (was 3, is 4)" in message
    assert said in message
    assert "pool" not in message.removeprefix(str(tmp_path))


def test_a_key_that_is_gone_makes_another_run(tmp_path: Path) -> None:
    out = locate(str(tmp_path))
    begin_run(out, CONFIG)
    with pytest.raises(InputError, match=r"differing: budget \(was 3, is None\);"):
        begin_run(out, {key: value for key, value in CONFIG.items() if key != "budget"})


def test_unfinished_folders_come_in_order_and_without_the_published() -> None:
    names = [f"pool/{name}" for name in "hcfadgbe"]
    begun = [StoredFile(f"{name}/config.json", 1, "v") for name in names]
    done = [StoredFile(f"{name}/run.json", 1, "v") for name in ("pool/d", "elsewhere")]
    assert unfinished_folders([*begun, *done]) == sorted(set(names) - {"pool/d"})


def test_ignored_keys_may_differ(tmp_path: Path) -> None:
    out = locate(str(tmp_path))
    begin_run(out, CONFIG)
    publish_run(out, {"kind": "table"})
    assert not begin_run(out, {**CONFIG, "budget": 9}, ignored=frozenset({"budget"}))


@pytest.mark.parametrize("name", ["holiday.jpg", "deep/er/x.txt", "run.json"])
def test_a_foreign_folder_is_refused_and_untouched(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(InputError, match="expected an empty folder or an earlier run of the same"):
        begin_run(locate(str(tmp_path)), CONFIG)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"mine")
    with pytest.raises(InputError, match="expected an empty folder"):
        begin_run(locate(str(tmp_path / "out")), CONFIG)


@pytest.mark.parametrize("content", [b"[1, 2]", b"{half", b"", b"\xff\xfe", b"[" * 100_000])
def test_a_config_file_of_somebody_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.json: expected a JSON object"):
        begin_run(locate(str(tmp_path)), CONFIG)


def test_nothing_of_an_unfinished_run_is_read(tmp_path: Path) -> None:
    begin_run(locate(str(tmp_path)), CONFIG)
    with pytest.raises(InputError, match="expected finished scores, found an unfinished run: run it again"):
        read_run(locate(str(tmp_path)), expected="scores")


def test_a_run_of_another_kind_is_refused(tmp_path: Path) -> None:
    begin_run(locate(str(tmp_path)), CONFIG)
    publish_run(locate(str(tmp_path)), {"kind": "selection"})
    with pytest.raises(InputError, match="expected scores, found selection"):
        read_run(locate(str(tmp_path)), expected="scores")


@pytest.mark.parametrize("parts", [[], [5], [{}], None, "part", ["parts/../../x"], ["/x"]])
def test_a_record_of_scores_whose_parts_are_not_below_it_is_refused(tmp_path: Path, parts: object) -> None:
    publish_run(locate(str(tmp_path)), {"kind": "scores", "num_rows": 1, "parts": parts})
    with pytest.raises(InputError, match=r"run\.json: expected paths of parts below its folder, found"):
        read_run(locate(str(tmp_path)), expected="scores")


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found nothing"):
        read_run(locate(str(tmp_path / "nowhere")), expected="scores")
    with pytest.raises(InputError, match="found something else"):
        read_run(locate(str(tmp_path)), expected="scores")
    (tmp_path / "run.json").write_bytes(b"{half")
    with pytest.raises(InputError, match="expected a JSON object"):
        read_run(locate(str(tmp_path)), expected="scores")


def test_the_record_holds_the_versions(tmp_path: Path) -> None:
    record = publish_run(locate(str(tmp_path)), {"kind": "table"})
    assert record["versions"]["pyarrow"] == importlib.metadata.version("pyarrow")
    assert json.loads((tmp_path / "run.json").read_bytes()) == record


def test_a_run_is_published_where_a_package_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.metadata.version

    def version(name: str) -> str:
        if name in {"lossight", "ray"}:  # a checkout on a machine without Ray
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    record = publish_run(locate(str(tmp_path)), {"kind": "table"})
    assert record["versions"]["ray"] is None
    assert record["versions"]["torch"]


def test_a_record_is_published_once_and_replaced_by_whom_it_names(folder: Location) -> None:
    assert run_version(folder) is None
    first = publish_run(folder, {"kind": "scores", "by": 1})
    with pytest.raises(LeaseError, match=f"^{folder.uri}: another run has published it meanwhile$"):
        publish_run(folder, {"kind": "scores", "by": 2})
    assert read_run(folder, expected="scores") == first
    version = run_version(folder)
    second = publish_run(folder, {"kind": "scores", "by": 3}, replaces=version)
    with pytest.raises(LeaseError):
        publish_run(folder, {"kind": "scores", "by": 4}, replaces=version)
    assert read_run(folder, expected="scores") == second


@pytest.mark.parametrize("name", ["holiday.jpg", "run.json"])
def test_what_no_run_wrote_is_not_usable(tmp_path: Path, name: str) -> None:
    check_usable(locate(str(tmp_path / "nowhere")))
    check_usable(locate(str(tmp_path)))
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(InputError, match="expected an empty folder"):
        check_usable(locate(str(tmp_path)))
    (tmp_path / "config.json").write_bytes(b"{}")
    check_usable(locate(str(tmp_path)))
