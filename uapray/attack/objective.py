"""What the perturbation is to raise, image by image."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from uapray.attack.losses import AWAY, TOWARDS


@dataclass(frozen=True, slots=True)
class Objective:
    """Away from the clean prediction, or towards one class for all images.

    Attributes:
        target: Index of the class to be reached; None for a nontargeted search.
        loss: Name of a loss (`losses.AWAY`).
        clamp: What one image counts for at most: beyond it, it has no gradient, so that no single image drags the
            perturbation along (Shafahi et al. 2020).
    """

    target: int | None = None
    loss: str = "cross-entropy"
    clamp: float = math.inf

    @property
    def compares_logits(self) -> bool:
        """Whether ``gain`` compares with the clean logits rather than the clean prediction."""
        return self.loss == "cosine" and self.target is None

    def gain(self, logits: Tensor, reference: Tensor) -> Tensor:
        """Return what each image contributes, to be made large.

        Args:
            logits: ``(n, k)``.
            reference: The classes predicted for the clean images, int64 ``(n,)``, or their logits ``(n, k)`` if
                the objective compares these; not used when targeted.

        Returns:
            Gains ``(n,)``, none above ``clamp``.
        """
        if self.target is None:
            gains = AWAY[self.loss](logits, reference)
        else:
            goal = torch.full((len(logits),), self.target, dtype=torch.int64, device=logits.device)
            gains = TOWARDS[self.loss](logits, goal)
        return gains if self.clamp == math.inf else gains.clamp(max=self.clamp)

    def certainty(self, logits: Tensor, reference: Tensor) -> float:
        """Return the mean probability that the objective is reached, in [0, 1].

        That is the probability of any class but the reference, or of the target. It tells better than a rate
        which of two perturbations is the stronger one where few images are asked.

        Args:
            logits: ``(n, k)``.
            reference: The classes predicted for the clean images, int64 ``(n,)``; not used when targeted.
        """
        probabilities = logits.double().softmax(1)
        if self.target is None:
            return 1 - float(probabilities.gather(1, reference[:, None]).mean())
        return float(probabilities[:, self.target].mean())
