"""``uapray curve``: how the rate grows with zeta, and the zeta at which half is fooled."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from uapray.cli import options
from uapray.cli.perturb import Data, Model, Target

if TYPE_CHECKING:
    from uapray.answers import ZetaCurve
    from uapray.coordinator import Snapshot
    from uapray.curves import Crossing


def curve(
    model: Model,
    data: Data,
    zetas: Annotated[
        str | None,
        typer.Option(
            help="Radii as shares of the images' mean norm, with commas; default: eight from 0.005 to 0.08.",
            show_default=False,
        ),
    ] = None,
    rule: Annotated[str, typer.Option(help="Update rule, or random.")] = "aimed-ascent",
    norm: Annotated[str, typer.Option(help="linf or l2.")] = "linf",
    xi_from: options.XiFrom = options.USUAL_XI_FROM,
    target: Target = None,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal bits.")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the search, NAME=VALUE, e.g. refine_epochs=0.5.", show_default=False),
    ] = None,
    split: Annotated[str, typer.Option(help="Split that the perturbations are judged on.")] = "test",
    out: Annotated[
        str | None, typer.Option(help="The .png or .csv to write besides the table.", show_default=False)
    ] = None,
    size: options.Size = None,
    replicas: options.Replicas = 1,
    gpus: options.Gpus = 0.0,
    precision: options.Precision = "fp32",
    compiled: options.Compiled = False,
    address: options.Address = None,
) -> None:
    """Measure the rate at growing zeta and say at which half is fooled, for the price of about two searches.

    Example: uapray curve --model chest.safetensors --data chest.parquet --zetas 0.005,0.01,0.02,0.04 --out curve.png
    """
    import os
    from contextlib import nullcontext

    from uapray import api, objects
    from uapray.cli.inputs import load, parsed
    from uapray.cli.progress import board
    from uapray.curves import ZETAS
    from uapray.errors import ConfigError
    from uapray.on_ray.session import session

    if out is not None and not out.endswith((".png", ".csv")):
        raise ConfigError(f"--out: expected a name ending in .png or .csv, got {out}")
    asked = api.checked_zetas(ZETAS if zetas is None else _numbers(zetas))
    chosen = parsed(settings or [])
    api.search_settings(rule, chosen)
    if out is not None:
        objects.check_uri(out)
    classifier, (source, judged_on) = load(model, data, ("train", split), size)
    on_ray = replicas > 1 or gpus > 0 or address is not None or "RAY_ADDRESS" in os.environ
    pool: dict[str, Any] = {"pool": "ray" if on_ray else "local", "replicas": replicas, "gpus": gpus}
    with board() as progress, session(address) if on_ray else nullcontext():

        def watch(zeta: float, snapshot: "Snapshot") -> None:
            progress.show(f"zeta {zeta:g}", snapshot.share_done, 1, f"best on validation {snapshot.best_rate:.3f}")

        drawn = api.zeta_curve(
            classifier,
            source,
            judged_on,
            zetas=asked,
            rule=rule,
            norm=norm,
            xi_from=xi_from,
            target=target,
            seed=seed,
            precision=precision,
            compiled=compiled,
            watch=watch,
            **pool,
            **chosen,
        )
    if out is not None:
        title = f"{rule} on {model}, {norm}{f' to {target}' if target else ''}"
        objects.write_uri(out, _csv(drawn) if out.endswith(".csv") else _png(drawn, title))
    _show(drawn, f"{model}: judged on {judged_on.name}/{split}", target)


def _numbers(text: str) -> list[float]:
    from uapray.errors import ConfigError

    try:
        return [float(one) for one in text.split(",")]
    except ValueError:
        raise ConfigError(f"--zetas: expected numbers with commas, e.g. 0.01,0.02,0.04, got {text!r}") from None


def _show(drawn: "ZetaCurve", title: str, target: str | None) -> None:
    from uapray.cli import tables

    named = "fooling rate [95 %]" if target is None else f"brought to {target} [95 %]"
    ceilings = [outcome.ceiling if target is None else drawn.curve.ceiling for outcome in drawn.outcomes]
    points = zip(drawn.zetas, drawn.xis, drawn.rates, ceilings, strict=True)
    rows = [
        [f"{zeta:g}", f"{255 * xi:.2f}", tables.interval(rate.share, rate.interval), tables.percent(ceiling)]
        for zeta, xi, rate, ceiling in points
    ]
    note = (
        f"zeta50 (half of all images): {_said(drawn.curve.zeta50, drawn.zetas[-1])}\n"
        f"zeta50 of the ceiling (half of what can be fooled): "
        f"{_said(drawn.curve.zeta50_of_ceiling, drawn.zetas[-1])}\n"
        f"{drawn.image_gradients} image-gradients, {drawn.image_queries} image-queries"
    )
    tables.show(title, ["zeta", "xi, grey levels", named, "ceiling"], rows, note)


def _said(crossing: "Crossing", largest: float) -> str:
    """Return a crossing with its interval at 95 %."""
    at = f"above {largest:g}" if crossing.zeta is None else f"{crossing.zeta:.4g}"
    high = f"above {largest:g}" if crossing.high is None else f"{crossing.high:.4g}"
    return f"{at} [{crossing.low:.4g}, {high}]"


def _csv(drawn: "ZetaCurve") -> bytes:
    points = zip(drawn.zetas, drawn.xis, drawn.rates, drawn.outcomes, strict=True)
    lines = [
        f"{zeta:g},{255 * xi:.6g},{rate.share:.6g},{rate.interval[0]:.6g},{rate.interval[1]:.6g},{outcome.ceiling:.6g}"
        for zeta, xi, rate, outcome in points
    ]
    return "\n".join(["zeta,xi_grey,rate,rate_low,rate_high,fooling_rate_ceiling", *lines, ""]).encode()


def _png(drawn: "ZetaCurve", title: str) -> bytes:
    from uapray.report.zeta_plot import zeta_png

    return zeta_png(drawn.curve, title)
