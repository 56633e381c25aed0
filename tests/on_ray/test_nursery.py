"""Replicas come from one process a node, which has imported what they need."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import torch

from uapray.attack.objective import Objective
from uapray.models.zoo import build
from uapray.on_ray import nursery
from uapray.on_ray.pool import RayPool
from uapray.on_ray.shared import share
from uapray.pool import Deck

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere replicas begin as Ray's workers do"),
]
MB = 2**20


@pytest.fixture
def pool(ray_session: None) -> Iterator[RayPool]:
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 1), dtype=np.uint8)
    module = build("tiny-cnn", classes=2, channels=1, size=(32, 32), initial_weights="random")
    until(lambda: not hosts())  # those of tests before
    opened = RayPool(module, {"train": share(images)}, replicas=2)
    try:
        ray.get([one.__ray_ready__.remote() for one in opened.replicas()])
        yield opened
    finally:
        opened.close()


def gradient(pool: RayPool) -> torch.Tensor:
    deck = Deck("train", np.arange(64), np.zeros(64, dtype=np.int64))
    batches = deck.shuffled(batch_size=8, seed=0, epoch=0)
    return pool.gradient(torch.zeros(1, 32, 32), batches, Objective()).total


def hosts() -> list[psutil.Process]:
    """Return the processes of this driver's replicas."""
    return [one for one in psutil.Process().children(recursive=True) if "ray::Host" in " ".join(words(one))]


def words(process: psutil.Process) -> list[str]:
    """Return a process's command; nothing once it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def nursery_of(replicas: list[psutil.Process]) -> psutil.Process:
    """Return the process that they all come from."""
    (home,) = {one.ppid() for one in replicas}
    return psutil.Process(home)


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    over = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < over
        time.sleep(0.1)


def test_replicas_share_what_they_import(pool: RayPool) -> None:
    gradient(pool)
    born = hosts()
    home = nursery_of(born)
    assert len(born) == 2
    assert "uapray.on_ray.nursery" in words(home)
    assert home.parent().name() == "raylet"
    assert max(one.memory_full_info().uss for one in born) < 150 * MB, "with imports of its own it is 180 to 320"


def test_a_nursery_ends_with_its_ray() -> None:
    program = """
import numpy as np, psutil, ray
from uapray.models.zoo import build
from uapray.on_ray.pool import RayPool
from uapray.on_ray.session import session
from uapray.on_ray.shared import share

module = build("tiny-cnn", classes=2, channels=1, size=(32, 32), initial_weights="random")
with session("local", cpus=1):
    pool = RayPool(module, {"train": share(np.zeros((2, 32, 32, 1), np.uint8))}, replicas=1)
    ray.get([one.__ray_ready__.remote() for one in pool.replicas()])
    print(*[one.pid for one in psutil.Process().children(recursive=True) if "nursery" in " ".join(one.cmdline())])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    (home,) = map(int, done.stdout.split())
    until(lambda: not psutil.pid_exists(home) or psutil.Process(home).status() == psutil.STATUS_ZOMBIE)


def test_a_nursery_that_dies_is_followed_by_another(pool: RayPool) -> None:
    undisturbed, first, killed = gradient(pool), nursery_of(hosts()), hosts()[0]
    first.kill()
    assert torch.equal(gradient(pool), undisturbed), "its replicas live on"
    killed.kill()
    assert torch.equal(gradient(pool), undisturbed)
    until(lambda: any("uapray.on_ray.nursery" in words(one.parent()) for one in hosts() if one.parent()))


def test_a_worker_has_what_its_command_was_given_and_an_idle_nursery_ends(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("import os, sys; print(os.getppid(), os.environ['RAY_WORD'], *sys.argv[1:]); sys.exit(0)")
    program = "from uapray.on_ray import nursery; nursery.PRELOADED, nursery._IDLE_S = (), 2.0; nursery.main()"

    def begin(word: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", program, str(worker), "--for", word]
        return subprocess.Popen(command, env={**os.environ, "RAY_WORD": word}, stdout=subprocess.PIPE, text=True)

    one, other = begin("one"), begin("other")
    said = {process.communicate(timeout=30)[0] for process in (one, other)}
    assert {line.partition(" ")[2] for line in said} == {"one --for one\n", "other --for other\n"}
    assert len({line.partition(" ")[0] for line in said} & {str(one.pid), str(other.pid)}) == 1, "one is the nursery"
    assert (one.returncode, other.returncode) == (0, 0)


def test_it_asks_nothing_of_cuda_and_does_not_know_ray() -> None:
    program = f"""
import torch
def refuse(*_): raise SystemExit("asked CUDA for something")
for name in ("_cuda_getDeviceCount", "_cuda_init", "_cuda_getDevice"):
    setattr(torch._C, name, refuse)
for name in {nursery.PRELOADED}:
    __import__(name)
import sys, threading
assert "ray" not in sys.modules, "it reads at its import which job it works for"
assert threading.active_count() == 1, "threads do not survive a fork"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    asked = program + "torch.cuda.is_available()"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, check=False).returncode == 1


def test_it_can_be_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    assert nursery.command({"working_dir": "."})
    assert nursery.command({"working_dir": ".", "pip": ["uapray"]}) == {}
    monkeypatch.setenv("UAPRAY_NURSERY", "off")
    assert nursery.command({}) == {}


def test_somebody_elses_socket_is_told_from_ones_own() -> None:
    name = f"\0uapray-test-{os.getpid()}"
    program = (
        "import os, socket, sys; os.setuid(int(sys.argv[2])); door = socket.socket(socket.AF_UNIX); "
        "door.bind('\\0' + sys.argv[1]); door.listen(); print(flush=True); door.accept()"
    )
    for user, mine in ((os.getuid(), True), (65534, False)):
        if user != os.getuid() and os.getuid() != 0:
            pytest.skip("only root can be somebody else")
        command = [sys.executable, "-c", program, name[1:], str(user)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as other, socket.socket(socket.AF_UNIX) as door:
            assert other.stdout is not None
            other.stdout.readline()
            door.connect(name)
            assert nursery._of_same_user(door) is mine
