"""docs/results.md says what the schema says."""

from pathlib import Path

import pyarrow as pa
import pytest

from uapray.store.schema import SCHEMA_VERSION, TABLES, with_grid

PAGE = Path(__file__).parents[2] / "docs" / "results.md"
INTERFACE = {
    "trials": "trial_id, grid, data, data_sha256, classifier, architecture, initial_weights, classifier_sha256, made_on, source, source_images, rule, norm, zeta, xi, xi_grey, target, epsilon, seed, split, images, clean_accuracy, robust_accuracy, fooling_rate, fooling_rate_low, fooling_rate_high, fooling_rate_ceiling, targeted_success_rate, targeted_success_rate_non_target, dominant_label, l2, linf, psnr, ssim, image_gradients, image_queries, wall_s, device, replicas, uapray_version, finished_at",  # noqa: E501
    "history": "trial_id, round, epoch, images_used, image_gradients, image_queries, l2, linf, fooling_rate, targeted_success_rate",  # noqa: E501
    "flows": "trial_id, split, label, clean_prediction, perturbed_prediction, images",
    "images": "trial_id, split, id, label, clean_prediction, perturbed_prediction",
    "classifiers": "classifier_sha256, architecture, data_sha256, initial_weights, recipe, split, class_name, images, accuracy, sensitivity, specificity, auc",  # noqa: E501
    "failures": "trial_id, grid, step, error, message, attempt, at",
}


def section(table: str) -> str:
    """Return the part of the page that is about a table, as the schema wants it."""
    rows = [
        f"| `{field.name}` | {field.type}{'?' if field.nullable else ''} "
        f"| {field.metadata[b'unit'].decode()} | {field.metadata[b'meaning'].decode()} |"
        for field in with_grid(TABLES[table])
    ]
    about = TABLES[table].metadata[b"meaning"].decode()
    return "\n".join([f"## `{table}`", "", about, "", "| column | type | unit | meaning |", "|---|---|---|---|", *rows])


def test_the_page_and_the_schema_agree() -> None:
    prose, _, tables = PAGE.read_text("utf-8").partition("\n## ")
    assert f"now `{SCHEMA_VERSION}`" in prose
    assert f"## {tables}" == "\n\n".join(section(table) for table in TABLES) + "\n"


@pytest.mark.parametrize("table", TABLES)
def test_every_column_says_what_it_is(table: str) -> None:
    schema = TABLES[table]
    assert schema.metadata[b"uapray_schema"] == SCHEMA_VERSION.encode()
    assert "grid" not in schema.names
    for field in schema:
        assert field.metadata[b"unit"]
        assert field.metadata[b"meaning"]


@pytest.mark.parametrize("table", INTERFACE)
def test_columns_that_others_rely_on(table: str) -> None:
    promised = INTERFACE[table].split(", ")
    assert [name for name in with_grid(TABLES[table]).names if name in promised] == promised


def test_types() -> None:
    kinds = {field.name: field.type for schema in TABLES.values() for field in schema}
    assert kinds["seed"] == kinds["images"] == kinds["label"] == kinds["image_gradients"] == pa.int64()
    assert kinds["fooling_rate"] == kinds["xi"] == kinds["wall_s"] == pa.float64()
    assert kinds["finished_at"] == kinds["at"] == pa.timestamp("us", tz="UTC")
    assert kinds["target"] == kinds["dominant_label"] == kinds["trial_id"] == pa.string()
