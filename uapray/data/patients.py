"""Patients told from file names."""

import re
from collections.abc import Sequence

from uapray.errors import DataError


def patients_of(names: Sequence[str], pattern: str, origin: str) -> list[str]:
    """Return the patient of each file name.

    Args:
        names: File names, folders before them or not.
        pattern: Regular expression on the name without its folders; its first group is the patient.
        origin: Where they came from, for the error.

    Raises:
        DataError: If the pattern is none, or finds no patient in some names.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DataError(f"group pattern: expected a regular expression, got {pattern}: {error}") from error
    if expression.groups < 1:
        raise DataError(f"group pattern: expected a (group) around the patient, got {pattern}")
    found = [expression.search(name.rpartition("/")[2]) for name in names]
    without = [name for name, match in zip(names, found, strict=True) if match is None or not match[1]]
    if without:
        raise DataError(
            f"{origin}: group pattern {pattern} finds no patient in {len(without)} of {len(names)} file names, "
            f"the first {without[0]}; as patients of their own they could end on both sides of a split"
        )
    return [match[1] for match in found if match is not None]
