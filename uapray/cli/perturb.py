"""``uapray perturb`` and ``uapray evaluate``: one perturbation, made and judged."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from uapray.cli import options
from uapray.cli.evaluation import show_evaluation
from uapray.cli.inputs import load, parsed

if TYPE_CHECKING:
    from uapray.coordinator import Snapshot

Model = Annotated[
    str, typer.Option(help="Classifier: .safetensors, .pt2, or package.module:function.", show_default=False)
]
Data = Annotated[
    str, typer.Option(help="Data set: a file, folder, pattern, s3://… or phantom:chest.", show_default=False)
]
Draws = Annotated[
    int,
    typer.Option("--controls", min=0, help="Draws of each kind of matched control; 19 can tell p = 0.05, 0: none."),
]
Renderings = Annotated[
    list[str],
    typer.Option(
        "--rendering",
        help="Judge as rendered too: uint8, jpeg:75, resize:0.5, or several joined with +. May be repeated.",
    ),
]
Filter = Annotated[
    str | None,
    typer.Option(
        "--filter",
        help="What images go through before a classifier is asked, attacked through: jpeg:50, median:3, "
        "bilateral:0.1, bits:3, resize:0.5, or several joined with +.",
        show_default=False,
    ),
]
Target = Annotated[str | None, typer.Option(help="Class to be reached; default: any other.", show_default=False)]


def perturb(
    model: Annotated[
        list[str],
        typer.Option(
            help="Classifier: .safetensors, .pt2, or package.module:function. Repeated: made on all of them at once.",
            show_default=False,
        ),
    ],
    data: Data,
    out: Annotated[str, typer.Option(help="The .safetensors to write.", show_default=False)],
    rule: options.Rule = options.DEFAULT_RULE,
    norm: Annotated[str, typer.Option(help="linf or l2.")] = "linf",
    zeta: Annotated[
        float | None,
        typer.Option(help="Radius as a share of the images' mean norm; default 0.04.", show_default=False),
    ] = None,
    xi: Annotated[
        float | None,
        typer.Option(help="Radius in pixel units instead, images in [0, 1].", show_default=False),
    ] = None,
    xi_from: options.XiFrom = options.USUAL_XI_FROM,
    target: Target = None,
    behind: Filter = None,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal bits.")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A setting of the search, NAME=VALUE, e.g. starts=8 or max_epochs=2.",
            show_default=False,
        ),
    ] = None,
    weight: Annotated[
        list[float] | None,
        typer.Option(help="Voice of each of several classifiers, in their order; default: one each."),
    ] = None,
    judge_on: Annotated[
        list[str] | None,
        typer.Option(help="Further classifier it is judged on though not made on. May be repeated."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split it is judged on.")] = "test",
    controls: Draws = 19,
    renderings: Renderings = ["uint8"],  # noqa: B006 (Typer copies it)
    attacker_share: Annotated[
        float, typer.Option(help="Black-box rules: share of the test images, by patient, that it is made on.")
    ] = 0.3,
    size: options.Size = None,
    replicas: options.Replicas = 1,
    gpus: options.Gpus = 0.0,
    precision: options.Precision = "fp32",
    compiled: options.Compiled = False,
    address: options.Address = None,
) -> None:
    """Make one perturbation on the train split and judge it on another, beside controls.

    A black-box rule (hill-climb, cma-es, pso, de, ga) makes it on a part of the test images and judges it on the rest.

    Example: uapray perturb --model chest.safetensors --data chest.parquet --size 96 --zeta 0.04 --out v.safetensors

    Made on two, judged on a third: uapray perturb --model a.safetensors --model b.safetensors
    --judge-on c.safetensors --data chest.parquet --out v.safetensors

    Through a filter: uapray perturb --model chest.safetensors --data chest.parquet --filter jpeg:50 --out v.safetensors
    """
    import os
    from contextlib import nullcontext

    import safetensors.torch

    from uapray import api, objects
    from uapray.cli.progress import board
    from uapray.config import BLACK_BOX
    from uapray.data.dataset import ATTACKER
    from uapray.errors import ConfigError
    from uapray.on_ray.session import session

    if not out.endswith(".safetensors"):
        raise ConfigError(f"--out: expected a name ending in .safetensors, got {out}")
    chosen = parsed(settings or [])
    api.search_settings(rule, chosen)
    judging: dict[str, Any] = {"controls": controls, "renderings": _checked(renderings), "filter": _filter(behind)}
    objects.check_uri(out)
    black_box = rule in BLACK_BOX
    if black_box and not 0 < attacker_share < 1:
        raise ConfigError(f"--attacker-share: expected more than 0 and less than 1, got {attacker_share:g}")
    part, share = (ATTACKER, attacker_share) if black_box else ("train", 0.0)
    loaded = [load(one, data, (part, split), size, share) for one in (*model, *(judge_on or []))]
    source, judged_on = loaded[0][1]
    for name, (_, others) in zip((*model, *(judge_on or [])), loaded, strict=True):
        if others[0].size != source.size:
            raise ConfigError(
                f"{name}: expected a classifier of {source.size[0]}x{source.size[1]} px images as the first one, "
                f"got {others[0].size[0]}x{others[0].size[1]} px; give --size"
            )
    classifiers = [classifier for classifier, _ in loaded]
    made_on = classifiers[: len(model)]
    on_ray = replicas > 1 or gpus > 0 or address is not None or "RAY_ADDRESS" in os.environ
    pool: dict[str, Any] = {"pool": "ray" if on_ray else "local", "replicas": replicas, "gpus": gpus}
    arithmetic: dict[str, Any] = {"precision": precision, "compiled": compiled}
    threat: dict[str, Any] = {"norm": norm, "zeta": zeta, "xi": xi, "xi_from": xi_from, "target": target}
    with board() as progress, session(address) if on_ray else nullcontext():

        def watch(snapshot: "Snapshot") -> None:
            progress.show("searching", snapshot.share_done, 1, f"best on validation {snapshot.best_rate:.3f}")

        result = api.perturb(
            made_on,
            source,
            rule=rule,
            seed=seed,
            weights=weight,
            watch=watch,
            filter=judging["filter"],
            **threat,
            **arithmetic,
            **pool,
            **chosen,
        )
        evaluations = [
            api.evaluate(
                classifier,
                judged_on,
                result.perturbation,
                target=target,
                norm=norm,
                watch=lambda share: progress.show("controls", share, 1),
                **judging,
                **pool,
            )
            for classifier in classifiers
        ]
    header = {"rule": rule, "norm": norm, "xi": str(result.xi), "seed": str(seed), "target": target or ""}
    header["filter"] = judging["filter"] or ""
    header["made_on"] = " ".join(classifier.sha256 for classifier in made_on)
    objects.write_uri(out, safetensors.torch.save({"perturbation": result.perturbation}, header))
    spent = f"{result.image_gradients} image-gradients, {result.image_queries} image-queries"
    made = f"made on {len(source)} images of {source.name}/{part}"
    made += f", {share:g} of the test images, which are not judged" if black_box else ""
    for place, (name, evaluation) in enumerate(zip((*model, *(judge_on or [])), evaluations, strict=True)):
        which = "" if len(evaluations) == 1 else f" of {name}{'' if place < len(model) else ', not made on it'}"
        which += f" behind {judging['filter']}" if behind else ""
        show_evaluation(evaluation, f"{out}: judged on {judged_on.name}/{split}{which}", f"{made}; {spent}")


def evaluate(
    perturbation: Annotated[
        str, typer.Argument(help="A .safetensors of ours, or a .npy from elsewhere: (c, h, w) or (h, w, c).")
    ],
    model: Model,
    data: Data,
    split: Annotated[str, typer.Option(help="Split it is judged on.")] = "test",
    target: Target = None,
    behind: Filter = None,
    norm: Annotated[str, typer.Option(help="Norm in which the control is as large: linf or l2.")] = "linf",
    scale: Annotated[
        float,
        typer.Option(
            help="What one pixel unit of the file is in [0, 1]: 0.5 for [-1, 1], 1/255 = 0.00392 for grey levels."
        ),
    ] = 1.0,
    controls: Draws = 19,
    renderings: Renderings = ["uint8"],  # noqa: B006 (Typer copies it)
    size: options.Size = None,
) -> None:
    """Judge any perturbation on any classifier and split, beside controls that are matched to it.

    Example: uapray evaluate v.safetensors --model other.safetensors --data chest.parquet --rendering jpeg:75

    Behind a filter: uapray evaluate v.safetensors --model other.safetensors --data chest.parquet --filter median:3
    """
    from uapray import api
    from uapray.cli.progress import board
    from uapray.errors import ConfigError

    judging: dict[str, Any] = {"controls": controls, "renderings": _checked(renderings), "filter": _filter(behind)}
    classifier, (images,) = load(model, data, (split,), size)
    v = _read_perturbation(perturbation, (images.channels, *images.size)) * scale
    if abs(v).max() > 1:
        raise ConfigError(
            f"{perturbation}: expected pixel units, at most 1, got {abs(v).max():.3g}; "
            "give its unit with --scale, e.g. 0.00392 for grey levels"
        )
    with board() as progress:

        def watch(share: float) -> None:
            progress.show("controls", share, 1)

        evaluation = api.evaluate(classifier, images, v, target=target, norm=norm, watch=watch, **judging)
    seen = f" behind {judging['filter']}" if behind else ""
    show_evaluation(evaluation, f"{perturbation}: judged on {images.name}/{split}{seen}")


def _checked(renderings: list[str]) -> list[str]:
    """Return renderings as they are written, each once; refuse wrong ones before any work."""
    from uapray.rendering import parse_rendering

    return list(dict.fromkeys(str(parse_rendering(one)) for one in renderings))


def _filter(text: str | None) -> str | None:
    """Return a filter as it is written; refuse a wrong one before any work."""
    from uapray.rendering import parse_rendering

    return None if text is None else str(parse_rendering(text, "--filter"))


def _read_perturbation(uri: str, shape: tuple[int, int, int]) -> Any:
    """Read an array and bring it to ``(c, h, w)``."""
    import io

    import numpy as np
    import safetensors.numpy

    from uapray.errors import ConfigError
    from uapray.objects import read_uri

    body = read_uri(uri)
    try:
        if uri.endswith(".npy"):
            array = np.load(io.BytesIO(body), allow_pickle=False)
        else:
            array = safetensors.numpy.load(body)["perturbation"]
    except (ValueError, KeyError, EOFError, safetensors.SafetensorError) as error:
        expected = "expected a .npy array or a .safetensors with a tensor 'perturbation'"
        raise ConfigError(f"{uri}: {expected}, got another or damaged one ({type(error).__name__}: {error})") from None
    if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
        raise ConfigError(f"{uri}: expected an array of real numbers, got {array.dtype}")
    array = np.squeeze(array)
    array = array[None] if array.ndim == 2 else array
    if array.shape != shape and array.ndim == 3 and (array.shape[2], *array.shape[:2]) == shape:
        array = array.transpose(2, 0, 1)
    return np.ascontiguousarray(array, dtype=np.float32)
