"""How fast a classifier's gradients are taken in batches of different sizes, and which size that speaks for."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from uapray.attack.objective import Objective
from uapray.config import FP32, Arithmetic
from uapray.errors import ClassifierError
from uapray.replica import Batch, Replica

LARGEST = 512
WORTH = 1.1  # two doublings in a row that bring no factor like this end the search
ENOUGH = 0.9  # share of the highest speed that the proposed batch size reaches


@dataclass(frozen=True, slots=True)
class Speed:
    """What batches of one size come to.

    Attributes:
        batch_size: Images that are differentiated at once.
        image_gradients_per_s: How many gradients of an image a second.
        memory_bytes: The most that was taken of the GPU's memory; None on a CPU.
    """

    batch_size: int
    image_gradients_per_s: float
    memory_bytes: int | None


def measure_speeds(
    module: nn.Module,
    shape: tuple[int, int, int],
    *,
    device: str = "cpu",
    threads: int = 1,
    arithmetic: Arithmetic = FP32,
    largest: int = LARGEST,
    seconds: float = 1.0,
) -> Iterator[Speed]:
    """Yield the speed of batches of 1, 2, 4, … images, until more bring nothing or do not fit.

    Args:
        module: The classifier.
        shape: Of an image, ``(c, h, w)``.
        device: ``cpu`` or ``cuda``.
        threads: Of a CPU.
        arithmetic: How gradients are taken.
        largest: The largest batch size to be tried.
        seconds: How long each is measured, after a first batch that is not counted.

    Raises:
        ClassifierError: If not even one image fits.
    """
    channels, height, width = shape
    images = np.random.default_rng(0).integers(0, 256, (largest, height, width, channels), dtype=np.uint8)
    replica = Replica(module, {"noise": images}, device=device, threads=threads, arithmetic=arithmetic)
    best, size, idle = 0.0, 1, 0
    while size <= largest:
        try:
            speed = _measure(replica, shape, size, device, seconds)
        except (torch.OutOfMemoryError, MemoryError) as error:
            if size == 1:
                raise ClassifierError(f"not even one image of {height}x{width} px fits into the memory") from error
            return
        yield speed
        idle = idle + 1 if speed.image_gradients_per_s < WORTH * best else 0
        if idle == 2:
            return
        best, size = max(best, speed.image_gradients_per_s), 2 * size


def proposed(speeds: Sequence[Speed]) -> Speed:
    """Return the smallest batch nearly as fast as the fastest: small rounds move the perturbation more often."""
    fastest = max(speed.image_gradients_per_s for speed in speeds)
    enough = [speed for speed in speeds if speed.image_gradients_per_s >= ENOUGH * fastest]
    return min(enough, key=lambda speed: speed.batch_size)


def _measure(replica: Replica, shape: tuple[int, int, int], size: int, device: str, seconds: float) -> Speed:
    v, batches = np.zeros(shape, np.float32), [Batch("noise", np.arange(size), np.zeros(size, np.int64))]
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    replica.gradient(v, batches, Objective())  # the answer lies in the memory of the CPU, so the GPU is done
    begun, done = time.perf_counter(), 0
    while not done or time.perf_counter() - begun < seconds:
        replica.gradient(v, batches, Objective())
        done += size
    taken = time.perf_counter() - begun
    return Speed(size, done / taken, None if device == "cpu" else torch.cuda.max_memory_allocated())
