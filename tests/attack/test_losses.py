import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from uapray.attack.losses import AWAY, LOG_SHARE, TOWARDS, cosine_away, cosine_towards, margin_away, margin_towards
from uapray.attack.objective import Objective

seeds = st.integers(0, 10_000)
sizes = st.tuples(st.integers(1, 6), st.integers(2, 5))


def drawn(seed: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, generator=generator, dtype=torch.float64) * 3
    return logits, torch.randint(size[1], (size[0],), generator=generator)


@given(seeds, sizes)
def test_a_margin_is_positive_exactly_where_the_prediction_is_changed_or_reached(
    seed: int, size: tuple[int, int]
) -> None:
    logits, classes = drawn(seed, size)
    assert torch.equal(margin_away(logits, classes) > 0, logits.argmax(1) != classes)
    assert torch.equal(margin_towards(logits, classes) > 0, logits.argmax(1) == classes)
    assert torch.equal(margin_away(logits, classes), -margin_towards(logits, classes))


@given(seeds, sizes)
def test_a_margin_moves_the_logit_in_question_alone(seed: int, size: tuple[int, int]) -> None:
    logits, classes = drawn(seed, size)
    for loss, slope in ((margin_away, -1.0), (margin_towards, 1.0)):
        leaf = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf, classes).sum(), leaf)
        assert torch.equal(gradient, slope * torch.nn.functional.one_hot(classes, size[1]).double())


@given(seeds, sizes)
def test_cosines_lie_between_their_ends(seed: int, size: tuple[int, int]) -> None:
    logits, classes = drawn(seed, size)
    torch.testing.assert_close(cosine_away(logits, logits), -torch.ones(size[0], dtype=torch.float64))
    torch.testing.assert_close(cosine_away(logits, -2 * logits), torch.ones(size[0], dtype=torch.float64))
    aimed = 5 * torch.nn.functional.one_hot(classes, size[1]).double()
    torch.testing.assert_close(cosine_towards(aimed, classes), torch.ones(size[0], dtype=torch.float64))
    assert (cosine_towards(logits, classes).abs() <= 1 + 1e-12).all()


@pytest.mark.parametrize("loss", ["cross-entropy", "margin", "probability", "probability-log"])
@given(seed=seeds, size=sizes)
def test_up_a_loss_is_up_the_certainty(loss: str, seed: int, size: tuple[int, int]) -> None:
    """A small step along the gradient of the gain raises the probability that the objective is reached."""
    logits, classes = drawn(seed, (1, size[1]))
    for objective in (Objective(loss=loss), Objective(seed % size[1], loss)):
        leaf = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective.gain(leaf, classes).sum(), leaf)
        moved = logits + 1e-4 * gradient
        assert objective.certainty(moved, classes) >= objective.certainty(logits, classes) - 1e-12


@given(seed=seeds, size=sizes, clamp=st.sampled_from([0.1, 1.0, 5.0]))
def test_beyond_the_clamp_an_image_pulls_no_more(seed: int, size: tuple[int, int], clamp: float) -> None:
    logits, classes = drawn(seed, size)
    for loss in ("cross-entropy", "margin"):
        free, held = Objective(None, loss), Objective(None, loss, clamp)
        gains = free.gain(logits, classes)
        assert torch.equal(held.gain(logits, classes), gains.clamp(max=clamp))
        leaf = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(held.gain(leaf, classes).sum(), leaf)
        assert not gradient[gains > clamp].any()
        assert gradient[gains < clamp].any(1).all()


@pytest.mark.parametrize(
    ("loss", "pulls"), [("probability", False), ("probability-log", True), ("cross-entropy", True)]
)
def test_an_image_far_from_the_target_still_pulls(loss: str, pulls: bool) -> None:
    far = torch.tensor([[0.0, 300.0]], requires_grad=True)  # in float32 the probability of class 0 is 0
    (gradient,) = torch.autograd.grad(TOWARDS[loss](far, torch.tensor([0])).sum(), far)
    assert (gradient[0, 0] > 0) == pulls


@given(seed=seeds, size=sizes)
def test_a_probability_with_a_little_of_its_logarithm(seed: int, size: tuple[int, int]) -> None:
    logits, classes = drawn(seed, size)
    for losses in (AWAY, TOWARDS):
        probability, log = losses["probability"](logits, classes), losses["cross-entropy"](logits, classes)
        torch.testing.assert_close(losses["probability-log"](logits, classes), probability + LOG_SHARE * log)


def test_every_loss_has_both_directions() -> None:
    assert AWAY.keys() == TOWARDS.keys()
