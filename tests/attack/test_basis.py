import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.fft import dctn, idctn
from victims import noise

from uapray.attack.basis import cosines, decode, encode

sides = st.integers(1, 24)
seeds = st.integers(0, 2**16)


@given(sides, sides)
def test_waves_are_orthonormal(count: int, size: int) -> None:
    waves = cosines(min(count, size), size)
    torch.testing.assert_close(waves @ waves.T, torch.eye(len(waves), dtype=torch.float64), rtol=0, atol=1e-12)


@given(seeds, st.integers(1, 3), sides, sides, sides, sides)
def test_a_picture_is_what_scipy_makes_of_the_coefficients(
    seed: int, channels: int, height: int, width: int, tall: int, wide: int
) -> None:
    tall, wide = min(tall, height), min(wide, width)
    low = noise(seed, (channels, tall, wide))
    padded = np.zeros((channels, height, width))
    padded[:, :tall, :wide] = low.numpy()
    picture = decode(low, (height, width))
    assert picture.dtype == torch.float32
    np.testing.assert_allclose(picture.numpy(), idctn(padded, axes=(1, 2), norm="ortho"), atol=1e-5)
    np.testing.assert_allclose(torch.linalg.vector_norm(picture), torch.linalg.vector_norm(low), rtol=1e-5)


@given(seeds, sides, sides, sides, sides)
def test_encode_is_the_adjoint_and_undoes_decode(seed: int, height: int, width: int, tall: int, wide: int) -> None:
    tall, wide = min(tall, height), min(wide, width)
    low, picture = noise(seed, (tall, wide)), noise(seed + 1, (height, width))
    torch.testing.assert_close(encode(decode(low, (height, width)), (tall, wide)).float(), low, rtol=0, atol=1e-5)
    there = (decode(low, (height, width)).double() * picture.double()).sum()
    back = (low.double() * encode(picture, (tall, wide))).sum()
    torch.testing.assert_close(there, back, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        encode(picture, (tall, wide)).numpy(), dctn(picture.numpy(), norm="ortho")[:tall, :wide], atol=1e-4
    )


@given(seeds, sides, sides, sides)
def test_decode_after_encode_is_a_projection(seed: int, height: int, width: int, count: int) -> None:
    kept = (min(count, height), min(count, width))
    once = decode(encode(noise(seed, (1, height, width)), kept), (height, width))
    twice = decode(encode(once, kept), (height, width))
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-5)
