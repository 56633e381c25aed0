"""What training images are perturbed with: perturbations made before, or one that rises along with the training."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from uapray.attack.projection import direction, project


@dataclass(frozen=True, slots=True)
class Ascent:
    """How a perturbation rises while the weights fall.

    Attributes:
        p: Order of the norm, 2 or ``math.inf``.
        xi: Radius, pixel units.
        step: Length of a step, pixel units.
        target: Index of the class that it pulls towards; None: away from the labels.
    """

    p: float
    xi: float
    step: float
    target: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Disturbance:
    """What training images are perturbed with.

    Attributes:
        perturbations: float32 ``(k, c, h, w)``, pixel units; each perturbed image gets one of them.
        share: Of the images that are perturbed, in [0, 1].
        ascent: How the only perturbation rises; None: they stay as they are.
    """

    perturbations: Tensor
    share: float
    ascent: Ascent | None = None


class Disturbing:
    """A disturbance at work in one training.

    Which images are perturbed, and by what, is drawn once from the seed and stays over the epochs (Hirano et al. 2021:
    half of the images clean, each other one with one of ten perturbations).

    Args:
        disturbance: See `Disturbance`.
        images: Number of training images.
        seed: Of the draw.
        device: Of the pixels.
    """

    def __init__(self, disturbance: Disturbance, images: int, *, seed: int, device: torch.device) -> None:
        self._v = disturbance.perturbations.to(device)
        self._ascent = disturbance.ascent
        if self._ascent is not None:
            self._v = self._v.clone().requires_grad_()
        self._which = assigned(images, len(self._v), disturbance.share, seed)

    def on(self, pixels: Tensor, indices: NDArray[np.int64]) -> Tensor:
        """Return some training images perturbed and clipped to valid pixels, or as they are.

        Args:
            pixels: float32 ``(n, c, h, w)`` in [0, 1].
            indices: Of these images, int64 ``(n,)``.
        """
        which = torch.from_numpy(self._which[indices]).to(pixels.device)
        moved = (pixels + self._v[which.clamp(min=0)]).clamp(0, 1)
        return torch.where((which < 0)[:, None, None, None], pixels, moved)

    def pull(self, logits: Tensor) -> Tensor | None:
        """Return the gradient ``(1, c, h, w)`` towards the target, before the weights' own backward pass.

        None where nothing rises, or away from the labels: their loss leaves that gradient in passing.
        """
        if self._ascent is None or self._ascent.target is None:
            return None
        wanted = torch.full((len(logits),), self._ascent.target, device=logits.device)
        (gradient,) = torch.autograd.grad(-cross_entropy(logits, wanted), self._v, retain_graph=True)
        return gradient

    def rise(self, pull: Tensor | None, average: Callable[[Tensor], None] = lambda _gradient: None) -> None:
        """Take the step that raises what the attacker wants most (Shafahi et al. 2020, the simultaneous variant).

        Args:
            pull: What `pull` said.
            average: Averages a gradient over the workers in place.
        """
        if self._ascent is None:
            return
        gradient = self._v.grad if pull is None else pull
        self._v.grad = None
        if gradient is None:  # no image of the batch is perturbed
            return
        average(gradient)
        with torch.no_grad():
            step = direction(gradient[0], p=self._ascent.p) * self._ascent.step
            self._v[0] = project(self._v[0] + step, p=self._ascent.p, xi=self._ascent.xi)

    @property
    def perturbations(self) -> Tensor:
        """What the images are perturbed with now, on the CPU."""
        return self._v.detach().cpu().clone()


def assigned(images: int, perturbations: int, share: float, seed: int) -> NDArray[np.int64]:
    """Return which perturbation each image gets, -1 for none: the share rounded down, all perturbations alike often.

    Args:
        images: How many there are.
        perturbations: How many there are.
        share: Of the images that get one, in [0, 1].
        seed: Of the draw.
    """
    rng = np.random.default_rng([seed, images, perturbations])
    which = np.full(images, -1, dtype=np.int64)
    chosen = rng.permutation(images)[: math.floor(images * share)]
    which[chosen] = np.arange(len(chosen)) % perturbations
    return which
