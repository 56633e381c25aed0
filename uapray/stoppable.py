"""A pool that serves until the run is asked to stop: between two rounds, not two measurements."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from uapray.ascent import Ascending, Ascent
from uapray.attack.control import Draw
from uapray.attack.objective import Objective
from uapray.attack.partial import PartialUpdate
from uapray.attack.rules import State
from uapray.attack.sequential import Ahead, Visit, Visiting
from uapray.pool import ReplicaPool
from uapray.rendering import Rendering
from uapray.replica import Batch, Drawn


@dataclass(frozen=True, slots=True)
class StoppablePool:
    """Calls ``check`` before each request; it may raise to end the search."""

    pool: ReplicaPool
    check: Callable[[], None]

    @property
    def size(self) -> int:
        """See ``ReplicaPool.size``."""
        return self.pool.size

    @property
    def share(self) -> int:
        """See ``ReplicaPool.share``."""
        return self.pool.share

    def gradient(
        self, v: Tensor, batches: Sequence[Batch], objective: Objective, along: Tensor | None = None
    ) -> PartialUpdate:
        """See ``ReplicaPool.gradient``."""
        self.check()
        return self.pool.gradient(v, batches, objective, along)

    def logits(
        self, v: Tensor | None, batches: Sequence[Batch], rendering: Rendering | None = None
    ) -> NDArray[np.float32]:
        """See ``ReplicaPool.logits``."""
        self.check()
        return self.pool.logits(v, batches, rendering)

    def likeness(self, v: Tensor, batches: Sequence[Batch]) -> NDArray[np.float32]:
        """See ``ReplicaPool.likeness``."""
        self.check()
        return self.pool.likeness(v, batches)

    def drawn(self, v: Tensor, draws: Sequence[Draw], batches: Sequence[Batch]) -> list[Drawn]:
        """See ``ReplicaPool.drawn``."""
        self.check()
        return self.pool.drawn(v, draws, batches)

    def ascend(self, state: State, images: Batch, first: int, how: Ascending) -> Ascent:
        """See ``ReplicaPool.ascend``."""
        self.check()
        return self.pool.ascend(state, images, first, how)

    def visit(self, v: Tensor, batch: Batch, how: Visiting, ahead: Ahead) -> Visit:
        """See ``ReplicaPool.visit``."""
        self.check()
        return self.pool.visit(v, batch, how, ahead)

    def population(self, vs: Sequence[Tensor], batches: Sequence[Batch]) -> list[NDArray[np.float32]]:
        """See ``ReplicaPool.population``."""
        self.check()
        return self.pool.population(vs, batches)
