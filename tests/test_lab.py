"""From `ray up` to rows in S3, typed as docs/clusters.md says it, on hosts inside this machine (cluster/lab)."""

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pyarrow.parquet as pq
import pytest
import requests
import yaml
from s3_server import S3Server, free_ports
from s3_server import seaweedfs as run_seaweedfs

from uapray.data.phantoms import parse, phantom_table
from uapray.query import query
from uapray.store.results import open_results

ROOT = Path(__file__).parent.parent
LAB = ROOT / "cluster/lab/lab"
US, HEAD, WORKERS = "10.77.0.1", "10.77.0.10", ["10.77.0.11", "10.77.0.12"]
HOSTS = [HEAD, *WORKERS]
TARGETS = {None, "CLEAR", "OPACITY", "EFFUSION"}
RAY_RUNS = "pgrep -x raylet"
JOIN_S, WORKERS_END_S = 300.0, 180.0

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(2400)]


@dataclass(frozen=True)
class Laptop:
    """The person's computer: what is typed there, and how long it took."""

    folder: Path  # keys, home and logs of the lab
    file: Path  # the project's on-premise file with the addresses of the lab

    @property
    def home(self) -> Path:
        return self.folder / "laptop"

    def start(self, *words: str, **variables: str) -> "subprocess.Popen[str]":
        command = [str(LAB), "laptop", *words]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        environment = lab_environment(self.folder) | variables
        return subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)

    def type(self, *words: str, within_s: float = 600, **variables: str) -> str:
        """Return what a command says; it must end with success."""
        began = time.monotonic()
        process = self.start(*words, **variables)
        said, _ = process.communicate(timeout=within_s)
        print(f"{time.monotonic() - began:6.1f} s  {' '.join(words)}".replace(str(self.file), "on-premise.yaml"))
        assert process.returncode == 0, said
        return said


def lab_environment(folder: Path) -> dict[str, str]:
    keep = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return {**keep, "UAPRAY_LAB": str(folder), "UAPRAY_VENV": sys.prefix}


@pytest.fixture(scope="module")
def laptop() -> Iterator[Laptop]:
    """Three hosts that are up, and nothing on them but what their owner installed."""
    folder = Path(f"/run/uapray-lab-{os.getpid()}")
    environment = lab_environment(folder)
    checked = subprocess.run([LAB, "check"], env=environment, capture_output=True, text=True)
    if checked.returncode:
        pytest.skip(checked.stderr.strip())
    try:
        subprocess.run([LAB, "up", str(len(WORKERS))], env=environment, check=True, stdout=subprocess.DEVNULL)
        config = yaml.safe_load((ROOT / "cluster/on-premise.yaml").read_text())
        config["provider"] |= {"head_ip": HEAD, "worker_ips": WORKERS}
        file = folder / "on-premise.yaml"
        file.write_text(yaml.safe_dump(config))
        yield Laptop(folder, file)
    finally:
        subprocess.run([LAB, "down"], env=environment, check=True)
        assert not folder.exists()
        assert "uapray-host" not in subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def s3(laptop: Laptop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 that the hosts reach, with images in it; its keys lie in the laptop's home, where boto3 looks."""
    folder = tmp_path_factory.mktemp("seaweedfs")
    with run_seaweedfs(folder, "auditor", secrets.token_hex(16), host=US) as server:
        server.make_bucket("uapray")
        for seed in (0, 1):
            images = folder / f"{seed}.parquet"
            pq.write_table(phantom_table(parse(f"phantom:chest?images=72&size=96&seed={seed}")), images)
            client(server).put_object(Bucket="uapray", Key=f"chest-{seed}.parquet", Body=images.read_bytes())
        aws = laptop.home / ".aws"
        aws.mkdir(mode=0o700)
        (aws / "config").write_text(f"[default]\nregion = us-east-1\nendpoint_url = {server.endpoint}\n")
        keys = f"aws_access_key_id = {server.access_key}\naws_secret_access_key = {server.secret_key}\n"
        (aws / "credentials").write_text(f"[default]\n{keys}")
        (aws / "credentials").chmod(0o600)
        yield server


@pytest.fixture(scope="module")
def cluster(laptop: Laptop, s3: S3Server) -> Laptop:
    """A cluster of the three hosts, its head with the keys of the bucket."""
    laptop.type("ray", "get-auth-token", "--generate")
    laptop.type("ray", "up", "--yes", str(laptop.file), RAY_UP_enable_autoscaler_v2="0")
    laptop.type("ray", "rsync-up", str(laptop.file), f"{laptop.home}/.aws/", "~/.aws/")
    end = time.monotonic() + JOIN_S
    while "3 local.cluster.node" not in (said := laptop.type("ray", "exec", str(laptop.file), "ray status")):
        assert time.monotonic() < end, said
        time.sleep(5)
    return laptop


@pytest.fixture
def entered(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)


def client(server: S3Server) -> Any:
    variables = {"endpoint_url": server.endpoint, "region_name": "us-east-1"}
    return boto3.client("s3", aws_access_key_id=server.access_key, aws_secret_access_key=server.secret_key, **variables)


def job(seed: int) -> list[str]:
    """Return the words of the job on the images of a seed: a small one, with a replica for each host."""
    return [
        "--small",
        "--data",
        f"s3://uapray/chest-{seed}.parquet",
        "--store",
        "s3://uapray/results",
        "--replicas",
        "3",
    ]


def rows() -> list[dict[str, Any]]:
    sql = "SELECT rule, target, data, replicas FROM trials WHERE split = 'test'"
    found: list[dict[str, Any]] = query(open_results("s3://uapray/results"), sql).to_pylist()
    return found


@contextmanager
def tunnel(laptop: Laptop) -> Iterator[str]:
    """Keep `ray dashboard` open; yield the address of its near end."""
    (port,) = free_ports(1)
    process = laptop.start("ray", "dashboard", str(laptop.file), "--port", str(port))
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.communicate()


@pytest.mark.usefixtures("entered")
class TestFromSubmitToRows:
    """In the order in which a person types it."""

    def test_strangers_stay_out(self, cluster: Laptop) -> None:
        with socket.socket() as probe:
            assert probe.connect_ex((HEAD, 22)) == 0
        with socket.socket() as probe:
            assert probe.connect_ex((HEAD, 8265)) != 0
        token = (cluster.home / ".ray/auth_token").read_text()
        with tunnel(cluster) as address:
            asked = f"{address}/api/jobs/"
            assert requests.get(asked, timeout=30).status_code == 401
            assert requests.get(asked, timeout=30, headers={"Authorization": "Bearer wrong"}).status_code == 403
            assert requests.get(asked, timeout=30, headers={"Authorization": f"Bearer {token}"}).json() == []
        for host in HOSTS:
            assert on(cluster, host, "test $(stat -c %a ~/.ray/auth_token) = 600")
        inside = ["ray", "status", "--address", f"{HEAD}:6379"]
        assert "3 local.cluster.node" in cluster.type(*inside)
        said, _ = cluster.start(*inside, RAY_AUTH_TOKEN="wrong").communicate(timeout=120)
        assert "AuthenticationError" in said

    def test_ray_submit_leaves_rows_in_s3(self, cluster: Laptop, s3: S3Server) -> None:
        said = cluster.type("ray", "submit", str(cluster.file), "jobs/chest_xray.py", "--", *job(0))
        assert "8 trials done, 0 stood already, 0 failed" in said
        assert s3.secret_key not in said
        found = rows()
        assert {(row["rule"], row["target"]) for row in found} == {
            (rule, target) for rule in ("aimed-ascent", "random") for target in TARGETS
        }
        assert len(found) == 8

    def test_ray_job_submit_does_the_same_on_other_images(self, cluster: Laptop, s3: S3Server) -> None:
        with tunnel(cluster) as address:
            command = ["ray", "job", "submit", "--address", address, "--working-dir", "."]
            said = cluster.type(*command, "--", "python", "jobs/chest_xray.py", *job(1))
        assert "8 trials done, 0 stood already, 0 failed" in said
        assert s3.secret_key not in said
        assert len(rows()) == 16

    def test_the_same_again_does_nothing(self, cluster: Laptop) -> None:
        said = cluster.type("ray", "submit", str(cluster.file), "jobs/chest_xray.py", "--", *job(0))
        assert "0 trials done, 8 stood already, 0 failed" in said
        assert len(rows()) == 16

    def test_no_key_in_rays_logs(self, cluster: Laptop, s3: S3Server) -> None:
        inside = "keys=~/.aws/credentials; secret=$(sed -n 's/aws_secret_access_key = //p' $keys); "
        inside += '[ ${#secret} = 32 ] && grep -rqF chest-0.parquet /tmp/ray && ! grep -rqF "$secret" /tmp/ray'
        assert s3.secret_key not in cluster.type("ray", "exec", str(cluster.file), inside)

    def test_replicas_ran_on_all_hosts(self, cluster: Laptop) -> None:
        assert {host for host in HOSTS if on(cluster, host, "grep -rq actor_name:Host /tmp/ray/session_*/logs")} == set(
            HOSTS
        )

    def test_ray_down_ends_ray_on_all_hosts(self, cluster: Laptop) -> None:
        """Of hosts that stay, Ray stops the head only; workers end when they have missed it for a minute."""
        assert {host for host in HOSTS if on(cluster, host, RAY_RUNS)} == set(HOSTS)
        cluster.type("ray", "down", "--yes", str(cluster.file), RAY_UP_enable_autoscaler_v2="0")
        assert not on(cluster, HEAD, RAY_RUNS)
        end = time.monotonic() + WORKERS_END_S
        while time.monotonic() < end and any(on(cluster, host, RAY_RUNS) for host in WORKERS):
            time.sleep(2)
        assert [host for host in HOSTS if on(cluster, host, RAY_RUNS)] == []


def on(laptop: Laptop, host: str, command: str) -> bool:
    """Return whether a command succeeds on a host."""
    key = ["-i", str(laptop.home / ".ssh/id_ed25519"), "-o", "UserKnownHostsFile=/dev/null"]
    quiet = ["-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR"]
    done = subprocess.run(["ssh", *key, *quiet, f"ubuntu@{host}", command], capture_output=True)
    assert done.returncode != 255, done.stderr
    return done.returncode == 0
