"""How near the round loop is to a bare torch loop: image-gradients per second, on the same batches, in one run.

    python benchmarks/throughput.py [--architecture small-cnn] [--size 64] [--rounds 40] [--repeats 7]

Four loops take turns, each in processes of its own with one thread each:

* careful: what a careful user writes: eval mode, weights left as they are, batch 32;
* bare: the best bare loop we know: batch norm fused, channels last, no weight gradients, allocator kept;
* uapray: the round loop on one Ray replica: batches of uint8 images dealt, gradients summed, rule, projection;
* two bare loops at once, and uapray with two replicas and two starts.

It prints medians and the ratios that matter.
"""

import argparse
import math
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

BATCH = 32
IMAGES = 512


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="small-cnn")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=7)
    asked = parser.parse_args()

    from uapray.on_ray.host import ENVIRONMENT
    from uapray.on_ray.session import session

    careful = Bare("careful", asked.architecture, asked.size, {})
    bare = [Bare("bare", asked.architecture, asked.size, ENVIRONMENT) for _ in range(2)]
    images, module = victim(asked.architecture, asked.size)
    with session("local", cpus=4):
        from uapray.on_ray.pool import RayPool

        one = RayPool(module, {"train": images}, replicas=1)
        two = RayPool(module, {"train": images}, replicas=2)
        seconds: dict[str, list[float]] = {}
        for repeat in range(asked.repeats + 1):
            measured = {
                "careful": careful.run(asked.rounds),
                "bare": bare[0].run(asked.rounds),
                "uapray, 1 replica": rounds(one, len(images), module, asked.rounds, starts=1),
                "2 x bare": at_once(bare, asked.rounds),
                "uapray, 2 replicas": rounds(two, len(images), module, asked.rounds, starts=2),
            }
            if repeat:  # the first turn warms everything up
                for name, taken in measured.items():
                    seconds.setdefault(name, []).append(taken)
        one.close()
        two.close()
    for worker in (careful, *bare):
        worker.close()

    rate = {}
    for name, taken in seconds.items():
        count = asked.rounds * BATCH * (2 if "2" in name else 1)
        rate[name] = count / statistics.median(taken)
        print(f"{name:20} {rate[name]:8.0f} image-gradients/s  (median of {len(taken)})")
    print(f"one replica / careful loop    {rate['uapray, 1 replica'] / rate['careful']:.2f}   (aim: at least 1.20)")
    print(f"one replica / best bare loop  {rate['uapray, 1 replica'] / rate['bare']:.2f}   (aim: at least 0.90)")
    print(f"two replicas / two bare loops {rate['uapray, 2 replicas'] / rate['2 x bare']:.2f}   (aim: at least 0.85)")


def victim(architecture: str, size: int):
    """Return synthetic images and an untrained classifier; speed does not ask what it learnt."""
    import uapray
    from uapray.models.zoo import build

    images = uapray.load_images(f"phantom:chest?images={2 * IMAGES}&size={size}", "train").images[:IMAGES]
    return images, build(architecture, classes=3, channels=1, size=(size, size))


def rounds(pool, images: int, module, count: int, *, starts: int) -> float:
    """Run the round loop of some starts at once; return the seconds it took."""
    import numpy as np
    import torch

    from uapray.attack.objective import Objective
    from uapray.attack.rules import spgd
    from uapray.pool import Deck

    deck = Deck("train", np.arange(images), np.zeros(images, dtype=np.int64))
    rule = spgd(p=math.inf, xi=0.04, step_size=0.8, step_decay=0.6)

    def walk(start: int) -> None:
        state = rule.start(torch.zeros(1, *module.size))
        done = 0
        while done < count:
            for batch in deck.shuffled(batch_size=BATCH, seed=start, epoch=done)[: count - done]:
                state = rule.step(state, pool.gradient(state.point, [batch], Objective()), 0.0)
                done += 1

    begun = time.perf_counter()
    with ThreadPoolExecutor(starts) as threads:
        list(threads.map(walk, range(starts)))
    return time.perf_counter() - begun


class Bare:
    """A plain torch loop in a process of its own, which runs when it is told to."""

    def __init__(self, kind: str, architecture: str, size: int, environment: dict[str, str]) -> None:
        before = dict(os.environ)
        os.environ.update(environment, OMP_NUM_THREADS="1")
        self._line, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=bare_loop, args=(theirs, kind, architecture, size))
        self._process.start()
        os.environ.clear()
        os.environ.update(before)
        self._line.recv()

    def start(self, count: int) -> None:
        """Let it run so many batches."""
        self._line.send(count)

    def finish(self) -> None:
        """Wait until it has."""
        self._line.recv()

    def run(self, count: int) -> float:
        """Run so many batches; return the seconds it took."""
        return at_once([self], count)

    def close(self) -> None:
        """End the process."""
        self._line.send(None)
        self._process.join()


def at_once(workers: list[Bare], count: int) -> float:
    """Run so many batches on each worker at the same time; return the seconds until all are done."""
    begun = time.perf_counter()
    for worker in workers:
        worker.start(count)
    for worker in workers:
        worker.finish()
    return time.perf_counter() - begun


def bare_loop(line: Connection, kind: str, architecture: str, size: int) -> None:
    """Do batches of 32 when told how many: the loop people write, with or without what we know."""
    import torch
    from torch.nn.functional import cross_entropy

    from uapray.models.tuning import tune

    torch.set_num_threads(1)
    images, module = victim(architecture, size)
    pixels = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 255
    model = tune(module) if kind == "bare" else module.eval()
    labels = torch.zeros(BATCH, dtype=torch.int64)
    v = torch.zeros(1, size, size)
    line.send("ready")
    while (count := line.recv()) is not None:
        for step in range(count):
            order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(step))[:BATCH]
            if kind == "bare":
                x = (pixels[order] + v).clamp_(0, 1).requires_grad_()
                (gradient,) = torch.autograd.grad(cross_entropy(model(x), labels, reduction="sum"), x)
                total = gradient.sum(0)
            else:
                delta = v.clone().requires_grad_()
                cross_entropy(model((pixels[order] + delta).clamp(0, 1)), labels).backward()
                assert delta.grad is not None
                total = delta.grad
                model.zero_grad()
            v = (v + 0.032 * total.sign()).clamp(-0.04, 0.04).detach()
        line.send("done")


if __name__ == "__main__":
    main()
