"""The same SQL gives the same rows, wherever the store is."""

from steps import finish

from uapray.query import query
from uapray.store.results import open_results

FLOW = {"trial_id": "t", "split": "test", "label": 0, "clean_prediction": 1, "perturbed_prediction": 2}


def test_query(place: str) -> None:
    results = open_results(place)
    for number in range(20):
        results.write_rows("flows", f"grid {number % 2}", f"key{number}", [{**FLOW, "images": number}] * 3)
        finish(results, f"grid {number % 2}", f"key{number}")
    sql = "SELECT grid, sum(images) AS images, count(*) AS n FROM flows WHERE images > 1 GROUP BY 1 ORDER BY 1"
    assert query(results, sql).to_pylist() == [
        {"grid": "grid 0", "images": 270, "n": 27},
        {"grid": "grid 1", "images": 297, "n": 27},
    ]
    assert query(results, "SELECT * FROM trials").num_rows == 0
