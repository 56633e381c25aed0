"""Image arrays in Ray's object store: decoded once, kept once a node, opened by every replica without copying."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class SharedArray:
    """An array that all replicas of a node, and this process, read from the same memory.

    Attributes:
        ref: What replicas are given.
        array: The array as seen from here, read-only; it stays in the store as long as somebody holds this.
    """

    ref: Any
    array: NDArray[np.uint8]


def share(array: NDArray[np.uint8]) -> SharedArray:
    """Put an array into the object store."""
    ref = ray.put(array)
    return SharedArray(ref, ray.get(ref))
