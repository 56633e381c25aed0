"""Clean metrics of a classifier, with intervals."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from uapray.data.images import ImageSet
from uapray.models.card import Classifier


@dataclass(frozen=True, slots=True)
class ClassScores:
    """One class against the rest. None where there is nothing to divide by.

    Attributes:
        class_name: Its name.
        images: Images of this class.
        accuracy: Share of all images that are rightly put in or left out of the class.
        sensitivity: Share of its images that are found.
        specificity: Share of the others that are left out.
        auc: Area under the ROC curve of its probability.
    """

    class_name: str
    images: int
    accuracy: float
    sensitivity: float | None
    specificity: float | None
    auc: float | None


@dataclass(frozen=True, slots=True)
class Scores:
    """Clean metrics on one split.

    Attributes:
        images: Number of images.
        accuracy: Share of right predictions.
        accuracy_low: Lower end of its 95 % Wilson interval.
        accuracy_high: Upper end.
        balanced_accuracy: Mean sensitivity of the classes that occur.
        specificity: Mean specificity of the classes; None if only one class occurs.
        auc: Mean area under the ROC curve of the classes, each against the rest; None if only one occurs.
        classes: In the order of the logits.
    """

    images: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    balanced_accuracy: float
    specificity: float | None
    auc: float | None
    classes: tuple[ClassScores, ...]

    def plain(self) -> dict[str, Any]:
        """Return plain data, for a card."""
        return asdict(self)


def predict_probabilities(
    module: nn.Module, images: ImageSet, *, batch_size: int = 64, device: str | torch.device = "cpu"
) -> NDArray[np.float64]:
    """Return the probabilities of the classes, float64 ``(n, k)``; the module's mode is left as it was."""
    training = module.training
    module.eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            grey = torch.tensor(images.images[start : start + batch_size]).to(device)
            logits = module(grey.permute(0, 3, 1, 2).float().div_(255))
            parts.append(logits.double().softmax(1).cpu().numpy())
    module.train(training)
    return np.concatenate(parts)


def score(labels: NDArray[np.int64], probabilities: NDArray[np.float64], class_names: Sequence[str]) -> Scores:
    """Compare predictions with labels.

    Args:
        labels: ``(n,)``, at least one.
        probabilities: ``(n, k)``; the largest is the prediction.
        class_names: ``k`` of them.
    """
    count = len(labels)
    assert count > 0, "no images to score"
    assert probabilities.shape == (count, len(class_names))
    predictions = probabilities.argmax(1)
    right = int((predictions == labels).sum())
    from scipy.stats import binomtest  # seconds to import; not on the way to a training worker

    interval = binomtest(right, count).proportion_ci(confidence_level=0.95, method="wilson")
    classes = tuple(
        _score_class(name, labels == index, predictions == index, probabilities[:, index])
        for index, name in enumerate(class_names)
    )
    balanced = _mean([each.sensitivity for each in classes])
    assert balanced is not None
    return Scores(
        images=count,
        accuracy=right / count,
        accuracy_low=float(interval.low),
        accuracy_high=float(interval.high),
        balanced_accuracy=balanced,
        specificity=_mean([each.specificity for each in classes if each.images]),
        auc=_mean([each.auc for each in classes]),
        classes=classes,
    )


def sensitivity_and_specificity(
    is_class: NDArray[np.bool_], said_class: NDArray[np.bool_]
) -> tuple[float | None, float | None]:
    """Return which share of a class is found, and which share of the others is left out; None of no images.

    Args:
        is_class: Whether an image is of the class, bool ``(n,)``.
        said_class: Whether it is predicted as the class, bool ``(n,)``.
    """
    return _share(said_class[is_class]), _share(~said_class[~is_class])


def score_classifier(
    classifier: Classifier, images: ImageSet, *, batch_size: int = 64, device: str | torch.device = "cpu"
) -> Scores:
    """Score a classifier on an image set that fits it (`uapray.models.card.check_fits`)."""
    probabilities = predict_probabilities(classifier.module, images, batch_size=batch_size, device=device)
    return score(images.labels, probabilities, classifier.card.class_names)


def classifier_rows(classifier: Classifier, scores: Scores, *, split: str) -> list[dict[str, Any]]:
    """Return rows of the table ``classifiers``: one a class, then one for all with class name None.

    In the row for all, sensitivity, specificity and AUC are means over the classes.
    """
    card = classifier.card
    common = {
        "classifier_sha256": classifier.sha256,
        "architecture": card.architecture,
        "data_sha256": card.data_sha256,
        "initial_weights": card.initial_weights,
        "recipe": json.dumps(card.recipe, sort_keys=True),
        "split": split,
    }
    whole = {
        "class_name": None,
        "images": scores.images,
        "accuracy": scores.accuracy,
        "sensitivity": scores.balanced_accuracy,
        "specificity": scores.specificity,
        "auc": scores.auc,
    }
    return [{**common, **asdict(each)} for each in scores.classes] + [{**common, **whole}]


def _score_class(
    name: str, is_class: NDArray[np.bool_], said_class: NDArray[np.bool_], probability: NDArray[np.float64]
) -> ClassScores:
    from sklearn.metrics import roc_auc_score

    both = bool(is_class.any() and not is_class.all())
    sensitivity, specificity = sensitivity_and_specificity(is_class, said_class)
    return ClassScores(
        class_name=name,
        images=int(is_class.sum()),
        accuracy=float((is_class == said_class).mean()),
        sensitivity=sensitivity,
        specificity=specificity,
        auc=float(roc_auc_score(is_class, probability)) if both and np.isfinite(probability).all() else None,
    )


def _share(hits: NDArray[np.bool_]) -> float | None:
    return float(hits.mean()) if len(hits) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return math.fsum(known) / len(known) if known else None
