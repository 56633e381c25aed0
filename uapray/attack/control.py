"""Random perturbations: what any result has to be better than."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from uapray.attack.projection import length
from uapray.errors import ConfigError


class Control(Protocol):
    """Draws a perturbation that shares something with a finished one, and nothing of what it was searched for."""

    def __call__(self, v: Tensor, *, seed: int) -> Tensor:
        """Return a draw of the shape of ``v``, float32 ``(c, h, w)``; equal seeds give equal bits."""
        ...


def matched_controls(p: float) -> Mapping[str, Control]:
    """Return the kinds of matched control by name, from the least alike to the perturbation to the most.

    Args:
        p: Order of the norm whose ball the kind ``random`` is drawn from, 2 or ``math.inf``.
    """
    return {"random": partial(in_its_ball, p=p), "signs": signs, "permuted": permuted, "scrambled": scrambled}


@dataclass(frozen=True, slots=True)
class Draw:
    """One draw of a matched control, to be made where it is asked about: it travels as a number, not as an image.

    Attributes:
        kind: Name of a control, see `matched_controls`.
        p: Order of the norm whose ball the kind ``random`` is drawn from.
        seed: Equal seeds give equal draws.
    """

    kind: str
    p: float
    seed: int

    def of(self, v: Tensor) -> Tensor:
        """Return the draw for a perturbation ``(c, h, w)``."""
        return matched_controls(self.p)[self.kind](v, seed=self.seed)


def in_its_ball(v: Tensor, *, p: float, seed: int) -> Tensor:
    """Draw a point uniformly from the l_p ball that ``v`` just fits in: alike in the bound alone.

    Args:
        v: Perturbation ``(c, h, w)``.
        p: Order of the norm, 2 or ``math.inf``.
        seed: Equal seeds give equal draws.
    """
    return random_perturbation(tuple(v.shape), p=p, xi=length(v, p=p), seed=seed)


def signs(v: Tensor, *, seed: int) -> Tensor:
    """Give each value of ``v`` a random sign: its l2 and linf norm, and where it is strong.

    Args:
        v: Perturbation ``(c, h, w)``.
        seed: Equal seeds give equal draws.
    """
    up = torch.randint(2, v.shape, generator=torch.Generator().manual_seed(seed))
    return v.abs() * (2 * up - 1)


def permuted(v: Tensor, *, seed: int) -> Tensor:
    """Shuffle the pixels of ``v``, each with all its channels: its l2 and linf norm, its values and colours.

    Args:
        v: Perturbation ``(c, h, w)``.
        seed: Equal seeds give equal draws.
    """
    places = torch.randperm(v[0].numel(), generator=torch.Generator().manual_seed(seed))
    return v.flatten(1)[:, places].reshape(v.shape)


def scrambled(v: Tensor, *, seed: int) -> Tensor:
    """Turn the Fourier phases of ``v`` at random: its amplitude spectrum, so its l2 norm and its grain.

    All channels are turned alike, so that the relations of colours stay. The phases are those of white noise,
    hence Hermitian, hence the result is real. Its linf norm is another one, as a rule a larger one: a perturbation
    of few different values becomes one of many.

    Args:
        v: Perturbation ``(c, h, w)``.
        seed: Equal seeds give equal draws.
    """
    size = tuple(v.shape[-2:])
    noise = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    angle = torch.fft.rfft2(noise).angle()
    turned = torch.fft.rfft2(v.double()) * torch.polar(torch.ones_like(angle), angle)
    real: Tensor = torch.fft.irfft2(turned, s=size)
    return real.to(v.dtype)


def random_perturbation(shape: tuple[int, ...], *, p: float, xi: float, seed: int) -> Tensor:
    """Draw a point uniformly from the l_p ball of radius ``xi`` (Hirano et al. 2021, random control).

    In the dimension of an image a draw from the l2 ball has a norm of nearly ``xi``; a draw from the linf ball
    has a third of the energy of one of its corners.

    Args:
        shape: ``(c, h, w)``.
        p: Order of the norm, 2 or ``math.inf``.
        xi: Radius, pixel units.
        seed: Equal seeds give equal draws.

    Returns:
        float32 tensor of that shape.

    Raises:
        ConfigError: If ``p`` is neither 2 nor infinity.
    """
    generator = torch.Generator().manual_seed(seed)
    if p == math.inf:
        return (2 * torch.rand(shape, generator=generator) - 1) * xi
    if p == 2:
        normal = torch.randn(shape, generator=generator)
        radius = xi * torch.rand((), generator=generator) ** (1 / normal.numel())
        scaled: Tensor = normal * (radius / torch.linalg.vector_norm(normal))
        return scaled
    raise ConfigError(f"p: expected 2 or inf, got {p}")
