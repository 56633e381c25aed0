"""Held-out fooling rate against image-gradients: every white-box rule, each with its own best settings.

    python benchmarks/compare_rules.py --data 'chest_xray_224_*.parquet' --size 64 --images 500 --zeta 0.03 \
        --classifier chest-small-cnn.safetensors --classifier chest-vit.safetensors --seeds 5 --out curves/

Each rule searches on the same source images of the train split, mixed as the test split is, with the budget that it
was published with, or with what --passes says; the default rule gets as many image-gradients as each of them took, and
once more a tenth, in searches of their own, since its step falls with its budget; rules that took about as many (down
to nine tenths) are answered by one search. Whenever a search has found something better on its own validation part, it
is judged on test images, which the search knows nothing of. Printed: the rate that each rule ends with (median,
smallest, largest and mean over the seeds), and what the default rule ends with, given a tenth of that rule's
image-gradients and as many. With --draws all of it is done again with other source images, since which ones they are
decides more than a seed does; then also the means. Written to --out: every point as Parquet, the curves of the first
draw as PNG.
"""

import argparse
import functools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

import uapray
from uapray.api import search_settings
from uapray.arena import Arena
from uapray.config import Threat
from uapray.coordinator import Snapshot
from uapray.data.images import ImageSet
from uapray.models.card import Classifier
from uapray.pool import in_turn
from uapray.resources import Resources, open_pool
from uapray.trial import find

OURS = "aimed-ascent"
SHARES = {OURS: 1.0, f"{OURS}, a tenth": 0.1}  # of a published rule's image-gradients
ABOUT = 0.9  # of two budgets that one search answers
# Passes that the rules were published with: SPGD and SGA 20 (Liu et al. 2023), UAP 15 (Hirano et al. 2021); DF-UAP
# and the cosine loss took 64,000 image-gradients whatever the number of images.
PUBLISHED = {"spgd": 20.0, "sga": 20.0, "df-uap": None, "cosine-uap": None, "uap-fgsm": 15.0, "uap-deepfool": 15.0}
PUBLISHED_GRADIENTS = 64_000

Point = dict[str, Any]


def main() -> None:
    """Search with every rule, draw and seed on every classifier, print the tables, draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    ask_what_is_attacked(parser)
    parser.add_argument("--draws", type=int, default=1, help="draw the source images so often, and search with each")
    parser.add_argument("--test-images", type=int, default=540)
    parser.add_argument("--rules", default=",".join(PUBLISHED))
    parser.add_argument("--passes", type=float, help="instead of the published budgets")
    parser.add_argument("--set", action="append", default=[], help="RULE:NAME=VALUE, e.g. df-uap:step_size=0.3")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--judge-every",
        type=int,
        default=1,
        metavar="N",
        help="judge each Nth measurement of the published rules, and the last",
    )
    parser.add_argument("--points", action="append", default=[], help="points.parquet of earlier runs to show beside")
    parser.add_argument("--out", help="folder for points.parquet and curves.png")
    asked = parser.parse_args()
    if asked.draws < 1:
        parser.error(f"--draws: expected 1 or more, got {asked.draws}")
    torch.set_num_threads(1)

    train, test, threat = attacked(parser, asked)
    held_out = test.select(np.unique(np.linspace(0, len(test) - 1, asked.test_images).astype(int)))
    earlier = [point for file in asked.points for point in pq.read_table(file).to_pylist()]
    points: list[Point] = [{"draw": 0, "budget": None, "fooled": None, **point} for point in earlier]
    for name, classifier in classifiers(asked.classifier, train):
        for number in range(asked.draws):
            begun = time.monotonic()
            source = as_mixed(train, held_out, asked.images, number)
            searched(classifier, name, number, source, held_out, threat, asked, points)
            if asked.out:  # what was found is kept, whatever becomes of the rest
                folder = Path(asked.out)
                folder.mkdir(parents=True, exist_ok=True)
                pq.write_table(pa.Table.from_pylist(points), folder / "points.parquet")
            show(f"{name}, draw {number}", of(points, name, number), time.monotonic() - begun)
        if asked.draws > 1:
            show_means(name, points, asked.draws)
    if asked.out:
        draw(of(points, None, 0), folder / "curves.png", asked)


def ask_what_is_attacked(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is attacked, and how strongly."""
    parser.add_argument("--data", default="phantom:chest?images=600&size=64", help="default: synthetic images")
    parser.add_argument("--classifier", action="append", help="a .safetensors; default: a tiny one trained now")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=500, help="source images, validation part included")
    parser.add_argument("--zeta", type=float, default=0.03)
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--target", help="class name; default: nontargeted")


def attacked(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> tuple[ImageSet, ImageSet, Threat]:
    """Return the train and the test split, and the threat; a class that is not there ends the program."""
    size = (asked.size, asked.size)
    train, test = (uapray.load_images(asked.data, split, size) for split in ("train", "test"))
    if asked.target not in (None, *test.class_names):
        parser.error(f"--target: expected one of {', '.join(test.class_names)}, got {asked.target!r}")
    return train, test, Threat(norm=asked.norm, zeta=asked.zeta, target=asked.target)


def aim(asked: argparse.Namespace) -> str:
    """Return where a perturbation is to send the images, as text."""
    return "nontargeted" if asked.target is None else f"target {asked.target}"


def searched(
    classifier: Classifier,
    name: str,
    number: int,
    source: ImageSet,
    held_out: ImageSet,
    threat: Threat,
    asked: argparse.Namespace,
    points: list[Point],
) -> None:
    """Search with every rule and seed on one draw of source images; add the points that are not there yet."""

    def search(label: str, rule: str, budget: int | None, changes: dict[str, Any]) -> None:
        settings = changes | own_settings(asked.set, rule)
        for seed in range(asked.seeds):
            found = run(classifier, source, held_out, threat, rule, settings, seed, asked.judge_every)
            where = {"classifier": name, "draw": number, "rule": label, "budget": budget, "seed": seed}
            points.extend({**where, **point} for point in found)

    done = {(point["rule"], point["budget"]) for point in of(points, name, number)}
    for rule in asked.rules.split(","):
        if (rule, None) not in done:
            passes = asked.passes or PUBLISHED.get(rule) or PUBLISHED_GRADIENTS / len(source)
            search(rule, rule, None, {"max_epochs": passes})
    for label, share in SHARES.items():
        for budget in budgets(of(points, name, number), share):
            if (label, budget) not in done:
                search(label, OURS, budget, {"max_image_gradients": budget})


def own_settings(pairs: Sequence[str], rule: str) -> dict[str, Any]:
    """Return what RULE:NAME=VALUE says of a rule."""
    own = [pair.partition(":")[2].partition("=") for pair in pairs if pair.partition(":")[0] == rule]
    return {name: float(value) if value.replace(".", "").isdigit() else value for name, _, value in own}


def of(points: Sequence[Point], name: str | None, number: int) -> list[Point]:
    """Return the points of one draw of source images, and of one classifier."""
    return [point for point in points if point["draw"] == number and name in (None, point["classifier"])]


def as_mixed(images: ImageSet, like: ImageSet, count: int, number: int) -> ImageSet:
    """Return about that many images, drawn at random, with the class shares of another set.

    The train split of the skin lesions has fewer nevi than the test split; a rate on the one says little of the other.
    """
    rng = np.random.default_rng(number)
    shares = np.bincount(like.labels, minlength=len(like.class_names)) / len(like)
    drawn = [rng.permutation(np.flatnonzero(images.labels == label)) for label in range(len(shares))]
    rows = np.concatenate([mine[: round(count * share)] for mine, share in zip(drawn, shares, strict=True)])
    return images.select(np.sort(rows))


def classifiers(files: Sequence[str] | None, train: ImageSet) -> Iterator[tuple[str, Classifier]]:
    """Yield what is attacked: the files named, or a tiny classifier trained here."""
    if files:
        for file in files:
            yield Path(file).stem, uapray.load_classifier(file)
        return
    from uapray.models.recipe import recipe_of
    from uapray.models.training import fit
    from uapray.models.weights import wrap_module
    from uapray.models.zoo import build

    module = build("tiny-cnn", classes=len(train.class_names), channels=train.channels, size=train.size)
    from uapray.data.images import hold_out

    fit(module, *hold_out(train, 0.1, 0), recipe_of({"base": "quick", "epochs": 4}), seed=0)
    yield "tiny-cnn", wrap_module(module.eval(), train.class_names, train.channels, train.size)


def published(points: Sequence[Point]) -> dict[str, list[list[Point]]]:
    """Return the searches of each published rule, a list of points each."""
    found: dict[str, list[list[Point]]] = {}
    for (label, _, _), mine in curves(points).items():
        if label not in SHARES:
            found.setdefault(label, []).append(mine)
    return found


def spent(searches: Sequence[Sequence[Point]]) -> float:
    """Return the image-gradients that the searches of a rule took, the median of its seeds."""
    return float(np.median([mine[-1]["image_gradients"] for mine in searches]))


def budgets(points: Sequence[Point], share: float) -> list[int]:
    """Return the budgets that answer all published rules, rising."""
    kept: list[int] = []
    for wanted in sorted(max(1, int(spent(mine) * share)) for mine in published(points).values()):
        if not kept or kept[-1] < ABOUT * wanted:
            kept.append(wanted)
    return kept


def answer(points: Sequence[Point], label: str, rule: str) -> list[list[Point]]:
    """Return the searches of ours that answer a published rule: with the most that is no more than their share."""
    most = max(1, int(spent(published(points)[rule]) * SHARES[label]))
    ours = {key: mine for key, mine in curves(points).items() if key[0] == label and key[1] and key[1] <= most}
    largest = max(budget for _, budget, _ in ours if budget)
    return [mine for (_, budget, _), mine in ours.items() if budget == largest]


def run(
    classifier: Classifier,
    source: ImageSet,
    held_out: ImageSet,
    threat: Threat,
    rule: str,
    changes: dict[str, Any],
    seed: int,
    judge_every: int = 1,
) -> list[Point]:
    """Return what the held-out rate was whenever the search had measured; the judge's queries are not counted."""
    with open_pool(classifier, {"train": source, "test": held_out}, Resources("local")) as pool:
        arena = Arena(pool, {"train": source, "test": held_out})
        clean, rows = arena.clean("test"), in_turn("test", np.arange(len(held_out)))
        target = None if threat.target is None else held_out.class_names.index(threat.target)
        shape = (held_out.channels, *held_out.size)

        @functools.cache
        def fools(best: bytes) -> NDArray[np.bool_]:
            said = pool.logits(torch.frombuffer(bytearray(best), dtype=torch.float32).reshape(shape), rows).argmax(1)
            return np.asarray(said != clean if target is None else said == target)

        measured: list[tuple[int, bytes]] = []

        def watch(snapshot: Snapshot) -> None:
            measured.append((snapshot.image_gradients, snapshot.best.numpy().tobytes()))

        find(arena, threat, search_settings(rule, changes), seed=seed, watch=watch)
        judged = [*measured[judge_every - 1 : -1 : judge_every], measured[-1]]
        points: list[Point] = [
            {"image_gradients": taken, "rate": float(fools(best).mean()), "fooled": None} for taken, best in judged
        ]
        return [*points[:-1], points[-1] | {"fooled": fools(judged[-1][1]).tolist()}]


def curves(points: Sequence[Point]) -> dict[tuple[str, int | None, int], list[Point]]:
    """Return the points of each rule, budget and seed, in order."""
    by: dict[tuple[str, int | None, int], list[Point]] = {}
    for point in points:
        by.setdefault((point["rule"], point["budget"], point["seed"]), []).append(point)
    return by


def at(points: Sequence[Point], gradients: float) -> float:
    """Return the rate that a search had when it had spent so much; NaN before its first measurement."""
    reached = [point["rate"] for point in points if point["image_gradients"] <= gradients]
    return reached[-1] if reached else math.nan


def last_rates(searches: Sequence[Sequence[Point]]) -> list[float]:
    """Return what searches ended with."""
    return [mine[-1]["rate"] for mine in searches]


def show(name: str, points: Sequence[Point], seconds: float) -> None:
    """Print the table of one classifier and one draw of source images."""
    print(f"\n{name}: held-out rate, median [smallest, largest] mean over the seeds; {seconds:.0f} s")
    print(f"| rule | image-gradients | its rate | {OURS}, a tenth of them | {OURS}, as many |\n|---|---|---|---|---|")
    for rule, searches in published(points).items():
        tenth, many = (spread(last_rates(answer(points, label, rule))) for label in reversed(SHARES))
        print(f"| {rule} | {spent(searches):,.0f} | {spread(last_rates(searches))} | {tenth} | {many} |", flush=True)


def show_means(name: str, points: Sequence[Point], draws: int) -> None:
    """Print what each rule ends with on the mean of the draws, and how far the default rule is above it.

    Beside each difference stands its standard error: the draws differ in what can be reached, the differences less so.
    All draws are judged on the same test images, which others would not be; so by how much an image is fooled more
    often, on the mean of draws and seeds, stands beside it too, with the standard error over images.
    """
    drawn = [of(points, name, number) for number in range(draws)]
    columns = " | ".join(f"{OURS}, {share} | above | by image" for share in ("a tenth", "as many"))
    print(f"\n{name}: mean of {draws} draws, of each the median of its seeds, and how far the default is above")
    print(f"| rule | rates | mean | {columns} |\n|---|---|---|---|---|---|---|---|---|")
    for rule in published(drawn[0]):
        theirs = [published(one)[rule] for one in drawn]
        rates = [float(np.median(last_rates(one))) for one in theirs]
        cells = [" ".join(f"{rate:.3f}" for rate in rates), f"{np.mean(rates):.4f}"]
        for label in reversed(SHARES):
            ours = [answer(one, label, rule) for one in drawn]
            mine = [float(np.median(last_rates(one))) for one in ours]
            often = np.subtract([fooled(one) for one in ours], [fooled(one) for one in theirs])
            cells += [f"{np.mean(mine):.4f}", with_error(np.subtract(mine, rates)), with_error(often.mean(0))]
        print(f"| {rule} | " + " | ".join(cells) + " |", flush=True)


def fooled(searches: Sequence[Sequence[Point]]) -> NDArray[np.float64]:
    """Return how often each test image is fooled in the end, on the mean of some searches; NaN if nobody kept it."""
    return np.mean([mine[-1]["fooled"] or [math.nan] for mine in searches], axis=0)


def with_error(differences: NDArray[np.float64]) -> str:
    """Return the mean and its standard error as text."""
    return f"{differences.mean():+.4f} ± {differences.std(ddof=1) / math.sqrt(len(differences)):.4f}"


def spread(rates: Sequence[float]) -> str:
    """Return median, smallest, largest and mean as text."""
    return f"{np.median(rates):.3f} [{min(rates):.3f}, {max(rates):.3f}] {np.mean(rates):.4f}"


def draw(points: Sequence[Point], file: Path, asked: argparse.Namespace) -> None:
    """Draw the curves: the median over the seeds, and between the smallest and the largest."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(point["classifier"] for point in points))
    figure = Figure(figsize=(6 * len(names), 4.5), layout="constrained")
    for place, name in enumerate(names, 1):
        axes = figure.add_subplot(1, len(names), place)
        by = curves([point for point in points if point["classifier"] == name])
        for rule in dict.fromkeys(rule for rule, _, _ in by):
            most = max(budget or 0 for owner, budget, _ in by if owner == rule)
            mine = [one for (owner, budget, _), one in by.items() if (owner, budget or 0) == (rule, most)]
            first = max(one[0]["image_gradients"] for one in mine)
            last = min(one[-1]["image_gradients"] for one in mine)
            grid = np.geomspace(first, max(last, first + 1), 60)
            rates = np.array([[at(one, spent) for spent in grid] for one in mine])
            (line,) = axes.plot(grid, np.median(rates, 0), label=rule, linewidth=2.5 if rule == OURS else 1.2)
            axes.fill_between(grid, rates.min(0), rates.max(0), color=line.get_color(), alpha=0.12, linewidth=0)
        axes.set(xscale="log", xlabel="image-gradients", ylabel="held-out rate", title=name)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(
        f"{aim(asked)}, {asked.norm}, zeta {asked.zeta:g}, {asked.images} source images, {asked.seeds} seeds"
    )
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
