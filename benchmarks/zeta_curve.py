"""What a curve over zeta costs and loses against a full search at each zeta.

    python benchmarks/zeta_curve.py --data 'chest_xray_224_*.parquet' --size 64 --classifier chest-vit.safetensors

Each zeta is searched in full, and then all of them as one curve, in which each search continues from its neighbour.
Printed: the held-out rates of both, the mean over the seeds; how many image-gradients a curve takes, as a multiple of
one full search; the largest loss in rate, of the mean and of a single seed; zeta50 by both.
"""

import argparse
import time

import numpy as np
import torch
from compare_rules import as_mixed, classifiers

import uapray
from uapray.api import checked_zetas
from uapray.curves import ZETAS, Crossing, curve_of
from uapray.measures import Outcome


def main() -> None:
    """Search both ways with every seed, print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="phantom:chest?images=600&size=64", help="default: synthetic images")
    parser.add_argument("--classifier", action="append", help="a .safetensors; default: a tiny one trained now")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=500, help="source images, validation part included")
    parser.add_argument("--test-images", type=int, default=540)
    parser.add_argument("--zetas", default=",".join(f"{zeta:g}" for zeta in ZETAS))
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--rule", default="aimed-ascent")
    parser.add_argument("--refine-epochs", type=float, default=0.25)
    parser.add_argument("--seeds", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(1)

    size, zetas = (asked.size, asked.size), checked_zetas([float(one) for one in asked.zetas.split(",")])
    train, test = (uapray.load_images(asked.data, split, size) for split in ("train", "test"))
    held_out = test.select(np.unique(np.linspace(0, len(test) - 1, asked.test_images).astype(int)))
    source = as_mixed(train, held_out, asked.images)
    named = {"rule": asked.rule, "norm": asked.norm}
    for name, classifier in classifiers(asked.classifier, train):
        begun, full, continued, costs = time.monotonic(), [], [], []
        for seed in range(asked.seeds):
            curve = uapray.zeta_curve(
                classifier, source, held_out, zetas=zetas, seed=seed, refine_epochs=asked.refine_epochs, **named
            )
            searches = [uapray.perturb(classifier, source, zeta=zeta, seed=seed, **named) for zeta in zetas]
            outcomes = [
                uapray.evaluate(classifier, held_out, one.perturbation, controls=0, renderings=()).outcome
                for one in searches
            ]
            full.append(outcomes)
            continued.append(curve.outcomes)
            costs.append(curve.image_gradients / np.mean([one.image_gradients for one in searches]))
        print(f"\n{name}: {asked.rule}, {asked.norm}, {asked.seeds} seeds, {time.monotonic() - begun:.0f} s")
        print("| | " + " | ".join(f"{zeta:g}" for zeta in zetas) + " |\n|---" + "|---" * len(zetas) + "|")
        whole, refined = rates(full), rates(continued)
        for way, shares in (("full search each", whole), ("curve", refined)):
            print(f"| {way} | " + " | ".join(f"{share:.3f}" for share in shares.mean(0)) + " |")
        print(f"image-gradients of a curve / of one full search: {np.mean(costs):.2f}")
        lost = whole - refined
        print(
            f"loss in rate: mean {lost.mean():.3f}, largest of a zeta {lost.mean(0).max():.3f}, "
            f"largest of a single search {lost.max():.3f}"
        )
        for seed in range(asked.seeds):
            pair = [
                said(curve_of(zetas, outcomes[seed], held_out.groups, target=None).zeta50_of_ceiling)
                for outcomes in (full, continued)
            ]
            print(f"seed {seed}: zeta50 of the ceiling, full {pair[0]}, curve {pair[1]}", flush=True)


def rates(outcomes: list[tuple[Outcome, ...]]) -> np.ndarray:
    """Return fooling rates, ``(seeds, zetas)``."""
    return np.array([[one.fooling.share for one in of_seed] for of_seed in outcomes])


def said(crossing: Crossing) -> str:
    """Return a crossing with its interval as text."""
    shown = ["beyond" if one is None else f"{one:.4f}" for one in (crossing.zeta, crossing.low, crossing.high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


if __name__ == "__main__":
    main()
