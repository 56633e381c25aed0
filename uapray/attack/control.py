"""Random perturbations: what any result has to be better than."""

import math

import torch
from torch import Tensor

from uapray.errors import ConfigError


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
