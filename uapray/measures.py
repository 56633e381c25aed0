"""What predictions before and after say: rates with intervals, ceilings, flows, and how visible it is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

CONFIDENCE = 0.95
SSIM_WINDOW = 11


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of images with its Wilson interval at 95 %.

    Attributes:
        hits: Images that count.
        images: Images asked.
    """

    hits: int
    images: int

    @property
    def share(self) -> float:
        """The share itself; NaN of no images."""
        return self.hits / self.images if self.images else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper limit (Wilson 1927); (0, 1) of no images."""
        if not self.images:
            return (0.0, 1.0)
        from scipy.stats import binomtest  # seconds to import; not on the way to a replica

        limits = binomtest(self.hits, self.images).proportion_ci(CONFIDENCE, method="wilson")
        return (float(limits.low), float(limits.high))


def patients(groups: Sequence[str | None]) -> NDArray[np.int64]:
    """Return a number for the patient of each image, from 0; an image of unknown patient stands for itself."""
    names = [f"image {row}" if group is None else f"group {group}" for row, group in enumerate(groups)]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def p_value(observed: float, draws: Sequence[float]) -> float:
    """Return how likely chance does at least as well: (1 + draws that do) / (1 + draws) (Phipson & Smyth 2010).

    With n draws it is never below 1 / (n + 1): 19 draws can say 0.05 and no less.

    Args:
        observed: Of the perturbation; larger is stronger.
        draws: The same of the draws.
    """
    return (1 + sum(draw >= observed for draw in draws)) / (1 + len(draws))


@dataclass(frozen=True, slots=True)
class Paired:
    """Two perturbations on the same images: the difference of their fooling rates, and whether it may be chance.

    Attributes:
        both: Images that both fool.
        first_only: Images that only the first fools.
        second_only: Images that only the second fools.
        neither: Images that neither fools.
    """

    both: int
    first_only: int
    second_only: int
    neither: int

    @property
    def images(self) -> int:
        """Number of images."""
        return self.both + self.first_only + self.second_only + self.neither

    @property
    def first(self) -> Rate:
        """What the first fools."""
        return Rate(self.both + self.first_only, self.images)

    @property
    def second(self) -> Rate:
        """What the second fools."""
        return Rate(self.both + self.second_only, self.images)

    @property
    def difference(self) -> float:
        """Rate of the first minus rate of the second."""
        return (self.first_only - self.second_only) / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """Limits of the difference at 95 %, paired (Newcombe 1998, Statistics in Medicine 17:2635, method 10).

        The distances of the two Wilson intervals are added as vectors whose angle is that of the correlation.
        """
        p1, p2 = self.first.share, self.second.share
        (low1, high1), (low2, high2) = self.first.interval, self.second.interval
        phi = self._correlation()

        def joined(one: float, other: float) -> float:
            return math.sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))

        below, above = joined(p1 - low1, high2 - p2), joined(high1 - p1, p2 - low2)
        return (max(-1.0, self.difference - below), min(1.0, self.difference + above))

    @property
    def p_value(self) -> float:
        """Of McNemar's exact test, two-sided: are those that only one fools divided as by a fair coin?"""
        from scipy.stats import binomtest

        told_apart = self.first_only + self.second_only
        return float(binomtest(self.first_only, told_apart).pvalue) if told_apart else 1.0

    def _correlation(self) -> float:
        """Return phi of the four counts, a positive one with Newcombe's correction for continuity."""
        margins = self.first.hits * self.second.hits * (self.images - self.first.hits)
        margins *= self.images - self.second.hits
        if not margins:
            return 0.0
        product = self.both * self.neither - self.first_only * self.second_only
        corrected = max(product - self.images / 2, 0.0) if product > 0 else product
        return corrected / math.sqrt(margins)


def paired(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Paired:
    """Compare two perturbations by the images that each fools.

    Args:
        first: Whether an image is fooled by the first, bool ``(n,)``, at least one.
        second: The same images in the same order, by the second.
    """
    assert first.shape == second.shape
    assert len(first), "no images to compare on"
    counts = (first & second, first & ~second, ~first & second, ~first & ~second)
    return Paired(*(int(each.sum()) for each in counts))


@dataclass(frozen=True, slots=True)
class Outcome:
    """Predictions of the same images without and with the perturbation.

    Attributes:
        labels: True classes, int64 ``(n,)``.
        clean: Classes predicted for the clean images, int64 ``(n,)``.
        perturbed: Classes predicted for the perturbed images, clipped to valid pixels, int64 ``(n,)``.
        classes: How many classes there are.
    """

    labels: NDArray[np.int64]
    clean: NDArray[np.int64]
    perturbed: NDArray[np.int64]
    classes: int

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def clean_accuracy(self) -> float:
        """Share of clean images predicted as labelled."""
        return float(np.mean(self.clean == self.labels))

    @property
    def robust_accuracy(self) -> float:
        """Share of perturbed images predicted as labelled."""
        return float(np.mean(self.perturbed == self.labels))

    @property
    def fooling(self) -> Rate:
        """R_f: images whose predicted class changed, against the clean prediction, not the label."""
        return Rate(int(np.sum(self.clean != self.perturbed)), self.images)

    @property
    def dominant(self) -> int:
        """The class that most perturbed images are predicted as; the lowest index of several."""
        return int(np.bincount(self.perturbed, minlength=self.classes).argmax())

    @property
    def ceiling(self) -> float:
        """The fooling rate that sending every image to the dominant class would reach.

        Images that are predicted as that class already cannot be fooled that way. On two balanced classes it is
        one half, however strong the perturbation.
        """
        return float(np.mean(self.clean != self.dominant))

    def towards(self, target: int) -> Rate:
        """R_s: images predicted as the target, those that were so from the start included."""
        return Rate(int(np.sum(self.perturbed == target)), self.images)

    def towards_non_target(self, target: int) -> Rate:
        """R_s among the images not predicted as the target when clean."""
        asked = self.clean != target
        return Rate(int(np.sum(self.perturbed[asked] == target)), int(np.sum(asked)))

    def flows(self) -> list[tuple[int, int, int, int]]:
        """Return (label, clean prediction, perturbed prediction, images) of every way that was taken."""
        ways, counts = np.unique(np.stack([self.labels, self.clean, self.perturbed]), axis=1, return_counts=True)
        return [(int(a), int(b), int(c), int(n)) for (a, b, c), n in zip(ways.T, counts, strict=True)]


@dataclass(frozen=True, slots=True)
class Visibility:
    """How much the clipped images changed, the mean over images.

    Attributes:
        psnr: Peak signal-to-noise ratio of the images that changed, dB; None if none did.
        ssim: Structural similarity (Wang et al. 2004), in [-1, 1].
    """

    psnr: float | None
    ssim: float


def spread(count: int, at_most: int) -> NDArray[np.int64]:
    """Return the places of at most so many of ``count`` things, evenly spread, in order."""
    return np.unique(np.linspace(0, count - 1, at_most).astype(np.int64))


def likeness(clean: torch.Tensor, perturbed: torch.Tensor) -> torch.Tensor:
    """Return how like its former self each image is: its PSNR in dB (infinity if nothing changed), and its SSIM.

    SSIM as Wang et al. (2004, section III.C): a Gaussian window of 11 pixels, wherever it lies within the image; of
    smaller images a smaller one.

    Args:
        clean: Images ``(n, c, h, w)`` in [0, 1].
        perturbed: The same, perturbed and clipped.

    Returns:
        ``(n, 2)``.
    """
    from kornia.metrics import psnr, ssim

    least = min(clean.shape[2:])
    window = min(SSIM_WINDOW, least - 1 + least % 2)
    similar = ssim(perturbed, clean, window, eps=0.0, padding="valid").mean((1, 2, 3))
    return torch.stack([torch.stack([psnr(*pair, 1.0) for pair in zip(perturbed, clean, strict=True)]), similar], 1)


def visibility(each: NDArray[np.float32]) -> Visibility:
    """Return the means over images of what `likeness` says of each, ``(n, 2)``."""
    ratios, similar = each.astype(np.float64).T
    changed = ratios[np.isfinite(ratios)]
    return Visibility(float(changed.mean()) if len(changed) else None, float(similar.mean()))
