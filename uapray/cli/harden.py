"""``uapray harden``: a classifier retrained against perturbations, judged by attacks it never saw."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from uapray.cli import options

if TYPE_CHECKING:
    from uapray.defence import Defence
    from uapray.grid import Grid
    from uapray.over_seeds import SeedMean

GRID = "harden"


def harden(
    model: Annotated[str, typer.Option(help="Classifier: .safetensors or package.module:function.")],
    data: Annotated[
        str, typer.Option(help="Data set: hardened on its split 'train', judged on 'test'.", show_default=False)
    ],
    out: Annotated[str, typer.Option(help="The .safetensors to write; its card goes inside.", show_default=False)],
    method: Annotated[
        str, typer.Option(help="retraining (rounds of perturbations and training) or universal-training.")
    ] = "retraining",
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Default: 5 of retraining, 1 of universal-training.", show_default=False)
    ] = None,
    perturbations: Annotated[int, typer.Option(min=1, help="Made in each round of retraining.")] = 10,
    norm: Annotated[str, typer.Option(help="linf or l2.")] = "linf",
    zeta: Annotated[float, typer.Option(help="Radius as a share of the images' mean norm.")] = 0.04,
    target: Annotated[
        str | None, typer.Option(help="Class that they pull towards; default: any other.", show_default=False)
    ] = None,
    rule: options.Rule = options.DEFAULT_RULE,
    recipe: Annotated[
        str, typer.Option(help="Of the training in a round: a name, or a YAML file (base: NAME and what differs).")
    ] = "retraining",
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the hardening.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Of the attacks it is judged by, none of which it has met.")] = 3,
    queries: Annotated[
        int, typer.Option(min=0, help="Predictions that a black-box attack may ask for; 0: no such attack.")
    ] = 20_000,
    store: Annotated[
        str | None,
        typer.Option(
            help="Where the rows go, a folder or s3://bucket/prefix; default: a folder beside --out.",
            show_default=False,
        ),
    ] = None,
    size: options.Size = None,
    replicas: options.Replicas = 1,
    workers: Annotated[int, typer.Option(min=1, help="Ray Train workers that share each batch.")] = 1,
    cpus: options.Cpus = 1.0,
    gpus: options.Gpus = 0.0,
    address: options.Address = None,
) -> None:
    """Harden a classifier and judge it by attacks it never saw.

    They are the strongest rule with other seeds, what was made on the classifier as it was, and one that sees only its
    answers. The same command goes on where it was interrupted: each round stands in the store.

    Example: uapray harden --model chest.safetensors --data chest.parquet --out hardened.safetensors
    """
    from uapray import objects
    from uapray.cli.running import may_grow, run_with_progress
    from uapray.cli.train import recipe_named
    from uapray.config import parse
    from uapray.defence import defences
    from uapray.errors import ClassifierError
    from uapray.models.card import Classifier
    from uapray.models.hardening import Hardening
    from uapray.models.weights import load_classifier, save_classifier
    from uapray.obtain import model_key
    from uapray.plan import plan_grid
    from uapray.resources import Resources
    from uapray.store.results import open_results

    if not out.endswith(".safetensors"):
        raise ClassifierError(f"--out: expected a name ending in .safetensors, got {out}")
    values: dict[str, Any] = {
        "method": method,
        "norm": norm,
        "zeta": zeta,
        "target": target,
        "rule": rule,
        "seed": seed,
    }
    values |= {"perturbations": perturbations, "recipe": recipe_named(recipe, epochs)}
    hardening = parse(Hardening, values if rounds is None else {**values, "rounds": rounds}, origin="harden")
    objects.check_uri(out)
    results = open_results(store or f"{out.removesuffix('.safetensors')}-results")
    planned = plan_grid(_grid(model, data, hardening, size or _size_of(model), seeds, queries))
    resources = Resources(replicas=replicas, workers=workers, cpus=cpus, gpus=gpus, may_grow=may_grow(address))
    summary = run_with_progress(planned, results, resources, address)
    victim = next(one for one in planned.victims if one.hardened is not None)
    if results.objects.exists(model_key(victim)):
        made: Classifier = load_classifier(f"{results.objects.uri}/{model_key(victim)}", architecture=victim.reference)
        save_classifier(made, out)
        for one in defences(results, grid=GRID):
            if one.classifier == victim.name:
                show_defence(one, out)
        typer.echo(f"rows: uapray report --store {results.objects.uri} --out report.html")
    if summary.failed:
        typer.echo(f"{summary.failed} failed; why: uapray status --store {results.objects.uri}", err=True)
        raise typer.Exit(1)


def _size_of(model: str) -> int | None:
    """Return the size that a classifier's card says; None: it has none, or is not square."""
    from uapray.models.weights import load_classifier

    if not model.endswith(".safetensors"):
        return None
    height, width = load_classifier(model).card.size
    return height if height == width else None


def _grid(model: str, data: str, hardening: Any, size: int | None, seeds: int, queries: int) -> "Grid":
    """Return the grid whose trials judge a classifier before and after its hardening."""
    from uapray.config import parse
    from uapray.grid import Grid

    black_box = [{"rule": "hill-climb", "budget": {"max_image_queries": queries}}] if queries else []
    return parse(
        Grid,
        {
            "name": GRID,
            "data": [{"uri": data, "size": size}],
            "classifiers": [{"weights": model, "hardened": ["none", hardening]}],
            "norms": [hardening.norm],
            "zetas": [hardening.zeta],
            "targets": [hardening.target],
            "rules": ["aimed-ascent", *black_box],
            "seeds": list(range(seeds)),
            "transfer": True,
        },
        origin="harden",
    )


def show_defence(one: "Defence", title: str) -> None:
    """Print what a hardening is worth."""
    from uapray.cli import tables

    def rate(mean: "SeedMean | None") -> str:
        return "–" if mean is None else tables.interval(mean.value, mean.interval)

    before, after = one.clean_accuracy
    rows = [["clean accuracy", tables.percent(before), tables.percent(after)]]
    rows += [[attack.name, rate(attack.before), rate(attack.after)] for attack in one.attacks]
    aim = "fooling rates" if one.target is None else f"brought to {one.target}"
    head = f"{title}: {one.hardened}, {one.norm} {one.zeta:g}; {aim} on {one.split}, {one.images} images"
    tables.show(head, ["attack", "before", "hardened [95 %]"], rows, _reading(one))


def _reading(one: "Defence") -> str:
    worst = one.worst
    lines = [] if worst is None else [f"what it stands least: {worst.name}"]
    lines.append(
        {
            True: "gradients are masked: who does not take them does better than who does; mistrust the hardening",
            False: "no sign of masked gradients: no attack without them does better than one that takes them",
            None: "whether gradients are masked cannot be told without an attack that does not take them",
        }[one.masked]
    )
    return "\n".join(lines)
