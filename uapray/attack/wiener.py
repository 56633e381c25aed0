"""A filter for gradients that learns from the search itself which spatial frequencies carry a signal."""

import torch
from torch import Tensor

from uapray.attack.basis import decode

BANDS = 12
KEEP = 0.95  # of what earlier rounds said of a band, from round to round
_LEAST = 1e-3  # share of signal that a band is thought to have


def agreement(waves: Tensor, earlier: Tensor) -> Tensor:
    """Return how much two rounds have in common, and how much there is, by band of frequencies.

    What both have in common is signal: they are of different images, so that noise cancels in the product.

    Args:
        waves: Coefficients of the cosine basis, float64 ``(c, h, w)`` (`basis.encode`).
        earlier: Those of another round.

    Returns:
        float64 ``(2, BANDS)``: sums of the products of both, and of the mean of their squares.
    """
    band = _band(*waves.shape[1:]).flatten()
    parts = (waves * earlier, (waves**2 + earlier**2) / 2)
    return torch.stack([torch.bincount(band, part.sum(0).flatten(), minlength=BANDS) for part in parts])


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


def weighted(waves: Tensor, by_band: Tensor) -> Tensor:
    """Return the picture ``(c, h, w)``, float64, of waves whose bands are weighted."""
    height, width = waves.shape[1:]
    return decode(waves * by_band[_band(height, width)], (height, width)).double()


def _band(height: int, width: int) -> Tensor:
    """Return the band of each wave, int64 ``(h, w)``: rings around the picture's mean, all equally wide."""
    down, across = torch.arange(height) / height, torch.arange(width) / width
    share = (down[:, None] ** 2 + across**2).div(2).sqrt()  # of the highest frequency, below 1
    return (share * BANDS).long()
