"""Synthetic chest-radiograph-like phantoms: a data set that needs no network, no file and no patient."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from uapray.data.pictures import png
from uapray.data.radiograph import CLEAR, anatomy, radiograph
from uapray.data.table import SCHEMA, table_of
from uapray.errors import DataError

SCHEME = "phantom:"
NAME = "synthetic-chest-phantoms"
CLASS_NAMES = ("CLEAR", "OPACITY", "EFFUSION")
_FOLLOW_UP_HEALED = 0.15  # share of follow-up images on which a patient's finding is gone


@dataclass(frozen=True, slots=True)
class Request:
    """What a phantom URI asks for; its fields are the URI's parameters."""

    images: int = 960
    size: int = 64
    seed: int = 0


def parse(uri: str) -> Request:
    """Return what ``phantom:chest?images=…&size=…&seed=…`` asks for.

    Raises:
        DataError: If it is another phantom, an unknown parameter, or a value out of range.
    """
    kind, _, query = uri.removeprefix(SCHEME).partition("?")
    if kind != "chest":
        raise DataError(f"{uri}: expected {SCHEME}chest, got {SCHEME}{kind}")
    names = [field.name for field in fields(Request)]
    values: dict[str, int] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in names:
            near = get_close_matches(name, names, n=1, cutoff=0.0)[0]
            raise DataError(f"{uri}: unknown parameter {name}; did you mean {near}? (there are {', '.join(names)})")
        if not text.isascii() or not text.isdigit():
            raise DataError(f"{uri}: expected a whole number for {name}, got {text!r}")
        values[name] = int(text)
    request = Request(**values)
    if not 36 <= request.images <= 100_000 or not 32 <= request.size <= 512:
        raise DataError(f"{uri}: expected 36 to 100000 images of size 32 to 512")
    return request


@functools.lru_cache(maxsize=4)
def phantom_table(request: Request) -> Any:
    """Return the data set table (see docs/data.md), pictures as grey PNG.

    A patient depends on the seed and its number alone: fewer images are the first of more.
    Patients come in blocks of twelve, every class four times, three of the twelve in ``test``.
    """
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for patient, image, label, pixels in _draw(request):
        columns["id"].append(f"synthetic-chest-{request.seed}-{patient:05d}-{image}")
        columns["image"].append(png(pixels))
        columns["label"].append(label)
        columns["label_name"].append(CLASS_NAMES[label])
        columns["split"].append("test" if patient // 3 % 4 == 3 else "train")
        columns["group"].append(f"synthetic-patient-{request.seed}-{patient:05d}")
    return table_of(columns)


def _draw(request: Request) -> Iterator[tuple[int, int, int, NDArray[np.uint8]]]:
    done, patient = 0, 0
    while done < request.images:
        # slot 0 is the patient, slot n + 1 its image n; the seed comes last, as trailing zeros do not count
        rng = np.random.default_rng([0, patient, request.seed])
        body, count = anatomy(rng), int(rng.integers(2, 4))
        for image in range(min(count, request.images - done)):
            own = np.random.default_rng([image + 1, patient, request.seed])
            healed = image > 0 and own.random() < _FOLLOW_UP_HEALED
            label = CLEAR if healed else patient % 3
            yield patient, image, label, radiograph(body, label, request.size, own)
            done += 1
        patient += 1
