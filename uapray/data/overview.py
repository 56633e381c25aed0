"""What a person wants to know of a data set at a glance."""

from dataclasses import dataclass

import numpy as np

from uapray.data.dataset import DataSet


@dataclass(frozen=True, slots=True)
class Overview:
    """Facts about all pictures of a data set, as stored.

    Attributes:
        channels: 1 or 3.
        sizes: Height x width in pixels; the range if they differ.
        mean_l2: Mean l2 norm of an image, pixels in [0, 1], all channels together.
        mean_linf: Mean largest pixel of an image.
    """

    channels: int
    sizes: str
    mean_l2: float
    mean_linf: float


def overview(data: DataSet) -> Overview:
    """Decode every picture once and sum up.

    Raises:
        DataError: If a picture is damaged.
    """
    channels = data.channels()
    mode = "L" if channels == 1 else "RGB"
    sizes, l2, linf = set(), 0.0, 0.0
    for picture in data.each(np.arange(data.table.num_rows), lambda picture: picture.convert(mode)):
        pixels = np.asarray(picture, dtype=np.float64) / 255
        sizes.add(pixels.shape[:2])
        l2 += float(np.sqrt((pixels**2).sum()))
        linf += float(pixels.max())
    low, high = min(sizes), max(sizes)
    span = f"{low[0]}x{low[1]}" if len(sizes) == 1 else f"{low[0]}x{low[1]} to {high[0]}x{high[1]}"
    return Overview(channels, f"{span} px", l2 / data.table.num_rows, linf / data.table.num_rows)
