"""One encoded picture: decoded whole or refused, grey or not."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from uapray.errors import DataError

GREY_TOLERANCE = 2  # grey kept as colour JPEG comes back with channels this far apart
_DEPTHS = (255, 4095, 65535)


def decode(body: bytes, name: str, brightest: float | None = None) -> Image.Image:
    """Return the picture, fully decoded, in mode ``L`` or ``RGB``.

    Deep grey (16-bit PNG) is scaled from the smallest of 8, 12 and 16 bits that holds the brightest pixel: of the
    set that it belongs to if that is given, else its own.

    Raises:
        DataError: If it is damaged, cut off or no picture; the text names it.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # a global that others set: a cut-off picture would be padded grey
    try:
        if body.startswith(b"\x89PNG"):
            Image.open(io.BytesIO(body)).verify()  # checksums, which load() leaves out
        picture = Image.open(io.BytesIO(body))
        picture.load()
        return _eight_bits(picture, brightest)
    except Exception as error:  # decoders raise anything on damaged bytes
        what = f"{len(body)} bytes: {type(error).__name__}: {error}"
        raise DataError(f"{name}: expected a whole PNG or JPEG picture, got {what}") from error


def brightest_if_deep(body: bytes) -> float | None:
    """Return the brightest pixel of a whole picture of more than 8 bits; None of any other."""
    picture = Image.open(io.BytesIO(body))
    return float(np.asarray(picture).max()) if picture.mode.startswith("I") else None


def is_grey(picture: Image.Image) -> bool:
    """Whether a decoded picture has no colour: mode ``L``, or channels no more than 2 apart everywhere."""
    if picture.mode == "L":
        return True
    pixels = np.asarray(picture)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return _near(red, green) and _near(green, blue)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return the PNG of grey ``(h, w)`` or RGB ``(h, w, 3)`` pixels."""
    body = io.BytesIO()
    Image.fromarray(pixels).save(body, "PNG")
    return body.getvalue()


def _near(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    apart = np.maximum(one, other) - np.minimum(one, other)
    return bool(apart.max(initial=0) <= GREY_TOLERANCE)


def _eight_bits(picture: Image.Image, brightest: float | None) -> Image.Image:
    if picture.mode in ("L", "RGB"):
        return picture
    if picture.mode == "F":
        raise ValueError("grey levels of floating-point numbers; save it with 8 or 16 bits")
    if picture.mode.startswith("I"):
        values: NDArray[Any] = np.asarray(picture).astype(np.float64)
        peak = values.max() if brightest is None else brightest
        depth = next((depth for depth in _DEPTHS if peak <= depth), peak)
        return Image.fromarray(np.rint(values.clip(0) * (255 / depth)).astype(np.uint8))
    return picture.convert("L" if picture.mode in ("1", "LA", "La") else "RGB")
