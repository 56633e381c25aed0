"""Images and weights in Ray's object store: kept once a node, opened by every replica without copying."""

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


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


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A module and its weights apart, so that what unpacks it reads the weights where they lie.

    Attributes:
        module: The module; empty parameters stand in the places of the weights.
        weights: Their elements as they lie in memory, by name.
        layouts: Shape and strides of each.
    """

    module: nn.Module
    weights: dict[str, NDArray[Any]]
    layouts: dict[str, tuple[torch.Size, tuple[int, ...]]]

    def unpack(self) -> nn.Module:
        """Put the weights into the module, without copying them; nobody may write to them then."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            for name, elements in self.weights.items():
                self.module.get_parameter(name).data = torch.from_numpy(elements).as_strided(*self.layouts[name])
        return self.module


def pack(module: nn.Module) -> Packed:
    """Take the weights out of a copy of a module on the CPU that takes no gradients of them."""
    weights = {name: weight for name, weight in module.named_parameters() if _can_be_shared(weight)}
    empty = {id(one): nn.Parameter(one.detach()[:0].clone(), requires_grad=False) for one in weights.values()}
    return Packed(
        copy.deepcopy(module, empty),
        {name: weight.detach().as_strided((weight.numel(),), (1,)).numpy() for name, weight in weights.items()},
        {name: (weight.shape, weight.stride()) for name, weight in weights.items()},
    )


def _can_be_shared(weight: Tensor) -> bool:
    """Return whether a weight fills a piece of memory that numpy can show."""
    extent = 1 + sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride(), strict=True))
    plain = type(weight) is nn.Parameter and not weight.requires_grad and weight.dtype != torch.bfloat16
    return plain and weight.is_cpu and weight.ndim > 0 and weight.numel() == extent
