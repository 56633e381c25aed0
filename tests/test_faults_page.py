"""docs/faults.md names tests that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_each_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "docs/faults.md").read_text("utf-8"))
    assert len(named) >= 11
    for file, test in named:
        assert f"def {test}" in (ROOT / file).read_text("utf-8"), f"{file} has no {test}"
