import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uapray.models.augmentation import draw_motions, move
from uapray.models.recipe import Recipe


def motions(recipe: Recipe, seed: int = 0, count: int = 8, size: tuple[int, int] = (24, 32)) -> torch.Tensor:
    return draw_motions(recipe, count, size, torch.Generator().manual_seed(seed))


def test_no_motion_is_the_same_picture() -> None:
    pixels = torch.rand(8, 3, 24, 32)
    still = motions(Recipe(rotation_degrees=0, shift_share=0))
    torch.testing.assert_close(move(pixels, still), pixels, atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 90), st.floats(0, 0.3), st.integers(0, 99))
def test_turns_and_shifts_stay_within_their_limits(degrees: float, share: float, seed: int) -> None:
    drawn = motions(Recipe(rotation_degrees=degrees, shift_share=share), seed)
    # In pixels of a 24 x 32 picture the matrix is a pure rotation.
    angle = torch.atan2(drawn[:, 1, 0] * 24 / 32, drawn[:, 0, 0])
    assert angle.abs().max() <= math.radians(degrees) + 1e-5
    assert drawn[:, :, 2].abs().max() <= 2 * share + 1e-6
    pixel = drawn[:, :, :2] * torch.tensor([[1, 32 / 24], [24 / 32, 1]])
    torch.testing.assert_close(pixel @ pixel.mT, torch.eye(2).expand(8, 2, 2), atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99))
def test_pixels_stay_in_range(seed: int) -> None:
    moved = move(torch.rand(8, 1, 24, 32), motions(Recipe(rotation_degrees=45, shift_share=0.3, flip=True), seed))
    assert moved.min() >= 0
    assert moved.max() <= 1 + 1e-6


def test_flips_mirror_half_of_the_pictures() -> None:
    pixels = torch.rand(64, 1, 8, 8)
    moved = move(pixels, motions(Recipe(rotation_degrees=0, shift_share=0, flip=True), count=64, size=(8, 8)))
    mirrored = sum(torch.allclose(a, b.flip(-1), atol=1e-5) for a, b in zip(moved, pixels, strict=True))
    kept = sum(torch.allclose(a, b, atol=1e-5) for a, b in zip(moved, pixels, strict=True))
    assert mirrored + kept == 64
    assert 16 < mirrored < 48


def test_a_shift_moves_by_whole_pixels_and_repeats_the_edge() -> None:
    pixels = torch.rand(1, 1, 8, 8)
    shift = torch.tensor([[[1.0, 0.0, 2 * 2 / 8], [0.0, 1.0, 0.0]]])
    moved = move(pixels, shift)
    torch.testing.assert_close(moved[..., :6], pixels[..., 2:], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved[..., 6:], pixels[..., 7:].expand(1, 1, 8, 2), atol=1e-5, rtol=0)
