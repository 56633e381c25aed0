"""Time of ART's UniversalPerturbation against ours for the same passes of the same rule, on one core.

    python benchmarks/sequential.py --data 'chest_xray_224_*.parquet' [--architecture resnet18] [--repeats 5]

The victim of against_art.py (or a named architecture, trained alike), 500 chest X-rays at 64 px, linf 4/255, sign steps
of xi/4, pixels not clipped (ART without clip values). ART runs as an ordinary user would run it; ours visits the images
in the order that ART drew and, as ART does, judges the perturbation on all of them after each pass. Printed: the CPU
seconds of each, warmed up and by turns, their ratio, and how many steps either accepted. Both take the same steps
(tests/test_art.py) until rounding decides the sign of a gradient near zero; from there they drift apart, so the two
numbers are alike and not equal.
"""

import argparse
import math
import random
import statistics
import time
from functools import partial
from typing import Any

import art.utils
import numpy as np
import torch
from against_art import SIZE, XI, trained
from art.attacks.evasion import universal_perturbation
from art.estimators.classification import PyTorchClassifier
from torch import nn

import uapray
from uapray.attack.sequential import AT_FIRST, Visiting
from uapray.attack.steps import sign_step
from uapray.data.images import ImageSet
from uapray.pool import in_turn
from uapray.replica import Batch, Replica


def main() -> None:
    """Train the victim once, let both search by turns, print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="phantom:chest?images=1200&size=64", help="default: synthetic images")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--architecture", help="default: three convolutions")
    asked = parser.parse_args()
    torch.set_num_threads(1)

    train = uapray.load_images(asked.data, "train", SIZE)
    source = train.select(np.sort(np.random.default_rng(0).permutation(len(train))[: asked.images]))
    module = trained(source, asked.architecture)
    warm = source.select(np.arange(min(32, len(source))))
    run_art(module, warm, 1, 0)
    run_uapray(module, warm, 1, 0)

    ratios = []
    for seed in range(asked.repeats):
        theirs, their_seconds = run_art(module, source, asked.passes, seed)
        accepted, our_seconds = run_uapray(module, source, asked.passes, seed)
        ratios.append(their_seconds / our_seconds)
        print(
            f"order {seed}: ART {their_seconds:7.2f} s, {theirs} steps accepted; "
            f"uapray {our_seconds:7.2f} s, {accepted} steps accepted; ratio {ratios[-1]:5.2f}"
        )
    print(f"median of ART's time / uapray's time: {statistics.median(ratios):.2f}")


def run_art(module: nn.Module, source: ImageSet, passes: int, seed: int) -> tuple[int, float]:
    """Return how many steps ART accepted, and the CPU seconds."""
    classifier = PyTorchClassifier(
        model=module,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=(source.channels, *SIZE),
        nb_classes=len(source.class_names),
        device_type="cpu",
    )
    attack = universal_perturbation.UniversalPerturbation(
        classifier,
        attacker="fgsm",
        attacker_params={"eps": XI / 4, "norm": np.inf, "targeted": False},
        delta=0.0,
        max_iter=passes,
        eps=XI,
        norm=np.inf,
        verbose=False,
    )
    accepted = 0

    def projection(*arguments: Any) -> np.ndarray:
        """Count the accepted steps: each is projected, once."""
        nonlocal accepted
        accepted += 1
        return art.utils.projection(*arguments)

    universal_perturbation.projection = projection
    pixels = source.images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    random.seed(seed)  # ART draws its orders from the global state
    begun = time.process_time()
    attack.generate(pixels)
    return accepted, time.process_time() - begun


def run_uapray(module: nn.Module, source: ImageSet, passes: int, seed: int) -> tuple[int, float]:
    """Return how many steps we accepted, and the CPU seconds."""
    rows, replica = np.arange(len(source)), Replica(module, {"train": source.images})
    how = Visiting(partial(sign_step, epsilon=XI / 4), math.inf, XI, None, clip=False, most=16)
    v = np.zeros((source.channels, *SIZE), np.float32)
    accepted = 0
    random.seed(seed)
    begun = time.process_time()
    clean = np.concatenate(replica.logits(None, in_turn("train", rows))).argmax(1)
    for _ in range(passes):
        drawn, ahead = np.array(random.sample(range(len(rows)), len(rows))), AT_FIRST
        for part in np.split(drawn, range(32, len(drawn), 32)):
            came = replica.visit(v, Batch("train", part, clean[part]), how, ahead)
            v, ahead, accepted = came.v.numpy(), came.ahead, accepted + len(came.accepted)
        replica.logits(v, in_turn("train", rows))
    return accepted, time.process_time() - begun


if __name__ == "__main__":
    main()
