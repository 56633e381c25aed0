"""One trial of a run: search or take what stands, judge what is missing, write it."""

from collections.abc import Set
from dataclasses import replace

import torch
from torch import Tensor

from uapray import __version__, rows
from uapray.arena import Arena
from uapray.attack.projection import order
from uapray.config import BLACK_BOX
from uapray.controls import judge_controls
from uapray.coordinator import Snapshot
from uapray.curves import curve_of
from uapray.data.images import ImageSet, class_index
from uapray.errors import TrialError
from uapray.judgement import judge, judge_rendered
from uapray.keeper import Keeper
from uapray.measures import Outcome
from uapray.models.card import Classifier
from uapray.remembering import RememberingPool
from uapray.run import Run
from uapray.steps import TrialStep
from uapray.store.results import Results
from uapray.trial import Found, find
from uapray.victims import Victim


def run_trial(run: Run, arena: Arena, classifier: Classifier, step: TrialStep, standing: Set[tuple[str, str]]) -> None:
    """Search, judge on every split what is missing, and write; the row of ``trials`` comes last."""
    results, grid = run.results, run.plan.grid.name
    found, ran = _found(run, arena, classifier, step)
    target = class_index(arena.images["train"].class_names, step.threat.target)
    for split, key in zip(step.splits, step.row_keys(), strict=True):
        _judge_further(run, arena, step, split, found.perturbation, target, standing)
        if ("trials", key) in standing:
            continue
        images = arena.images[split]
        judged = judge(arena, split, found.perturbation, target=target)
        examples = list(rows.example_rows(step.trial_id, judged, images, found.perturbation, run.plan.grid.examples))
        results.write_rows("flows", grid, key, rows.flow_rows(step.trial_id, judged))
        results.write_rows("images", grid, key, rows.image_rows(step.trial_id, judged, images))
        results.write_rows("classes", grid, key, rows.class_rows(step.trial_id, judged, images.class_names))
        clinical = rows.clinical_rows(step.trial_id, judged, images, roles=step.source.roles, seed=step.seed)
        results.write_rows("clinical", grid, key, clinical)
        if examples:
            results.write_rows("examples", grid, key, examples)
        results.write_rows("trials", grid, key, [rows.trial_row(step, classifier, found, judged, ran)])
        run.watcher.judged(step, judged)
    _draw_curve(run, arena, classifier, step, standing)
    run.watcher.done(step)


def judge_transfer(run: Run, arena: Arena, classifier: Classifier, victim: Victim, step: TrialStep) -> None:
    """Judge the perturbation of a trial on a classifier that it was not made on; only forward passes.

    Raises:
        TrialError: If the trial has no perturbation.
    """
    if not run.results.has_array(step.trial_id):
        raise TrialError(f"no perturbation made on {step.victim.name} to judge; its search failed")
    array, kept = run.results.read_array(step.trial_id), run.results.read_array_metadata(step.trial_id)
    found, ran = rows.found_again(torch.from_numpy(array), kept)
    target = class_index(arena.images["train"].class_names, step.threat.target)
    for split, key in zip(step.splits, step.row_keys(victim), strict=True):
        judged = judge(arena, split, found.perturbation, target=target)
        row = rows.trial_row(step, classifier, found, judged, ran, victim=victim)
        run.results.write_rows("trials", run.plan.grid.name, key, [row])
    run.watcher.done(step)


def _draw_curve(
    run: Run, arena: Arena, classifier: Classifier, step: TrialStep, standing: Set[tuple[str, str]]
) -> None:
    """Write the row of each curve that a trial is the last of and that is missing, from what the store holds."""
    results, trials = run.results, step.curve()
    for split in step.splits:
        key = step.curve_key(split)
        if key is None or ("curves", key) in standing:
            continue
        images = arena.images[split]
        outcomes = [_outcome_again(results, f"{trial.trial_id}-{split}", images) for trial in trials]
        curve = curve_of(
            [trial.threat.zeta or 0.0 for trial in trials],
            outcomes,
            images.groups,
            target=class_index(images.class_names, step.threat.target),
            seed=step.seed,
        )
        spent = [_found(run, arena, classifier, trial)[0] for trial in trials]
        row = rows.curve_row(step, classifier, split, curve, spent)
        results.write_rows("curves", run.plan.grid.name, key, [row])


def _outcome_again(results: Results, key: str, images: ImageSet) -> Outcome:
    """Return the predictions of a judgement that stands."""
    table = results.step("images", key)
    label, clean, perturbed = (table[name].to_numpy() for name in ("label", "clean_prediction", "perturbed_prediction"))
    return Outcome(label, clean, perturbed, len(images.class_names))


def _judge_further(
    run: Run,
    arena: Arena,
    step: TrialStep,
    split: str,
    perturbation: Tensor,
    target: int | None,
    standing: Set[tuple[str, str]],
) -> None:
    """Judge a perturbation as rendered and beside matched controls, where that is asked for and missing."""
    results, grid = run.results, run.plan.grid.name
    for rendering, rendering_key in step.rendering_keys(split).items():
        if ("renderings", rendering_key) not in standing:
            outcome = judge_rendered(arena, split, perturbation, rendering)
            row = rows.rendering_row(step.trial_id, split, rendering, outcome, target)
            results.write_rows("renderings", grid, rendering_key, [row])
    if (key := step.controls_key(split)) is not None and ("controls", key) not in standing:
        controls = judge_controls(
            arena,
            split,
            perturbation,
            target=target,
            p=order(step.threat.norm),
            draws=step.control_draws,
            max_images=step.control_images,
            seed=step.seed,
            watch=lambda share: run.watcher.judging(step, share),
        )
        results.write_rows("controls", grid, key, rows.control_rows(step.trial_id, split, controls))


def _found(run: Run, arena: Arena, classifier: Classifier, step: TrialStep) -> tuple[Found, rows.Circumstances]:
    """Return a trial's perturbation out of the store, or search for it now."""
    return _found_again(run.results, step, classifier) or _search(run, arena, classifier, step)


def _found_again(results: Results, step: TrialStep, classifier: Classifier) -> tuple[Found, rows.Circumstances] | None:
    """Return the perturbation that a run left before it was judged everywhere, if it was made on this classifier."""
    if not results.has_array(step.trial_id):
        return None
    kept = results.read_array_metadata(step.trial_id)
    if kept.get("made_on") != classifier.sha256:
        return None
    return rows.found_again(torch.from_numpy(results.read_array(step.trial_id)), kept)


def _search(run: Run, arena: Arena, classifier: Classifier, step: TrialStep) -> tuple[Found, rows.Circumstances]:
    """Search, or go on with a search that was interrupted, and write the perturbation after how it was found."""
    before = step.continued_from
    begin_at = None if before is None else _found(run, arena, classifier, before)[0].perturbation
    origin = _origin(run, classifier)
    keeper = Keeper(run.results.objects, step.trial_id, origin, run.save_every_s, run.watcher.unkept)
    if step.search.rule in BLACK_BOX:
        arena.clean(step.made_on, among=step.rows)  # trials share it, so that its answer belongs to none of them
        pool = RememberingPool(arena.pool, keeper.before.answers)
        keeper.remember(pool)
        arena = replace(arena, pool=pool)

    spent = keeper.spent

    def watch(snapshot: Snapshot) -> None:
        nonlocal spent
        run.watcher.searching(step, snapshot)
        keeper.watch(snapshot)
        run.watcher.spent(keeper.spent[0] - spent[0], keeper.spent[1] - spent[1])
        spent = keeper.spent

    with keeper.keeping():
        found = find(
            arena,
            step.threat,
            step.search,
            seed=step.seed,
            source=step.made_on,
            rows=step.rows,
            measured_on=step.measured_on,
            begin_at=begin_at,
            so_far=keeper.before,
            watch=watch,
        )
    ran = rows.Circumstances(keeper.seconds, run.resources.device, arena.pool.size)
    if found.history:
        history = rows.history_rows(step.trial_id, found)
        run.results.write_rows("history", run.plan.grid.name, step.trial_id, history)
    metadata = rows.found_metadata(found, ran) | {"made_on": classifier.sha256}
    run.results.write_array(step.trial_id, found.perturbation, metadata)
    keeper.forget()
    return found, ran


def _origin(run: Run, classifier: Classifier) -> dict[str, str]:
    """Return what a search can be continued under to the same bits."""
    return {
        "made_on": classifier.sha256,
        "device": run.resources.device,
        "uapray": __version__,
        "torch": torch.__version__,
    }
