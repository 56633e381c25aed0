"""Two trials of a store compared on the images that both were judged on."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from uapray.errors import QueryError
from uapray.measures import Paired, paired
from uapray.store.results import Results

MIN_PREFIX = 6


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two trials on the same images.

    Attributes:
        first: Row of table ``trials``.
        second: Row of table ``trials``.
        paired: What the two fool.
    """

    first: dict[str, Any]
    second: dict[str, Any]
    paired: Paired


def compare(results: Results, first: str, second: str, *, split: str) -> Comparison:
    """Compare what two trials fool, image by image.

    Args:
        results: The store.
        first: Identifier of a trial, or at least six digits that only it begins with.
        second: The other.
        split: Split that both were judged on.

    Raises:
        QueryError: If a trial is not there or not the only one, or they were judged on different images.
    """
    keys = {key for _, key in results.keys("images")}
    one, other = (_key(keys, trial, split, results.objects.uri) for trial in (first, second))
    rows = [results.step("trials", key).to_pylist()[0] for key in (one, other)]
    images = [results.step("images", key) for key in (one, other)]
    if rows[0]["data_sha256"] != rows[1]["data_sha256"] or images[0]["id"] != images[1]["id"]:
        about = " and ".join(f"{row['data']} ({table.num_rows})" for row, table in zip(rows, images, strict=True))
        raise QueryError(f"expected trials judged on the same images of split {split}, got those of {about}")
    return Comparison(rows[0], rows[1], paired(*map(_fooled, images)))


def _key(keys: set[str], trial: str, split: str, uri: str) -> str:
    if len(trial) < MIN_PREFIX:
        raise QueryError(f"trial: expected at least {MIN_PREFIX} digits of a trial_id, got {trial!r}")
    found = sorted(key for key in keys if key.startswith(trial) and key.endswith(f"-{split}"))
    if not found:
        raise QueryError(
            f"{uri}: no trial {trial} judged on split {split}\n"
            "ask for those that are there: uapray query --store … 'SELECT trial_id, split, rule FROM trials'"
        )
    if len(found) > 1:
        raise QueryError(f"trial: expected digits that one trial_id begins with, {trial} begins {len(found)}")
    return found[0]


def _fooled(images: pa.Table) -> NDArray[np.bool_]:
    clean, perturbed = (images[f"{kind}_prediction"].to_numpy() for kind in ("clean", "perturbed"))
    return np.asarray(clean != perturbed, dtype=np.bool_)
