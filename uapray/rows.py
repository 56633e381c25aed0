"""What a trial writes: plain rows for the tables of the store."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from uapray import __version__
from uapray.attack.projection import norms
from uapray.clinical import Estimate, Roles, clinical_readings
from uapray.controls import Controls
from uapray.curves import Curve
from uapray.data.images import ImageSet
from uapray.harden_step import Round
from uapray.judgement import Judgement
from uapray.measures import Outcome
from uapray.models.card import Classifier
from uapray.models.scores import sensitivity_and_specificity
from uapray.rendering import Rendering
from uapray.steps import TrialStep
from uapray.trial import Found
from uapray.victims import HardenStep, Victim

Row = dict[str, Any]

_FOOLED = ("fooling_rate", "fooling_rate_low", "fooling_rate_high", "targeted_success_rate_non_target")


@dataclass(frozen=True, slots=True)
class Circumstances:
    """Where and how long a search ran; not part of its identity.

    Attributes:
        wall_s: Seconds of the search.
        device: ``cpu`` or ``cuda``.
        replicas: How many replicas served the trial's classifier.
    """

    wall_s: float
    device: str
    replicas: int


def trial_row(
    step: TrialStep,
    classifier: Classifier,
    found: Found,
    judged: Judgement,
    ran: Circumstances,
    *,
    victim: Victim | None = None,
) -> Row:
    """Return the row of table ``trials`` for one split.

    Args:
        step: Whose perturbation was judged.
        classifier: That was judged.
        found: What the search found.
        judged: How it was judged.
        ran: The search.
        victim: The classifier's place in the plan; None: the one that the perturbation was made on.
    """
    outcome = judged.outcome
    of, control = victim or step.victim, step.search.rule == "random"
    l2, linf = norms(found.perturbation)
    return {
        **_judged(step, classifier),
        "classifier": of.name,
        "filter": None if of.filter is None else str(of.filter),
        "hardened": of.hardening,
        "frozen_blocks": None if of.train is None else of.train.recipe.frozen_blocks,
        "tuned": of.tuned,
        "made_on": None if control else step.victim.name,
        "source": None if control and step.threat.xi_from != "source-images" else step.source_name,
        "source_images": found.source_images,
        "rule": step.search.rule,
        "norm": step.threat.norm,
        "zeta": step.threat.zeta,
        "xi_from": None if step.threat.zeta is None else step.threat.xi_from,
        "xi": found.xi,
        "xi_grey": 255 * found.xi,
        "target": step.threat.target,
        "epsilon": found.epsilon,
        "seed": step.seed,
        "split": judged.split,
        **_rates(outcome, judged.target),
        "fooling_rate_ceiling": outcome.ceiling,
        "source_fooling_rate": found.source_fooling_rate,
        "dominant_label": classifier.card.class_names[outcome.dominant],
        "l2": l2,
        "linf": linf,
        "linf_grey": 255 * linf,
        "rms_grey": 255 * l2 / found.perturbation.numel() ** 0.5,
        "psnr": judged.visibility.psnr,
        "ssim": judged.visibility.ssim,
        "image_gradients": found.image_gradients,
        "image_queries": found.image_queries,
        "wall_s": ran.wall_s,
        "device": ran.device,
        "precision": None if step.gradients_in is None else str(step.gradients_in),
        "replicas": ran.replicas,
        "uapray_version": __version__,
        "finished_at": datetime.now(UTC),
    }


def _rates(outcome: Outcome, target: int | None) -> Row:
    """Return what tables ``trials`` and ``renderings`` say of predictions before and after."""
    low, high = outcome.fooling.interval
    non_target = None if target is None else outcome.towards_non_target(target)
    return {
        "images": outcome.images,
        "clean_accuracy": outcome.clean_accuracy,
        "robust_accuracy": outcome.robust_accuracy,
        "fooling_rate": outcome.fooling.share,
        "fooling_rate_low": low,
        "fooling_rate_high": high,
        "targeted_success_rate": None if target is None else outcome.towards(target).share,
        "targeted_success_rate_non_target": non_target.share if non_target and non_target.images else None,
    }


def rendering_row(trial_id: str, split: str, rendering: Rendering, outcome: Outcome, target: int | None) -> Row:
    """Return the row of table ``renderings`` for one split and rendering."""
    of = {"trial_id": trial_id, "split": split, "rendering": str(rendering)}
    return {**of, **_rates(outcome, target), "finished_at": datetime.now(UTC)}


def control_rows(trial_id: str, split: str, controls: Sequence[Controls]) -> list[Row]:
    """Return the rows of table ``controls`` for one split."""
    rows = []
    for one in controls:
        towards = one.targeted_success_rates_non_target
        rows.append(
            {
                "trial_id": trial_id,
                "split": split,
                "kind": one.kind,
                "draws": len(one.draws),
                "images": one.perturbation.images,
                "fooling_rate": one.perturbation.fooling.share,
                "control_fooling_rate": float(np.mean(one.fooling_rates)),
                "control_fooling_rate_max": max(one.fooling_rates),
                "targeted_success_rate_non_target": None if towards is None else one.rate.share,
                "control_targeted_success_rate_non_target": None if towards is None else float(np.mean(towards)),
                "control_targeted_success_rate_non_target_max": None if towards is None else max(towards),
                "p_value": one.p_value,
                "control_l2": one.l2,
                "control_linf": one.linf,
                "finished_at": datetime.now(UTC),
            }
        )
    return rows


def curve_row(step: TrialStep, classifier: Classifier, split: str, curve: Curve, found: Sequence[Found]) -> Row:
    """Return the row of table ``curves`` for one split.

    Args:
        step: The last trial of the curve.
        classifier: That was judged.
        split: That was judged.
        curve: The rates and where they cross.
        found: What the searches of the curve found.
    """
    half, half_of_ceiling = curve.zeta50, curve.zeta50_of_ceiling
    return {
        **_judged(step, classifier),
        "norm": step.threat.norm,
        "target": step.threat.target,
        "rule": step.search.rule,
        "seed": step.seed,
        "split": split,
        "images": curve.rates[0].images,
        "trial_ids": [trial.trial_id for trial in step.curve()],
        "zetas": list(curve.zetas),
        "xi_from": step.threat.xi_from,
        "rates": [rate.share for rate in curve.rates],
        "ceiling": curve.ceiling,
        "zeta50": half.zeta,
        "zeta50_low": half.low,
        "zeta50_high": half.high,
        "zeta50_of_ceiling": half_of_ceiling.zeta,
        "zeta50_of_ceiling_low": half_of_ceiling.low,
        "zeta50_of_ceiling_high": half_of_ceiling.high,
        "image_gradients": sum(one.image_gradients for one in found),
        "image_queries": sum(one.image_queries for one in found),
        "uapray_version": __version__,
        "finished_at": datetime.now(UTC),
    }


def hardening_row(victim: Victim, step: HardenStep, made: Round, split: str) -> Row:
    """Return the row of table ``hardening`` for one round and split.

    Args:
        victim: The hardened classifier's place in the plan.
        step: The round.
        made: What it gave.
        split: That was judged.
    """
    settings, card = step.settings, made.classifier.card
    before, after, known = made.before[split], made.after[split], made.known[split]
    of_before, of_after = _rates(before, made.target), _rates(after, made.target)
    towards = [_rates(one, made.target)["targeted_success_rate_non_target"] for one in known]
    return {
        "classifier_sha256": made.classifier.sha256,
        "undefended_sha256": made.undefended_sha256,
        "data": step.source.name,
        "data_sha256": step.source.data.sha256,
        "classifier": victim.name,
        "undefended": victim.undefended.name,
        "architecture": card.architecture,
        "method": settings.method,
        "round": step.round,
        "norm": settings.norm,
        "zeta": settings.zeta,
        "xi": made.xi,
        "target": settings.target,
        "rule": settings.rule.rule,
        "seed": settings.seed,
        "perturbations": len(known),
        "epochs": settings.recipe.epochs,
        "split": split,
        "images": after.images,
        "clean_accuracy_before": before.clean_accuracy,
        "clean_accuracy": after.clean_accuracy,
        **{f"{name}_before": of_before[name] for name in _FOOLED},
        **{name: of_after[name] for name in _FOOLED},
        "fooling_rate_ceiling": after.ceiling,
        "known_fooling_rate": float(np.mean([one.fooling.share for one in known])),
        "known_targeted_success_rate_non_target": None if None in towards else float(np.mean(towards)),
        "image_gradients": made.image_gradients,
        "image_queries": made.image_queries,
        "uapray_version": __version__,
        "finished_at": datetime.now(UTC),
    }


def class_rows(trial_id: str, judged: Judgement, class_names: Sequence[str]) -> list[Row]:
    """Return the rows of table ``classes``: one a class."""
    outcome = judged.outcome
    rows = []
    for index, name in enumerate(class_names):
        is_class = outcome.labels == index
        clean = sensitivity_and_specificity(is_class, outcome.clean == index)
        perturbed = sensitivity_and_specificity(is_class, outcome.perturbed == index)
        rows.append(
            {
                "trial_id": trial_id,
                "split": judged.split,
                "class_name": name,
                "images": int(is_class.sum()),
                "sensitivity_clean": clean[0],
                "sensitivity": perturbed[0],
                "specificity_clean": clean[1],
                "specificity": perturbed[1],
            }
        )
    return rows


def clinical_rows(trial_id: str, judged: Judgement, images: ImageSet, *, roles: Roles, seed: int) -> list[Row]:
    """Return the rows of table ``clinical``: one a measure and class."""
    from scipy.special import softmax  # seconds to import; not on the way to a replica

    clean, perturbed = (
        softmax(logits.astype(np.float64), axis=1) for logits in (judged.clean_logits, judged.perturbed_logits)
    )
    rows = []
    for one in clinical_readings(images.labels, clean, perturbed, images.groups, roles=roles, seed=seed):
        row: Row = {"trial_id": trial_id, "split": judged.split, "measure": one.measure}
        row["class_name"] = None if one.class_index is None else images.class_names[one.class_index]
        for name in ("clean", "perturbed", "change"):
            estimate: Estimate = getattr(one, name)
            row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        rows.append(row)
    return rows


def history_rows(trial_id: str, found: Found) -> list[Row]:
    """Return the rows of table ``history``."""
    return [{"trial_id": trial_id, **asdict(measured)} for measured in found.history]


def flow_rows(trial_id: str, judged: Judgement) -> list[Row]:
    """Return the rows of table ``flows``: who goes where."""
    names = ("label", "clean_prediction", "perturbed_prediction", "images")
    return [
        {"trial_id": trial_id, "split": judged.split, **dict(zip(names, way, strict=True))}
        for way in judged.outcome.flows()
    ]


def image_rows(trial_id: str, judged: Judgement, images: ImageSet) -> list[Row]:
    """Return the rows of table ``images``: one an image."""
    outcome = judged.outcome
    each = zip(images.ids, outcome.labels, outcome.clean, outcome.perturbed, strict=True)
    return [
        {
            "trial_id": trial_id,
            "split": judged.split,
            "id": name,
            "label": int(label),
            "clean_prediction": int(clean),
            "perturbed_prediction": int(perturbed),
        }
        for name, label, clean, perturbed in each
    ]


def example_rows(trial_id: str, judged: Judgement, images: ImageSet, perturbation: Tensor, count: int) -> Iterator[Row]:
    """Yield rows of table ``examples``: some images before and after, fooled ones of each class first."""
    outcome = judged.outcome
    noise = _png(_stretched(perturbation))
    for row in _telling(outcome.clean, outcome.perturbed, count):
        clean = images.images[row]
        moved = torch.from_numpy(clean.copy()).permute(2, 0, 1).float() / 255 + perturbation
        yield {
            "trial_id": trial_id,
            "split": judged.split,
            "id": images.ids[row],
            "label": int(outcome.labels[row]),
            "clean_prediction": int(outcome.clean[row]),
            "perturbed_prediction": int(outcome.perturbed[row]),
            "clean_png": _png(clean),
            "perturbed_png": _png((moved.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()),
            "perturbation_png": noise,
            "class_names": list(images.class_names),
        }


def found_metadata(found: Found, ran: Circumstances) -> dict[str, str]:
    """Return what is kept beside a perturbation, so that it can be judged again without a search."""
    values = {
        "xi": found.xi,
        "epsilon": found.epsilon,
        "image_gradients": found.image_gradients,
        "image_queries": found.image_queries,
        "source_images": found.source_images,
        "source_fooling_rate": found.source_fooling_rate,
        **asdict(ran),
    }
    return {name: "" if value is None else str(value) for name, value in values.items()}


def found_again(perturbation: Tensor, kept: Mapping[str, str]) -> tuple[Found, Circumstances]:
    """Return what ``found_metadata`` kept."""
    found = Found(
        perturbation=perturbation,
        xi=float(kept["xi"]),
        epsilon=float(kept["epsilon"]) if kept["epsilon"] else None,
        history=(),
        image_gradients=int(kept["image_gradients"]),
        image_queries=int(kept["image_queries"]),
        source_images=int(kept["source_images"]),
        source_fooling_rate=float(kept["source_fooling_rate"]) if kept.get("source_fooling_rate") else None,
    )
    return found, Circumstances(float(kept["wall_s"]), kept["device"], int(kept["replicas"]))


def _telling(clean: NDArray[np.int64], perturbed: NDArray[np.int64], count: int) -> list[int]:
    """Return the images that show most: in turn from each clean class, fooled ones before the others."""
    queues = []
    for label in np.unique(clean):
        of_class = np.flatnonzero(clean == label)
        fooled = perturbed[of_class] != label
        queues.append([*of_class[fooled], *of_class[~fooled]])
    longest = max((len(queue) for queue in queues), default=0)
    in_turn = [int(queue[place]) for place in range(min(longest, count)) for queue in queues if place < len(queue)]
    return in_turn[:count]


def _stretched(perturbation: Tensor) -> NDArray[np.uint8]:
    """Return the perturbation as a picture: zero is mid-grey, the largest pixel black or white."""
    peak = float(perturbation.abs().max()) or 1.0
    grey = (perturbation / peak * 127.5 + 127.5).round().byte()
    return grey.permute(1, 2, 0).numpy()


def _png(pixels: NDArray[np.uint8]) -> bytes:
    body = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(body, "PNG")
    return body.getvalue()


def _judged(step: TrialStep, classifier: Classifier) -> Row:
    """Return which trial a row is of, and what was judged."""
    return {
        "trial_id": step.trial_id,
        "data": step.source.name,
        "data_sha256": step.source.data.sha256,
        "classifier": step.victim.name,
        "architecture": classifier.card.architecture,
        "initial_weights": classifier.card.initial_weights,
        "classifier_sha256": classifier.sha256,
    }
