"""What a few images out of a large file of natural ones cost a driver in memory.

    python benchmarks/natural_source.py [--images 8000] [--chosen 200] [--rows-per-group 256]

Writes JPEGs of noise, 300 px, in one Parquet file to a folder of its own; then plans a grid whose perturbations are
made from so many of them, and decodes what it needs. Prints how much more memory the process takes meanwhile than
before.
"""

import argparse
import io
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from uapray.grid import parse_grid
from uapray.group import decoded
from uapray.plan import plan_grid

MB = 2**20
GRID = """
name: natural
data: [{{uri: "phantom:chest?images=60&size=96", size: 96}}]
classifiers: [{{architecture: tiny-cnn, initial_weights: random}}]
sources: [{{uri: {path}, images: {chosen}}}]
"""


def main() -> None:
    """Write, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--chosen", type=int, default=200)
    parser.add_argument("--rows-per-group", type=int, default=256)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "natural.parquet")
        write(path, asked.images, asked.rows_per_group)
        grid = parse_grid(GRID.format(path=path, chosen=asked.chosen), origin="natural_source.py")
        begun = time.monotonic()
        with Peak() as peak:
            source = plan_grid(grid).trials[0].source
            planned = time.monotonic() - begun
            held = len(decoded(source, grid.splits)["natural/train"])
            seconds = time.monotonic() - begun - planned
        print(
            f"{path.stat().st_size / MB:,.0f} MB of {asked.images:,} images: {held:,} decoded, "
            f"{peak.bytes / MB:,.0f} MB more memory, {planned:.1f} s to read it for its hash, {seconds:.1f} s to decode"
        )


def write(path: Path, count: int, rows_per_group: int) -> None:
    """Write pictures of noise; some are alike, which nobody compares."""
    rng = np.random.default_rng(0)
    bodies = []
    for _ in range(32):
        body = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)).save(body, "JPEG")
        bodies.append(body.getvalue())
    names = ("id", "image", "label", "split")
    kinds = pa.schema(list(zip(names, (pa.string(), pa.binary(), pa.int64(), pa.string()), strict=True)))
    with pq.ParquetWriter(path, kinds, compression="none", use_dictionary=False) as file:
        for begin in range(0, count, rows_per_group):
            rows = range(begin, min(begin + rows_per_group, count))
            columns = ([f"n{row}" for row in rows], [bodies[row % 32] for row in rows], [0] * len(rows))
            file.write_table(pa.table([*columns, ["train"] * len(rows)], schema=kinds))


class Peak:
    """The most memory that this process takes inside a block, beyond what it took before, bytes."""

    def __init__(self) -> None:
        self._process, self._ended = psutil.Process(), threading.Event()
        self._before, self.bytes = self._now(), 0
        self._watch = threading.Thread(target=self._watching, daemon=True)

    def __enter__(self) -> "Peak":
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._watch.join()

    def _watching(self) -> None:
        while not self._ended.wait(0.005):
            self.bytes = max(self.bytes, self._now() - self._before)

    def _now(self) -> int:
        return int(self._process.memory_info().rss)


if __name__ == "__main__":
    main()
