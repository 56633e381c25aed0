"""Held-out fooling rate of the black-box rules against the predictions that they spend.

    python benchmarks/black_box.py --data 'chest_xray_224_*.parquet' --classifier chest.safetensors [--queries 20000]

The attacker owns 200 test images (a third, if there are few), by patient; the rates are those on 500 of the rest (on
all of it, if there are fewer). First comes hill climbing as published (Koga & Takemoto 2022): the mean probability of
being fooled, in the ball, every candidate judged on all images. Then each rule with its own settings, told scores or
labels only. Printed: the rate at some numbers of predictions, and how many times fewer predictions each rule takes to
the rate at which the published search ends.
"""

import argparse
import time

import numpy as np
import torch

import uapray
from uapray.api import search_settings
from uapray.config import BLACK_BOX, Threat
from uapray.coordinator import Snapshot
from uapray.data.images import ImageSet, hold_out
from uapray.models.card import Classifier
from uapray.models.recipe import RECIPES
from uapray.models.training import fit
from uapray.models.weights import wrap_module
from uapray.models.zoo import build
from uapray.resources import Resources, open_pool
from uapray.trial import Arena, find, judge

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
    parser.add_argument("--seed", type=int, default=0)
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
    goal, most = run("hill-climb, as published", "hill-climb", PUBLISHED, (classifier, attacker, rest), asked, places)
    for feedback in asked.feedback:
        for rule in asked.rules:
            run(
                f"{rule}, {feedback}",
                rule,
                {"feedback": feedback},
                (classifier, attacker, rest),
                asked,
                places,
                goal,
                most,
            )


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


def run(
    title: str,
    rule: str,
    settings: dict[str, object],
    world: tuple[Classifier, ImageSet, ImageSet],
    asked: argparse.Namespace,
    places: list[int],
    goal: float | None = None,
    most: int = 0,
) -> tuple[float, int]:
    """Search once and print a line; return the held-out rate at the end and the predictions it took to it."""
    classifier, attacker, rest = world
    found: list[tuple[int, torch.Tensor]] = []

    def watch(snapshot: Snapshot) -> None:
        if not found or not torch.equal(found[-1][1], snapshot.best):
            found.append((snapshot.image_queries, snapshot.best))

    search = search_settings(rule, {"max_image_queries": asked.queries, **settings})
    decks = {"attacker": attacker, "rest": rest}
    with open_pool(classifier, decks, Resources("local")) as pool:
        arena = Arena(pool, decks)
        begun = time.process_time()
        find(arena, Threat(xi=asked.xi), search, seed=asked.seed, source="attacker", watch=watch)
        seconds = time.process_time() - begun
        curve = [(spent, judge(arena, "rest", v, target=None).outcome.fooling.share) for spent, v in found]
    shown = [at(curve, place) for place in places]
    reached = [spent for spent, rate in curve if goal is not None and rate >= goal]
    saved = "" if goal is None else f"{most / reached[0]:10.1f}" if reached else "  not reached"
    print(f"{title:30}" + "".join(f"{rate:9.3f}" for rate in shown) + f"{seconds:10.1f}  {saved}", flush=True)
    return curve[-1][1], next(spent for spent, rate in curve if rate >= curve[-1][1])


def at(curve: Curve, place: int) -> float:
    """Return the rate of the perturbation that the search had after so many predictions; NaN if none."""
    return next((rate for spent, rate in reversed(curve) if spent <= place), float(np.nan))


if __name__ == "__main__":
    main()
