"""Replicas as Ray actors behind the protocol of every pool."""

import contextlib
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.exceptions import RayError, RayTaskError
from torch import Tensor, nn

from uapray.ascent import Ascending, Ascent
from uapray.attack.control import Draw
from uapray.attack.objective import Objective
from uapray.attack.partial import PartialUpdate, add_in_order
from uapray.attack.rules import State
from uapray.attack.sequential import Ahead, Visit, Visiting
from uapray.config import FP32, Arithmetic
from uapray.errors import ClusterError, TrialError
from uapray.on_ray import nursery
from uapray.on_ray.host import ENVIRONMENT, Host, sendable, sendable_module, sendable_state
from uapray.on_ray.session import expect_room
from uapray.on_ray.shared import SharedArray, share
from uapray.rendering import Rendering
from uapray.replica import Batch, Drawn

log = logging.getLogger(__name__)

IN_FLIGHT_EACH = 2
TRIES_EACH = 4  # replicas that one request may take with it before its trial is given up
START_S = 600.0
NEW_MACHINE_S = 3600.0
_LOOK_S = 0.5  # between two looks at what may have come


class RayPool:
    """Replicas on a cluster. A replica that dies is replaced and its batches are dealt again.

    Requests depend on their arguments alone and sums are taken in the order of the batches, so neither the
    number of replicas nor the death of one changes a bit of any answer. Threads may share a pool. A replica is
    dealt batches once it is up: while its machine is yet to come, the others do the work.
    """

    def __init__(
        self,
        module: nn.Module,
        decks: Mapping[str, SharedArray | NDArray[np.uint8]],
        *,
        replicas: int,
        cpus: float = 1.0,
        gpus: float = 0.0,
        timeout_s: float = 600.0,
        max_deaths: int = 100,
        may_grow: bool = False,
        while_waiting: Callable[[], None] = lambda: None,
        arithmetic: Arithmetic = FP32,
    ) -> None:
        """Start the replicas and wait until the first one is up.

        Args:
            module: The classifier; made fast here, and kept once a node, in the object store.
            decks: Read-only uint8 images ``(n, h, w, c)`` by name; kept once a node, in the object store.
            replicas: How many; a matter of speed alone.
            cpus: Cores of one replica, which are also its threads.
            gpus: GPUs of one replica; a fraction shares one.
            timeout_s: A request that takes longer is given up, and its replica replaced.
            max_deaths: Replicas that may die without an answer in between before the pool gives up.
            may_grow: Whether more nodes may come; then replicas that do not fit yet are waited for.
            while_waiting: Called twice a second until the first replica is up; it may raise to give up.
            arithmetic: How they take gradients.

        Raises:
            ConfigError: If the cluster cannot hold the replicas, now or ever.
            ClusterError: If the replicas did not start.
        """
        if not may_grow:
            expect_room("replicas", replicas, cpus=cpus, gpus=gpus)
        self._make = ray.remote(Host).options(
            num_cpus=cpus,
            num_gpus=gpus,
            runtime_env={
                "env_vars": {**ENVIRONMENT, "OMP_NUM_THREADS": str(max(1, int(cpus)))},
                **nursery.command(ray.get_runtime_context().runtime_env),
            },
        )
        # held as long as a replica may have to be replaced
        self._decks = {name: deck if isinstance(deck, SharedArray) else share(deck) for name, deck in decks.items()}
        self._module = ray.put(sendable_module(module, next(iter(self._decks.values())).array))
        self._settings: dict[str, Any] = {"device": "cuda" if gpus else "cpu", "threads": max(1, int(cpus))}
        self._settings["arithmetic"] = arithmetic
        self._timeout_s = timeout_s
        self._start_s = NEW_MACHINE_S if may_grow else START_S
        self._max_deaths, self._deaths = max_deaths, 0  # those since the last answer
        self._turn = threading.Condition()
        self._wanted = replicas
        self.lost = self.dealt_again = 0  # replicas that died; requests that were dealt a second time
        self._asking = 0  # threads that wait for answers
        self._load: dict[Any, int] = {}  # requests under way, by replica
        self._coming: dict[Any, Any] = {}  # replicas not up yet, by what tells that they are
        try:
            for _ in range(replicas):
                self._spawn()
            self._wait_for_first(while_waiting)
        except BaseException:
            self.close()
            raise

    def gradient(
        self, v: Tensor, batches: Sequence[Batch], objective: Objective, along: Tensor | None = None
    ) -> PartialUpdate:
        """Return the gradients of all batches, added in the order of the batches."""
        sent, towards = sendable(v), None if along is None else sendable(along)
        (parts,) = self._ask_each("gradient", [sent], batches, objective, towards)
        return add_in_order(parts)

    def logits(
        self, v: Tensor | None, batches: Sequence[Batch], rendering: Rendering | None = None
    ) -> NDArray[np.float32]:
        """Return the logits ``(n, k)`` of all images, in the order of the batches."""
        sent = None if v is None else sendable(v)
        (parts,) = self._ask_each("logits", [sent], batches, rendering)
        return np.concatenate(parts)

    def likeness(self, v: Tensor, batches: Sequence[Batch]) -> NDArray[np.float32]:
        """Return how like its clean self each perturbed image is, ``(n, 2)``, in the order of the batches."""
        (parts,) = self._ask_each("likeness", [sendable(v)], batches)
        return np.concatenate(parts)

    def drawn(self, v: Tensor, draws: Sequence[Draw], batches: Sequence[Batch]) -> list[Drawn]:
        """Draw controls of a perturbation on the replicas; return what is said of all images with each."""
        (answers,) = self._ask_each("drawn", [sendable(v)], draws, batches)
        return answers

    def ascend(self, state: State, images: Batch, first: int, how: Ascending) -> Ascent:
        """Make rounds, as many as one replica makes in a few seconds and one at least."""
        came: Ascent
        (came,) = self._ask("ask", [("ascend", sendable_state(state), images, first, how)])
        return came

    def visit(self, v: Tensor, batch: Batch, how: Visiting, ahead: Ahead) -> Visit:
        """Visit images one after another, in the order of the batch, on one replica."""
        came: Visit
        (came,) = self._ask("ask", [("visit", sendable(v), batch, how, ahead)])
        return came

    def population(self, vs: Sequence[Tensor], batches: Sequence[Batch]) -> list[NDArray[np.float32]]:
        """Return for each perturbation the logits ``(n, k)`` of all images, in the order of the batches."""
        return [np.concatenate(parts) for parts in self._ask_each("logits", [sendable(v) for v in vs], batches)]

    def replicas(self) -> list[Any]:
        """Return the handles of the actors, those included that are not up yet."""
        with self._turn:
            return [*self._load, *self._coming.values()]

    @property
    def size(self) -> int:
        """How many replicas there are to be."""
        return self._wanted

    @property
    def share(self) -> int:
        """How many replicas are for who asks now, beside the others who ask; one at least."""
        return max(1, self._wanted // (1 + self._asking))

    @property
    def busy(self) -> int:
        """How many replicas have work now."""
        with self._turn:
            return sum(map(bool, self._load.values()))

    def grow(self, replicas: int) -> None:
        """Have that many replicas from now on, if they are more than there were; no answer changes by it."""
        with self._turn:
            for _ in range(replicas - self._wanted):
                self._spawn()
            self._wanted = max(self._wanted, replicas)

    def close(self) -> None:
        """End the replicas and free their resources."""
        with self._turn:
            for replica in (*self._load, *self._coming.values()):
                ray.kill(replica)
            self._load, self._coming = {}, {}

    def _spawn(self) -> None:
        arrays = [deck.ref for deck in self._decks.values()]
        replica = self._make.remote(self._module, list(self._decks), *arrays, **self._settings)
        self._coming[replica.__ray_ready__.remote()] = replica

    def _wait_for_first(self, while_waiting: Callable[[], None]) -> None:
        deadline = time.monotonic() + self._start_s
        while not self._load:
            ready, _ = ray.wait(list(self._coming), num_returns=1, timeout=_LOOK_S)
            for up in ready:
                replica = self._coming.pop(up)
                try:
                    ray.get(up)
                except RayError as error:
                    if _cannot_be_made(error) or self._deaths >= TRIES_EACH * self._wanted:
                        raise ClusterError(f"the replicas did not start: {_first_line(error)}") from error
                    with self._turn:
                        self._lose(replica, error)
                else:
                    self._load[replica] = 0
            if time.monotonic() > deadline:
                raise ClusterError(f"the replicas did not start within {self._start_s:.0f} s")
            while_waiting()

    def _ask_each(self, method: str, vs: Sequence[Any], items: Sequence[Any], *rest: Any) -> list[list[Any]]:
        """Return for each perturbation an answer for each item, a batch or a draw, in their order.

        Neighbours go to one replica together, as many as leave all replicas busy; what it has not answered in its time
        is asked again.
        """
        pieces = min(len(items), math.ceil(IN_FLIGHT_EACH * self.share / max(1, len(vs))))
        bounds = [len(items) * piece // pieces for piece in range(pieces + 1)]
        missing = [(v, items[begin:end]) for v in vs for begin, end in pairwise(bounds)]
        answers: list[list[Any]] = [[] for _ in missing]
        while places := [place for place, (_, left) in enumerate(missing) if left]:
            came = self._ask("ask_each", [(method, *missing[place], *rest) for place in places])
            for place, part in zip(places, came, strict=True):
                v, left = missing[place]
                answers[place] += part
                missing[place] = v, left[len(part) :]
        return [
            [one for part in answers[first : first + pieces] for one in part]
            for first in range(0, len(answers), pieces)
        ]

    def _ask(self, way: str, requests: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send each request to the least busy replica and return the answers in the order of the requests."""
        with self._turn:
            self._asking += 1
        try:
            return self._answers(way, requests)
        finally:
            with self._turn:
                self._asking -= 1

    def _answers(self, way: str, requests: Sequence[tuple[Any, ...]]) -> list[Any]:
        answers: list[Any] = [None] * len(requests)
        waiting = deque(range(len(requests)))
        under_way: dict[Any, tuple[int, Any]] = {}
        tries = Counter[int]()
        try:
            while waiting or under_way:
                while waiting and (replica := self._take(wait=not under_way)) is not None:
                    index = waiting.popleft()
                    under_way[getattr(replica, way).remote(*requests[index])] = (index, replica)
                ready, _ = ray.wait(list(under_way), num_returns=1, timeout=self._timeout_s)
                answer = ready[0] if ready else next(iter(under_way))
                index, replica = under_way[answer]
                try:
                    answers[index] = ray.get(answer, timeout=None if ready else 0)
                except RayError as error:
                    cause = error.cause if isinstance(error, RayTaskError) else error
                    if not isinstance(cause, RayError) and not _out_of_memory(cause):
                        raise cause from error  # what the replica itself raised, without Ray's traceback
                    waiting.appendleft(index)
                    tries[index] += 1
                    self.dealt_again += 1
                    self._replace(replica, cause)
                    if tries[index] >= TRIES_EACH:
                        raise TrialError(
                            f"a request lost its replica {tries[index]} times; too little memory for its batch? "
                            f"{_first_line(cause)}"
                        ) from cause
                else:
                    self._deaths = 0
                del under_way[answer]
                self._give_back(replica)
        finally:
            for _, replica in under_way.values():  # of an error, or Ctrl-C: others share these replicas
                self._give_back(replica)
        return answers

    def _take(self, *, wait: bool) -> Any:
        """Return the least busy replica, or None when all are busy and we are not to wait."""
        deadline = time.monotonic() + self._start_s
        with self._turn:
            while True:
                self._welcome()
                replica = min(self._load, key=self._load.__getitem__, default=None)
                if replica is not None and self._load[replica] < IN_FLIGHT_EACH:
                    self._load[replica] += 1
                    return replica
                if not self._load and (not self._coming or time.monotonic() > deadline):
                    raise ClusterError("no replica is left; the cluster lost them faster than they could be replaced")
                if not wait:
                    return None
                self._turn.wait(_LOOK_S)

    def _welcome(self) -> None:
        """Take in the replicas that came up; called with the turn held."""
        if self._coming:
            ready, _ = ray.wait(list(self._coming), num_returns=len(self._coming), timeout=0)
            for up in ready:
                replica = self._coming.pop(up)
                try:
                    ray.get(up)
                except RayError as error:
                    self._lose(replica, error)
                else:
                    self._load[replica] = 0

    def _give_back(self, replica: Any) -> None:
        with self._turn:
            if replica in self._load:
                self._load[replica] -= 1
            self._turn.notify_all()

    def _replace(self, replica: Any, error: Exception) -> None:
        """Put a new replica in the place of a dead one; once, however many of its requests were lost."""
        with self._turn:
            if self._load.pop(replica, None) is not None:
                self._lose(replica, error)

    def _lose(self, replica: Any, error: Exception) -> None:
        self._turn.notify_all()
        self.lost += 1
        self._deaths += 1
        if self._deaths > self._max_deaths:
            raise ClusterError(
                f"{self._deaths} replicas died one after another; the last one: {_first_line(error)}"
            ) from error
        log.warning("a replica was lost and is replaced: %s", _first_line(error))
        with contextlib.suppress(Exception):
            ray.kill(replica)
        self._spawn()


def _cannot_be_made(error: RayError) -> bool:
    """Return whether it is the making of a replica that failed, as the next one's would, and not its process."""
    return isinstance(error, RayTaskError) or "creation task" in str(error)


def _out_of_memory(error: BaseException) -> bool:
    """Return whether a replica had no memory left: a new one may have, where others share the machine or GPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch, on the CPU


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines()
    return lines[-1] if lines else type(cause).__name__
