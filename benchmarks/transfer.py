"""Made on all classifiers but one, judged on that one; beside the best perturbation of a single classifier.

    python benchmarks/transfer.py --data 'chest_xray_224_*.parquet' --size 64 --zeta 0.04 --seeds 3 \
        --classifier small-cnn.safetensors --classifier vit.safetensors --classifier mobilenet.safetensors

For each classifier left out: the fooling rate on its test images of the perturbation made on the others together, of
each made on one of them alone, and of one made on the left-out classifier itself (what transfer could reach at most).
Medians over the seeds. Printed last: the ratio of the joint rate to the best single one, median over who is left out.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import uapray
from uapray.data.images import ImageSet
from uapray.models.card import Classifier


def main() -> None:
    """Leave out each classifier in turn and print who fools it how much."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="phantom:chest?images=400&size=32", help="default: synthetic images")
    parser.add_argument("--classifier", action="append", help="three or more .safetensors; default: tiny ones")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--images", type=int, default=500, help="source images")
    parser.add_argument("--test-images", type=int, default=540)
    parser.add_argument("--zeta", type=float, default=0.04)
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)

    size = (asked.size, asked.size)
    train, test = (uapray.load_images(asked.data, split, size) for split in ("train", "test"))
    source, held_out = evenly(train, asked.images), evenly(test, asked.test_images)
    victims = loaded(asked.classifier) if asked.classifier else tiny_ones(train)
    threat = {"zeta": asked.zeta, "norm": asked.norm}

    def median_rate(made_on: Sequence[str], judged_on: str) -> float:
        rates = []
        for seed in range(asked.seeds):
            made = uapray.perturb([victims[name] for name in made_on], source, seed=seed, **threat)
            judged = uapray.evaluate(victims[judged_on], held_out, made.perturbation, controls=0, renderings=())
            rates.append(judged.fooling_rate)
        return statistics.median(rates)

    ratios = []
    print("| left out | made on the others together | on each alone | on itself |\n|---|---|---|---|")
    for name in victims:
        others = [other for other in victims if other != name]
        joint, itself = median_rate(others, name), median_rate([name], name)
        alone = {other: median_rate([other], name) for other in others}
        ratios.append(joint / max(*alone.values(), 1e-9))
        singles = ", ".join(f"{other} {rate:.3f}" for other, rate in alone.items())
        print(f"| {name} | {joint:.3f} | {singles} | {itself:.3f} |", flush=True)
    print(f"joint / best single, median: {statistics.median(ratios):.2f}")


def evenly(images: ImageSet, count: int) -> ImageSet:
    """Return that many images, evenly spread."""
    return images.select(np.unique(np.linspace(0, len(images) - 1, count).astype(int)))


def loaded(files: Sequence[str]) -> dict[str, Classifier]:
    """Return classifiers by the names of their files."""
    return {Path(file).stem: uapray.load_classifier(file) for file in files}


def tiny_ones(train: ImageSet) -> dict[str, Classifier]:
    """Return three tiny classifiers, trained here from different seeds."""
    from uapray.data.images import hold_out
    from uapray.models.recipe import recipe_of
    from uapray.models.training import fit
    from uapray.models.weights import wrap_module
    from uapray.models.zoo import build

    victims = {}
    for seed in range(3):
        module = build("tiny-cnn", classes=len(train.class_names), channels=train.channels, size=train.size, seed=seed)
        fit(module, *hold_out(train, 0.1, seed), recipe_of({"base": "quick", "epochs": 4}), seed=seed)
        victims[f"tiny-cnn-{seed}"] = wrap_module(module.eval(), train.class_names, train.channels, train.size)
    return victims


if __name__ == "__main__":
    main()
