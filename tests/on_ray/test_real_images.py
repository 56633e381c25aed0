"""The main job on real chest X-rays."""

from pathlib import Path

import pytest

from uapray.cli.running import run_with_progress
from uapray.grid import parse_grid
from uapray.plan import plan_grid
from uapray.query import query
from uapray.resources import Resources
from uapray.store.results import open_results

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

GRID = """
name: chest
data:
  - {{uri: "{data}", size: {size}}}
classifiers:
  - {{architecture: {architecture}, initial_weights: random, recipe: {{base: quick, epochs: {epochs}}}}}
targets: [nontargeted, all]
budget: {{max_epochs: 2}}
"""


def run(store: Path, **values: object) -> list[dict[str, object]]:
    results = open_results(str(store))
    summary = run_with_progress(
        plan_grid(parse_grid(GRID.format(**values), origin="test")), results, Resources(replicas=2), None
    )
    assert summary.failed == 0
    return query(results, "SELECT * FROM trials ORDER BY rule, target").to_pylist()


def fooling(rows: list[dict[str, object]], rule: str) -> float:
    (row,) = (row for row in rows if row["rule"] == rule and row["target"] is None)
    return float(str(row["fooling_rate"]))


def test_a_quick_look_at_chest_x_rays(real_data: Path, tmp_path: Path) -> None:
    data = real_data / "chest_xray_224_*.parquet"
    rows = run(tmp_path / "store", data=data, size=32, architecture="tiny-cnn", epochs=3)
    assert len(rows) == 6
    assert {row["images"] for row in rows} == {540}
    assert fooling(rows, "aimed-ascent") > 3 * fooling(rows, "random") + 0.05


@pytest.mark.slow
def test_a_good_classifier_of_chest_x_rays_is_fooled_almost_to_its_ceiling(real_data: Path, tmp_path: Path) -> None:
    data = real_data / "chest_xray_224_*.parquet"
    rows = run(tmp_path / "store", data=data, size=96, architecture="small-cnn", epochs=10)
    assert all(float(str(row["clean_accuracy"])) >= 0.9 for row in rows)
    (row,) = (row for row in rows if row["rule"] == "aimed-ascent" and row["target"] is None)
    assert float(str(row["fooling_rate"])) > 0.8 * float(str(row["fooling_rate_ceiling"]))
    assert fooling(rows, "random") < 0.05
