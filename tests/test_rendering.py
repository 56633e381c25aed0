"""What images go through before they are classified."""

import pickle

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from victims import SmallCNN, grey_levels

from uapray.errors import ConfigError
from uapray.pool import LocalPool, in_turn
from uapray.rendering import parse_rendering
from uapray.replica import Replica

steps = st.one_of(
    st.just("uint8"),
    st.integers(1, 100).map(lambda quality: f"jpeg:{quality}"),
    st.floats(0.05, 0.95).map(lambda factor: f"resize:{factor:g}"),
    st.integers(1, 7).map(lambda depth: f"bits:{depth}"),
    st.sampled_from([3, 5]).map(lambda side: f"median:{side}"),
    st.floats(0.02, 2).map(lambda sigma: f"bilateral:{sigma:g}"),
)
specs = st.lists(steps, min_size=1, max_size=3).map("+".join)
seeds, channels = st.integers(0, 1000), st.sampled_from([1, 3])


def pictures(seed: int, channels: int, side: int = 24) -> Tensor:
    """Return smooth pictures, as photographs and radiographs are."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((2, channels, 4, 4), generator=generator)
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)


@given(specs, seeds, channels)
def test_images_stay_images_and_what_went_in_stays_as_it_was(spec: str, seed: int, channels: int) -> None:
    pixels = pictures(seed, channels)
    before = pixels.clone()
    rendered = parse_rendering(spec)(pixels)
    assert (rendered.shape, rendered.dtype) == (pixels.shape, pixels.dtype)
    assert 0 <= rendered.min() <= rendered.max() <= 1
    assert torch.equal(pixels, before)
    assert torch.equal(parse_rendering(spec)(pixels), rendered)


@given(specs)
def test_a_rendering_is_written_as_it_is_read(spec: str) -> None:
    rendering = parse_rendering(spec)
    assert parse_rendering(str(rendering)) == rendering
    assert pickle.loads(pickle.dumps(rendering)) == rendering


def test_names_are_brought_to_one_form() -> None:
    assert str(parse_rendering("uint8 + jpeg:075+resize:0.50")) == "uint8+jpeg:75+resize:0.5"


@given(seeds)
def test_uint8_rounds_to_the_nearest_grey_level_and_leaves_pictures_alone(seed: int) -> None:
    uint8 = parse_rendering("uint8")
    free = torch.rand((1, 1, 8, 8), generator=torch.Generator().manual_seed(seed))
    assert float((uint8(free) - free).abs().max()) <= 0.5 / 255 + 1e-6
    picture = torch.arange(256, dtype=torch.float32).reshape(1, 1, 16, 16) / 255
    assert torch.equal(uint8(picture), picture)


@given(st.integers(0, 255), channels, st.sampled_from([(50, 2), (10, 10)]))
def test_jpeg_rounds_an_even_picture_to_the_steps_of_its_table(
    level: int, channels: int, quality_and_step: tuple[int, int]
) -> None:
    """The standard table quantises the mean of a block by 16, an eighth of which is 2 levels; quality 10 five times."""
    quality, step = quality_and_step
    even = torch.full((1, channels, 16, 16), level / 255)
    came = parse_rendering(f"jpeg:{quality}")(even) * 255
    steps = (came - 128) / step
    whole = (steps - steps.round()).abs() < 1e-3
    assert bool((whole | (came < 0.5) | (came > 254.5)).all())
    assert float((came - level).abs().max()) <= step / 2 + 1e-3


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_of_high_quality_is_nearly_the_picture(channels: int) -> None:
    pixels = pictures(1, channels)
    half_the_colour = 1.5 if channels == 1 else 5
    assert float((parse_rendering("jpeg:100")(pixels) - pixels).abs().mean()) < half_the_colour / 255


@given(seeds, channels)
def test_a_lower_quality_and_a_smaller_size_keep_less(seed: int, channels: int) -> None:
    pixels = pictures(seed, channels) + 0.05 * torch.randn(
        (2, channels, 24, 24), generator=torch.Generator().manual_seed(seed)
    )
    pixels = pixels.clamp(0, 1)

    def error(spec: str) -> float:
        return float((parse_rendering(spec)(pixels) - pixels).square().mean())

    assert error("uint8") < error("jpeg:90") < error("jpeg:5")
    assert 0 < error("resize:0.8") < error("resize:0.2")


def test_resizing_leaves_an_even_picture_alone_and_blurs_a_chequerboard() -> None:
    resize = parse_rendering("resize:0.5")
    torch.testing.assert_close(resize(torch.full((1, 3, 9, 7), 0.3)), torch.full((1, 3, 9, 7), 0.3))
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2
    inner = resize(board.float()[None, None])[0, 0, 4:-4, 4:-4]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5), rtol=0, atol=0.02)


def test_steps_follow_one_another() -> None:
    pixels = pictures(2, 1)
    one, other = parse_rendering("resize:0.5"), parse_rendering("uint8")
    assert torch.equal(parse_rendering("resize:0.5+uint8")(pixels), other(one(pixels)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "png",
        "bits:8",
        "median:4",
        "median:1",
        "bilateral:0",
        "jpeg",
        "jpeg:0",
        "jpeg:101",
        "jpeg:7.5",
        "resize:1",
        "resize:0",
        "resize:nan",
        "uint8:8",
        "uint8+",
    ],
)
def test_what_is_no_rendering_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="rendering: expected uint8, bits:4") as caught:
        parse_rendering(text)
    assert repr(text) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spec", ["uint8", "jpeg:50", "resize:0.6+uint8"])
def test_a_replica_renders_after_clipping(spec: str, channels: int) -> None:
    images, module = grey_levels(40, channels=channels), SmallCNN(channels=channels)
    pool = LocalPool(Replica(module, {"deck": images}))
    batches = in_turn("deck", np.arange(len(images)))
    rendering, v = parse_rendering(spec), torch.full((channels, *images.shape[1:3]), 0.7)
    clean = torch.tensor(images).permute(0, 3, 1, 2) / 255
    for moved, pixels in ((None, clean), (v, (clean + v).clamp(0, 1))):
        with torch.no_grad():
            expected = module(rendering(pixels)).numpy()
        np.testing.assert_allclose(pool.logits(moved, batches, rendering), expected, rtol=1e-4, atol=1e-4)


@given(specs, seeds, channels)
def test_an_attacker_sees_the_rendered_pixels_and_gradients_that_are_not_zero(
    spec: str, seed: int, channels: int
) -> None:
    pixels = pictures(seed, channels).requires_grad_()
    rendering = parse_rendering(spec)
    seen = rendering.through(pixels)
    torch.testing.assert_close(seen, rendering(pixels.detach()), rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(seen.sum(), pixels)
    assert gradient.isfinite().all()
    assert gradient.any()


@given(seeds, st.integers(1, 7))
def test_fewer_bits_are_fewer_levels_the_nearest(seed: int, depth: int) -> None:
    free = torch.rand((1, 1, 16, 16), generator=torch.Generator().manual_seed(seed))
    rounded = parse_rendering(f"bits:{depth}")(free)
    assert len(rounded.unique()) <= 2**depth
    assert float((rounded - free).abs().max()) <= 0.5 / (2**depth - 1) + 1e-6


@given(seeds, channels, st.sampled_from([3, 5]))
def test_the_median_is_that_of_the_neighbours(seed: int, channels: int, side: int) -> None:
    pixels = pictures(seed, channels)
    inner = slice(side // 2, -(side // 2))
    expected = scipy.ndimage.median_filter(pixels.numpy(), (1, 1, side, side))[..., inner, inner]
    assert np.array_equal(parse_rendering(f"median:{side}")(pixels).numpy()[..., inner, inner], expected)


@given(seeds, channels)
def test_a_bilateral_filter_keeps_edges_and_smooths_what_is_alike(seed: int, channels: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    edge = torch.cat([torch.full((1, channels, 16, 8), 0.2), torch.full((1, channels, 16, 8), 0.8)], -1)
    noisy = edge + 0.02 * torch.randn(edge.shape, generator=generator)
    smooth = parse_rendering("bilateral:0.1")(noisy.clamp(0, 1))
    assert float((smooth - edge).std()) < 0.7 * float((noisy - edge).std())
    assert float((smooth - edge).abs().max()) < 0.1, "a mean over the edge would be off by 0.3"
