"""``uapray doctor``: what works here, what to do about what does not, and how fast a classifier is."""

import time
from collections.abc import Callable
from typing import Annotated, Any

import typer

from uapray.cli import options


def doctor(
    store: Annotated[str | None, typer.Option(help="Try this store as well.", show_default=False)] = None,
    address: options.Address = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Measure this classifier instead: its image-gradients a second by batch size, on this machine.",
            show_default=False,
        ),
    ] = None,
    size: options.Size = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda, for --model; default: the GPU if there is one.", show_default=False)
    ] = None,
    precision: options.Precision = "fp32",
    compiled: options.Compiled = False,
) -> None:
    """Try Python, torch, Ray and a store, and say what works; or measure a classifier and propose a batch size.

    Example: uapray doctor --store s3://bucket/results

    Which batch size: uapray doctor --model chest.safetensors --precision bf16
    """
    if model is not None:
        _speeds(model, size, device, {"precision": precision, "compiled": compiled})
        return
    from uapray.cli.tables import show
    from uapray.errors import UaprayError

    checks: list[tuple[str, Callable[[], str]]] = [
        ("versions", _versions),
        ("torch", _torch),
        ("Ray", lambda: _ray(address)),
    ]
    if store is not None:
        checks.append((f"store {store}", lambda: _store(store)))
    rows, sound = [], True
    for name, check in checks:
        try:
            rows.append(["works", name, check()])
        except (UaprayError, ImportError, RuntimeError, OSError) as error:
            sound = False
            rows.append(["FAILS", name, str(error)])
    show("uapray doctor", ["", "what", "found"], rows)
    if not sound:
        raise typer.Exit(1)


def _speeds(model: str, size: int | None, device: str | None, arithmetic: dict[str, Any]) -> None:
    """Show how fast gradients are in batches of each size, and propose one."""
    import torch

    from uapray.cli.progress import board
    from uapray.cli.tables import show
    from uapray.config import Arithmetic, parse
    from uapray.errors import ConfigError
    from uapray.models.weights import load_classifier
    from uapray.resources import Resources, check_arithmetic
    from uapray.speed import measure_speeds, proposed

    how = parse(Arithmetic, arithmetic, origin="doctor")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(f"--device: expected cpu{' or cuda' * torch.cuda.is_available()}, got {device}")
    check_arithmetic(how, Resources(gpus=float(device == "cuda")))
    classifier = load_classifier(model, size=None if size is None else (size, size))
    channels, (height, width) = classifier.card.channels, classifier.card.size
    speeds = []
    with board() as progress:
        for speed in measure_speeds(classifier.module, (channels, height, width), device=device, arithmetic=how):
            speeds.append(speed)
            note = f"{speed.image_gradients_per_s:.3g} image-gradients/s"
            progress.show("measuring", len(speeds), 10, f"batches of {speed.batch_size}: {note}")
    best = proposed(speeds)
    rows = [
        [
            str(speed.batch_size),
            f"{speed.image_gradients_per_s:.3g}",
            "–" if speed.memory_bytes is None else f"{speed.memory_bytes / 2**30:.2f} GiB",
            "proposed" if speed == best else "",
        ]
        for speed in speeds
    ]
    note = (
        f"batch_size: {best.batch_size} is the smallest that is nearly as fast as the fastest; small rounds move the\n"
        "perturbation more often. It is part of a result's key: other batch sizes, other bits."
    )
    title = f"{model}: {height}x{width} px on {'one core' if device == 'cpu' else 'the GPU'}, {how}"
    show(title, ["batch size", "image-gradients/s", "GPU memory", ""], rows, note)


def _versions() -> str:
    import platform
    from importlib.metadata import version

    names = ("uapray", "ray", "torch", "timm", "pyarrow", "duckdb", "boto3")
    return f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in names)


def _torch() -> str:
    import torch

    from uapray.models.tuning import tune
    from uapray.models.zoo import build

    pixels = torch.rand(8, 1, 64, 64)
    tune(build("tiny-cnn", classes=2, channels=1, size=(64, 64)))(pixels)
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return f"CUDA {torch.version.cuda}: {names}"
    return f"CPU with {torch.get_num_threads()} threads, no GPU"


def _ray(address: str | None) -> str:
    from uapray.on_ray.session import holdings, session

    begun = time.monotonic()
    with session(address):
        held = holdings()
    return f"{held.nodes} node(s), {held.cpus:g} cores, {held.gpus:g} GPUs, up in {time.monotonic() - begun:.1f} s"


def _store(uri: str) -> str:
    from uapray.objects import keeps_first
    from uapray.store.results import open_results

    results = open_results(uri)
    begun = time.monotonic()
    results.objects.check()
    took = f"written, read and deleted in {time.monotonic() - begun:.2f} s"
    of_two = "first" if keeps_first(results.objects) else "last (no conditional PUT)"
    return (
        f"{took}; of two that write one step at once, the {of_two} stays; {len(results.keys('trials'))} rows of trials"
    )
