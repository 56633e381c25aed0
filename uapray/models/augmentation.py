"""Small rotations, shifts and flips of a batch, each picture its own."""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from uapray.models.recipe import Recipe


def draw_motions(recipe: Recipe, count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw one motion a picture.

    Args:
        recipe: How far a picture may be turned and moved, and whether it is mirrored.
        count: Number of pictures.
        size: ``(h, w)``, so that a turn stays a turn where pictures are not square.
        generator: On the CPU, so that every device gets the same motions.

    Returns:
        Affine matrices ``(count, 2, 3)``, float32, as `torch.nn.functional.affine_grid` takes them.
    """
    height, width = size
    turn, right, down, mirror = torch.rand(4, count, generator=generator)
    angle = (2 * turn - 1) * math.radians(recipe.rotation_degrees)
    sign = torch.where(mirror < 0.5, -1.0, 1.0) if recipe.flip else torch.ones(count)
    # Coordinates run from -1 to 1, so a whole width is 2.
    shift_x, shift_y = 2 * recipe.shift_share * (2 * right - 1), 2 * recipe.shift_share * (2 * down - 1)
    cos, sin = angle.cos(), angle.sin()
    first = torch.stack([sign * cos, -sin * height / width, shift_x], 1)
    second = torch.stack([sign * sin * width / height, cos, shift_y], 1)
    return torch.stack([first, second], 1)


def move(pixels: Tensor, motions: Tensor) -> Tensor:
    """Return the pictures ``(n, c, h, w)`` moved; linear between pixels, the edge beyond the edge."""
    grid = affine_grid(motions, list(pixels.shape), align_corners=False)
    return grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
