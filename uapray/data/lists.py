"""Published splits as lists of file names: what of the test split was already in training."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from uapray.data.patients import patients_of
from uapray.errors import DataError
from uapray.objects import read_uri


@dataclass(frozen=True, slots=True)
class ListLeaks:
    """What two lists share.

    Attributes:
        train: Rows of the training list.
        test: Rows of the test list.
        repeated: Rows of the training list whose path came before in it.
        same_path: Rows of the test list whose path is in the training list.
        same_patient: Rows of the test list whose patient has images in the training list; None: nobody knows patients.
        patients: Such patients; None likewise.
    """

    train: int
    test: int
    repeated: int
    same_path: int
    same_patient: int | None
    patients: int | None


def read_list(uri: str) -> list[str]:
    """Return the paths of a list: the first column of a CSV without header, or one a line.

    Raises:
        DataError: If it holds none.
    """
    text = read_uri(uri).decode("utf-8-sig", errors="replace")
    paths = [row[0].strip() for row in csv.reader(io.StringIO(text)) if row and row[0].strip()]
    if not paths:
        raise DataError(f"{uri}: expected paths, one a row in the first column, got none")
    return paths


def list_leaks(train: Sequence[str], test: Sequence[str], pattern: str | None = None) -> ListLeaks:
    """Count what of a test list was in the training list.

    Args:
        train: Paths.
        test: Paths.
        pattern: Regular expression on file names, without folders, whose first group is the patient; None: unknown.

    Raises:
        DataError: If the pattern is none, or some file name has no patient by it.
    """
    known = set(train)
    repeated = len(train) - len(known)
    same_path = sum(path in known for path in test)
    if pattern is None:
        return ListLeaks(len(train), len(test), repeated, same_path, None, None)
    of_train = set(patients_of(train, pattern, "training list"))
    shared = [one for one in patients_of(test, pattern, "test list") if one in of_train]
    return ListLeaks(len(train), len(test), repeated, same_path, len(shared), len(set(shared)))
