import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from victims import Constant, Linear, NotANumber, SmallCNN, grey_levels, noise, targeted_victim, two_class, unit_pixels

from uapray.attack.projection import length
from uapray.attack.sequential import AT_FIRST, WORST_CASE, Ahead, Visit, Visiting, visit
from uapray.attack.steps import Forward, Increments, InnerStep, deepfool, deepfool_gradients, sign_step
from uapray.errors import TrialError

orders = st.sampled_from([2.0, math.inf])
seeds = st.integers(0, 10_000)
targets = st.sampled_from([None, 0, 1, 2])
aheads = st.builds(Ahead, st.integers(1, 20), st.integers(1, 20))
mosts = st.sampled_from([1, 2, 5, 16])
SHAPE = (1, 8, 7)
XI = {2.0: 0.3, math.inf: 0.06}
EPSILON = 0.01
SIGN = partial(sign_step, epsilon=EPSILON)


def victim(seed: int) -> nn.Module:
    """Return a small net that predicts all of its classes, in double precision: no rounding decides a sign."""
    return SmallCNN(seed=5 + seed % 2).double()


def pictures(seed: int, count: int = 24) -> Tensor:
    return unit_pixels(grey_levels(count, low=0, high=255, seed=seed)).double()


def classes(forward: Forward, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return forward(pixels).argmax(1)


def seen(module: nn.Module, *, clip: bool) -> Forward:
    return (lambda pixels: module(pixels.clamp(0, 1))) if clip else module


def plain_sign(module: nn.Module, z: Tensor, current: int, target: int | None, *, clip: bool) -> Tensor:
    """Return the sign step of one image, written down a second time."""
    at = (z.clamp(0, 1) if clip else z)[None].requires_grad_()
    goal = current if target is None else target
    logit = module(at)[0].log_softmax(0)[goal]
    (gradient,) = torch.autograd.grad(logit, at)
    inside = (z >= 0) & (z <= 1) if clip else torch.ones_like(z)
    return EPSILON * (gradient[0].sign() * inside) * (-1 if target is None else 1)


def projected(v: Tensor, p: float) -> Tensor:
    return v.clamp(-XI[p], XI[p]) if p == math.inf else v * min(1.0, XI[p] / max(float(v.norm()), 1e-12))


def one_by_one(
    forward: Forward,
    step: Callable[[Tensor, int], Tensor],
    images: Tensor,
    clean: Tensor,
    v: Tensor,
    p: float,
    target: int | None,
) -> tuple[Tensor, list[int]]:
    """Visit images as the papers say, for comparison only; return the perturbation and whose steps were accepted."""
    accepted = []
    for place, image in enumerate(images):
        current = int(classes(forward, (image + v)[None]))
        if current == target or (target is None and current != clean[place]):
            continue
        moved = v + step(image + v, current)
        after = int(classes(forward, (image + moved)[None]))
        if after == target or (target is None and after != current):
            v = projected(moved, p)
            accepted.append(place)
    return v, accepted


# The same as one by one


@given(seeds, orders, targets, st.booleans(), mosts, aheads)
def test_looking_ahead_accepts_the_sign_steps_of_a_plain_loop(
    seed: int, p: float, target: int | None, clip: bool, most: int, ahead: Ahead
) -> None:
    module, images = victim(seed), pictures(seed)
    forward, clean, v = seen(module, clip=clip), classes(module, images), noise(seed, SHAPE, 0.01).double()
    expected, accepted = one_by_one(
        forward, lambda z, current: plain_sign(module, z, current, target, clip=clip), images, clean, v, p, target
    )
    came = visit(forward, images, clean, v, Visiting(SIGN, p, XI[p], target, clip, most), ahead)
    assert list(came.accepted) == accepted
    torch.testing.assert_close(came.v, expected, rtol=0, atol=1e-6)


@given(seeds, orders, targets, mosts, aheads)
def test_looking_ahead_accepts_the_shortest_steps_of_a_plain_loop(
    seed: int, p: float, target: int | None, most: int, ahead: Ahead
) -> None:
    module, images = victim(seed), pictures(seed, 10)
    clean, v = classes(module, images), noise(seed, SHAPE, 0.01).double()
    step = partial(deepfool, p=p, overshoot=0.02, max_steps=4)

    def alone(z: Tensor, current: int) -> Tensor:
        return step(module, z[None], torch.tensor([current]), target).steps[0]

    expected, accepted = one_by_one(module, alone, images, clean, v, p, target)
    came = visit(module, images, clean, v, Visiting(step, p, XI[p], target, clip=False, most=most), ahead)
    assert list(came.accepted) == accepted
    torch.testing.assert_close(came.v, expected, rtol=0, atol=1e-6)


def test_what_is_compared_above_does_accept_steps_and_pass_images_by() -> None:
    shares = []
    for seed in range(10):
        module, images = victim(seed), pictures(seed)
        how = Visiting(SIGN, math.inf, XI[math.inf], None, clip=True, most=16)
        came = visit(seen(module, clip=True), images, classes(module, images), torch.zeros(SHAPE), how)
        shares.append(len(came.accepted) / len(images))
    assert 0.05 < sum(shares) / len(shares) < 0.6


@given(seeds, orders, targets, st.sampled_from(["fgsm", "deepfool"]))
def test_the_same_visit_gives_the_same_bits_inside_the_ball(seed: int, p: float, target: int | None, rule: str) -> None:
    module, images, v = victim(seed).float(), pictures(seed, 12).float(), noise(seed, SHAPE, 0.01)
    step: InnerStep = SIGN if rule == "fgsm" else partial(deepfool, p=p, overshoot=0.02, max_steps=3)
    how = Visiting(step, p, XI[p], target, clip=False, most=4)
    before = v.clone()
    first, second = (visit(module, images, classes(module, images), v, how) for _ in range(2))
    assert torch.equal(first.v, second.v)
    assert (first.accepted, first.image_gradients, first.image_queries, first.ahead) == (
        second.accepted,
        second.image_gradients,
        second.image_queries,
        second.ahead,
    )
    assert torch.equal(v, before)
    assert not first.accepted or length(first.v, p=p) <= XI[p] * (1 + 1e-6)


# What it costs


@dataclass
class Counted:
    """A classifier that counts the images that it is asked about, with and without gradient."""

    forward: Forward
    gradients: int = 0
    queries: int = 0

    def __call__(self, pixels: Tensor) -> Tensor:
        if pixels.requires_grad:
            self.gradients += len(pixels)
        else:
            self.queries += len(pixels)
        return self.forward(pixels)


@given(st.lists(st.sampled_from(["fooled", "stands", "flips"]), max_size=150), st.integers(1, 40))
def test_looking_ahead_costs_at_most_three_times_as_much_as_going_one_by_one(kinds: list[str], most: int) -> None:
    """Whatever the images, which here are one number each: they decide by themselves whether a step changes them."""
    images = torch.tensor([["fooled", "stands", "flips"].index(kind) for kind in kinds]).float().view(-1, 1, 1, 1)

    def forward(pixels: Tensor) -> Tensor:  # two classes; the second from 2.5 on
        return (torch.tensor([2.5, 0.0]) + pixels.flatten(1) * torch.tensor([0.0, 1.0])).clone()

    def step(ask: Forward, z: Tensor, _current: Tensor, _target: int | None) -> Increments:
        ask(z.detach().requires_grad_())
        return Increments(torch.where(z > 1.5, 1.0, 0.0), len(z), 0)

    counted, reference = Counted(forward), (images.flatten() == 0).long()
    # In a ball of radius zero no accepted step fools another image: the worst that can be.
    came = visit(counted, images, reference, torch.zeros(1, 1, 1), Visiting(step, math.inf, 0.0, None, False, most))
    assert list(came.accepted) == [place for place, kind in enumerate(kinds) if kind == "flips"]
    assert (came.image_gradients, came.image_queries) == (counted.gradients, counted.queries)
    assert came.image_gradients <= WORST_CASE * sum(kind != "fooled" for kind in kinds)
    assert came.image_queries <= WORST_CASE * 2 * len(kinds)
    assert max(came.ahead.look, came.ahead.tries) <= most


@given(seeds, targets, st.integers(1, 4))
def test_every_gradient_and_query_of_deepfool_is_counted(seed: int, target: int | None, max_steps: int) -> None:
    module, images = victim(seed), pictures(seed, 8)
    counted, current = Counted(module), classes(module, images)
    rest = current != (-1 if target is None else target)
    assume(rest.any())
    made = deepfool(counted, images[rest], current[rest], target, p=2, overshoot=0.02, max_steps=max_steps)
    each = deepfool_gradients(3, targeted=target is not None)
    assert made.image_gradients == each * counted.gradients <= each * max_steps * int(rest.sum())
    assert made.image_queries == counted.queries <= (max_steps - 1) * int(rest.sum())


@pytest.mark.parametrize(
    ("classes", "targeted", "expected"), [(2, False, 1), (7, False, 6), (99, False, 9), (7, True, 1)]
)
def test_gradients_of_one_linearisation(classes: int, targeted: bool, expected: int) -> None:
    assert deepfool_gradients(classes, targeted=targeted) == expected


def test_images_that_are_fooled_cost_one_query_each() -> None:
    module, images = victim(0), pictures(0)
    how = Visiting(SIGN, 2.0, 1.0, None, clip=False, most=16)
    came = visit(module, images, classes(module, images) + 1, torch.zeros(SHAPE), how)
    assert (came.accepted, came.image_gradients, came.image_queries) == ((), 0, len(images))
    assert came.ahead == Ahead(16, 1)
    assert not came.v.any()


def test_no_image_is_no_visit() -> None:
    how = Visiting(SIGN, 2.0, 1.0, None, clip=False, most=16)
    came = visit(victim(0), torch.zeros(0, *SHAPE), torch.zeros(0), torch.ones(SHAPE), how)
    assert (came.accepted, came.image_gradients, came.image_queries) == ((), 0, 0)
    assert came.ahead == AT_FIRST
    assert torch.equal(came.v, torch.ones(SHAPE))


# Known answers


@pytest.mark.parametrize("p", [2.0, math.inf])
def test_of_a_linear_victim_the_step_of_deepfool_is_the_distance_to_the_boundary(p: float) -> None:
    images = grey_levels(40)
    plain = two_class(images, share=0.5)
    pixels, scores = unit_pixels(images), torch.from_numpy(plain.scores(images))
    made = deepfool(plain.module, pixels, (scores > 0).long(), None, p=p, overshoot=0.1, max_steps=3)
    norm = plain.w.norm() if p == 2 else plain.w.abs().sum()
    towards = plain.w / norm if p == 2 else plain.w.sign()
    expected = -1.1 * (scores / norm).float()[:, None, None, None] * towards
    torch.testing.assert_close(made.steps, expected, rtol=1e-3, atol=1e-5)
    assert torch.equal(classes(plain.module, pixels + made.steps), (scores < 0).long())


@given(seeds, orders, st.integers(3, 12))
def test_of_several_linear_boundaries_the_nearest_is_crossed(seed: int, p: float, count: int) -> None:
    weight, bias = noise(seed, (count, 1, 2, 3)), noise(seed + 1, (count,), 0.1)
    module, image = Linear(weight, bias), noise(seed + 2, (1, 1, 2, 3))
    current = classes(module, image)
    made = deepfool(module, image, current, None, p=p, overshoot=0.0, max_steps=1)
    logits, (c,) = module(image)[0].detach().double(), current.tolist()
    others = sorted((k for k in range(count) if k != c), key=lambda k: -float(logits[k]))[:9]
    q = 2.0 if p == 2 else 1.0
    distances = [float((logits[c] - logits[k]) / (weight[c] - weight[k]).double().norm(q)) for k in others]
    assert float(made.steps.double().norm(p)) == pytest.approx(min(distances), rel=1e-3, abs=1e-5)
    reached = module(image + made.steps)[0].detach().topk(2).values
    assert float(reached[0] - reached[1]) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("target", [0, 1, 2])
@pytest.mark.parametrize(("norm", "p"), [("l2", 2.0), ("linf", math.inf)])
def test_a_targeted_step_of_deepfool_heads_to_the_target(norm: str, p: float, target: int) -> None:
    images = grey_levels(40)
    module, towards = targeted_victim(images, target, norm)
    pixels = unit_pixels(images)
    before = classes(module, pixels)
    away = before != target
    made = deepfool(module, pixels[away], before[away], target, p=p, overshoot=0.05, max_steps=5)
    assert (classes(module, pixels[away] + made.steps) == target).all()
    along = (made.steps * towards).sum((1, 2, 3)) / towards.norm() ** 2
    torch.testing.assert_close(made.steps, along[:, None, None, None] * towards, rtol=0, atol=1e-5)
    assert (along > 0).all()


@pytest.mark.parametrize("target", [None, 0, 1])
def test_sign_steps_of_a_linear_victim_go_along_its_weights(target: int | None) -> None:
    images = grey_levels(20)
    plain = two_class(images, share=0.5)
    pixels, current = unit_pixels(images), torch.from_numpy((plain.scores(images) > 0).astype("int64"))
    made = sign_step(plain.module, pixels, current, target, epsilon=EPSILON)
    upwards = 1 - 2 * current if target is None else torch.full_like(current, 2 * target - 1)
    assert torch.equal(made.steps, EPSILON * upwards[:, None, None, None] * plain.w.sign())
    assert (made.image_gradients, made.image_queries) == (20, 0)


def test_a_classifier_without_slope_takes_no_step() -> None:
    flat = Linear(torch.zeros(3, *SHAPE), torch.tensor([0.0, 2.0, 1.0]))
    made = deepfool(flat, torch.zeros(4, *SHAPE), torch.ones(4, dtype=torch.int64), None, p=2, overshoot=1, max_steps=2)
    assert not made.steps.any()


# What cannot be visited


def visited(module: nn.Module, step: InnerStep) -> Visit:
    images = unit_pixels(grey_levels(6))
    return visit(module, images, torch.zeros(6).long(), torch.zeros(SHAPE), Visiting(step, 2.0, 1.0, None, False, 4))


@pytest.mark.parametrize("step", [SIGN, partial(deepfool, p=2.0, overshoot=0.02, max_steps=3)])
def test_a_classifier_that_does_not_look_or_does_not_answer_is_refused(step: InnerStep) -> None:
    with pytest.raises(TrialError, match="do not depend on the pixels"):
        visited(Constant(), step)
    with pytest.raises(TrialError, match="expected finite logits, got NaN or infinity for 1 of 1 images"):
        visited(NotANumber(SmallCNN(), 0.0), step)
