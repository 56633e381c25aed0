"""The Python interface: a perturbation, what it does, and a curve over its size, in one call each."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from uapray.answers import Evaluation, PerturbResult, ZetaCurve
from uapray.arena import Arena
from uapray.attack.control import random_perturbation
from uapray.attack.projection import norms, order
from uapray.config import (
    DEFAULT_RULE,
    USUAL_XI_FROM,
    Arithmetic,
    Budget,
    Precision,
    Search,
    Seed,
    Settings,
    Threat,
    nearest,
    parse,
)
from uapray.controls import judge_controls
from uapray.coordinator import Snapshot
from uapray.curves import ZETAS, curve_of, walk_order
from uapray.data.images import ImageSet, class_index
from uapray.errors import ConfigError
from uapray.filtered import filtered
from uapray.judgement import judge, judge_rendered
from uapray.models.card import Classifier, check_fits
from uapray.models.weights import load_for, wrap_module
from uapray.rendering import parse_rendering
from uapray.resources import Resources, open_pool
from uapray.trial import Found, find

PoolKind = Literal["local", "ray"]
Model = Classifier | nn.Module | str


def perturb(
    model: Model | Sequence[Model],
    images: ImageSet,
    *,
    rule: str = DEFAULT_RULE,
    norm: str = "linf",
    zeta: float | None = None,
    xi: float | None = None,
    xi_from: str = USUAL_XI_FROM,
    target: str | int | None = None,
    seed: int = 0,
    weights: Sequence[float] | None = None,
    filter: str | None = None,  # noqa: A002 (its name in grids and results)
    pool: PoolKind = "local",
    replicas: int = 1,
    gpus: float = 0.0,
    precision: str = "fp32",
    compiled: bool = False,
    watch: Callable[[Snapshot], None] = lambda _: None,
    **settings: Any,
) -> PerturbResult:
    """Search for one perturbation that fools a classifier, or several at once, on as many images as possible.

    Args:
        model: A classifier, a file of one, or any module from [0, 1] pixels ``(n, c, h, w)`` to logits; or several,
            whose gradients are added in their order, each brought to unit l1 length.
        images: The source images; a part of them, by patient, is kept to choose the best perturbation on.
        rule: One of ``uapray.config.RuleName``; docs/rules/ has a page on each.
        norm: ``linf`` or ``l2``.
        zeta: Radius as a share of the mean norm of the images; 0.04 if neither it nor ``xi`` is given.
        xi: Radius in pixel units instead.
        xi_from: Which norm zeta is a share of: that of ``whole-images``, or of their ``first-channel`` alone (Hirano et
            al. 2021, code); ``source-images`` are here the images.
        target: Class to be reached, by name or index; None: any other class.
        seed: Equal seeds give equal bits, on one replica or many.
        weights: Voice of each of several classifiers; None: one each.
        filter: What images go through before a classifier is asked, e.g. ``jpeg:50``; it is attacked through it. None:
            nothing.
        pool: ``local``: in this process; ``ray``: on the connected cluster, or on a Ray of its own.
        replicas: How many replicas of each classifier; with ``ray`` only.
        gpus: GPUs of a replica; with ``ray`` only.
        precision: In which gradients are taken: ``fp32``; ``tf32`` (GPUs); ``bf16``. Other precisions, other bits.
        compiled: Whether ``torch.compile`` makes the gradients; other bits, too.
        watch: Called as the search goes on.
        **settings: Names of ``uapray.config.Search`` and ``uapray.config.Budget``, e.g. ``max_epochs=2``.

    Raises:
        ConfigError: If a setting is unknown or out of range.
        ClassifierError: If the classifier does not fit the images.
        TrialError: If no perturbation came out.
    """
    zeta = 0.04 if zeta is None and xi is None else zeta
    index = target_index(images, target)
    name = None if index is None else images.class_names[index]
    radius = {"zeta": zeta, "xi": xi, "xi_from": xi_from}
    threat = parse(Threat, {"norm": norm, "target": name, **radius}, origin="perturb")
    search = search_settings(rule, settings)
    where = {"pool": pool, "replicas": replicas, "gpus": gpus, "seed": seed}
    call = parse(_Call, where | {"precision": precision, "compiled": compiled, "filter": filter}, origin="perturb")
    models = [model] if isinstance(model, Classifier | nn.Module | str) else list(model)
    voices = _voices(models, weights)
    with ExitStack() as opened:
        arenas = [opened.enter_context(_arena(one, {"train": images}, call)) for one in models]
        first, *others = (replace(arena, weight=weight) for arena, weight in zip(arenas, voices, strict=True))
        found = find(first, threat, search, seed=call.seed, others=others, watch=watch)
    return PerturbResult(
        perturbation=found.perturbation,
        xi=found.xi,
        validation_rate=found.validation_rate,
        source_fooling_rate=found.source_fooling_rate,
        history=found.history,
        image_gradients=found.image_gradients,
        image_queries=found.image_queries,
    )


def evaluate(
    model: Model,
    images: ImageSet,
    perturbation: Tensor | NDArray[np.floating[Any]],
    *,
    target: str | int | None = None,
    norm: str = "linf",
    filter: str | None = None,  # noqa: A002 (as above)
    pool: PoolKind = "local",
    replicas: int = 1,
    gpus: float = 0.0,
    control_seed: int = 0,
    controls: int = 19,
    control_images: int = 128,
    renderings: Sequence[str] = ("uint8",),
    watch: Callable[[float], None] = lambda _: None,
) -> Evaluation:
    """Judge a perturbation on images, after clipping to valid pixels, beside controls.

    Args:
        model: As in ``perturb``.
        images: Held-out images, for an honest figure.
        perturbation: ``(c, h, w)``, pixel units in [0, 1].
        target: Class whose success is asked for, by name or index.
        norm: In which the control is as large as the perturbation, ``linf`` or ``l2``.
        filter: As in ``perturb``; of a perturbation made without it, ``renderings`` tell the same.
        pool: As in ``perturb``.
        replicas: As in ``perturb``.
        gpus: As in ``perturb``.
        control_seed: Of all controls.
        controls: Draws of each kind of matched control: ``random``, ``signs``, ``permuted``, ``scrambled``. 19 can
            tell p = 0.05; 0 for none.
        control_images: Images that these are judged on at most, evenly spread, and the perturbation beside them.
        renderings: What images go through before the perturbation is judged once more: ``uint8``, ``jpeg:75``,
            ``resize:0.5``, or several joined with ``+``.
        watch: Called with the share of the draws done, in [0, 1].

    Raises:
        ConfigError: If the perturbation does not fit the images or is not finite, or a setting is out of range.
        ClassifierError: If the classifier does not fit the images.
    """
    v = perturbation.detach().cpu() if isinstance(perturbation, Tensor) else torch.tensor(perturbation)
    v = v.to(torch.float32)
    expected = (images.channels, *images.size)
    if tuple(v.shape) != expected:
        raise ConfigError(f"perturbation: expected (c, h, w) = {expected}, got {tuple(v.shape)}")
    if not torch.isfinite(v).all():
        raise ConfigError("perturbation: expected finite numbers, got NaN or infinity")
    index = target_index(images, target)
    call = parse(
        _Evaluate,
        {
            "pool": pool,
            "replicas": replicas,
            "gpus": gpus,
            "seed": control_seed,
            "controls": controls,
            "control_images": control_images,
            "filter": filter,
        },
        origin="evaluate",
    )
    rendered = [parse_rendering(one) for one in renderings]
    l2, linf = norms(v)
    noise = random_perturbation(expected, p=order(norm), xi=l2 if norm == "l2" else linf, seed=call.seed)
    with _arena(model, {"images": images}, call) as arena:
        judged = judge(arena, "images", v, target=index)
        return Evaluation(
            outcome=judged.outcome,
            control=judge(arena, "images", noise, target=index).outcome,
            controls=judge_controls(
                arena,
                "images",
                v,
                target=index,
                p=order(norm),
                draws=call.controls,
                max_images=call.control_images,
                seed=call.seed,
                watch=watch,
            ),
            renderings={str(one): judge_rendered(arena, "images", v, one) for one in rendered},
            visibility=judged.visibility,
            l2=l2,
            linf=linf,
            target=index,
            class_names=images.class_names,
        )


def zeta_curve(
    model: Model,
    source_images: ImageSet,
    test_images: ImageSet,
    *,
    zetas: Sequence[float] = ZETAS,
    xi_from: str = USUAL_XI_FROM,
    rule: str = DEFAULT_RULE,
    norm: str = "linf",
    target: str | int | None = None,
    seed: int = 0,
    pool: PoolKind = "local",
    replicas: int = 1,
    gpus: float = 0.0,
    precision: str = "fp32",
    compiled: bool = False,
    watch: Callable[[float, Snapshot], None] = lambda _zeta, _snapshot: None,
    **settings: Any,
) -> ZetaCurve:
    """Search for a perturbation of each radius, and say at which half of the held-out images are fooled.

    The first radius is searched in full; each other one continues from its neighbour's perturbation, so that a whole
    curve costs about as much as two searches. Rules that cannot continue search each radius in full.

    Args:
        model: As in ``perturb``.
        source_images: As in ``perturb``.
        test_images: Held-out images, for an honest figure.
        zetas: Radii as shares of the mean norm of the source images, at least two.
        xi_from: As in ``perturb``.
        rule: As in ``perturb``.
        norm: As in ``perturb``.
        target: As in ``perturb``; then images brought to the target are counted.
        seed: Of the searches and of the bootstrap.
        pool: As in ``perturb``.
        replicas: As in ``perturb``.
        gpus: As in ``perturb``.
        precision: As in ``perturb``.
        compiled: As in ``perturb``.
        watch: Called with the zeta and how its search goes on.
        **settings: As in ``perturb``, e.g. ``refine_epochs=0.5``.

    Raises:
        ConfigError: If a setting is unknown or out of range.
        ClassifierError: If the classifier does not fit the images.
        TrialError: If no perturbation came out.
    """
    index = target_index(source_images, target)
    name = None if index is None else source_images.class_names[index]
    rising = checked_zetas(zetas)
    threats = {
        zeta: parse(Threat, {"norm": norm, "target": name, "zeta": zeta, "xi_from": xi_from}, origin="zeta_curve")
        for zeta in rising
    }
    search = search_settings(rule, settings)
    where = {"pool": pool, "replicas": replicas, "gpus": gpus, "seed": seed}
    call = parse(_Call, where | {"precision": precision, "compiled": compiled}, origin="zeta_curve")
    with _arena(model, {"train": source_images, "test": test_images}, call) as arena:
        found: dict[float, Found] = {}
        for zeta, neighbour in walk_order(rising):
            begin_at = found[neighbour].perturbation if neighbour is not None and search.continues else None
            found[zeta] = find(
                arena, threats[zeta], search, seed=call.seed, begin_at=begin_at, watch=partial(watch, zeta)
            )
        outcomes = [judge(arena, "test", found[zeta].perturbation, target=index).outcome for zeta in rising]
    return ZetaCurve(
        zetas=rising,
        curve=curve_of(rising, outcomes, test_images.groups, target=index, seed=call.seed),
        outcomes=tuple(outcomes),
        perturbations=tuple(found[zeta].perturbation for zeta in rising),
        xis=tuple(found[zeta].xi for zeta in rising),
        image_gradients=sum(one.image_gradients for one in found.values()),
        image_queries=sum(one.image_queries for one in found.values()),
    )


def checked_zetas(zetas: Sequence[float]) -> tuple[float, ...]:
    """Return the zetas of a curve, rising and each once.

    Raises:
        ConfigError: If they are fewer than two, or not in (0, 1].
    """
    for zeta in zetas:
        if not 0 < zeta <= 1:
            raise ConfigError(f"zetas: expected shares in (0, 1], 0.04 for 4 %, got {zeta:g}")
    rising = tuple(sorted(set(map(float, zetas))))
    if len(rising) < 2:
        raise ConfigError(f"zetas: expected at least two, got {len(rising)}")
    return rising


def target_index(images: ImageSet, target: str | int | None) -> int | None:
    """Return a target class by index.

    Raises:
        ConfigError: If there is no such class.
    """
    if target is None or isinstance(target, str):
        return class_index(images.class_names, target)
    count = len(images.class_names)
    if isinstance(target, bool) or not isinstance(target, SupportsIndex) or not 0 <= target.__index__() < count:
        raise ConfigError(f"target: expected a class name or 0 to {count - 1}, got {target!r}")
    return target.__index__()


def _voices(models: Sequence[Model], weights: Sequence[float] | None) -> list[float]:
    if not models:
        raise ConfigError("model: expected a classifier or several, got an empty list")
    voices = [1.0] * len(models) if weights is None else list(weights)
    if len(voices) != len(models) or not all(0 < voice < math.inf for voice in voices):
        raise ConfigError(f"weights: expected {len(models)} numbers above 0, one a classifier, got {voices}")
    return voices


class _Call(Settings):
    """What a call may say of where it runs and what it draws."""

    pool: PoolKind
    replicas: int = Field(ge=1)
    gpus: float = Field(ge=0)
    seed: Seed
    precision: Precision = "fp32"
    compiled: bool = False
    filter: str | None = None

    @property
    def resources(self) -> Resources:
        return Resources(kind=self.pool, replicas=self.replicas, gpus=self.gpus)

    @property
    def arithmetic(self) -> Arithmetic:
        return Arithmetic(precision=self.precision, compiled=self.compiled)

    def behind_filter(self, classifier: Classifier) -> Classifier:
        return classifier if self.filter is None else filtered(classifier, parse_rendering(self.filter, "filter"))


class _Evaluate(_Call):
    """What an evaluation may be asked for besides."""

    controls: int = Field(ge=0)
    control_images: int = Field(gt=0)


def search_settings(rule: str, settings: dict[str, Any]) -> Search:
    """Return a rule's settings out of flat names, those of the budget among them.

    Raises:
        ConfigError: If a name or a value is none of them.
    """
    named = Search.model_fields.keys() - {"rule", "budget"}
    for name in settings:
        if name not in named and name not in Budget.model_fields:
            raise ConfigError(f"{rule}: unknown key '{name}'; {nearest(name, named | Budget.model_fields.keys())}")
    budget = {name: value for name, value in settings.items() if name in Budget.model_fields}
    other = {name: value for name, value in settings.items() if name in named}
    values: dict[str, Any] = {"rule": rule, **other}
    if budget:
        values["budget"] = budget
    return parse(Search, values, origin=rule)


def as_classifier(model: Model, images: ImageSet) -> Classifier:
    """Return a classifier that fits the images, out of whatever the user has."""
    if isinstance(model, Classifier):
        classifier = model
    elif isinstance(model, str):
        classifier = load_for(model, images)
    else:
        classifier = wrap_module(model, class_names=images.class_names, channels=images.channels, size=images.size)
    check_fits(classifier, images)
    return classifier


@contextmanager
def _arena(model: Model, images: dict[str, ImageSet], call: _Call) -> Iterator[Arena]:
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    were_training = [module for module in modules if module.training]
    try:
        classifier = call.behind_filter(as_classifier(model, next(iter(images.values()))))
        with ExitStack() as opened:
            if call.resources.kind == "ray":
                from uapray.on_ray.session import session

                opened.enter_context(session())
            yield Arena(
                opened.enter_context(open_pool(classifier, images, call.resources, arithmetic=call.arithmetic)), images
            )
    finally:
        for module in were_training:  # one by one: a batch norm may have been frozen by itself
            module.training = True
