"""Where replicas and training workers run: in this process, or on a Ray cluster."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from uapray.config import FP32, Arithmetic
from uapray.data.images import ImageSet
from uapray.errors import ConfigError
from uapray.models.card import Classifier
from uapray.on_ray.pool import RayPool
from uapray.pool import LocalPool, ReplicaPool
from uapray.replica import Replica


@dataclass(frozen=True, slots=True)
class Resources:
    """Where replicas and training workers run, and what each may take.

    Attributes:
        kind: ``ray``, or ``local`` for one replica in this process.
        replicas: Replicas of one classifier; with Ray only.
        workers: Training workers.
        cpus: Cores of each, which are also its threads.
        gpus: GPUs of each.
        concurrency: Trials that share the replicas of a classifier at the same time.
        may_grow: Whether the cluster may get more nodes, so that what does not fit yet is waited for.
    """

    kind: str = "ray"
    replicas: int = 1
    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    concurrency: int = 2
    may_grow: bool = False

    @property
    def device(self) -> str:
        """Device of the replicas."""
        return "cuda" if self.gpus else "cpu"


def check_arithmetic(arithmetic: Arithmetic, resources: Resources) -> None:
    """Refuse what the device of the replicas does not have.

    Raises:
        ConfigError: If tf32 is asked of a CPU, where a result called tf32 would be one of fp32.
    """
    if arithmetic.precision == "tf32" and resources.device == "cpu":
        raise ConfigError("precision: tf32 exists on GPUs only; give --gpus 1, or take fp32 or bf16")


@contextmanager
def open_pool(
    classifier: Classifier,
    images: Mapping[str, ImageSet],
    resources: Resources,
    while_waiting: Callable[[], None] = lambda: None,
    arithmetic: Arithmetic = FP32,
) -> Iterator[ReplicaPool]:
    """Provide replicas of a classifier that hold the image sets, and free them at the end."""
    check_arithmetic(arithmetic, resources)
    decks = {name: one.images for name, one in images.items()}
    if resources.kind == "local":
        yield LocalPool(Replica(classifier.module, decks, device=resources.device, arithmetic=arithmetic))
        return
    pool = RayPool(
        classifier.module,
        decks,
        replicas=resources.replicas,
        cpus=resources.cpus,
        gpus=resources.gpus,
        may_grow=resources.may_grow,
        while_waiting=while_waiting,
        arithmetic=arithmetic,
    )
    try:
        yield pool
    finally:
        pool.close()
