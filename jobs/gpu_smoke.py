"""One run: what cannot be tested without a GPU, tried on a machine that has one, in about five minutes.

    ray submit ray-cluster.yaml jobs/gpu_smoke.py
    python jobs/gpu_smoke.py
    python jobs/gpu_smoke.py --device cpu --size 32 --architectures tiny-cnn    # the script itself, without a GPU

The file stands alone: ``ray submit`` copies it, and nothing else, to the head, where uapray is installed. It writes
nothing. Exit code: 0 all is well, 1 a check failed, 2 there is no GPU.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from uapray.attack.objective import Objective
from uapray.config import FP32, Arithmetic
from uapray.models.arithmetic import gpu_arithmetic
from uapray.models.zoo import build
from uapray.replica import Batch, Replica
from uapray.speed import measure_speeds, proposed

ARCHITECTURES = (
    "resnet50",
    "densenet121",
    "inception_v3",
    "inception_resnet_v2",
    "vgg16",
    "efficientnet_b0",
)
TF32, BF16 = Arithmetic(precision="tf32"), Arithmetic(precision="bf16")
COMPILED, BF16_COMPILED = Arithmetic(compiled=True), Arithmetic(precision="bf16", compiled=True)
BATCH = 8
NOT_HERE = "–"


class CheckError(Exception):
    """What was expected and what came."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What the checks share.

    Attributes:
        device: ``cuda`` or ``cpu``.
        size: Height and width of the images.
        architectures: Names of classifiers; the first one is looked at closely.
        images: uint8 ``(n, h, w, 3)``.
    """

    device: str
    size: int
    architectures: tuple[str, ...]
    images: NDArray[np.uint8]

    def module(self, architecture: str | None = None) -> nn.Module:
        """Return an untrained classifier: arithmetic does not ask what it learnt."""
        return build(architecture or self.architectures[0], classes=3, channels=3, size=(self.size, self.size), seed=0)

    def replica(self, how: Arithmetic, device: str | None = None, architecture: str | None = None) -> Replica:
        """Return a replica on a device."""
        return Replica(self.module(architecture), {"images": self.images}, device=device or self.device, arithmetic=how)

    def batch(self, first: int = 0) -> Batch:
        """Return some of the images."""
        return Batch("images", np.arange(first, first + BATCH), np.arange(BATCH, dtype=np.int64) % 3)

    def v(self) -> NDArray[np.float32]:
        """Return a perturbation."""
        rng = np.random.default_rng(1)
        return rng.uniform(-0.04, 0.04, (3, self.size, self.size)).astype(np.float32)

    def gradient(self, replica: Replica) -> Tensor:
        """Return a replica's gradient of the first batch."""
        (update,) = replica.gradient(self.v(), [self.batch()], Objective())
        return update.total

    def precisions(self) -> tuple[Arithmetic, ...]:
        """Return what the device can."""
        return (FP32, TF32, BF16) if self.device == "cuda" else (FP32, BF16)


Check = Callable[[Bench], str]


def the_gpu(bench: Bench) -> str:
    """Which GPU it is, and that torch computes on it."""
    if bench.device == "cpu":
        return f"{NOT_HERE} torch {torch.__version__} on a CPU"
    about = torch.cuda.get_device_properties(0)
    expect(float(torch.ones(1000, device="cuda").sum()) == 1000, "a sum of 1000 ones on the GPU is not 1000")
    expect(torch.cuda.is_bf16_supported(), f"{about.name} has no bf16")
    return f"{about.name}, {about.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}, torch {torch.__version__}"


def fp32_is_fp32(bench: Bench) -> str:
    """Products of fp32 keep 23 bits, those of tf32 10: seen in a product and a convolution beside float64."""
    if bench.device == "cpu":
        return f"{NOT_HERE} tf32 exists on GPUs only"
    said = []
    for name, rounded in (("product", _product_error), ("convolution", _convolution_error)):
        with gpu_arithmetic(tf32=False):
            exact = rounded()
        with gpu_arithmetic(tf32=True):
            loose = rounded()
        expect(exact < 1e-5, f"{name}: expected errors of fp32, below 1e-5, got {exact:.1e}")
        newer = torch.cuda.get_device_capability() >= (8, 0)
        expect(not newer or 1e-5 < loose < 1e-2, f"{name}: expected errors of tf32, 1e-5 to 1e-2, got {loose:.1e}")
        said.append(f"{name} {exact:.0e}, tf32 {loose:.0e}")
    return "; ".join(said)


def as_on_the_cpu(bench: Bench) -> str:
    """Gradients and predictions of the GPU are those of the CPU, but for rounding."""
    here, there = bench.replica(FP32, "cpu"), bench.replica(FP32)
    apart = _apart(bench.gradient(there), bench.gradient(here))
    expect(apart < 1e-2, f"gradients: expected 1e-2 at most apart, got {apart:.1e}")
    logits = [replica.logits(bench.v(), [bench.batch()])[0] for replica in (here, there)]
    far = float(np.abs(logits[0] - logits[1]).max() / np.abs(logits[0]).max())
    expect(far < 1e-3, f"logits: expected 1e-3 at most apart, got {far:.1e}")
    return f"gradients {apart:.0e} apart, logits {far:.0e}"


def precisions_agree(bench: Bench) -> str:
    """Gradients of tf32 and bf16 point where those of fp32 do."""
    exact = bench.gradient(bench.replica(FP32))
    cosines = {how: _cosine(bench.gradient(bench.replica(how)), exact) for how in bench.precisions()[1:]}
    for how, cosine in cosines.items():
        expect(cosine > 0.95, f"{how}: expected a cosine above 0.95 with fp32, got {cosine:.3f}")
    return ", ".join(f"{how} {cosine:.4f}" for how, cosine in cosines.items())


def judged_in_fp32(bench: Bench) -> str:
    """What is judged has the bits of fp32, whatever gradients are taken in."""
    exact, *others = (bench.replica(how).logits(bench.v(), [bench.batch()])[0] for how in bench.precisions())
    expect(all(np.array_equal(exact, other) for other in others), "logits of another precision have other bits")
    return "same bits"


def repeated(bench: Bench) -> str:
    """A request has the same bits again, in each precision, on each architecture: all have deterministic gradients."""
    for architecture in bench.architectures:
        for how in bench.precisions():
            one, other = (bench.replica(how, architecture=architecture) for _ in range(2))
            first = bench.gradient(one)
            one.gradient(bench.v(), [bench.batch(BATCH)], Objective())
            expect(bool(torch.isfinite(first).all()), f"{architecture}, {how}: gradients are not finite")
            same = torch.equal(first, bench.gradient(one)) and torch.equal(first, bench.gradient(other))
            expect(same, f"{architecture}, {how}: expected the same bits again, got others")
    return ", ".join(bench.architectures)


def compiled(bench: Bench) -> str:
    """Compiled gradients are those of the module, but for rounding, and have the same bits again."""
    exact = bench.gradient(bench.replica(FP32))
    begun = time.monotonic()
    made = [bench.gradient(bench.replica(COMPILED)) for _ in range(2)]
    apart = _apart(made[0], exact)
    expect(apart < 1e-2, f"expected 1e-2 at most from the module, got {apart:.1e}")
    expect(torch.equal(*made), "expected the same bits from a second replica, got others")
    cosine = _cosine(bench.gradient(bench.replica(BF16_COMPILED)), exact)
    expect(cosine > 0.95, f"bf16: expected a cosine above 0.95 with fp32, got {cosine:.3f}")
    return f"{apart:.0e} apart, bf16 cosine {cosine:.4f}, {time.monotonic() - begun:.0f} s to compile"


def on_ray(bench: Bench) -> str:
    """One replica and two that share the GPU give the same bits, in each precision and compiled."""
    from uapray.on_ray.pool import RayPool
    from uapray.on_ray.session import session

    batches = [bench.batch(first) for first in range(0, len(bench.images) - BATCH + 1, BATCH)]
    v, gpus = torch.from_numpy(bench.v()), 0.5 if bench.device == "cuda" else 0.0
    with session("local", cpus=4):
        for how in (*bench.precisions(), BF16_COMPILED):
            totals = []
            for replicas in (1, 2):
                decks = {"images": bench.images}
                pool = RayPool(bench.module(), decks, replicas=replicas, gpus=gpus, arithmetic=how)
                totals.append(pool.gradient(v, batches, Objective()).total)
                pool.close()
            expect(torch.equal(*totals), f"{how}: two replicas have other bits than one")
    return f"{len(batches)} batches, 1 and 2 replicas, same bits"


def a_search(bench: Bench) -> str:
    """A whole search and its judgement come out, as on the CPU within the error of the rates."""
    import uapray
    from uapray.api import search_settings
    from uapray.arena import Arena
    from uapray.config import Threat
    from uapray.judgement import judge
    from uapray.models.weights import wrap_module
    from uapray.resources import Resources, open_pool
    from uapray.trial import find

    images = uapray.load_images("phantom:chest?images=240&size=32&seed=3", "train")
    module = build("tiny-cnn", classes=3, channels=1, size=(32, 32), seed=1)
    *_, last = (layer for layer in module.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():  # each class about equally often, so that there is something to fool
        last.bias.sub_(module.eval()(torch.tensor(images.images).permute(0, 3, 1, 2).float() / 255).mean(0))
    classifier = wrap_module(module, images.class_names, 1, (32, 32))
    rates = {}
    for device in {"cpu", bench.device}:
        with open_pool(classifier, {"train": images}, Resources("local", gpus=float(device == "cuda"))) as pool:
            arena = Arena(pool, {"train": images})
            found = find(arena, Threat(zeta=0.08), search_settings("spgd", {"max_epochs": 2}), seed=0)
            rates[device] = judge(arena, "train", found.perturbation, target=None).outcome.fooling.share
    expect(abs(rates[bench.device] - rates["cpu"]) < 0.1, f"fooling rates: expected 0.1 at most apart, got {rates}")
    return ", ".join(f"{device} {rate:.3f}" for device, rate in sorted(rates.items()))


def speed(how: Arithmetic, bench: Bench) -> str:
    """Image-gradients a second by batch size, up to where memory ends."""
    shape = (3, bench.size, bench.size)
    best = proposed(list(measure_speeds(bench.module(), shape, device=bench.device, arithmetic=how, seconds=0.5)))
    memory = "" if best.memory_bytes is None else f", {best.memory_bytes / 2**30:.1f} GiB"
    return f"{best.image_gradients_per_s:.3g} image-gradients/s in batches of {best.batch_size}{memory}"


def checks(bench: Bench) -> Iterator[tuple[str, Check]]:
    """Yield the checks with their names, the quick ones first."""
    yield "the GPU", the_gpu
    yield "fp32 is fp32", fp32_is_fp32
    yield "as on the CPU", as_on_the_cpu
    yield "precisions agree", precisions_agree
    yield "judged in fp32", judged_in_fp32
    yield "repeated", repeated
    yield "a search", a_search
    yield "on Ray", on_ray
    yield "compiled", compiled
    for how in (*bench.precisions(), COMPILED, BF16_COMPILED):
        yield f"speed, {how}", partial(speed, how)


def main(words: Sequence[str] | None = None) -> int:
    """Run the checks and print them as they end; return the exit code."""
    parser = argparse.ArgumentParser(prog="gpu_smoke.py", description="Try on a GPU what cannot be tested without one.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", type=int, default=299, help="height and width of the images; default 299")
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES), metavar="NAME")
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="only these checks, by name")
    asked = parser.parse_args(words)
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("gpu_smoke: expected a GPU that torch sees, got none; --device cpu tries the script", file=sys.stderr)
        return 2
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4 * BATCH, asked.size, asked.size, 3), dtype=np.uint8)
    bench = Bench(asked.device, asked.size, tuple(asked.architectures), images)
    listed = dict(checks(bench))
    if unknown := [name for name in asked.only or () if name not in listed]:
        print(f"gpu_smoke: no check is called '{unknown[0]}'; there are: {', '.join(listed)}", file=sys.stderr)
        return 2
    failed = 0
    for name, check in listed.items():
        if asked.only and name not in asked.only:
            continue
        begun = time.monotonic()
        try:
            state, said = "ok", check(bench)
        except Exception as error:  # whatever a driver or a compiler may raise: the other checks are to run
            state, said, failed = "FAILED", " ".join(f"{type(error).__name__}: {error}".split())[:300], failed + 1
        print(f"{state:6}  {name:22} {time.monotonic() - begun:5.1f} s  {said}", flush=True)
    print(f"{failed} checks failed" if failed else "all is well")
    return 1 if failed else 0


def expect(holds: bool, message: str) -> None:
    """Fail a check unless something holds.

    Raises:
        CheckError: If it does not.
    """
    if not holds:
        raise CheckError(message)


def _product_error() -> float:
    generator = torch.Generator("cuda").manual_seed(0)
    one, other = (torch.randn(512, 512, device="cuda", generator=generator) for _ in range(2))
    return _apart((one @ other).double(), one.double() @ other.double())


def _convolution_error() -> float:
    generator = torch.Generator("cuda").manual_seed(0)
    images = torch.randn(4, 64, 32, 32, device="cuda", generator=generator)
    weight = torch.randn(64, 64, 3, 3, device="cuda", generator=generator)
    exact = nn.functional.conv2d(images.double(), weight.double())
    return _apart(nn.functional.conv2d(images, weight).double(), exact)


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one.flatten(), other.flatten(), dim=0))


if __name__ == "__main__":
    sys.exit(main())
