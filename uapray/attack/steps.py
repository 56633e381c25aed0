"""Inner steps of the sequential rules: from single images towards another class."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from uapray.errors import TrialError

MOST_RIVALS = 9  # DeepFool's authors look at the ten likeliest classes, the present one among them
NO_MORE = 0.05  # share of the overshoot; without it half of the images creep along the boundary to the last step

Forward = Callable[[Tensor], Tensor]


class Increments(NamedTuple):
    """What inner steps came to.

    Attributes:
        steps: One an image, float32 ``(n, c, h, w)``.
        image_gradients: Spent on them.
        image_queries: Spent on them.
    """

    steps: Tensor
    image_gradients: int
    image_queries: int


# From the classifier, images ``(n, c, h, w)``, their predicted classes ``(n,)`` and the target, if any.
InnerStep = Callable[[Forward, Tensor, Tensor, int | None], Increments]


def sign_step(forward: Forward, images: Tensor, current: Tensor, target: int | None, *, epsilon: float) -> Increments:
    """Return fast gradient sign steps, away from the predicted class or towards the target (Hirano et al. 2021).

    A sign step whatever the norm of the ball, as published.

    Args:
        forward: Pixels to logits.
        images: Where the steps begin, ``(n, c, h, w)``.
        current: Their predicted classes, int64 ``(n,)``.
        target: Class to be reached; None: any other.
        epsilon: Length of the step in every pixel, pixel units.
    """
    goal, signed = (current, epsilon) if target is None else (torch.full_like(current, target), -epsilon)
    pixels, logits = _differentiable(forward, images)
    (gradient,) = torch.autograd.grad(cross_entropy(logits, goal, reduction="sum"), pixels)
    return Increments(signed * gradient.sign(), len(images), 0)


def deepfool(
    forward: Forward,
    images: Tensor,
    current: Tensor,
    target: int | None,
    *,
    p: float,
    overshoot: float,
    max_steps: int,
) -> Increments:
    """Return the shortest steps across a class boundary (Moosavi-Dezfooli et al. 2016, algorithm 2 and section 3.3).

    The classifier is taken as linear time and again until the class changes; the sum is then made longer by the
    overshoot. Targeted: only the boundary between the present class and the target is looked at. We depart from the
    paper where a sum has come up to the boundary: a further step that is small against the overshoot is the last.

    Args:
        forward: Pixels to logits.
        images: Where the steps begin, ``(n, c, h, w)``.
        current: Their predicted classes, int64 ``(n,)``.
        target: Class to be reached; None: any other.
        p: Order of the norm in which a step is short.
        overshoot: How much longer than needed, as a share.
        max_steps: Linearisations at most.
    """
    total, active = torch.zeros_like(images), torch.arange(len(images), device=images.device)
    gradients = queries = 0
    for left in reversed(range(max_steps)):
        pixels, logits = _differentiable(forward, images[active] + total[active])
        gaps = _gaps(logits, current[active], target)
        nearer = _shortest(pixels, gaps, p)
        total[active] += nearer
        gradients += len(active) * gaps.shape[1]
        if left:
            classes = classes_of(forward, images[active] + total[active])
            queries += len(active)
            far = _sizes(nearer) > NO_MORE * overshoot * _sizes(total[active])
            active = active[far & ~reached(classes, current[active], target)]
        if not len(active):
            break
    return Increments(total.mul_(1 + overshoot), gradients, queries)


def deepfool_gradients(classes: int, *, targeted: bool) -> int:
    """Return how many gradients of an image one linearisation takes."""
    return 1 if targeted else min(classes - 1, MOST_RIVALS)


def classes_of(forward: Forward, pixels: Tensor) -> Tensor:
    """Return the predicted classes, int64 ``(n,)``.

    Raises:
        TrialError: If a logit is not finite.
    """
    with torch.no_grad():
        return _finite(forward(pixels)).argmax(1)


def reached(classes: Tensor, before: Tensor, target: int | None) -> Tensor:
    """Return which images are where they are to be: in another class than before, or in the target."""
    return classes != before if target is None else classes == target


def _differentiable(forward: Forward, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pixels that gradients are taken of, and their logits."""
    pixels = images.detach().requires_grad_()
    logits = _finite(forward(pixels))
    if not logits.requires_grad:
        raise TrialError("the classifier's logits do not depend on the pixels, so there is no gradient")
    return pixels, logits


def _finite(logits: Tensor) -> Tensor:
    finite = torch.isfinite(logits).all(1)
    if not finite.all():
        bad = int((~finite).sum())
        raise TrialError(f"expected finite logits, got NaN or infinity for {bad} of {len(logits)} images")
    return logits


def _gaps(logits: Tensor, current: Tensor, target: int | None) -> Tensor:
    """Return by how much each image's present class leads its rivals, ``(n, rivals)``."""
    if target is not None:
        rest = logits.clone()
        rest[:, target] = -torch.inf
        return rest.gather(1, rest.argmax(1, keepdim=True)) - logits[:, target, None]
    others = logits.detach().scatter(1, current[:, None], -torch.inf)
    rivals = others.topk(min(logits.shape[1] - 1, MOST_RIVALS), dim=1).indices
    return logits.gather(1, current[:, None]) - logits.gather(1, rivals)


def _sizes(steps: Tensor) -> Tensor:
    sizes: Tensor = torch.linalg.vector_norm(steps, dim=(1, 2, 3))
    return sizes


def _shortest(pixels: Tensor, gaps: Tensor, p: float) -> Tensor:
    """Return each image's shortest step to the nearest boundary of the linearised classifier.

    Along the gradient w of a gap f the boundary is |f| / ||w||_q away, where 1/p + 1/q = 1; no gradient, no step.
    """
    shortest = torch.full((len(pixels), 1, 1, 1), torch.inf, device=pixels.device)
    steps = torch.zeros_like(pixels)
    for gap in gaps.unbind(1):
        (slope,) = torch.autograd.grad(gap.sum(), pixels, retain_graph=True)
        dual = torch.linalg.vector_norm(slope, ord=2 if p == 2 else 1, dim=(1, 2, 3), keepdim=True)
        distance = torch.where(dual > 0, gap.detach().abs()[:, None, None, None] / dual, torch.inf)
        along = -(slope / dual if p == 2 else slope.sign())
        nearer = (distance < shortest) & distance.isfinite()
        steps = torch.where(nearer, distance * along, steps)
        shortest = torch.where(nearer, distance, shortest)
    return steps
