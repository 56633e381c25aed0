"""Held-out fooling rate of the black-box rules against the predictions that they spend.

    python benchmarks/black_box.py --data 'chest_xray_224_*.parquet' --classifier chest.safetensors [--queries 20000]
        [--seeds 5]

The attacker owns 200 test images (a third, if there are few), by patient; the rates are those on 500 of the rest (on
all of it, if there are fewer). First comes hill climbing as published (Koga & Takemoto 2022): the mean probability of
being fooled, in the ball, every candidate judged on all images. Then each rule with its own settings, told scores or
labels only. Printed: the rate at some numbers of predictions, median over the seeds, and how many times fewer
predictions each rule takes to the rate at which the published search of the same seed ends: median [smallest, largest].
"""

import argparse
import math
import time
from collections.abc import Sequence

import numpy as np
import torch

import uapray
from uapray.api import search_settings
from uapray.arena import Arena
from uapray.config import BLACK_BOX, Threat
from uapray.coordinator import Snapshot
from uapray.data.images import ImageSet, hold_out
from uapray.judgement import judge
from uapray.models.card import Classifier
from uapray.models.recipe import RECIPES
from uapray.models.training import fit
from uapray.models.weights import wrap_module
from uapray.models.zoo import build
from uapray.resources import Resources, open_pool
from uapray.trial import find

ATTACKER_IMAGES = 200
JUDGED_IMAGES = 500
PUBLISHED = {"loss": "probability", "clamp": None, "race_images": None, "placed": "ball"}
Curve = list[tuple[int, float]]


def main() -> None:
    """Let each rule search once, print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="phantom:chest?images=600&size=32", help="default: synthetic images")
    parser.add_argument("--classifier", help="default: a small one, trained here")
    parser.add_argument("--size", type=int, help="default: that of the classifier, or as stored")
    parser.add_argument("--xi", type=float, default=8 / 255)
    parser.add_argument("--queries", type=int, default=20000, help="predictions of a search")
    parser.add_argument("--seeds", type=int, default=1, help="searches of each rule")
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE for all rules but the published")
    parser.add_argument("--rules", nargs="+", default=["hill-climb", "cma-es", "pso", "de", "ga"])
    parser.add_argument("--feedback", nargs="+", default=["scores", "labels"])
    asked = parser.parse_args()
    assert set(asked.rules) <= BLACK_BOX, f"expected rules among {sorted(BLACK_BOX)}"
    torch.set_num_threads(1)

    classifier, test = victim(asked.data, asked.classifier, asked.size)
    share = min(1 / 3, ATTACKER_IMAGES / len(test))
    rest, attacker = hold_out(test, share, 0)
    rest = rest.select(np.sort(np.random.default_rng(0).permutation(len(rest))[:JUDGED_IMAGES]))
    print(f"{len(attacker)} images to search on, {len(rest)} to judge on; linf {255 * asked.xi:g} grey levels")
    places = [asked.queries * part // 16 for part in (1, 2, 4, 8, 16)]
    print(f"{'rule':30}" + "".join(f"{place:>9}" for place in places) + "   seconds   times fewer")
    world = (classifier, attacker, rest)
    published = searches("hill-climb, as published", "hill-climb", PUBLISHED, world, asked, places)
    changes = {name: float(value) for name, _, value in (pair.partition("=") for pair in asked.set)}
    for feedback in asked.feedback:
        for rule in asked.rules:
            own = {"feedback": feedback, **changes}
            searches(f"{rule}, {feedback}", rule, own, world, asked, places, published)


def victim(data: str, classifier: str | None, size: int | None) -> tuple[Classifier, ImageSet]:
    """Return a classifier and the test images: the ones asked for, or a small one that is trained now."""
    if classifier is not None:
        loaded = uapray.load_classifier(classifier)
        return loaded, uapray.load_images(data, "test", size or loaded.card.size)
    train, test = (uapray.load_images(data, split, size) for split in ("train", "test"))
    kept, held = hold_out(train, 0.1, 0)
    classes = len(train.class_names)
    module = build(
        "tiny-cnn", classes=classes, channels=train.channels, size=train.size, initial_weights="random", seed=0
    )
    fit(module, kept, held, RECIPES["quick"], seed=0)
    return wrap_module(module, train.class_names, train.channels, train.size), test


def searches(
    title: str,
    rule: str,
    settings: dict[str, object],
    world: tuple[Classifier, ImageSet, ImageSet],
    asked: argparse.Namespace,
    places: list[int],
    published: Sequence[Curve] = (),
) -> list[Curve]:
    """Search with each seed, print a line, return the curves."""
    begun = time.process_time()
    curves = [search(rule, settings, world, asked, seed) for seed in range(asked.seeds)]
    seconds = (time.process_time() - begun) / asked.seeds
    shown = [float(np.median([at(curve, place) for curve in curves])) for place in places]
    print(f"{title:30}" + "".join(f"{rate:9.3f}" for rate in shown) + f"{seconds:10.1f}", end="  ")
    saved = [fewer(*pair) for pair in zip(curves, published, strict=False)]
    print(f"{np.median(saved):8.1f} [{min(saved):.1f}, {max(saved):.1f}]" if saved else "", flush=True)
    return curves


def fewer(curve: Curve, published: Curve) -> float:
    """Return how many times fewer predictions it took to where another search ends; 0 if it never came there."""
    goal = published[-1][1]
    took, takes = (next((spent for spent, rate in one if rate >= goal), math.inf) for one in (published, curve))
    return took / takes


def search(
    rule: str,
    settings: dict[str, object],
    world: tuple[Classifier, ImageSet, ImageSet],
    asked: argparse.Namespace,
    seed: int,
) -> Curve:
    """Search once; return the held-out rate of the perturbation that the search had, by the predictions spent."""
    classifier, attacker, rest = world
    found: list[tuple[int, torch.Tensor]] = []

    def watch(snapshot: Snapshot) -> None:
        if not found or not torch.equal(found[-1][1], snapshot.best):
            found.append((snapshot.image_queries, snapshot.best))

    chosen = search_settings(rule, {"max_image_queries": asked.queries, **settings})
    decks = {"attacker": attacker, "rest": rest}
    with open_pool(classifier, decks, Resources("local")) as pool:
        arena = Arena(pool, decks)
        find(arena, Threat(xi=asked.xi), chosen, seed=seed, source="attacker", watch=watch)
        return [(spent, judge(arena, "rest", v, target=None).outcome.fooling.share) for spent, v in found]


def at(curve: Curve, place: int) -> float:
    """Return the rate of the perturbation that the search had after so many predictions; NaN if none."""
    return next((rate for spent, rate in reversed(curve) if spent <= place), float(np.nan))


if __name__ == "__main__":
    main()
