"""Two trials of a store on the same images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import Shop, outcome_of

from uapray.comparison import compare
from uapray.errors import QueryError
from uapray.measures import paired
from uapray.store.results import Results, open_results

IMAGES = 150


class Judged(Shop):
    """Adds the rows of single images."""

    def judged(self, trial_id: str, *, first_id: int = 0, split: str = "test", **changed: Any) -> np.ndarray[Any, Any]:
        outcome = outcome_of(100 * (self.number + 1) + changed.get("seed", 0), 0.5, IMAGES, 2)
        rows = [
            {
                "trial_id": trial_id,
                "split": split,
                "id": f"image {first_id + place}",
                "label": int(label),
                "clean_prediction": int(clean),
                "perturbed_prediction": int(perturbed),
            }
            for place, (label, clean, perturbed) in enumerate(
                zip(outcome.labels, outcome.clean, outcome.perturbed, strict=True)
            )
        ]
        self.results.write_rows("images", self.grid, f"{trial_id}-{split}", rows)
        self.add(trial_id=trial_id, split=split, extras=False, **changed)
        fooled: np.ndarray[Any, Any] = outcome.clean != outcome.perturbed
        return fooled


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return open_results(str(tmp_path / "store"))


def test_a_comparison_is_that_of_the_images(results: Results) -> None:
    shop = Judged(results)
    one, other = shop.judged("a1b2c3d4e5f6a1b2c3d4"), shop.judged("0f0e0d0c0b0a0f0e0d0c", rule="random")
    shop.judged("a1b2c3ffffffffffffff", split="train")
    found = compare(results, "a1b2c3", "0f0e0d0c0b0a0f0e0d0c", split="test")
    assert found.paired == paired(one, other)
    assert (found.first["rule"], found.second["rule"]) == ("spgd", "random")


@pytest.mark.parametrize(
    ("second", "split", "text"),
    [
        ("a1b2c", "test", "expected at least 6 digits of a trial_id, got 'a1b2c'"),
        ("ffffff", "test", "no trial ffffff judged on split test"),
        ("a1b2c3", "train", "no trial 111111 judged on split train"),
        ("a1b2c3", "test", "a1b2c3 begins 2"),
        ("222222", "test", "expected trials judged on the same images of split test"),
        (
            "333333",
            "test",
            "expected trials judged on the same images of split test, got those of chest (150) and other",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(results: Results, second: str, split: str, text: str) -> None:
    shop = Judged(results)
    for trial_id in ("1" * 20, "a1b2c3" + "0" * 14, "a1b2c3" + "1" * 14):
        shop.judged(trial_id)
    shop.judged("2" * 20, first_id=1)
    shop.judged("3" * 20, data="other")
    with pytest.raises(QueryError) as caught:
        compare(results, "111111", second, split=split)
    assert text in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2
