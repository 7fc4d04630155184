"""cluster.yaml and deploy/: what can be known of them without a cloud, and that their commands are ours."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import RAY_PORTS, WriteTable, free_ports

from distributed.ingest.fleet import row_of
from jobs.cli import COMMANDS
from jobs.options import parse_options
from jobs.submit import find_options
from model.synthetic import Sample

CHECKOUT = Path(__file__).parent.parent
KUBERAY = CHECKOUT / "deploy" / "kuberay"
LOCKED = dict(
    line.split("==")
    for line in (CHECKOUT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    if "==" in line
)
# The fields of KubeRay's v1 types; Kubernetes drops unknown ones without a word.
RAY_JOB = {
    "entrypoint",
    "runtimeEnvYAML",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "backoffLimit",
    "activeDeadlineSeconds",
    "submitterConfig",
    "submissionMode",
    "rayClusterSpec",
}


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERAY / name).read_text(encoding="utf-8")))


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((CHECKOUT / "cluster.yaml").read_text(encoding="utf-8"))


def test_ray_accepts_the_cluster(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))
    cluster["available_node_types"]["gpu"]["resources"] = {"GPU": 0.5}
    with pytest.raises(Exception, match="not of type 'integer'"):  # so it does look
        validate_config(prepare_config(cluster))


def test_nodes_have_a_role_and_no_keys(cluster: dict[str, Any]) -> None:
    for node_type in cluster["available_node_types"].values():
        assert node_type["node_config"]["IamInstanceProfile"]["Name"].startswith("lossight-")
    for file in [CHECKOUT / "cluster.yaml", *(CHECKOUT / "deploy").rglob("*.*")]:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"AWS_(ACCESS|SECRET)|AKIA|aws_access_key", text), file
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]


@pytest.mark.parametrize("path", ["cluster.yaml", *(f"deploy/kuberay/{file.name}" for file in KUBERAY.glob("*"))])
def test_versions_are_those_of_the_lock(path: str) -> None:
    text = (CHECKOUT / path).read_text(encoding="utf-8")
    found = re.findall(r"rayproject/ray:([\d.]+)|rayVersion: \"([\d.]+)\"", text)
    versions = {version for pair in found for version in pair if version}
    has_ray = not path.endswith(("nightly.yaml", "networkpolicy.yaml"))
    assert versions == ({LOCKED["ray"]} if has_ray else set())
    docker = (CHECKOUT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    assert f"FROM rayproject/ray:{LOCKED['ray']}-py311-gpu\n" in docker
    assert "--constraint requirements.lock '.[cluster,vitpose]'" in docker  # and none of the tests' tools
    ours = re.findall(r"image: (REGISTRY\S+)", text)
    is_without = path == "cluster.yaml" or path.endswith("networkpolicy.yaml")
    assert set(ours) == (set() if is_without else {"REGISTRY/lossight:0.1.0"})
    assert {*re.findall(r"image: (\S+)", text)} - {*ours} <= {f"rayproject/ray:{LOCKED['ray']}-py311-gpu"}


def test_only_submitters_and_rays_own_pods_reach_ray() -> None:
    (policy,) = manifests("networkpolicy.yaml")
    assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
    spec = policy["spec"]
    assert (spec["podSelector"], spec["policyTypes"]) == ({"matchLabels": {"ray.io/is-ray-node": "yes"}}, ["Ingress"])
    own, others = spec["ingress"]
    assert own == {"from": [{"podSelector": spec["podSelector"]}]}
    assert others["ports"] == [{"port": 8265}]


def test_ray_job() -> None:
    (job,) = manifests("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"].keys() <= RAY_JOB
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert job["spec"]["submitterConfig"] == {"backoffLimit": 0}
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "jobs.cli"]
    config = read_options(words[3], words[4:])
    gpu = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    cpus = int(gpu["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert config.cpus_per_actor + 1 <= cpus  # reading takes one
    assert config.actors == f"{gpu['minReplicas']}:{gpu['maxReplicas']}"
    assert config.decode_threads < config.cpus_per_actor


def test_nightly() -> None:
    config_map, cron = manifests("nightly.yaml")
    assert (cron["apiVersion"], cron["kind"], cron["spec"]["concurrencyPolicy"]) == ("batch/v1", "CronJob", "Forbid")
    job = cron["spec"]["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # what podFailurePolicy demands
    (container,) = pod["containers"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2, 4, 5]}
    (volume,) = pod["volumes"]
    (mount,) = container["volumeMounts"]
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]
    own, job_arguments = container["args"][:4], container["args"][5:]
    assert [*container["command"], *own[:2]] == ["python", "-m", "jobs.cli", "submit", "triage"]
    assert own[2:] == ["--address", f"http://{manifests('raycluster.yaml')[0]['metadata']['name']}-head-svc:8265"]
    (config_file,) = config_map["data"]
    assert job_arguments == ["--config", f"{mount['mountPath']}/{config_file}"]


def test_the_nightly_configuration_is_one(tmp_path: Path) -> None:
    """As `lossight triage` reads it; keys that it shares with `score` are what `score` takes."""
    (text,) = manifests("nightly.yaml")[0]["data"].values()
    values = yaml.safe_load(text)
    shared = {key: values[key] for key in ("pool", "model", "out", "actors", "cpus_per_actor", "gpus_per_actor")}
    (tmp_path / "score.yaml").write_text(yaml.safe_dump(shared), encoding="utf-8")
    assert read_options("score", ["--config", str(tmp_path / "score.yaml")]).gpus_per_actor == 1
    if "triage" in COMMANDS:
        (tmp_path / "nightly.yaml").write_text(text, encoding="utf-8")
        assert str(read_options("triage", ["--config", str(tmp_path / "nightly.yaml")]).budget) == "500"


def read_options(command: str, arguments: list[str]) -> Any:
    return parse_options(find_options(command), arguments, prog=f"lossight {command}")


class Machines:
    """Nodes on this machine, started by the last commands of cluster.yaml: one head, and workers that ask it.

    Adapted: `ray stop`, which would end any Ray of this machine, is not run; the autoscaler, which would start
    machines, is left out; ports, addresses (127.0.0.1 and .2), folder and object store are our own; --block, so that
    each node has a process to end; `ray` is that of this Python. Each node has a home of its own, where cluster.yaml
    puts the token.
    """

    def __init__(self, cluster: dict[str, Any], folder: Path) -> None:
        self.head_command: str = cluster["head_start_ray_commands"][-1]
        self.worker_command: str = cluster["worker_start_ray_commands"][-1]
        (self.token_file,) = (path for path in cluster["file_mounts"] if path.endswith("auth_token"))
        self.folder = folder
        self.port, self.dashboard_port = free_ports(2)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.logs: list[Path] = []  # one a process
        (folder / "bin").mkdir()
        (folder / "bin" / "ray").write_text(f'#!/bin/sh\nexec {sys.executable} -m ray.scripts.scripts "$@"\n')
        (folder / "bin" / "ray").chmod(0o755)

    def environment(self, token: str | None) -> dict[str, str]:
        """Environment of a fresh machine whose user is `ray`: its home has the token, if any."""
        home = Path(tempfile.mkdtemp(dir=self.folder))
        if token is not None:
            place = home / Path(self.token_file).relative_to("/home/ray")
            place.parent.mkdir()
            place.write_text(token)
        plain = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "AWS_"))}
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return plain | {"HOME": str(home), "PATH": path, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}

    def start_head(self, token: str) -> None:
        command = self.head_command.replace("--autoscaling-config=~/ray_bootstrap_config.yaml", "")
        command = command.replace("--port=6379", f"--port={self.port}").replace("=8265", f"={self.dashboard_port}")
        self._start(f"{command} --temp-dir={self.folder}", token)

    def start_worker(self, token: str | None, *, command: str | None = None) -> subprocess.Popen[bytes]:
        command = (command or self.worker_command).replace(":6379", f":{self.port}")
        return self._start(f"export RAY_HEAD_IP=127.0.0.1; {command} --num-cpus=1", token)  # exported as Ray does

    def _start(self, command: str, token: str | None) -> subprocess.Popen[bytes]:
        names = RAY_PORTS if "--head" in command else [name for name in RAY_PORTS if "client" not in name]
        own = [f"--{name}={port}" for name, port in zip(names, free_ports(len(names)), strict=True)]
        own += [f"--node-ip-address=127.0.0.{1 if '--head' in command else 2}", "--block"]
        own += ["--object-store-memory=80000000", "--disable-usage-stats"]
        self.logs.append(self.folder / f"log-{len(self.logs)}")
        with self.logs[-1].open("wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", f"{command} {' '.join(own)}"],
                env=self.environment(token),
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def count(self, token: str) -> int:
        """Number of nodes alive; 0 while there is no head."""
        code = "import ray, sys; ray.init(sys.argv[1]); print(sum(n['Alive'] for n in ray.nodes()))"
        words = [sys.executable, "-c", code, f"127.0.0.1:{self.port}"]
        environment = self.environment(token) | {"RAY_AUTH_MODE": "token"}
        found = subprocess.run(words, env=environment, cwd=self.folder, capture_output=True, text=True, check=False)
        return int(found.stdout or 0)

    def await_count(self, count: int, token: str) -> None:
        for _ in range(30):
            if self.count(token) == count:
                return
            assert self.processes[-1].poll() is None, self.logs[-1].read_text()
        raise AssertionError(self.logs[-1].read_text())

    def close(self) -> None:
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            for process in reversed(self.processes):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal_number)
            for process in self.processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=30)


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_worker_of_the_cluster_joins_with_its_token_and_with_no_other(cluster: dict[str, Any]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="up-"))  # short: sockets lie below it, whose names have a limit
    token, other = "0" * 31 + "7", "0" * 31 + "8"
    machines = Machines(cluster, folder)
    try:
        machines.start_head(token)
        machines.await_count(1, token)
        machines.start_worker(token)
        machines.await_count(2, token)
        refused = [machines.start_worker(given) for given in (None, other)]
        # What cluster.yaml said before: the file alone makes a head ask for the token, and no worker show it.
        refused.append(machines.start_worker(token, command=machines.worker_command.replace("RAY_AUTH_MODE=token", "")))
        assert all(process.wait(timeout=200) != 0 for process in refused)
        assert all("AuthenticationError" in log.read_text() for log in machines.logs[2:])
        assert machines.count(token) == 2
        assert machines.count(other) == 0
    finally:
        machines.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.nightly
@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("srun") is not None, reason="there is a Slurm, which is not to be disturbed")
def test_slurm(samples: list[Sample], model_uri: str, write_table: WriteTable, tmp_path: Path) -> None:
    """Two nodes, by an `srun` that runs its command right here: both join; the command uses them, its code comes."""
    rows = [row_of(sample) for sample in samples[:4]]
    pool = write_table("pool", [*rows, {**rows[0], "sample_id": "empty", "image": b""}], is_labelled=True)
    (tmp_path / "bin").mkdir()
    for name, script in {
        "srun": 'while [[ "$1" == --* ]]; do shift; done; exec "$@"',
        "scontrol": "echo here",
        "hostname": "echo 127.0.0.1",
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{script}\n", encoding="utf-8")
        (tmp_path / "bin" / name).chmod(0o755)
    checkout = tmp_path / "checkout"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    ports = free_ports(2 * len(RAY_PORTS))
    head, worker = (
        " ".join(
            f"--{name}={port}" for name, port in zip(RAY_PORTS, own, strict=True) if is_head or "client" not in name
        )
        for own, is_head in ((ports[: len(RAY_PORTS)], True), (ports[len(RAY_PORTS) :], False))
    )
    own_ports = f'$(case "$*" in *--head*) echo {head};; *) echo --node-ip-address=127.0.0.2 {worker};; esac)'
    for name, words in {
        "ray": ["-m", "ray.scripts.scripts", '"$@"', own_ports],
        "python": ['"$@"'],
        "lossight": ["-m", "jobs.cli", '"$@"'],
    }.items():
        command = f"cd {CHECKOUT} && exec {sys.executable} {' '.join(words)}"
        (checkout / ".venv" / "bin" / name).write_text(f"#!/usr/bin/env bash\n{command}\n", encoding="utf-8")
        (checkout / ".venv" / "bin" / name).chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(checkout),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "here",
        "SLURM_NNODES": "2",
        "SLURM_CPUS_ON_NODE": "4",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_TMPDIR": tempfile.mkdtemp(prefix="slurm-"),  # short: sockets lie below it, whose names have a limit
    }
    words = ["bash", str(CHECKOUT / "deploy" / "slurm.sh")]
    nothing = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert (nothing.returncode, nothing.stderr) == (2, "expected a command of lossight and its options, found none\n")
    words += ["score", "--cpus-per-actor", "1", "--pool", pool, "--model", model_uri, "--out", str(tmp_path / "scores")]
    with (tmp_path / "log").open("wb") as log:  # no pipe: what outlives the script would hold it open
        done = subprocess.run([*words, "--max-error-rate", "0"], env=environment, stdout=log, stderr=log, check=False)
    shutil.rmtree(environment["RAY_TMPDIR"], ignore_errors=True)
    assert done.returncode == 5, (tmp_path / "log").read_text()
    record = json.loads((tmp_path / "scores" / "run.json").read_bytes())
    assert (record["num_rows"], record["errors"]) == (5, {"empty": 1})
