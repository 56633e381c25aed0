"""What the perturbation is to raise, image by image."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


@dataclass(frozen=True, slots=True)
class Objective:
    """Away from the clean prediction, or towards one class for all images.

    Attributes:
        target: Index of the class to be reached; None for a nontargeted search.
    """

    target: int | None = None

    def gain(self, logits: Tensor, reference: Tensor) -> Tensor:
        """Return what each image contributes, to be made large.

        Nontargeted: the cross-entropy against the reference (Shafahi et al. 2020, eq. 3, without their clamp,
        which made no difference in our measurements). Targeted: minus the cross-entropy against the target.

        Args:
            logits: ``(n, k)``.
            reference: The classes predicted for the clean images, int64 ``(n,)``; not used when targeted.

        Returns:
            Gains ``(n,)``.
        """
        if self.target is None:
            return cross_entropy(logits, reference, reduction="none")
        goal = torch.full((len(logits),), self.target, dtype=torch.int64, device=logits.device)
        return -cross_entropy(logits, goal, reduction="none")

    def certainty(self, logits: Tensor, reference: Tensor) -> float:
        """Return the mean probability that the objective is reached, in [0, 1].

        That is the probability of any class but the reference, or of the target. It tells better than a rate
        which of two perturbations is the stronger one where few images are asked.

        Args:
            logits: ``(n, k)``.
            reference: As in ``gain``.
        """
        probabilities = logits.double().softmax(1)
        if self.target is None:
            return 1 - float(probabilities.gather(1, reference[:, None]).mean())
        return float(probabilities[:, self.target].mean())
