"""What one image contributes to a search, as functions of its logits. Each is to be made large."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, one_hot

Loss = Callable[[Tensor, Tensor], Tensor]

LOG_SHARE = 0.01  # of the logarithm beside the probability: docs/rules/aimed-ascent.md


def cross_entropy_away(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the cross-entropy against the given classes (Shafahi et al. 2020, eq. 3; their clamp is the objective's).

    Args:
        logits: ``(n, k)``.
        classes: int64 ``(n,)``.

    Returns:
        ``(n,)``, from 0.
    """
    return cross_entropy(logits, classes, reduction="none")


def margin_away(logits: Tensor, classes: Tensor) -> Tensor:
    """Return by how much the best other class leads the given one (Zhang et al. 2020, nontargeted loss).

    As in the authors' code the other class is taken as it stands: no gradient flows through it.

    Args:
        logits: ``(n, k)``.
        classes: int64 ``(n,)``.

    Returns:
        ``(n,)``, positive where the given class is left behind.
    """
    return _best_other(logits, classes) - _of(logits, classes)


def margin_towards(logits: Tensor, classes: Tensor) -> Tensor:
    """Return by how much the given class leads the best other one, which stands still (Zhang et al. 2020)."""
    return _of(logits, classes) - _best_other(logits, classes)


def cross_entropy_towards(logits: Tensor, classes: Tensor) -> Tensor:
    """Return minus the cross-entropy against the given classes, up to 0."""
    return -cross_entropy(logits, classes, reduction="none")


def cosine_away(logits: Tensor, clean: Tensor) -> Tensor:
    """Return minus the cosine between an image's logits and those of its clean self (Zhang et al. 2021).

    Args:
        logits: ``(n, k)``.
        clean: Logits of the clean images ``(n, k)``.

    Returns:
        ``(n,)`` in [-1, 1].
    """
    return -cosine_similarity(logits, clean.to(logits.dtype), dim=1)


def cosine_towards(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the cosine between an image's logits and the axis of the given class, in [-1, 1]."""
    return cosine_similarity(logits, one_hot(classes, logits.shape[1]).to(logits.dtype), dim=1)


def probability_away(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the probability of any class but the given one, in [0, 1] (Koga & Takemoto 2022)."""
    return 1 - probability_towards(logits, classes)


def probability_towards(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the probability of the given class, in [0, 1] (Koga & Takemoto 2022)."""
    return _of(logits.softmax(1), classes)


def probability_log_away(logits: Tensor, classes: Tensor) -> Tensor:
    """Return ``probability_away`` and a little of the cross-entropy, from 0; see `probability_log_towards`."""
    return probability_away(logits, classes) + LOG_SHARE * cross_entropy_away(logits, classes)


def probability_log_towards(logits: Tensor, classes: Tensor) -> Tensor:
    """Return ``probability_towards`` and a little of its logarithm, up to 1.

    A probability is what is judged by, and weighs an image by how near it is to the boundary. Far from it it has no
    slope, and none of them may be near: the logarithm still pulls then.
    """
    return probability_towards(logits, classes) + LOG_SHARE * cross_entropy_towards(logits, classes)


AWAY: Mapping[str, Loss] = {
    "cross-entropy": cross_entropy_away,
    "margin": margin_away,
    "cosine": cosine_away,
    "probability": probability_away,
    "probability-log": probability_log_away,
}
TOWARDS: Mapping[str, Loss] = {
    "cross-entropy": cross_entropy_towards,
    "margin": margin_towards,
    "cosine": cosine_towards,
    "probability": probability_towards,
    "probability-log": probability_log_towards,
}


def _of(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]


def _best_other(logits: Tensor, classes: Tensor) -> Tensor:
    others: Tensor = logits.detach().scatter(1, classes[:, None], -torch.inf).amax(1)
    return others
