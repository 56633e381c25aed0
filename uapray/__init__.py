"""uapray measures how easily one universal perturbation fools a medical-image classifier.

The names below are the Python interface; each is loaded when it is first used, so that ``import uapray`` and
``uapray --help`` stay quick.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uapray.answers import Evaluation as Evaluation
    from uapray.answers import PerturbResult as PerturbResult
    from uapray.answers import ZetaCurve as ZetaCurve
    from uapray.api import evaluate as evaluate
    from uapray.api import perturb as perturb
    from uapray.api import zeta_curve as zeta_curve
    from uapray.data.dataset import load_images as load_images
    from uapray.data.images import ImageSet as ImageSet
    from uapray.models.weights import load_classifier as load_classifier

_HOMES = {
    "Evaluation": "uapray.answers",
    "ImageSet": "uapray.data.images",
    "PerturbResult": "uapray.answers",
    "ZetaCurve": "uapray.answers",
    "evaluate": "uapray.api",
    "load_classifier": "uapray.models.weights",
    "load_images": "uapray.data.dataset",
    "perturb": "uapray.api",
    "zeta_curve": "uapray.api",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("uapray")
    if name not in _HOMES:
        raise AttributeError(f"module 'uapray' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
