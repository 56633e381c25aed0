import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uapray.attack.objective import Objective

seeds = st.integers(0, 10_000)
sizes = st.tuples(st.integers(1, 6), st.integers(2, 5))
scales = st.sampled_from([0.1, 1.0, 50.0])


def drawn(seed: int, size: tuple[int, int], scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, generator=generator, dtype=torch.float64) * scale
    return logits, torch.randint(size[1], (size[0],), generator=generator)


@given(seeds, sizes, scales)
def test_nontargeted_gain_is_the_cross_entropy_of_the_clean_prediction(
    seed: int, size: tuple[int, int], scale: float
) -> None:
    logits, reference = drawn(seed, size, scale)
    expected = torch.logsumexp(logits, 1) - logits[torch.arange(size[0]), reference]
    torch.testing.assert_close(Objective().gain(logits, reference), expected)


@given(seeds, sizes, scales)
def test_targeted_gain_is_minus_the_cross_entropy_of_the_target(seed: int, size: tuple[int, int], scale: float) -> None:
    logits, _ = drawn(seed, size, scale)
    target = seed % size[1]
    expected = logits[:, target] - torch.logsumexp(logits, 1)
    torch.testing.assert_close(Objective(target).gain(logits, torch.empty(0)), expected)


@given(seeds, sizes, scales, st.booleans())
def test_gradient_pushes_probability_from_the_reference_or_to_the_target(
    seed: int, size: tuple[int, int], scale: float, targeted: bool
) -> None:
    logits, reference = drawn(seed, size, scale)
    objective = Objective(seed % size[1]) if targeted else Objective()
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective.gain(leaf, reference).sum(), leaf)
    wanted = torch.full_like(reference, seed % size[1]) if targeted else reference
    one_hot = torch.nn.functional.one_hot(wanted, size[1])
    expected = torch.softmax(logits, 1) - one_hot
    torch.testing.assert_close(gradient, -expected if targeted else expected)


def test_the_gain_of_a_sure_wrong_prediction_has_no_ceiling() -> None:
    logits, reference = torch.tensor([[100.0, 0.0], [0.0, 100.0]]), torch.tensor([1, 1])
    assert Objective().gain(logits, reference).tolist() == pytest.approx([100, 0])
