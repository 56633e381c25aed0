"""What the settings of the sequential rules do: fooling rate on the test split, by setting.

    python benchmarks/sequential_settings.py --data 'chest_xray_224_*.parquet' [--images 500] [--passes 5] [--seeds 3]

The victim of against_art.py, 500 images at 64 px, zeta 2 % in both norms, pixels clipped. Printed for each value of a
setting: the median over seeds of the fooling rate on the test split, the lowest in brackets, the image-gradients and
the CPU seconds; of a search in which no step was accepted the rate is zero.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from against_art import SIZE, fooled, trained
from torch import nn

import uapray
from uapray.arena import Arena
from uapray.config import Norm, Search, Threat
from uapray.data.images import ImageSet
from uapray.errors import TrialError
from uapray.models.weights import wrap_module
from uapray.resources import Resources, open_pool
from uapray.trial import find

CASES = [
    ("uap-fgsm", "step_size", (0.03, 0.06, 0.125, 0.25, 0.5, 1.0)),
    ("uap-deepfool", "overshoot", (0.0, 0.02, 0.1, 0.5)),
    ("uap-deepfool", "inner_steps", (1, 3, 10, 30)),
]


def main() -> None:
    """Train the victim once, search with each value, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="phantom:chest?images=400&size=64", help="default: synthetic images")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rule", choices=["uap-fgsm", "uap-deepfool"], help="default: both")
    asked = parser.parse_args()
    torch.set_num_threads(1)

    train = uapray.load_images(asked.data, "train", SIZE)
    test = uapray.load_images(asked.data, "test", SIZE)
    source = train.select(np.sort(np.random.default_rng(0).permutation(len(train))[: asked.images]))
    module = trained(source)
    for rule, name, values in CASES:
        if asked.rule not in (None, rule):
            continue
        for norm in ("linf", "l2"):
            for value in values:
                settings = Search.model_validate({"rule": rule, name: value, "budget": {"max_epochs": asked.passes}})
                tried = [one(module, source, test, norm, settings, seed) for seed in range(asked.seeds)]
                rates, gradients, seconds = zip(*tried, strict=True)
                print(
                    f"{rule:12} {norm:4} {name:11} {value:5}: {statistics.median(rates):.3f} ({min(rates):.3f})  "
                    f"{statistics.median(gradients):8.0f} gradients {statistics.median(seconds):6.1f} s",
                    flush=True,
                )


def one(
    module: nn.Module, source: ImageSet, test: ImageSet, norm: Norm, settings: Search, seed: int
) -> tuple[float, int, float]:
    """Return fooling rate on the test split, image-gradients and CPU seconds of one search."""
    classifier = wrap_module(module, source.class_names, source.channels, SIZE)
    begun = time.process_time()
    with open_pool(classifier, {"train": source}, Resources("local")) as pool:
        try:
            found = find(Arena(pool, {"train": source}), Threat(norm=norm, zeta=0.02), settings, seed=seed)
        except TrialError:
            return 0.0, 0, time.process_time() - begun
    return fooled(module, test, found.perturbation), found.image_gradients, time.process_time() - begun


if __name__ == "__main__":
    main()
