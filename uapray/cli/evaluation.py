"""What a perturbation does, as tables for people."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uapray.answers import Evaluation


def show_evaluation(evaluation: "Evaluation", title: str, note: str = "") -> None:
    """Print what a perturbation does, as rendered too, beside its controls."""
    from uapray.cli import tables

    columns = ["", "fooling rate [95 %]", "ceiling", "targeted", "of non-targets", "accuracy", "towards"]
    rendered = [(f"as {name}", outcome) for name, outcome in evaluation.renderings.items()]
    target = evaluation.target
    rows = [
        [
            name,
            tables.interval(outcome.fooling.share, outcome.fooling.interval),
            tables.percent(outcome.ceiling),
            "–" if target is None else tables.percent(outcome.towards(target).share),
            "–" if target is None else tables.percent(outcome.towards_non_target(target).share),
            tables.percent(outcome.robust_accuracy),
            evaluation.class_names[outcome.dominant],
        ]
        for name, outcome in (("perturbation", evaluation.outcome), *rendered, ("random control", evaluation.control))
    ]
    size = (
        f"clean accuracy {tables.percent(evaluation.clean_accuracy)} on {evaluation.outcome.images} images; "
        f"linf {255 * evaluation.linf:.2f} grey levels, l2 {evaluation.l2:.3f}, SSIM {evaluation.visibility.ssim:.3f}"
    )
    tables.show(title, columns, rows, f"{size}\n{note}" if note else size)
    if evaluation.controls:
        _show_controls(evaluation)


def _show_controls(evaluation: "Evaluation") -> None:
    from uapray.cli import tables

    rows = [
        [
            one.kind,
            tables.percent(one.mean),
            "–" if one.rates is None else f"{100 * min(one.rates):.1f}–{100 * max(one.rates):.1f}",
            f"{255 * one.linf:.2f}",
            tables.p_value(one.p_value),
        ]
        for one in evaluation.controls
    ]
    first = evaluation.controls[0]
    draws, rate = len(first.draws), first.rate
    named = "fooling rate" if evaluation.target is None else "success of non-targets"
    title = f"{draws} draws of each matched control on {first.perturbation.images} images"
    columns = ["kind", f"mean {named}", "min–max", "linf, grey levels", "p"]
    observed = tables.percent(rate.share if rate.images else None)
    note = f"the perturbation on these images: {observed}; p = (1 + draws that do as well) / {draws + 1}"
    tables.show(title, columns, rows, note)
