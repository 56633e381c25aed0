"""S3 servers that tests start, once a session, and places for objects on them and on the local disk."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import S3Server
from s3_server import seaweedfs as run_seaweedfs

from uapray.objects import Objects, open_objects


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3-compatible server; no variable is set."""
    with run_seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def moto_s3() -> Iterator[S3Server]:
    """A quick imitation of S3, in this process; it accepts every key. No variable is set."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield S3Server(f"http://{host}:{port}", "testkey", "testsecret")
    server.stop()


@pytest.fixture
def on_moto(moto_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    return _entered(moto_s3, monkeypatch)


@pytest.fixture
def on_seaweedfs(seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    return _entered(seaweedfs, monkeypatch)


@pytest.fixture(params=["local", "moto", pytest.param("seaweedfs", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh, empty URI of each kind."""
    if request.param == "local":
        return str(tmp_path / "store")
    server: S3Server = request.getfixturevalue(f"on_{request.param}")
    bucket = f"uapray-{uuid.uuid4().hex[:12]}"
    server.make_bucket(bucket)
    return f"s3://{bucket}/some/prefix"


@pytest.fixture
def objects(place: str) -> Objects:
    return open_objects(place)


def _entered(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return server
