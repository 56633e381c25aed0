"""A classifier behind a filter: what it predicts, what it is called, what an attacker sees."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_rendering import pictures, seeds
from torch import Tensor, nn
from victims import SmallCNN

from uapray.filtered import Filtered, filtered
from uapray.models.card import Card
from uapray.models.weights import make_classifier
from uapray.rendering import parse_rendering

FILTERS = ["jpeg:50", "bits:3", "median:3", "bilateral:0.1", "resize:0.5", "uint8+median:3"]


class Mean(nn.Module):
    """Two classes: dark and bright."""

    def forward(self, pixels: Tensor) -> Tensor:
        mean = pixels.mean((1, 2, 3))
        return torch.stack([-mean, mean], 1)


@given(st.sampled_from(FILTERS), seeds)
def test_it_predicts_of_the_rendered_pixels_and_an_attacker_sees_the_same(spec: str, seed: int) -> None:
    rendering, pixels = parse_rendering(spec), pictures(seed, 1)
    module = SmallCNN(channels=1, classes=3, seed=seed).eval()
    behind = Filtered(module, rendering)
    with torch.inference_mode():
        plain = behind(pixels)
        assert torch.equal(plain, module(rendering(pixels)))
    torch.testing.assert_close(behind(pixels.clone().requires_grad_()).detach(), plain.clone(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spec", FILTERS)
def test_whoever_knows_the_filter_finds_the_way_through(spec: str) -> None:
    pixels = pictures(1, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(Filtered(Mean(), parse_rendering(spec))(pixels)[:, 1].sum(), pixels)
    assert float(gradient.sum()) == pytest.approx(2, rel=0.1), "brighter pixels are brighter behind the filter"
    assert float((gradient >= 0).float().mean()) > 0.9


def test_its_hash_tells_the_filter_and_the_card_stays() -> None:
    card = Card(architecture="mine", class_names=("dark", "bright"), channels=1, size=(8, 8), initial_weights="random")
    bare = make_classifier(Mean(), card)
    behind = {filtered(bare, parse_rendering(spec)).sha256 for spec in FILTERS}
    assert len(behind | {bare.sha256}) == len(FILTERS) + 1
    assert filtered(bare, parse_rendering("jpeg:50")).card == card
