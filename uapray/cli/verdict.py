"""``uapray verdict``: the published claims, each held against a store."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from uapray.cli import options

if TYPE_CHECKING:
    from uapray.verdict import Unit, Verdict


def verdict(
    store: options.Store,
    grid: Annotated[str | None, typer.Option(help="One grid only.", show_default=False)] = None,
    zeta: Annotated[
        float, typer.Option(min=1e-6, max=1, help="Radius at which claims about a level are judged.")
    ] = 0.04,
    form: Annotated[
        Literal["table", "json"], typer.Option("--format", help="json has every comparison and its trials.")
    ] = "table",
) -> None:
    """Say of each published claim whether it holds for these images and classifiers, fails, or lacks data.

    Example: uapray verdict --store results/
    """
    import json
    import sys
    from dataclasses import asdict

    from uapray.cli import tables
    from uapray.store.results import open_results
    from uapray.verdict import verdicts

    results = open_results(store)
    found = verdicts(results, grid=grid, zeta=zeta)
    if not any(one.units for one in found):
        results.expect_trials("to judge", grid)
    if form == "json":
        sys.stdout.write(json.dumps([asdict(one) for one in found], indent=1, ensure_ascii=False) + "\n")
        return
    rows = [[f"({one.claim}) {one.says}", one.answer, _counts(one)] for one in found]
    note = "\n".join([*_needed(found), *left_out(found)])
    tables.show(f"{store}: the published claims", ["claim", "verdict", "comparisons"], rows, note)
    units = [[f"({one.claim}) {unit.about}", *_figures(unit)] for one in found for unit in one.units]
    if units:
        columns = ["comparison", "effect [95 %]", "claimed", "p", "says"]
        tables.show("what they rest on (trials: --format json)", columns, units)


def _counts(one: "Verdict") -> str:
    counts = [
        f"{sum(unit.answer == answer for unit in one.units)} {word}"
        for answer, word in (("holds", "for"), ("fails", "against"), ("not enough data", "open"))
        if any(unit.answer == answer for unit in one.units)
    ]
    return ", ".join(counts) or "–"


def _needed(found: "tuple[Verdict, ...]") -> list[str]:
    return [f"({one.claim}) {_open(one)}needs {one.needs}" for one in found if one.answer == "not enough data"]


def _open(one: "Verdict") -> str:
    undecided = sum(unit.answer == "not enough data" for unit in one.units)
    told = f"{undecided} of {len(one.units)} open: more test images or seeds make intervals narrower; "
    return told if undecided else ""


def left_out(found: "tuple[Verdict, ...]") -> list[str]:
    """Return a line about the classifiers that answer no claim since they learned nothing; none where all did."""
    names = found[0].left_out
    return [f"left out, no better than chance on clean images: {', '.join(names)}"] if names else []


def _figures(unit: "Unit") -> list[str]:
    effect = f"{unit.effect:+.3f} [{unit.low:+.3f}, {unit.high:+.3f}]"
    return [effect, unit.wanted, f"{unit.p_value:.2g}", unit.answer]
