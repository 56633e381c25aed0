"""A filter for gradients that learns from the search itself which spatial frequencies carry a signal."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.fft import fftfreq, irfft2, rfft2, rfftfreq

BANDS = 12
KEEP = 0.95  # of what earlier rounds said of a band, from round to round
_LEAST = 1e-3  # share of signal that a band is thought to have


def agreement(gradient: Tensor, earlier: Tensor) -> Tensor:
    """Return how much two rounds have in common, and how much there is, by band of spatial frequencies.

    What both have in common is signal: they are of different images, so that noise cancels in the product.

    Args:
        gradient: Of one round, float64 ``(c, h, w)``.
        earlier: Of another.

    Returns:
        float64 ``(2, BANDS)``, the parts of the inner product of both and of the mean of their squared lengths.
    """
    height, width = size = _padded(gradient)
    waves, before = (rfft2(one, s=size, norm="ortho") for one in (gradient, earlier))
    pairs = ((waves.real, before.real), (waves.imag, before.imag))
    common = sum(one * other for one, other in pairs)
    power = sum(one.square() + other.square() for one, other in pairs) / 2
    twice = torch.full((width // 2 + 1,), 2.0, dtype=torch.float64)  # for the half that is not computed
    twice[0] = 1
    twice[-1] = 1 + width % 2 if width > 1 else 1
    band = _band(height, width).flatten()
    return torch.stack(
        [torch.bincount(band, (part.sum(0) * twice).flatten(), minlength=BANDS) for part in (common, power)]
    )


def remembered(before: Tensor | None, now: Tensor) -> Tensor:
    """Return what is known of the bands after one more round: mostly what was known before."""
    return now if before is None else KEEP * before + (1 - KEEP) * now


def weights(known: Tensor, rounds: float) -> Tensor:
    """Return what each band is multiplied with, the best one with 1 (Wiener 1949).

    ``s / (s + (1 - s) / rounds)``, where s is the share of a round's power that is signal.

    Args:
        known: ``(2, BANDS)``, see `agreement`.
        rounds: Over how many rounds noise is averaged before it tells.

    Returns:
        float64 ``(BANDS,)`` in (0, 1].
    """
    signal = (known[0] / known[1]).nan_to_num(0.0).clamp(_LEAST, 1.0)
    raw = signal / (signal + (1 - signal) / rounds)
    return raw / raw.max()


def weighted(gradient: Tensor, by_band: Tensor) -> Tensor:
    """Return a gradient ``(c, h, w)`` whose bands are multiplied with their weights ``(BANDS,)``."""
    size = _padded(gradient)
    wide: Tensor = irfft2(rfft2(gradient, s=size) * by_band[_band(*size)], s=size)
    return wide[:, : gradient.shape[1], : gradient.shape[2]]


def _padded(gradient: Tensor) -> tuple[int, int]:
    """Return the size that a gradient is padded to with zeros, so that its transform is quick: of 299 pixels, 300."""
    return _quick(gradient.shape[1]), _quick(gradient.shape[2])


@lru_cache
def _quick(least: int) -> int:
    """Return the smallest length with no prime factor above 7; others take a transform several times as long."""
    rest = least
    for prime in (2, 3, 5, 7):
        while rest % prime == 0:
            rest //= prime
    return least if rest == 1 else _quick(least + 1)


def _band(height: int, width: int) -> Tensor:
    """Return the band of each wave, int64 ``(h, w // 2 + 1)``: rings around the mean, all equally wide."""
    down, across = fftfreq(height, dtype=torch.float64), rfftfreq(width, dtype=torch.float64)
    share: Tensor = (2 * (down[:, None] ** 2 + across**2)).sqrt()  # of the highest frequency, at most 1
    return (share * BANDS).long().clamp(max=BANDS - 1)
