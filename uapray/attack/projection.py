"""The norm ball: its radius, the way into it and the way to its surface."""

import math

import torch
from torch import Tensor

from uapray.errors import ConfigError

ORDERS = {"l2": 2.0, "linf": math.inf}


def order(norm: str) -> float:
    """Return the order p of a norm's name, ``"l2"`` or ``"linf"``.

    Raises:
        ConfigError: If the name is another one.
    """
    if norm not in ORDERS:
        raise ConfigError(f"norm: expected one of {', '.join(ORDERS)}, got {norm!r}")
    return ORDERS[norm]


def length(v: Tensor, *, p: float) -> float:
    """Return the l_p norm of ``v``, all channels together, in pixel units."""
    return float(torch.linalg.vector_norm(v.double(), ord=p))


def norms(v: Tensor) -> tuple[float, float]:
    """Return the l2 and the linf norm of ``v``, in pixel units."""
    return length(v, p=2), length(v, p=math.inf)


def mean_norm(images: Tensor, *, p: float) -> float:
    """Return the mean l_p norm of images, each taken whole (all channels together).

    Args:
        images: uint8 ``(n, ...)``, grey levels.
        p: Order of the norm.

    Returns:
        The mean in pixel units (images in [0, 1]).
    """
    return float(torch.linalg.vector_norm(images.flatten(1).double() / 255, ord=p, dim=1).mean())


def project(v: Tensor, *, p: float, xi: float) -> Tensor:
    """Return the point of the l_p ball of radius ``xi`` that is closest to ``v``.

    Args:
        v: Perturbation ``(c, h, w)``.
        p: Order of the norm, 2 or ``math.inf``.
        xi: Radius, in pixel units (images are in [0, 1]).

    Raises:
        ConfigError: If ``p`` is neither 2 nor infinity.
    """
    if p == math.inf:
        return v.clamp(-xi, xi)
    if p == 2:
        norm = torch.linalg.vector_norm(v)
        return v if norm <= xi else v * (xi / norm)
    raise ConfigError(f"p: expected 2 or inf, got {p}")


def extend(v: Tensor, *, p: float, xi: float) -> Tensor:
    """Return the point of the ball's surface that ``v`` points to.

    For p = inf that is the corner ``xi * sign(v)``, which raised the held-out fooling rate in nearly every
    trial measured; for p = 2 the point of the sphere in the direction of ``v``. Zero stays zero.

    Args:
        v: Perturbation ``(c, h, w)``.
        p: Order of the norm, 2 or ``math.inf``.
        xi: Radius, in pixel units.
    """
    return direction(v, p=p) * xi


def direction(v: Tensor, *, p: float) -> Tensor:
    """Return the step of unit length that raises ``<v, step>`` most: steepest ascent in the l_p norm.

    Args:
        v: Gradient or perturbation ``(c, h, w)``.
        p: Order of the norm, 2 or ``math.inf``.

    Raises:
        ConfigError: If ``p`` is neither 2 nor infinity.
    """
    if p == math.inf:
        return v.sign()
    if p == 2:
        norm = torch.linalg.vector_norm(v)
        return v / norm if norm > 0 else v.clone()
    raise ConfigError(f"p: expected 2 or inf, got {p}")
