"""Joining a Ray cluster, or starting one on this machine and stopping it again."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from uapray.errors import ClusterError

LOCAL = "local"


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
        ClusterError: If the cluster does not answer.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
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


def available_replicas(*, cpus: float = 1.0, gpus: float = 0.0) -> int:
    """Return how many replicas of that size the whole cluster holds now."""
    held = ray.cluster_resources()
    counts = [int(held.get("CPU", 0) // cpus)] if cpus else []
    counts += [int(held.get("GPU", 0) // gpus)] if gpus else []
    return min(counts) if counts else 0
