"""``uapray compare``: two perturbations on the same images."""

from typing import Annotated, Any

import typer

from uapray.cli import options

Trial = Annotated[str, typer.Argument(help="A trial_id, or at least six digits that only it begins with.")]


def compare(
    first: Trial,
    second: Trial,
    store: options.Store,
    split: Annotated[str, typer.Option(help="Split that both were judged on.")] = "test",
) -> None:
    """Compare the fooling rates of two trials on the same images, with McNemar's exact test.

    The interval of the difference is Newcombe's for pairs. It speaks of these two perturbations: to compare rules,
    run several seeds.

    Example: uapray compare --store results/ 256351c4 c5ef1b46
    """
    from uapray.cli import tables
    from uapray.comparison import compare as compare_trials
    from uapray.store.results import open_results

    found = compare_trials(open_results(store), first, second, split=split)
    pair = found.paired
    rows = [
        [_name(found.first), tables.interval(pair.first.share, pair.first.interval), str(pair.first_only)],
        [_name(found.second), tables.interval(pair.second.share, pair.second.interval), str(pair.second_only)],
        ["difference", tables.interval(pair.difference, pair.interval), ""],
    ]
    note = (
        f"{pair.images} images, {pair.both} fooled by both, {pair.neither} by neither; "
        f"McNemar's exact test: p = {tables.p_value(pair.p_value)}"
    )
    title = f"{found.first['data']}/{split}: fooling rates on the same images"
    tables.show(title, ["trial", "fooling rate [95 %]", "fools alone"], rows, note)


def _name(row: dict[str, Any]) -> str:
    target = f" → {row['target']}" if row["target"] else ""
    size = f"{row['norm']} {row['xi_grey']:.3g} grey levels"
    return f"{row['trial_id'][:8]} {row['rule']}{target} on {row['classifier']}, {size}, seed {row['seed']}"
