"""Whatever dies, hangs or runs out of memory: the same bits, nothing lost, nothing twice."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import ray
import torch
from foreign_victims import Unmakeable, bright, greedy
from torch import nn

import uapray
from uapray.api import search_settings
from uapray.arena import Arena
from uapray.config import Threat
from uapray.coordinator import Snapshot
from uapray.data.images import ImageSet
from uapray.errors import ClusterError, TrialError
from uapray.models.weights import wrap_module
from uapray.on_ray.pool import RayPool
from uapray.on_ray.shared import share
from uapray.resources import Resources, open_pool
from uapray.trial import Found, find

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

SIZE = (32, 32)
SEARCH = search_settings("spgd", {"starts": 3, "survivors": 2, "max_epochs": 3})


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return uapray.load_images("phantom:chest?images=150&size=32&seed=3", "train")


def searched(pool: object, images: ImageSet, watch: Callable[[Snapshot], None] = lambda _: None) -> Found:
    arena = Arena(pool, {"train": images})  # type: ignore[arg-type]
    return find(arena, Threat(norm="linf", zeta=0.1), SEARCH, seed=5, watch=watch)


@pytest.fixture(scope="module")
def undisturbed(images: ImageSet) -> Found:
    classifier = wrap_module(bright(), images.class_names, 1, SIZE)
    with open_pool(classifier, {"train": images}, Resources("local")) as pool:
        return searched(pool, images)


@contextmanager
def replicas(module: nn.Module, images: ImageSet, **settings: object) -> Iterator[RayPool]:
    tuned = wrap_module(module, images.class_names, 1, SIZE).module
    pool = RayPool(tuned, {"train": share(images.images)}, replicas=2, **settings)  # type: ignore[arg-type]
    try:
        ray.get([one.__ray_ready__.remote() for one in pool.replicas()])  # all of them have work from the beginning
        yield pool
    finally:
        pool.close()


def replica_processes() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if is_replica(child)]


def is_replica(process: psutil.Process) -> bool:
    try:
        return "ray::Host" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def test_a_replica_out_of_memory_is_replaced(images: ImageSet, undisturbed: Found, tmp_path: Path) -> None:
    flag = tmp_path / "once"
    with replicas(greedy(str(flag)), images) as pool:
        found = searched(pool, images, lambda _: flag.touch() if pool.lost == 0 else None)
        assert pool.lost == 1
        assert pool.dealt_again >= 1
    assert torch.equal(found.perturbation, undisturbed.perturbation)
    assert found.history == undisturbed.history


def test_a_request_that_never_has_enough_memory_fails_its_trial_alone(images: ImageSet, tmp_path: Path) -> None:
    flag, over = tmp_path / "always", threading.Event()

    def keep_touching() -> None:
        while not over.wait(0.01):
            flag.touch()

    with replicas(greedy(str(flag)), images) as pool:
        again = threading.Thread(target=keep_touching)
        again.start()
        try:
            with pytest.raises(TrialError, match="too little memory"):
                searched(pool, images)
        finally:
            over.set()
            again.join()


def test_replicas_killed_before_they_are_up_are_replaced(images: ImageSet, undisturbed: Found) -> None:
    killed: list[int] = []

    def kill_soon() -> None:
        while len(killed) < 2:
            for process in replica_processes():
                if process.pid not in killed:
                    killed.append(process.pid)
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
            time.sleep(0.01)

    killing = threading.Thread(target=kill_soon)
    killing.start()
    with replicas(bright(), images) as pool:
        killing.join()
        found = searched(pool, images)
        assert len(pool.replicas()) == 2
    assert len(killed) >= 2
    assert torch.equal(found.perturbation, undisturbed.perturbation)


def test_replicas_that_cannot_be_made_are_no_longer_tried(images: ImageSet) -> None:
    with pytest.raises(ClusterError, match="did not start"), replicas(Unmakeable(), images):
        pass


def test_a_replica_that_hangs_is_replaced(images: ImageSet, undisturbed: Found) -> None:
    frozen: list[psutil.Process] = []

    def freeze(_: Snapshot) -> None:
        if not frozen:
            frozen.append(replica_processes()[0])
            frozen[0].suspend()

    with replicas(bright(), images, timeout_s=5.0) as pool:
        try:
            found = searched(pool, images, freeze)
        finally:
            for process in frozen:
                if process.is_running():
                    process.resume()
        assert pool.lost == 1
    assert frozen
    assert torch.equal(found.perturbation, undisturbed.perturbation)
    assert found.history == undisturbed.history


def test_replicas_are_added_while_they_work(images: ImageSet, undisturbed: Found) -> None:
    with replicas(bright(), images) as pool:
        found = searched(pool, images, lambda _: pool.grow(4))
        assert pool.size == 4
        assert len(pool.replicas()) == 4
        pool.grow(1)
        assert pool.size == 4, "it never shrinks"
    assert torch.equal(found.perturbation, undisturbed.perturbation)


NODES = """
import sys
import ray, torch
from ray.cluster_utils import Cluster
from foreign_victims import bright
import uapray
from uapray.api import search_settings
from uapray.arena import Arena
from uapray.config import Threat
from uapray.models.weights import wrap_module
from uapray.resources import Resources, open_pool
from uapray.trial import find

images = uapray.load_images("phantom:chest?images=150&size=32&seed=3", "train")
classifier = wrap_module(bright(), images.class_names, 1, (32, 32))
search = search_settings("spgd", {"starts": 3, "survivors": 2, "max_epochs": 3})
quiet = {"include_dashboard": False, "object_store_memory": 100_000_000}

def searched(resources, watch=lambda _: None):
    with open_pool(classifier, {"train": images}, resources) as pool:
        arena = Arena(pool, {"train": images})
        return find(arena, Threat(norm="linf", zeta=0.1), search, seed=5, watch=watch), getattr(pool, "lost", 0)

here, _ = searched(Resources("local"))
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **quiet})
first = cluster.add_node(num_cpus=2, object_store_memory=100_000_000)
ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
gone = []

def lose(_):
    if not gone:
        gone.append(first)
        cluster.remove_node(first, allow_graceful=False)
        cluster.add_node(num_cpus=2, object_store_memory=100_000_000)

there, lost = searched(Resources("ray", replicas=2, may_grow=True), lose)
assert gone
assert lost >= 1, lost
assert torch.equal(here.perturbation, there.perturbation)
assert here.history == there.history
print("the same bits after", lost, "replicas went with their node")
ray.shutdown()
cluster.shutdown()
"""


def test_a_node_that_is_lost_and_a_new_one_that_joins(tmp_path: Path) -> None:
    """A process of its own: two raylets on this machine, one of them killed with all its workers."""
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_ADDRESS")}
    script = tmp_path / "nodes.py"
    script.write_text(NODES)
    ran = subprocess.run(
        [sys.executable, str(script)],
        env=plain | {"PYTHONPATH": path, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert "the same bits" in ran.stdout
