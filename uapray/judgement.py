"""A perturbation judged on the images of a split."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from uapray.arena import Arena
from uapray.measures import Outcome, Visibility, spread, visibility
from uapray.pool import in_turn, predicted
from uapray.rendering import Rendering

LIKENESS_IMAGES = 256  # PSNR and SSIM are the mean of so many at most, evenly spread
LIKENESS_BATCH = 8  # SSIM keeps some twenty copies of a batch


@dataclass(frozen=True, slots=True)
class Judgement:
    """A perturbation judged on one split.

    Attributes:
        split: Name of the split.
        outcome: Predictions before and after.
        visibility: How much the images changed.
        target: Index of the class that was to be reached; None: nontargeted.
        clean_logits: Of the clean images, ``(n, k)``.
        perturbed_logits: Of the perturbed images, ``(n, k)``.
    """

    split: str
    outcome: Outcome
    visibility: Visibility
    target: int | None
    clean_logits: NDArray[np.float32]
    perturbed_logits: NDArray[np.float32]


def judge(arena: Arena, split: str, perturbation: Tensor, *, target: int | None) -> Judgement:
    """Measure a perturbation on a split, after clipping to valid pixels."""
    images, clean = arena.images[split], arena.clean_logits(split)
    perturbed = arena.pool.logits(perturbation, in_turn(split, np.arange(len(images))))
    outcome = Outcome(images.labels, predicted(clean), predicted(perturbed), len(images.class_names))
    some = in_turn(split, spread(len(images), LIKENESS_IMAGES), LIKENESS_BATCH)
    seen = visibility(arena.pool.likeness(perturbation, some))
    return Judgement(split, outcome, seen, target, clean, perturbed)


def judge_rendered(arena: Arena, split: str, perturbation: Tensor, rendering: Rendering) -> Outcome:
    """Measure a perturbation on a split where clean and perturbed images are rendered before they are classified."""
    return predictions(arena, split, perturbation, np.arange(len(arena.images[split])), rendering)


def predictions(
    arena: Arena, split: str, perturbation: Tensor, rows: NDArray[np.int64], rendering: Rendering | None = None
) -> Outcome:
    """Return what is predicted of some images of a split, without the perturbation and with it.

    Args:
        arena: Where the classifier and the images are.
        split: Name of the split.
        perturbation: ``(c, h, w)``, pixel units.
        rows: Of the split, int64 ``(n,)``.
        rendering: What clean and clipped perturbed images go through before they are classified.
    """
    images = arena.images[split]
    return Outcome(
        labels=images.labels[rows],
        clean=arena.clean(split, rendering)[rows],
        perturbed=predicted(arena.pool.logits(perturbation, in_turn(split, rows), rendering)),
        classes=len(images.class_names),
    )
