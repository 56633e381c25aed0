"""A pool that keeps what it answered, so that a search by answers can be walked through once more."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from uapray.ascent import Ascending, Ascent
from uapray.attack.control import Draw
from uapray.attack.objective import Objective
from uapray.attack.partial import PartialUpdate
from uapray.attack.rules import State
from uapray.attack.sequential import Ahead, Visit, Visiting
from uapray.errors import StoreError
from uapray.pool import ReplicaPool
from uapray.rendering import Rendering
from uapray.replica import Batch, Drawn

Logits = NDArray[np.float32]


class RememberingPool:
    """Gives the answers of an earlier run of the same search first, then asks a pool; for one thread.

    Requests depend on their arguments alone and a search by answers on the answers alone, so it comes through the same
    requests to where it was interrupted, and asks nobody on the way.
    """

    def __init__(self, pool: ReplicaPool, answers: Iterable[Logits] = ()) -> None:
        self._pool = pool
        self._earlier = deque(answers)
        self._given: list[Logits] = []

    @property
    def size(self) -> int:
        """See ``ReplicaPool.size``."""
        return self._pool.size

    @property
    def share(self) -> int:
        """See ``ReplicaPool.share``."""
        return self._pool.share

    @property
    def answers(self) -> tuple[Logits, ...]:
        """All answers given so far, in order, and those still to be given again."""
        return (*self._given, *self._earlier)

    def logits(self, v: Tensor | None, batches: Sequence[Batch], rendering: Rendering | None = None) -> Logits:
        """See ``ReplicaPool.logits``."""
        (answer,) = self._answer(1, batches, lambda: [self._pool.logits(v, batches, rendering)])
        return answer

    def population(self, vs: Sequence[Tensor], batches: Sequence[Batch]) -> list[Logits]:
        """See ``ReplicaPool.population``."""
        return self._answer(len(vs), batches, lambda: self._pool.population(vs, batches))

    def gradient(
        self, v: Tensor, batches: Sequence[Batch], objective: Objective, along: Tensor | None = None
    ) -> PartialUpdate:
        """See ``ReplicaPool.gradient``; not kept."""
        return self._pool.gradient(v, batches, objective, along)

    def likeness(self, v: Tensor, batches: Sequence[Batch]) -> NDArray[np.float32]:
        """See ``ReplicaPool.likeness``; not kept."""
        return self._pool.likeness(v, batches)

    def drawn(self, v: Tensor, draws: Sequence[Draw], batches: Sequence[Batch]) -> list[Drawn]:
        """See ``ReplicaPool.drawn``; not kept."""
        return self._pool.drawn(v, draws, batches)

    def ascend(self, state: State, images: Batch, first: int, how: Ascending) -> Ascent:
        """See ``ReplicaPool.ascend``; not kept."""
        return self._pool.ascend(state, images, first, how)

    def visit(self, v: Tensor, batch: Batch, how: Visiting, ahead: Ahead) -> Visit:
        """See ``ReplicaPool.visit``; not kept."""
        return self._pool.visit(v, batch, how, ahead)

    def _answer(self, count: int, batches: Sequence[Batch], ask: Callable[[], list[Logits]]) -> list[Logits]:
        if len(self._earlier) >= count:
            given = [self._earlier.popleft() for _ in range(count)]
            images = sum(len(batch.indices) for batch in batches)
            if any(len(one) != images for one in given):
                raise StoreError("the answers kept of this search are those of another; delete states/ and run again")
        else:
            given = ask()
        self._given.extend(given)
        return given
