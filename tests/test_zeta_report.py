"""The report's section of curves over zeta, and their pictures."""

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_report import Page, Shop

from uapray.curves import curve_of
from uapray.measures import Outcome
from uapray.report.page import write_report
from uapray.report.zeta_plot import zeta_png, zeta_svg
from uapray.report.zetas import zetas
from uapray.store.results import open_results


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(open_results(str(tmp_path / "store")))


def add_curve(shop: Shop, row: dict[str, Any], *, name: str = "a", **changes: Any) -> None:
    shared = ("data", "data_sha256", "classifier", "classifier_sha256", "norm", "target", "rule", "seed", "split")
    values = {
        **{column: row[column] for column in shared},
        "trial_id": f"{row['trial_id']}{name}",
        "images": 150,
        "trial_ids": [f"{row['trial_id']}{name}"],
        "zetas": [0.01, 0.02, 0.04],
        "rates": [0.2, 0.4, 0.8],
        "ceiling": 0.9,
        "zeta50": 0.025,
        "zeta50_low": 0.0216,
        "zeta50_high": 0.0287,
        "zeta50_of_ceiling": 0.0225,
        "zeta50_of_ceiling_low": 0.02,
        "zeta50_of_ceiling_high": None,
        "image_gradients": 100,
        "image_queries": 100,
        "uapray_version": "0",
        "finished_at": datetime(2025, 3, 4, tzinfo=UTC),
    }
    shop.results.write_rows("curves", shop.grid, f"{values['trial_id']}-test", [values | changes])


def test_curves_are_drawn_with_their_numbers(shop: Shop) -> None:
    row = shop.add()
    assert "Half fooled" not in write_report(shop.results), "no curves, no section"
    add_curve(shop, row)
    beyond = {"zeta50": None, "zeta50_low": 0.04, "zeta50_high": None, "zeta50_of_ceiling": None}
    add_curve(shop, row, name="b", rule="random", rates=[0.01, 0.01, 0.02], **beyond)
    text = Page(write_report(shop.results)).text
    assert "Half fooled" in text
    assert "seed 0: 0.0250 [0.0216, 0.0287]; of the ceiling 0.0225" in text
    assert "random control, seed 0: not within ζ 0.04 [0.0400, beyond]; of the ceiling beyond" in text


def test_figures_are_by_data_split_and_norm_with_controls_last(shop: Shop) -> None:
    row = shop.add()
    add_curve(shop, row, name="a", rule="random")
    add_curve(shop, row, name="b")
    add_curve(shop, row, name="c", norm="l2")
    found = zetas(shop.results, None)
    assert [(one.norm, [line.rule for line in one.lines]) for one in found] == [
        ("l2", [row["rule"]]),
        ("linf", [row["rule"], "random"]),
    ]
    assert not zetas(shop.results, "another grid")


def test_pictures_are_pictures() -> None:
    clean = np.zeros(40, dtype=np.int64)
    outcomes = [Outcome(clean, clean, (np.arange(40) < hits).astype(np.int64), 2) for hits in (5, 30)]
    curve = curve_of([0.02, 0.04], outcomes, (None,) * 40, target=None)
    picture = Image.open(io.BytesIO(zeta_png(curve, "a title")))
    assert np.asarray(picture.convert("L")).std() > 5
    svg = zeta_svg([(curve.zetas, [0.1, 0.7], 0.03)], prefix="z-")
    assert svg.startswith("<svg")
    assert 'id="z-' in svg
    assert "zeta" in svg
