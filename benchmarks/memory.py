"""What images and replicas cost a node in memory, and a plan its driver.

    python benchmarks/memory.py [--images 7000] [--size 299] [--replicas 4] [--trials 100000]

Imports: private memory of a process that has imported what a replica needs, one of three at once, so that pages they
share count for none; and of a Ray actor that has imported torch and nothing else. Images: as many bytes as they are as
uint8 should be in shared memory once, whatever the number of replicas. Replicas: seconds until all are up, and the
private memory of the largest, before it has work and after it has taken gradients of batches; the difference is what
the activations of one batch take, and memory that the allocator keeps. Beside it what they come from holds, once a
node, pages that it shares with them included. Trials: seconds of `uapray grid plan` for so many, imports included, and
the memory of a process that could run them and has planned them.
"""

import argparse
import importlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import psutil
import ray
import torch

from uapray.attack.objective import Objective
from uapray.models.zoo import build
from uapray.on_ray.pool import RayPool
from uapray.on_ray.session import session, usage
from uapray.on_ray.shared import share
from uapray.pool import Deck

MB = 2**20
DRIVER = """
import sys
import psutil
from uapray.cli.grid import load_plan
from uapray.experiment import run_missing
plan = load_plan(sys.argv[1])
print(psutil.Process().memory_info().rss)
"""


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=7000)
    parser.add_argument("--size", type=int, default=299)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--architecture", default="resnet18")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--trials", type=int, default=100_000)
    asked = parser.parse_args()
    plan_many(asked.trials)

    for modules in ("ray", "torch", "torch, timm", "ray, torch, timm"):
        print(f"import {modules}: {private_of(modules) / MB:,.0f} MB private")

    shape = (asked.images, asked.size, asked.size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    module = build(asked.architecture, classes=2, channels=3, size=(asked.size, asked.size), initial_weights="random")
    model = sum(tensor.nbytes for tensor in module.state_dict().values())
    print(f"{asked.images} images: {images.nbytes / MB:,.0f} MB as uint8; {asked.architecture}: {model / MB:.0f} MB")
    deck = Deck("train", np.arange(asked.batch_size), np.zeros(asked.batch_size, dtype=np.int64))
    batches = deck.shuffled(batch_size=asked.batch_size, seed=0, epoch=0)
    with session("local", cpus=asked.replicas):
        print(f"a Ray actor that imports torch and does nothing: {actor_with_torch() / MB:,.0f} MB private")
        shared = share(images)
        del images
        for replicas in (1, asked.replicas):
            begun = time.monotonic()
            pool = RayPool(module, {"train": shared}, replicas=replicas)
            ray.get([one.__ray_ready__.remote() for one in pool.replicas()])
            seconds, before = time.monotonic() - begun, most_private()
            pool.gradient(torch.zeros(3, asked.size, asked.size), batches * replicas * 3, Objective())
            used = next(one.used for one in usage() if one.name.startswith("object store"))
            print(
                f"{replicas} replicas, up after {seconds:.1f} s: object store {used * 1e9 / MB:,.0f} MB; private "
                f"memory of a replica {before / MB:,.0f} MB, and {most_private() / MB:,.0f} MB after batches of "
                f"{asked.batch_size}; what they come from {origin() / MB:,.0f} MB"
            )
            pool.close()


def actor_with_torch() -> int:
    """Return the private memory of a Ray actor that has imported torch, bytes, while two others like it run."""

    class Idle:
        def up(self) -> int:
            importlib.import_module("torch")
            return int(psutil.Process().memory_full_info().uss)

    three = [ray.remote(Idle).options(num_cpus=0).remote() for _ in range(3)]
    used = ray.get([one.up.remote() for one in three])[0]
    for one in three:
        ray.kill(one)
    return int(used)


def most_private() -> int:
    """Return the private memory of the largest of this driver's replicas, bytes."""
    return max(one.memory_full_info().uss for one in hosts())


def origin() -> int:
    """Return the memory of the process that the replicas come from, bytes, with pages that it shares with them."""
    return int(psutil.Process(hosts()[0].ppid()).memory_info().rss)


def hosts() -> list[psutil.Process]:
    """Return the processes of this driver's replicas."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "ray::Host" in " ".join(child.cmdline())]


def private_of(modules: str) -> int:
    """Return the private memory of a process after imports, bytes, while two others like it run."""
    words = [sys.executable, "-c", f"import sys, {modules}; print(flush=True); sys.stdin.read()"]
    three = [subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(3)]
    try:
        for one in three:
            assert one.stdout is not None
            one.stdout.readline()
        return int(psutil.Process(three[0].pid).memory_full_info().uss)
    finally:
        for one in three:
            one.kill()
            one.wait()


def plan_many(trials: int) -> None:
    """Ask `grid plan` about so many trials and plan them as a driver does; print what it took."""
    seeds = list(range(max(1, trials // 16)))
    text = f"""
name: large
data: [{{uri: "phantom:chest?images=60&size=32"}}]
classifiers: [{{architecture: resnet50, initial_weights: random}}]
rules: [spgd, sga]
norms: [linf, l2]
targets: [nontargeted, all]
control: false
seeds: {seeds}
"""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as grid:
        grid.write(text)
        grid.flush()
        begun = time.monotonic()
        subprocess.run([sys.executable, "-m", "uapray", "grid", "plan", grid.name], check=True, stdout=subprocess.PIPE)
        seconds = time.monotonic() - begun
        words = [sys.executable, "-c", DRIVER, grid.name]
        held = int(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout) / MB
    count = f"{16 * len(seeds):,} trials"
    print(f"{count}: uapray grid plan takes {seconds:.1f} s; a driver that has planned them {held:,.0f} MB")


if __name__ == "__main__":
    main()
