"""Low frequencies: a space of few numbers that holds the perturbations worth trying without gradients."""

import math

import torch
from torch import Tensor


def cosines(count: int, size: int) -> Tensor:
    """Return the first waves of the orthonormal DCT-II, the lowest frequency first.

    Args:
        count: How many, at most ``size``.
        size: Pixels of a side.

    Returns:
        float64 ``(count, size)`` with orthonormal rows.
    """
    wave, pixel = torch.arange(count, dtype=torch.float64), torch.arange(size, dtype=torch.float64)
    rows = torch.cos(math.pi / size * (pixel + 0.5) * wave[:, None]) * math.sqrt(2 / size)
    rows[:1] /= math.sqrt(2)
    return rows


def decode(coefficients: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the pictures that some coefficients of the two-dimensional DCT-II stand for.

    Args:
        coefficients: ``(..., k, l)``, the lowest frequencies of height and width.
        size: Height and width in pixels.

    Returns:
        float32 ``(..., h, w)``, of the same l2 norm. Computed in float64, so that neither the number of threads nor
        the library behind the products decides the last bit.
    """
    (tall, wide), (height, width) = coefficients.shape[-2:], size
    picture: Tensor = cosines(tall, height).T @ coefficients.double() @ cosines(wide, width)
    return picture.float()


def encode(v: Tensor, frequencies: tuple[int, int]) -> Tensor:
    """Return the coefficients of the lowest frequencies: the adjoint of ``decode``, and its inverse on its range.

    Args:
        v: ``(..., h, w)``.
        frequencies: How many waves down and across.

    Returns:
        float64 ``(..., k, l)``.
    """
    (tall, wide), (height, width) = frequencies, v.shape[-2:]
    coefficients: Tensor = cosines(tall, height) @ v.double() @ cosines(wide, width).T
    return coefficients
