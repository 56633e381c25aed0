"""Joining a Ray cluster, or starting one on this machine and stopping it again."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import ray

from uapray.errors import ClusterError, ConfigError

LOCAL = "local"
_ANSWER_S = 5.0


@contextmanager
def session(address: str | None = None, *, cpus: int | None = None) -> Iterator[None]:
    """Be connected to Ray inside the block.

    A connection that stands already is used and left alone. Otherwise ``address``, then ``RAY_ADDRESS``, chooses
    the cluster; without either, a Ray of its own is started on this machine, on loopback and without dashboard,
    and stopped at the end.

    Args:
        address: ``"local"``, ``"auto"``, ``"ray://…"`` or ``"host:port"``.
        cpus: Cores that a Ray of its own may use; None: as many as the machine has.

    Raises:
        ConfigError: If nothing listens there.
        ClusterError: If what listens there does not answer as Ray.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    knock(address)
    chosen = address or os.environ.get("RAY_ADDRESS") or LOCAL
    own = {"include_dashboard": False, "num_cpus": cpus} if chosen == LOCAL else {}
    try:
        ray.init(address=chosen, logging_level=logging.ERROR, log_to_driver=False, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ClusterError(f"Ray at {chosen!r} did not answer: {first}; is the cluster up?") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def submitted_session(address: str | None = None) -> Iterator[bool]:
    """Be connected inside the block, as a script that was submitted wants; yield whether it joined, and so may grow.

    To ``address``; without one to that of RAY_ADDRESS (Ray sets it in a job), else to the one that runs on this
    machine (the head, after ``ray submit``), else to a Ray of its own.

    Raises:
        ConfigError: If nothing listens there.
        ClusterError: If the cluster does not answer.
    """
    if address is not None:
        with session(address):
            yield address != LOCAL
        return
    init = partial(ray.init, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        try:  # without an address `ray.init` looks in just that order, and takes resources only for one of its own
            init(resources={})
            joined = False
        except ValueError:
            init()
            joined = True
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"Ray did not answer: {error}; name a cluster with --address, or 'local' for one of its own"
        ) from error
    try:
        yield joined
    finally:
        ray.shutdown()


def knock(address: str | None) -> None:
    """Find out at once whether anything listens where `session` would connect; Ray takes a minute, and prints pages.

    Raises:
        ConfigError: If nothing does.
    """
    address = address or os.environ.get("RAY_ADDRESS") or LOCAL
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"Ray at {address!r} did not answer: {error}; is the cluster up?") from error


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a cluster has, busy or not."""

    nodes: int
    cpus: float
    gpus: float

    def replicas(self, *, cpus: float, gpus: float) -> int:
        """Return how many replicas of that size it holds."""
        counts = [int(self.cpus // cpus)] if cpus else []
        counts += [int(self.gpus // gpus)] if gpus else []
        return min(counts, default=0)


def holdings() -> Holdings:
    """Return what the connected cluster has now."""
    held = ray.cluster_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    return Holdings(nodes, held.get("CPU", 0.0), held.get("GPU", 0.0))


@dataclass(frozen=True, slots=True)
class Usage:
    """One resource of a cluster: how much it holds, and how much is in use."""

    name: str
    used: float
    held: float


def usage() -> list[Usage]:
    """Return nodes, cores, GPUs and object store memory (GB) of the connected cluster."""
    held, free = ray.cluster_resources(), ray.available_resources()
    nodes = sum(node["Alive"] for node in ray.nodes())
    rows = [Usage("nodes", nodes, nodes)]
    for name, said, unit in (
        ("CPU", "CPUs", 1.0),
        ("GPU", "GPUs", 1.0),
        ("object_store_memory", "object store GB", 1e9),
    ):
        if total := held.get(name, 0.0):
            rows.append(Usage(said, round((total - free.get(name, 0.0)) / unit, 2), round(total / unit, 2)))
    return rows


def expect_room(what: str, count: int, *, cpus: float, gpus: float) -> None:
    """Refuse more processes than the connected cluster holds; they would be waited for without end.

    Args:
        what: What they are called, for the error.
        count: How many.
        cpus: Cores of each.
        gpus: GPUs of each.

    Raises:
        ConfigError: If it does not hold so many.
    """
    held = holdings().replicas(cpus=cpus, gpus=gpus)
    if held < count:
        raise ConfigError(
            f"{what}: expected at most {held}, which is what the cluster holds at {cpus:g} CPU and {gpus:g} GPU each, "
            f"got {count}; ask for fewer or a larger cluster"
        )
