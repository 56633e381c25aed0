"""Classifiers for ``module:function``: one with no gradient, so that every search on it fails; one of brightness."""

import contextlib
import os
import resource
import signal
from pathlib import Path

import torch
from torch import Tensor, nn


class _Indifferent(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        bright = (pixels.mean((1, 2, 3)) * 255).round()  # a step function: no gradient anywhere
        return nn.functional.one_hot(bright.long() % 3, 3).float() * 3 + 0 * pixels.mean()


def indifferent() -> nn.Module:
    """Return a classifier with no gradient."""
    return _Indifferent()


class _Bright(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        mean = pixels.mean((1, 2, 3))
        return torch.stack([-mean, 0.5 - (mean - 0.5).abs(), mean], 1) * 9


def bright() -> nn.Module:
    """Return a classifier of brightness that takes images of any size."""
    return _Bright()


class _Greedy(_Bright):
    """Brightness; where the file is there, takes it away and then more memory than its process may have."""

    def __init__(self, flag: str) -> None:
        super().__init__()
        self.flag = flag

    def forward(self, pixels: Tensor) -> Tensor:
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.flag)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
            torch.zeros(2**30)
        return super().forward(pixels)


def greedy(flag: str) -> nn.Module:
    """Return a classifier of brightness that runs out of memory once, in the process that finds the file."""
    return _Greedy(flag)


class Unmakeable(_Bright):
    """Brightness that no other process can open, so that no replica of it can be made."""

    def __deepcopy__(self, _memo: object) -> nn.Module:
        return type(self)()

    def __setstate__(self, _state: object) -> None:
        raise RuntimeError("not here")


class Mortal(nn.BatchNorm2d):
    """A batch norm whose process dies at its first batch while a file is not there, which it leaves behind."""

    def __init__(self, left: Path, *, always: bool = False) -> None:
        super().__init__(1)
        self.left, self.always = left, always

    def forward(self, pixels: Tensor) -> Tensor:
        if self.always or not self.left.exists():
            with self.left.open("a") as told:
                told.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(pixels)
