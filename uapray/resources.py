"""Where replicas and training workers run: in this process, or on a Ray cluster."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from uapray.config import FP32, Arithmetic
from uapray.data.images import ImageSet
from uapray.errors import ConfigError
from uapray.models.card import Classifier
from uapray.on_ray.pool import RayPool
from uapray.on_ray.session import holdings
from uapray.on_ray.shared import SharedArray, share
from uapray.pool import LocalPool, ReplicaPool
from uapray.replica import Replica


@dataclass(frozen=True, slots=True)
class Resources:
    """Where replicas and training workers run, and what each may take.

    Attributes:
        kind: ``ray``, or ``local`` for one replica in this process.
        replicas: Replicas of one classifier, with Ray only; None: as many as the cluster has room for, shared among the
            classifiers that run side by side.
        workers: Training workers.
        cpus: Cores of each, which are also its threads.
        gpus: GPUs of each.
        concurrency: Trials that share the replicas of a classifier at the same time; None: two a replica, so that one
            has work while the other's gradients are added up.
        may_grow: Whether the cluster may get more nodes, so that what does not fit yet is waited for.
    """

    kind: str = "ray"
    replicas: int | None = 1
    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    concurrency: int | None = None
    may_grow: bool = False

    @property
    def device(self) -> str:
        """Device of the replicas."""
        return "cuda" if self.gpus else "cpu"

    def trials_at_once(self, replicas: int) -> int:
        """Return how many trials share that many replicas."""
        return self.concurrency or 2 * replicas


def room(resources: Resources) -> int:
    """Return how many replicas or training workers there is room for in all, busy or not; at least one."""
    if resources.kind == "local":
        return 1
    return max(1, holdings().replicas(cpus=resources.cpus, gpus=resources.gpus))


def share_out(wanted: Resources, replicas: int, classifiers: int) -> tuple[int, int]:
    """Return how many classifiers run side by side, and with how many replicas each.

    Args:
        wanted: What was asked for.
        replicas: How many there is room for in all.
        classifiers: How many there are to run.
    """
    least = max(wanted.replicas or 1, wanted.workers)
    at_once = max(1, min(classifiers, replicas // least))
    return at_once, wanted.replicas or max(1, replicas // at_once)


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """Image sets where replicas can reach them without a copy of their own.

    Attributes:
        images: The image sets by split.
        shared: Their arrays in the object store; none where replicas live in this process.
    """

    images: Mapping[str, ImageSet]
    shared: Mapping[str, SharedArray] = field(default_factory=dict)

    def select(self, splits: set[str]) -> "Held":
        """Return some of the splits."""
        kept = {split: one for split, one in self.shared.items() if split in splits}
        return Held({split: one for split, one in self.images.items() if split in splits}, kept)

    def without(self, splits: Iterable[str]) -> "Held":
        """Return all splits but some."""
        return self.select(set(self.images).difference(splits))


def hold(images: Mapping[str, ImageSet], resources: Resources) -> Held:
    """Bring image sets to where the replicas will be; what is held here afterwards is the same memory."""
    if resources.kind == "local":
        return Held(images)
    shared = {split: share(one.images) for split, one in images.items()}
    return Held({split: replace(one, images=shared[split].array) for split, one in images.items()}, shared)


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
    images: Mapping[str, ImageSet] | Held,
    resources: Resources,
    while_waiting: Callable[[], None] = lambda: None,
    arithmetic: Arithmetic = FP32,
) -> Iterator[ReplicaPool]:
    """Provide replicas of a classifier that hold the image sets, and free them at the end."""
    check_arithmetic(arithmetic, resources)
    if resources.kind == "local":
        sets = images.images if isinstance(images, Held) else images
        decks = {name: one.images for name, one in sets.items()}
        yield LocalPool(Replica(classifier.module, decks, device=resources.device, arithmetic=arithmetic))
        return
    held = images if isinstance(images, Held) else hold(images, resources)
    pool = RayPool(
        classifier.module,
        held.shared,
        replicas=resources.replicas or room(resources),
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
