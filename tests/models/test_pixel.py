import pytest
import torch
from torch import nn

from uapray.models.pixel import PixelModel


def test_normalises_and_widens_grey_pixels() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    pixels = torch.rand(2, 1, 5, 4)
    seen = PixelModel(nn.Identity(), mean, std, 1)(pixels)
    assert seen.shape == (2, 3, 5, 4)
    for channel in range(3):
        torch.testing.assert_close(seen[:, channel], (pixels[:, 0] - mean[channel]) / std[channel])


def test_a_grey_perturbation_gets_the_sum_of_the_channels_gradients() -> None:
    pixels = torch.rand(2, 1, 5, 4, requires_grad=True)
    PixelModel(nn.Identity(), (0, 0, 0), (1, 0.5, 0.25), 1)(pixels).sum().backward()
    torch.testing.assert_close(pixels.grad, torch.full_like(pixels, 7.0))


def test_refuses_colour_for_grey_rather_than_broadcast_it() -> None:
    model = PixelModel(nn.Identity(), (0.0,), (1.0,), 1)
    with pytest.raises(ValueError, match="expected 1 channels"):
        model(torch.rand(2, 3, 5, 4))


def test_normalisation_is_part_of_the_weights() -> None:
    assert set(PixelModel(nn.Identity(), (0.5,), (0.25,), 1).state_dict()) == {"mean", "std"}
