"""What all tests share: one thread, the settings of hypothesis, and the place of the real images."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from s3_server import S3Server
from s3_server import seaweedfs as run_seaweedfs

settings.register_profile("uapray", deadline=None, max_examples=25, print_blob=True)
settings.load_profile("uapray")


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of the real images, or skip the test."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("UAPRAY_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real images in {folder}; set UAPRAY_TEST_DATA to the folder that holds them")
    return folder


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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "uapray-test", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs to mount a tmpfs of 1 MiB, which only root may: {error}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A Ray of the tests' own: it never joins a cluster that runs on the machine."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        beside = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}  # replicas find the tests' classifiers
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
        ray.init(address="local", num_cpus=8, runtime_env=beside, **quiet)
        yield
        ray.shutdown()


def _entered(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return server
