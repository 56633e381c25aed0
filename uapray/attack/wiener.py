"""A filter for gradients that learns from the search itself which spatial frequencies carry a signal."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.fft import fftfreq, irfft2, rfft2, rfftfreq

from uapray.attack.basis import cosines

BANDS = 12
KEEP = 0.95  # of what earlier rounds said of a band, from round to round
_LEAST = 1e-3  # share of signal that a band is thought to have


def spectrum(gradient: Tensor) -> Tensor:
    """Return the spatial frequencies of a round's gradient, of each colour axis.

    The axes are the cosines of the channels: of red, green and blue the mean, red against blue, and green against both.

    Args:
        gradient: float64 ``(c, h, w)``.

    Returns:
        complex64 ``(c, h', w' // 2 + 1)``, of the same length, but for the half of the waves that is not computed; h'
        and w' are h and w padded with zeros, so that the transform is quick: of 299 pixels, 300. In single precision: a
        round's noise is a million times coarser.
    """
    along_axes = torch.tensordot(cosines(len(gradient), len(gradient)).float(), gradient.float(), 1)
    waves: Tensor = rfft2(along_axes, s=_padded(gradient.shape), norm="ortho")
    return waves


def agreement(waves: Tensor, earlier: Tensor, shape: Sequence[int]) -> Tensor:
    """Return how much two rounds have in common, and how much there is, by colour axis and band of frequencies.

    What both have in common is signal: they are of different images, so that noise cancels in the product.

    Args:
        waves: `spectrum` of one round.
        earlier: Of another.
        shape: Of their gradients, ``(c, h, w)``.

    Returns:
        float64 ``(2, c, BANDS)``, the parts of the inner product of both and of the mean of their squared lengths.
    """
    height, width = _padded(shape)
    pairs = ((waves.real, earlier.real), (waves.imag, earlier.imag))
    common = sum(one * other for one, other in pairs)
    power = sum(one.square() + other.square() for one, other in pairs) / 2
    twice = torch.full((width // 2 + 1,), 2.0)  # for the half that is not computed
    twice[0] = 1
    twice[-1] = 1 + width % 2 if width > 1 else 1
    band = _band(height, width).flatten()
    parts = [torch.bincount(band, axis.double().flatten(), BANDS) for part in (common, power) for axis in part * twice]
    return torch.stack(parts).reshape(2, -1, BANDS)


def remembered(before: Tensor | None, now: Tensor) -> Tensor:
    """Return what is known of the bands after one more round: mostly what was known before."""
    return now if before is None else KEEP * before + (1 - KEEP) * now


def weights(known: Tensor, rounds: float) -> Tensor:
    """Return what each band of each colour axis is multiplied with, the best one with 1 (Wiener 1949).

    ``s / (s + (1 - s) / rounds)``, where s is the share of a round's power that is signal.

    Args:
        known: ``(2, c, BANDS)``, see `agreement`.
        rounds: Over how many rounds noise is averaged before it tells.

    Returns:
        float64 ``(c, BANDS)`` in (0, 1].
    """
    signal = (known[0] / known[1]).nan_to_num(0.0).clamp(_LEAST, 1.0)
    raw = signal / (signal + (1 - signal) / rounds)
    return raw / raw.max()


def weighted(waves: Tensor, by_band: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the gradient ``(c, h, w)`` of a spectrum, each band of it multiplied with its weight ``(c, BANDS)``."""
    size = _padded(shape)
    by_wave = by_band.float().index_select(1, _band(*size).flatten()).reshape(waves.shape)
    along_axes = irfft2(waves * by_wave, s=size, norm="ortho")
    wide = torch.tensordot(cosines(len(waves), len(waves)).T.float(), along_axes, 1)
    gradient: Tensor = wide[:, : shape[1], : shape[2]].double()
    return gradient


def _padded(shape: Sequence[int]) -> tuple[int, int]:
    return _quick(shape[1]), _quick(shape[2])


@lru_cache
def _quick(least: int) -> int:
    """Return the smallest length with no prime factor above 7; others take a transform several times as long."""
    rest = least
    for prime in (2, 3, 5, 7):
        while rest % prime == 0:
            rest //= prime
    return least if rest == 1 else _quick(least + 1)


@lru_cache
def _band(height: int, width: int) -> Tensor:
    """Return the band of each wave, int64 ``(h, w // 2 + 1)``: rings around the mean, all equally wide."""
    down, across = fftfreq(height, dtype=torch.float64), rfftfreq(width, dtype=torch.float64)
    share: Tensor = (2 * (down[:, None] ** 2 + across**2)).sqrt()  # of the highest frequency, at most 1
    return (share * BANDS).long().clamp(max=BANDS - 1)
