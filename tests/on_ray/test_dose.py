"""Classifiers part of the way of one training, on real replicas and training workers."""

import copy
from pathlib import Path

import pytest
import torch

from uapray.cli.running import run_with_progress
from uapray.data.images import hold_out
from uapray.experiment import Summary
from uapray.grid import parse_grid
from uapray.models.norms import measure_norms
from uapray.models.weights import load_classifier
from uapray.obtain import begin_with, model_key, sample_of
from uapray.plan import Plan, plan_grid
from uapray.query import query
from uapray.resources import Resources
from uapray.store.results import Results, open_results

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

GRID = """
name: dose
data: [{{uri: "phantom:chest?images=90&size=32"}}]
classifiers:
  - architecture: tiny-cnn
    initial_weights: random
    recipe: {{base: quick, epochs: 1, frozen_blocks: 1}}
    tuned: {tuned}
    filters: [none, 'bits:2']
    name: net
rules: [spgd]
budget: {{max_epochs: 1}}
control: false
control_draws: 0
renderings: []
"""


def planned(tuned: str) -> Plan:
    return plan_grid(parse_grid(GRID.format(tuned=tuned), origin="test"))


def run(results: Results, tuned: str) -> Summary:
    return run_with_progress(planned(tuned), results, Resources(replicas=1), None)


def test_the_way_of_one_training_in_parts(tmp_path: Path) -> None:
    results = open_results(str(tmp_path / "store"))
    assert run(results, "[1]") == Summary(2, 0, 0)
    models = {key for key in results.objects.keys("models/") if key.endswith(".safetensors")}
    assert len(models) == 1
    assert run(results, "[0, 0.5, 1]") == Summary(4, 2, 0), "what stands is gone on from"
    assert run(results, "[0, 0.5, 1]") == Summary(0, 6, 0)

    plan = planned("[0, 0.5, 1]")
    at = {one.tuned: load_classifier(f"{results.objects.uri}/{model_key(one)}") for one in plan.victims}
    images = plan.trials[0].source.images("train")
    initial = begin_with(plan.victims[0], sample_of(images)).module.state_dict()
    first, half, last = (at[share].module.state_dict() for share in (0, 0.5, 1))
    for name, end in last.items():
        if name.startswith("backbone.6."):
            assert torch.equal(first[name], end)
            continue
        if "num_batches" in name or ("running" in name and not name.startswith("backbone.0.")):
            continue  # measured again
        assert torch.equal(first[name], initial[name])
        assert torch.equal(initial[name], end) == name.startswith(("backbone.0.", "mean", "std")), name
        torch.testing.assert_close(half[name], (initial[name] + end) / 2)
    made = plan.victims[0].train
    assert made is not None
    learnt_from, _ = hold_out(images, made.recipe.validation_share, made.seed)
    for share in (0, 0.5):
        again = copy.deepcopy(at[share].module)
        measure_norms(again, learnt_from, made.recipe, seed=made.seed)
        assert all(
            torch.equal(again.state_dict()[name], value) for name, value in at[share].module.state_dict().items()
        )
    assert [one.card.recipe.get("tuned") for one in at.values()] == [0, 0.5, None]

    told = query(
        results,
        "SELECT DISTINCT classifier, tuned, frozen_blocks, CAST(recipe->>'tuned' AS DOUBLE) AS said, "
        "abs(clean_accuracy - classifiers.accuracy) < 1e-9 AS same FROM trials JOIN classifiers "
        "USING (classifier_sha256, split) WHERE class_name IS NULL ORDER BY ALL",
    ).to_pylist()
    assert [tuple(row.values()) for row in told] == [
        ("net", 1, 1, None, True),
        ("net+tuned:0", 0, 1, 0, True),
        ("net+tuned:0.5", 0.5, 1, 0.5, True),
    ]
