"""What happens to images between the attack and the classifier: rounding, compression, another resolution."""

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from uapray.errors import ConfigError

EXPECTED = (
    "expected uint8, bits:4 (1 to 7), jpeg:75 (quality 1 to 100), resize:0.5 (factor below 1), median:3 (odd side), "
    "bilateral:0.1 (spread of the pixels), or several with +"
)
_WINDOW, _SPREAD = 5, 1.5  # of the bilateral filter, pixels


@dataclass(frozen=True, slots=True)
class Uint8:
    """Rounding to the 256 grey levels of a picture file."""

    def __str__(self) -> str:
        return "uint8"

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return pixels in [0, 1] at the nearest grey level."""
        return pixels.mul(255).round().div(255)


@dataclass(frozen=True, slots=True)
class Jpeg:
    """Compression as baseline JPEG, with halved colour resolution as is usual; rounds to grey levels first.

    Attributes:
        quality: As libjpeg counts it, 1 to 100.
    """

    quality: int

    def __str__(self) -> str:
        return f"jpeg:{self.quality}"

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return pixels in [0, 1], ``(b, c, h, w)`` of 1 or 3 channels, as they come out of the file."""
        grey = pixels.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        read = np.stack([self._read_back(one) for one in grey])
        return torch.from_numpy(read).permute(0, 3, 1, 2).to(pixels.device, pixels.dtype).div(255)

    def _read_back(self, grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
        body = io.BytesIO()
        Image.fromarray(grey[..., 0] if grey.shape[-1] == 1 else grey).save(body, "JPEG", quality=self.quality)
        return np.asarray(Image.open(body)).reshape(grey.shape)


@dataclass(frozen=True, slots=True)
class Resize:
    """Down to a smaller size and back up, bilinear, with antialiasing.

    Attributes:
        factor: Smaller side over larger side, in (0, 1).
    """

    factor: float

    def __str__(self) -> str:
        return f"resize:{self.factor:g}"

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return pixels in [0, 1], ``(b, c, h, w)``, that have been smaller."""
        height, width = pixels.shape[-2:]
        smaller = (max(1, round(height * self.factor)), max(1, round(width * self.factor)))
        small = interpolate(pixels, smaller, mode="bilinear", antialias=True)
        return interpolate(small, (height, width), mode="bilinear", antialias=True).clamp(0, 1)


@dataclass(frozen=True, slots=True)
class Bits:
    """Rounding to fewer grey levels ("feature squeezing", Xu et al. 2018).

    Attributes:
        depth: Bits a channel, 1 to 7.
    """

    depth: int

    def __str__(self) -> str:
        return f"bits:{self.depth}"

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return pixels in [0, 1] at the nearest of ``2 ** depth`` levels, the ends among them."""
        top = 2**self.depth - 1
        return pixels.mul(top).round().div(top)


@dataclass(frozen=True, slots=True)
class Median:
    """The median of the pixels around each, channel by channel (Xu et al. 2018).

    Attributes:
        side: Of the window, odd, at least 3.
    """

    side: int

    def __str__(self) -> str:
        return f"median:{self.side}"

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return pixels in [0, 1], ``(b, c, h, w)``; beyond the edge all is black."""
        from kornia.filters import median_blur

        return median_blur(pixels, (self.side, self.side))


@dataclass(frozen=True, slots=True)
class Bilateral:
    """The mean of the pixels around each, weighted by how near and how alike they are (Tomasi & Manduchi 1998).

    Attributes:
        sigma: Standard deviation of the weights over differences of pixels, in pixel units, above 0.
    """

    sigma: float

    def __str__(self) -> str:
        return f"bilateral:{self.sigma:g}"

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return pixels in [0, 1], ``(b, c, h, w)``."""
        from kornia.filters import bilateral_blur

        return bilateral_blur(pixels, (_WINDOW, _WINDOW), self.sigma, (_SPREAD, _SPREAD)).clamp(0, 1)


Step = Uint8 | Bits | Jpeg | Resize | Median | Bilateral


@dataclass(frozen=True, slots=True)
class Rendering:
    """One step after the other, applied to clean and perturbed images alike.

    Attributes:
        steps: At least one.
    """

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return "+".join(map(str, self.steps))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the images as the classifier gets them.

        Args:
            pixels: Float ``(b, c, h, w)`` in [0, 1], 1 or 3 channels; not changed.
        """
        for step in self.steps:
            pixels = step(pixels)
        return pixels

    def through(self, pixels: Tensor) -> Tensor:
        """Return the same with gradients that an attacker can use.

        Those of steps that round, which would be zero, are passed on as they come (Athalye et al. 2018, "BPDA");
        the others have their own.
        """
        for step in self.steps:
            if isinstance(step, Uint8 | Bits | Jpeg):
                pixels = pixels + (step(pixels.detach()) - pixels.detach())
            else:
                pixels = step(pixels)
        return pixels


def parse_rendering(text: str, origin: str = "rendering") -> Rendering:
    """Read a rendering as it is written in grids and on the command line, e.g. ``uint8+jpeg:75``.

    Args:
        text: As written.
        origin: What an error begins with.

    Raises:
        ConfigError: If it is none.
    """
    return Rendering(tuple(_step(part, text, origin) for part in text.split("+")))


def _step(part: str, text: str, origin: str) -> Step:
    name, _, value = part.strip().partition(":")
    try:
        if name == "uint8" and not value:
            return Uint8()
        if name == "bits" and 1 <= int(value) <= 7:
            return Bits(int(value))
        if name == "median" and int(value) >= 3 and int(value) % 2:
            return Median(int(value))
        if name == "bilateral" and float(value) > 0 and math.isfinite(float(value)):
            return Bilateral(float(value))
        if name == "jpeg" and 1 <= int(value) <= 100:
            return Jpeg(int(value))
        if name == "resize" and 0 < float(value) < 1 and math.isfinite(float(value)):
            return Resize(float(value))
    except ValueError:
        pass
    raise ConfigError(f"{origin}: {EXPECTED}; got {text!r}")
