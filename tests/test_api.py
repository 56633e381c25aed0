import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from victims import (
    CLASS_NAMES,
    HEIGHT,
    WIDTH,
    Constant,
    Linear,
    SmallCNN,
    grey_levels,
    image_set,
    noise,
    targeted_victim,
    two_class,
)

import uapray
from uapray.api import search_settings
from uapray.config import Budget, Search
from uapray.coordinator import Snapshot
from uapray.errors import ClassifierError, ConfigError, DataError, UaprayError
from uapray.filtered import Filtered
from uapray.models.weights import wrap_module
from uapray.rendering import parse_rendering

SHAPE = (1, HEIGHT, WIDTH)
QUICK: dict[str, Any] = {"batch_size": 8, "round_size": 8, "max_epochs": 1}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("rule", ["spgd", "sga", "random"])
def test_perturb_then_evaluate(rule: str, norm: str) -> None:
    images = image_set(60, classes=3)
    result = uapray.perturb(SmallCNN(), images, rule=rule, norm=norm, zeta=0.1, **QUICK)
    assert result.perturbation.shape == SHAPE
    assert result.perturbation.dtype == torch.float32
    evaluation = uapray.evaluate(SmallCNN(), images, result.perturbation)
    assert (evaluation.l2 if norm == "l2" else evaluation.linf) <= result.xi * (1 + 1e-6)
    assert 0 <= evaluation.fooling_rate_low <= evaluation.fooling_rate <= evaluation.fooling_rate_high <= 1
    assert evaluation.fooling_rate == evaluation.outcome.fooling.hits / 60
    assert evaluation.dominant_label in CLASS_NAMES
    assert evaluation.targeted_success_rate is None
    assert evaluation.targeted_success_rate_non_target is None
    if rule == "random":
        assert (result.validation_rate, result.history) == (None, ())
    else:
        assert result.validation_rate == max(row.fooling_rate for row in result.history)


def test_the_defaults_beat_the_control_on_a_linear_victim() -> None:
    images = image_set(100)
    victim = two_class(images.images, share=0.5)
    result = uapray.perturb(victim.module, images)
    assert result.xi == pytest.approx(0.04 * np.mean(images.images.max((1, 2, 3)) / 255))
    evaluation = uapray.evaluate(victim.module, images, result.perturbation)
    assert evaluation.outcome.fooling.hits == max(victim.fooled(images.images, "linf", result.xi))
    assert evaluation.control_fooling_rate < 0.4 * evaluation.fooling_rate


@pytest.mark.parametrize("target", [CLASS_NAMES[1], 1])
def test_a_target_is_a_name_or_an_index(target: str | int) -> None:
    images = image_set(60, classes=3)
    victim, towards = targeted_victim(images.images, 1, "linf")
    result = uapray.perturb(victim, images, xi=0.01, target=target, **QUICK)
    torch.testing.assert_close(result.perturbation, 0.01 * towards, rtol=0, atol=1e-8)
    evaluation = uapray.evaluate(victim, images, result.perturbation, target=target)
    assert evaluation.targeted_success_rate == np.mean(evaluation.outcome.perturbed == 1)
    others = evaluation.outcome.clean != 1
    assert evaluation.targeted_success_rate_non_target == np.mean(evaluation.outcome.perturbed[others] == 1)


def test_controls_and_renderings_stand_beside_the_perturbation() -> None:
    images = image_set(100)
    victim = two_class(images.images, share=0.5)
    v, seen = victim.best("linf", 0.05), []
    asked: dict[str, Any] = {"renderings": ("uint8", "jpeg:30", "jpeg:30"), "control_images": 60}
    found = uapray.evaluate(victim.module, images, v, watch=seen.append, **asked)
    assert [one.kind for one in found.controls] == ["random", "signs", "permuted", "scrambled"]
    assert all(len(one.draws) == 19 and one.perturbation.images == 60 for one in found.controls)
    assert [one.p_value for one in found.controls if one.kind in ("random", "signs")] == [0.05, 0.05]
    assert list(found.renderings) == ["uint8", "jpeg:30"]
    assert found.renderings["uint8"].clean.tolist() == found.outcome.clean.tolist()
    assert found.renderings["jpeg:30"].clean.tolist() != found.outcome.clean.tolist()
    assert seen[-1] == 1
    none = uapray.evaluate(victim.module, images, v, controls=0, renderings=())
    assert (none.controls, dict(none.renderings)) == ((), {})
    assert none.outcome.perturbed.tolist() == found.outcome.perturbed.tolist()
    again = uapray.evaluate(victim.module, images, v, control_seed=1, controls=3)
    assert again.controls[1].fooling_rates != found.controls[1].fooling_rates[:3]


@pytest.mark.parametrize("wrong", [{"controls": -1}, {"control_images": 0}, {"renderings": ("png",)}])
def test_each_wrong_judging_gets_its_sentence(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=name.removesuffix("s")):
        uapray.evaluate(SmallCNN(), image_set(20, classes=3), torch.zeros(SHAPE), **wrong)


def test_nothing_added_fools_nobody() -> None:
    images = image_set(30, classes=3)
    evaluation = uapray.evaluate(SmallCNN(), images, torch.zeros(SHAPE))
    assert evaluation.fooling_rate == evaluation.control_fooling_rate == 0
    assert (evaluation.l2, evaluation.linf) == (0, 0)
    assert (evaluation.visibility.psnr, evaluation.visibility.ssim) == (None, 1)
    assert evaluation.clean_accuracy == evaluation.robust_accuracy


def test_a_perturbation_may_be_of_numpy_or_torch() -> None:
    images = image_set(30, classes=3)
    v = noise(0, scale=0.2)
    turned = np.asfortranarray(v.numpy())
    turned.flags.writeable = False
    kinds = [v, v.numpy(), v.double().numpy(), v.clone().requires_grad_(), turned, v.numpy().tolist()]
    outcomes = [uapray.evaluate(SmallCNN(seed=5), images, kind).outcome.perturbed.tolist() for kind in kinds]
    assert len(set(map(tuple, outcomes))) == 1
    assert outcomes[0] != uapray.evaluate(SmallCNN(seed=5), images, 0 * v).outcome.perturbed.tolist()


def test_a_filter_is_attacked_through_and_judged_behind() -> None:
    images, module = image_set(40, classes=3), SmallCNN()
    behind = Filtered(module, parse_rendering("bits:2"))
    one, other = uapray.perturb(module, images, filter="bits:2", **QUICK), uapray.perturb(behind, images, **QUICK)
    assert torch.equal(one.perturbation, other.perturbation)
    assert not torch.equal(one.perturbation, uapray.perturb(module, images, **QUICK).perturbation)
    asked: dict[str, Any] = {"controls": 0, "renderings": ()}
    judged = uapray.evaluate(module, images, one.perturbation, filter="bits:2", **asked)
    assert judged.outcome.clean.tolist() == uapray.evaluate(behind, images, one.perturbation).outcome.clean.tolist()
    bare = uapray.evaluate(module, images, one.perturbation, renderings=("bits:2",), controls=0)
    assert judged.outcome.perturbed.tolist() == bare.renderings["bits:2"].perturbed.tolist()


def test_a_wrong_filter_gets_its_sentence() -> None:
    images = image_set(20, classes=3)
    for call in (uapray.perturb, partial(uapray.evaluate, perturbation=torch.zeros(SHAPE))):
        with pytest.raises(ConfigError, match=r"^filter: expected uint8, bits:4"):
            call(SmallCNN(), images, filter="blur:3")


def test_a_module_and_its_classifier_give_the_same() -> None:
    images = image_set(40, classes=3)
    classifier = wrap_module(SmallCNN(), class_names=images.class_names, channels=1, size=images.size)
    one, other = (uapray.perturb(model, images, **QUICK).perturbation for model in (SmallCNN(), classifier))
    assert torch.equal(one, other)


def test_colour_images_have_colour_perturbations() -> None:
    images = image_set(30, channels=3, classes=3)
    result = uapray.perturb(SmallCNN(channels=3), images, **QUICK)
    assert result.perturbation.shape == (3, HEIGHT, WIDTH)


def test_the_same_seed_gives_the_same_bits() -> None:
    images = image_set(60, classes=3)
    bits = [uapray.perturb(SmallCNN(), images, seed=seed, **QUICK).perturbation for seed in (0, 0, 1)]
    assert torch.equal(bits[0], bits[1])
    assert not torch.equal(bits[0], bits[2])


def test_the_module_and_the_images_stay_as_they_were() -> None:
    images, module = image_set(40, classes=3), SmallCNN()
    pixels = images.images.copy()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    result = uapray.perturb(module, images, **QUICK)
    uapray.evaluate(module, images, result.perturbation)
    assert np.array_equal(images.images, pixels)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())


def test_settings_have_flat_names() -> None:
    assert search_settings("sga", {"starts": 2, "max_epochs": 3, "stop_rate": 0.5}) == Search(
        rule="sga", starts=2, budget=Budget(max_epochs=3, stop_rate=0.5)
    )
    assert search_settings("aimed-ascent", {}) == Search()


def test_one_can_watch() -> None:
    seen: list[Snapshot] = []
    result = uapray.perturb(SmallCNN(), image_set(30, classes=3), watch=seen.append, **QUICK)
    assert tuple(row for snapshot in seen for row in snapshot.measured) == result.history


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"bach_size": 8}, "unknown key 'bach_size'; did you mean 'batch_size'?"),
        ({"max_epoch": 8}, "unknown key 'max_epoch'; did you mean 'max_epochs'?"),
        ({"rule": "sgpd"}, "unknown 'sgpd'; did you mean 'spgd'?"),
        ({"norm": "l1"}, "unknown 'l1'; known: l2, linf"),
        ({"zeta": 4}, "zeta"),
        ({"xi": -1}, "xi"),
        ({"zeta": 0.04, "xi": 0.1}, "either zeta or xi"),
        ({"target": "CAT"}, "target: expected one of CLEAR, OPACITY, EFFUSION, got 'CAT'"),
        ({"target": 3}, "target"),
        ({"target": -1}, "target"),
        ({"starts": 0}, "starts"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"pool": "lokal"}, "pool"),
    ],
)
def test_each_wrong_setting_of_a_search_gets_its_sentence(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        uapray.perturb(SmallCNN(), image_set(20, classes=3), **settings)
    assert text in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("perturbation", "text"),
    [
        (torch.zeros(HEIGHT, WIDTH), r"expected \(c, h, w\) = \(1, 8, 7\), got \(8, 7\)"),
        (torch.zeros(3, HEIGHT, WIDTH), r"expected \(c, h, w\) = \(1, 8, 7\), got \(3, 8, 7\)"),
        (torch.zeros(1, WIDTH, HEIGHT), r"got \(1, 7, 8\)"),
        (np.zeros((HEIGHT, WIDTH, 1)), r"got \(8, 7, 1\)"),
        (torch.full(SHAPE, math.nan), "finite"),
        (torch.full(SHAPE, math.inf), "finite"),
        (np.full(SHAPE, 1e300), "finite"),
    ],
)
def test_each_wrong_perturbation_gets_its_sentence(perturbation: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        uapray.evaluate(SmallCNN(), image_set(20, classes=3), perturbation)


@pytest.mark.parametrize("target", ["CAT", 3, -1])
def test_an_unknown_target_is_not_evaluated(target: str | int) -> None:
    with pytest.raises(ConfigError, match="target"):
        uapray.evaluate(SmallCNN(), image_set(20, classes=3), torch.zeros(SHAPE), target=target)


def test_images_of_other_channels_classes_or_size_are_refused() -> None:
    classifier = wrap_module(SmallCNN(), class_names=CLASS_NAMES[:3], channels=1, size=(HEIGHT, WIDTH))
    with pytest.raises(ClassifierError, match="expected 1 channel as SmallCNN takes, got 3 channels"):
        uapray.perturb(classifier, image_set(20, channels=3, classes=3))
    with pytest.raises(ClassifierError, match="expected the classes of SmallCNN"):
        uapray.perturb(classifier, image_set(20, classes=2))
    with pytest.raises(ClassifierError, match="expected 2 logits"):
        uapray.perturb(SmallCNN(), image_set(20, classes=2))
    with pytest.raises(ClassifierError, match="expected images of channels 1, which it takes, got 3"):
        uapray.evaluate(SmallCNN(), image_set(20, channels=3, classes=3), torch.zeros(3, HEIGHT, WIDTH))


@pytest.mark.parametrize(
    "weight", [torch.full((2, *SHAPE), math.nan), torch.full((2, *SHAPE), math.inf), torch.zeros(1, *SHAPE)]
)
def test_a_module_that_gives_no_logits_is_refused(weight: torch.Tensor) -> None:
    module = Linear(weight, torch.zeros(len(weight)))
    with pytest.raises(ClassifierError, match=r"expected .*logits"):
        uapray.perturb(module, image_set(20))


def test_a_constant_module_is_said_to_have_no_gradients() -> None:
    with pytest.raises(UaprayError, match="gradient"):
        uapray.perturb(Constant(), image_set(20))


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_are_said_to_be(count: int) -> None:
    with pytest.raises(DataError):
        uapray.perturb(SmallCNN(classes=2), image_set(count))


def test_no_images_cannot_be_evaluated() -> None:
    with pytest.raises(UaprayError, match="image"):
        uapray.evaluate(SmallCNN(classes=2), image_set(0), torch.zeros(SHAPE))


@pytest.mark.parametrize(("count", "classes"), [(2, 2), (3, 2), (6, 2), (7, 3)])
@pytest.mark.parametrize("rule", ["spgd", "sga"])
def test_few_images_are_enough(rule: str, count: int, classes: int) -> None:
    result = uapray.perturb(SmallCNN(classes=classes), image_set(count, classes=classes), rule=rule, inner_rounds=1)
    assert result.image_gradients > 0
    assert result.perturbation.isfinite().all()
    evaluation = uapray.evaluate(SmallCNN(classes=classes), image_set(count, classes=classes), result.perturbation)
    assert evaluation.outcome.images == count


def test_images_that_are_black_and_white_only_can_be_perturbed() -> None:
    pixels = np.where(grey_levels(40) > 128, 255, 0).astype(np.uint8)
    result = uapray.perturb(SmallCNN(classes=2), image_set(40, pixels=pixels), zeta=0.1, **QUICK)
    assert float(result.perturbation.abs().max()) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"budget": {"max_epochs": 1}}, "unknown key 'budget'"),
        ({"seed": -1}, "seed"),
        ({"seed": "a"}, "seed"),
        ({"replicas": 0}, "replicas"),
        ({"gpus": -1}, "gpus"),
        ({"pool": "cluster"}, "unknown 'cluster'; known: local, ray"),
        ({"target": True}, "expected a class name or 0 to 1, got True"),
        ({"target": 2}, "expected a class name or 0 to 1, got 2"),
    ],
)
def test_each_wrong_argument_gets_its_sentence(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        uapray.perturb(SmallCNN(classes=2), image_set(40), **(QUICK | wrong))
    assert said in str(caught.value)


def test_a_target_may_be_a_number_of_numpy() -> None:
    images = image_set(40)
    one, other = (
        uapray.perturb(SmallCNN(classes=2), images, target=target, **QUICK).perturbation for target in (1, np.int64(1))
    )
    assert torch.equal(one, other)


def test_no_images_are_refused() -> None:
    with pytest.raises(DataError, match="expected images, got none"):
        uapray.perturb(SmallCNN(classes=2), image_set(40).select(np.arange(0)), xi=0.1)


def test_a_module_is_left_in_the_mode_it_was_in_part_by_part() -> None:
    module = SmallCNN(classes=2).train()
    module.norm.eval()
    uapray.perturb(module, image_set(40), **QUICK)
    assert module.training
    assert module.first.training
    assert not module.norm.training
    with pytest.raises(ClassifierError):
        uapray.perturb(module, image_set(40, classes=3), **QUICK)
    assert module.training


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_curve_of_a_linear_victim_is_what_arithmetic_says(norm: str) -> None:
    images = image_set(100)
    victim = two_class(images.images, share=0.2)
    zetas = (0.02, 0.05, 0.1) if norm == "linf" else (0.01, 0.02, 0.04)
    seen: set[float] = set()
    curve = uapray.zeta_curve(
        victim.module, images, images, zetas=zetas, norm=norm, watch=lambda zeta, _: seen.add(zeta), **QUICK
    )
    assert seen == set(zetas)
    expected = [max(victim.fooled(images.images, norm, xi)) for xi in curve.xis]
    hits = [rate.hits for rate in curve.rates]
    # on the sphere a few steps come near the best direction, in the cube they reach it
    assert hits == expected if norm == "linf" else np.abs(np.subtract(hits, expected)).max() <= 1
    assert curve.curve.ceiling == pytest.approx(0.8)
    at = np.interp(50, [0, *hits], [0, *zetas]) if hits[-1] >= 50 else None
    assert curve.zeta50 == (at if at is None else pytest.approx(at))
    low, high = curve.interval
    assert curve.zeta50 is None or low <= curve.zeta50
    assert high is None or low <= high
    alone = [uapray.perturb(victim.module, images, norm=norm, zeta=zeta, **QUICK) for zeta in zetas]
    assert curve.image_gradients < sum(one.image_gradients for one in alone)
    assert [one.xi for one in alone] == list(curve.xis)


def test_a_targeted_curve_counts_what_comes_to_the_target() -> None:
    images = image_set(80, channels=3, classes=3)
    victim, _ = targeted_victim(images.images, 1, "linf")
    curve = uapray.zeta_curve(victim, images, images, zetas=(0.02, 0.01), target=1, rule="spgd", **QUICK)
    assert curve.zetas == (0.01, 0.02)
    for rate, outcome in zip(curve.rates, curve.outcomes, strict=True):
        assert rate.hits == outcome.towards_non_target(1).hits


@pytest.mark.parametrize(("zetas", "said"), [((0.02,), "at least two, got 1"), ((0.02, 4), r"in \(0, 1\].* got 4")])
def test_zetas_that_are_no_curve_get_their_sentence(zetas: tuple[float, ...], said: str) -> None:
    images = image_set(20)
    with pytest.raises(ConfigError, match=said):
        uapray.zeta_curve(SmallCNN(classes=2), images, images, zetas=zetas)


def test_a_curve_of_random_draws_costs_nothing() -> None:
    images = image_set(30)
    curve = uapray.zeta_curve(SmallCNN(classes=2), images, images, zetas=(0.02, 0.04), rule="random")
    assert curve.image_gradients == 0
    assert len({float(v.abs().max()) for v in curve.perturbations}) == 2


# Several classifiers at once


def test_a_perturbation_can_be_made_on_several_classifiers() -> None:
    images = image_set(60, classes=3)
    one, other = SmallCNN(seed=1), SmallCNN(seed=2)
    single = uapray.perturb(one, images, xi=0.1, max_epochs=1)
    both = uapray.perturb([one, other], images, xi=0.1, max_epochs=1)
    again = uapray.perturb([one, other], images, xi=0.1, max_epochs=1, weights=[1, 1])
    assert torch.equal(both.perturbation, again.perturbation)
    assert both.image_gradients == 2 * single.image_gradients
    assert not torch.equal(both.perturbation, single.perturbation)
    rates = [uapray.evaluate(model, images, both.perturbation, controls=0).fooling_rate for model in (one, other)]
    assert both.source_fooling_rate == pytest.approx(np.mean(rates), abs=0.2)
    assert torch.equal(uapray.perturb([one], images, xi=0.1, max_epochs=1).perturbation, single.perturbation)


@pytest.mark.parametrize(
    ("models", "weights", "said"),
    [
        (0, None, "expected a classifier or several, got an empty list"),
        (2, [1], "expected 2 numbers above 0, one a classifier, got [1]"),
        (2, [1, 0], "expected 2 numbers above 0"),
        (2, [1, float("nan")], "expected 2 numbers above 0"),
    ],
)
def test_wrong_lists_of_classifiers_get_their_sentence(models: int, weights: list[float] | None, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        uapray.perturb([SmallCNN() for _ in range(models)], image_set(20, classes=3), xi=0.1, weights=weights)
    assert said in str(caught.value)
