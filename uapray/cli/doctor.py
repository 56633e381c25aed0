"""``uapray doctor``: what works here, and what to do about what does not."""

import time
from collections.abc import Callable
from typing import Annotated

import typer

from uapray.cli import options


def doctor(
    store: Annotated[str | None, typer.Option(help="Try this store as well.", show_default=False)] = None,
    address: options.Address = None,
) -> None:
    """Try Python, torch, Ray and a store, and say what works.

    Example: uapray doctor --store s3://bucket/results
    """
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
