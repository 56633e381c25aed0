"""A classifier that filters its images first, as a defence; who attacks it attacks through the filter."""

import hashlib
from dataclasses import replace

from torch import Tensor, nn

from uapray.models.card import Classifier
from uapray.rendering import Rendering


class Filtered(nn.Module):
    """Classifies rendered pixels.

    What it predicts is of the pixels exactly as rendered. Gradients pass the filter as `Rendering.through` says: an
    attack that knows nothing of a filter proves nothing about it (Athalye et al. 2018).

    Args:
        classifier: Takes [0, 1] pixels ``(n, c, h, w)``, returns logits ``(n, k)``.
        rendering: What the pixels go through before.
    """

    def __init__(self, classifier: nn.Module, rendering: Rendering) -> None:
        super().__init__()
        self.classifier = classifier
        self.rendering = rendering
        self.channels = getattr(classifier, "channels", None)
        self.size = getattr(classifier, "size", None)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits ``(n, k)`` of [0, 1] pixels ``(n, c, h, w)``."""
        seen = self.rendering.through(pixels) if pixels.requires_grad else self.rendering(pixels)
        logits: Tensor = self.classifier(seen)
        return logits


def filtered(classifier: Classifier, rendering: Rendering) -> Classifier:
    """Return a classifier behind a filter; its hash says so."""
    digest = hashlib.sha256(f"{classifier.sha256}\0{rendering}".encode()).hexdigest()
    return replace(classifier, module=Filtered(classifier.module, rendering).eval(), sha256=digest)
