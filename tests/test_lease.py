"""One run at a time holds an output; on the local disk and on a real S3 server alike."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from distributed.runs.lease import LEASE_FILE, Lease, hold
from distributed.runs.record import begin_run
from distributed.storage.location import Location, list_files, locate, read_bytes, write_bytes
from model.errors import InputError, LeaseError

pytestmark = pytest.mark.slow

_DEADLINE_S = 60


def record(folder: Location) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(read_bytes(folder.join(LEASE_FILE)))
    return value


def leave_record(folder: Location, **changes: object) -> None:
    """The lease of a run that vanished; by default of another machine, just renewed."""
    with hold(folder):
        held = record(folder)
    process = {"machine": "elsewhere", "pid": 1, "started": 1}
    changed = {**held, "owner": "ann@elsewhere pid 1", "process": process, **changes}
    write_bytes(folder.join(LEASE_FILE), json.dumps(changed).encode())


def until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


HOLDER = """
import sys
from distributed.runs.lease import hold
from distributed.storage.location import locate
from model.errors import LeaseError
with hold(locate(sys.argv[1]), ttl_s=float(sys.argv[2])) as lease:
    print(lease.attempt, flush=True)
    sys.stdin.readline()
    try:
        lease.check()
        print("still ours", flush=True)
    except LeaseError as error:
        print(error, flush=True)
"""


@contextmanager
def holder(folder: Location, *, ttl_s: float) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease; it checks it when told a line, says what it found, and ends."""
    command = [sys.executable, "-c", HOLDER, folder.uri, str(ttl_s)]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "1\n"
            yield process
        finally:
            process.kill()


def test_a_released_lease_is_taken_at_once_and_numbers_rise(folder: Location) -> None:
    attempts = []
    for _ in range(3):
        with hold(folder) as lease:
            attempts.append(lease.attempt)
            lease.check()
        assert record(folder)["state"] == "released"
    assert attempts == [1, 2, 3]


def test_a_second_run_is_told_who_holds_it_since_when_and_until_when(folder: Location) -> None:
    with hold(folder, ttl_s=900) as lease:
        with pytest.raises(LeaseError) as caught, hold(folder):
            pass
        lease.check()
        taken_at = record(folder)["taken_at"]
    assert caught.value.exit_code == 4
    message = str(caught.value)
    assert message.startswith(f"{folder.uri}: another run holds the lease: ")
    assert f"pid {os.getpid()} since {taken_at}, last heartbeat " in message
    assert " s ago; it expires in " in message
    assert "\n" not in message


def test_a_failed_run_releases_it(folder: Location) -> None:
    with pytest.raises(ZeroDivisionError), hold(folder):
        _ = 1 / 0
    with hold(folder) as lease:
        assert lease.attempt == 2


def test_the_lease_is_no_data_and_a_run_begins_under_it(folder: Location) -> None:
    for is_first in (True, False):
        with hold(folder):
            assert is_first == (list_files(folder, suffix="") == [])
            assert begin_run(folder, {"budget": 3})


@pytest.mark.parametrize("name", ["holiday.jpg", "deep/er/x.txt"])
def test_a_foreign_folder_is_refused_and_untouched(folder: Location, name: str) -> None:
    write_bytes(folder.join(*name.split("/")), b"mine")
    with pytest.raises(InputError, match="expected an empty folder or an earlier run of the same"), hold(folder):
        pass
    assert not folder.join(LEASE_FILE).exists


def test_a_file_is_refused(folder: Location) -> None:
    write_bytes(folder, b"mine")
    with pytest.raises(InputError, match="expected an empty folder"), hold(folder):
        pass


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"process": {}}', b"\xff"])
def test_a_lease_file_of_somebody_else_is_refused(folder: Location, content: bytes) -> None:
    write_bytes(folder.join(LEASE_FILE), content)
    with pytest.raises(InputError, match=r"\.lease\.json: expected a lease, found something else"), hold(folder):
        pass


def test_a_living_holder_elsewhere_is_not_disturbed(folder: Location) -> None:
    leave_record(folder)
    before = read_bytes(folder.join(LEASE_FILE))
    with pytest.raises(LeaseError, match="ann@elsewhere pid 1 since "), hold(folder):
        pass
    assert read_bytes(folder.join(LEASE_FILE)) == before


def test_an_expired_lease_is_taken_over(folder: Location) -> None:
    leave_record(folder, ttl_s=-5, attempt=41)
    with hold(folder) as lease:
        assert lease.attempt == 42
        lease.check()


@pytest.mark.parametrize(("age_s", "is_taken"), [(50, False), (70, True)])
def test_age_counts_from_the_last_heartbeat(tmp_path: Path, age_s: float, is_taken: bool) -> None:
    folder = locate(str(tmp_path))
    leave_record(folder, ttl_s=60)
    written = time.time() - age_s
    os.utime(tmp_path / LEASE_FILE, (written, written))
    with ExitStack() as stack:
        if not is_taken:
            stack.enter_context(pytest.raises(LeaseError, match=r"heartbeat (49|50|51) s ago; it expires in (9|10) s"))
        with hold(folder):
            assert is_taken


@pytest.mark.parametrize("owner", [{"owner": "bob@there pid 9"}, {}], ids=["another", "a second run of this process"])
def test_whoever_was_taken_over_learns_by_whom_and_leaves_it_alone(folder: Location, owner: dict[str, str]) -> None:
    with hold(folder, ttl_s=900) as late:
        leave = {**record(folder), "holding": "another", "attempt": 2, **owner}
        write_bytes(folder.join(LEASE_FILE), json.dumps(leave).encode())
        for _ in range(2):
            with pytest.raises(LeaseError, match=rf"taken over by {leave['owner']} at .* \(attempt 2\)$"):
                late.check()
    assert record(folder) == leave


def test_a_removed_lease_is_lost(tmp_path: Path) -> None:
    with hold(locate(str(tmp_path))) as lease:
        (tmp_path / LEASE_FILE).unlink()
        with pytest.raises(LeaseError, match="the lease was removed while this run held it"):
            lease.check()
    assert list(tmp_path.iterdir()) == []


def test_heartbeats_keep_it(folder: Location) -> None:
    with hold(folder, ttl_s=2):
        until(lambda: record(folder)["heartbeat"] >= 5)  # 2.0 s after the taking: it would have expired
        with pytest.raises(LeaseError), hold(folder):
            pass


def test_the_heart_stops_with_the_block(folder: Location) -> None:
    with hold(folder, ttl_s=0.04):
        threads = [thread for thread in threading.enumerate() if thread.name == "lease"]
    for thread in threads:
        thread.join(_DEADLINE_S)
        assert not thread.is_alive()
    assert record(folder)["state"] == "released"


def test_of_eight_runs_at_once_one_gets_it(folder: Location) -> None:
    barrier, done = threading.Barrier(8), threading.Event()

    def run() -> bool:
        barrier.wait(_DEADLINE_S)
        try:
            with hold(folder, ttl_s=900) as lease:
                done.wait(_DEADLINE_S)
                lease.check()
                return True
        except LeaseError:
            return False

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(run) for _ in range(8)]
        until(lambda: sum(future.done() for future in futures) == 7)
        done.set()
    assert sorted(future.result() for future in futures) == [False] * 7 + [True]
    assert record(folder)["attempt"] == 1


def test_a_killed_holder_of_this_machine_need_not_expire(folder: Location) -> None:
    with holder(folder, ttl_s=900) as process:
        with pytest.raises(LeaseError, match=f"pid {process.pid} since"), hold(folder):
            pass
        process.kill()
        until(lambda: is_ended(process.pid))  # not yet waited for: a zombie
        with hold(folder) as lease:
            assert (lease.attempt, lease.is_after_death) == (2, True)
    with hold(folder) as lease:
        assert (lease.attempt, lease.is_after_death) == (3, False)


def is_ended(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_number_that_came_back_is_another_process(folder: Location) -> None:
    with hold(folder):
        mine = record(folder)["process"]
    leave_record(folder, process={**mine, "started": mine["started"] - 1})
    with hold(folder):
        pass
    leave_record(folder, process=mine)
    with pytest.raises(LeaseError), hold(folder):
        pass


def test_a_paused_holder_that_wakes_late_finds_it_lost(folder: Location) -> None:
    with holder(folder, ttl_s=1) as process:
        os.kill(process.pid, signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        with ExitStack() as stack:
            lease = take_when_expired(folder, stack)
            assert lease.attempt == 2
            os.kill(process.pid, signal.SIGCONT)
            said, _ = process.communicate("check\n", timeout=_DEADLINE_S)
            assert said.startswith(f"{folder.uri}: taken over by ")
            assert f"pid {os.getpid()}" in said
            lease.check()


def take_when_expired(folder: Location, stack: ExitStack) -> Lease:
    deadline = time.monotonic() + _DEADLINE_S
    while time.monotonic() < deadline:
        try:
            return stack.enter_context(hold(folder))
        except LeaseError:
            time.sleep(0.05)
    raise AssertionError("never expired")


def test_a_paused_holder_goes_on_if_nobody_came(folder: Location) -> None:
    with holder(folder, ttl_s=0.2) as process:
        os.kill(process.pid, signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        until(lambda: (folder.join(LEASE_FILE).age_s() or 0) > 0.2)
        os.kill(process.pid, signal.SIGCONT)
        said, _ = process.communicate("check\n", timeout=_DEADLINE_S)
        assert said == "still ours\n"
