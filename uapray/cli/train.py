"""``uapray train``: one classifier, on Ray."""

from typing import TYPE_CHECKING, Annotated

import typer

from uapray.cli import options

if TYPE_CHECKING:
    from uapray.models.recipe import Recipe


def train(
    data: Annotated[str, typer.Option(help="Data set; trained on its split 'train'.", show_default=False)],
    out: Annotated[str, typer.Option(help="The .safetensors to write; its card goes inside.", show_default=False)],
    architecture: Annotated[str, typer.Option(help="A timm name, small-cnn or tiny-cnn.")] = "resnet50",
    initial_weights: Annotated[
        str, typer.Option(help="pretrained, random, or a weights file (.safetensors, .npz).")
    ] = "pretrained",
    recipe: Annotated[
        str, typer.Option(help="papers, quick, or a YAML file (base: NAME and what differs).")
    ] = "papers",
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.", show_default=False)] = None,
    size: options.Size = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the weights, the order and the augmentation.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Ray Train workers that share each batch.")] = 1,
    cpus: options.Cpus = 1.0,
    gpus: options.Gpus = 0.0,
    address: options.Address = None,
) -> None:
    """Train a classifier; the epoch is chosen on patients held out of the train split, never on test.

    Example: uapray train --data chest.parquet --size 96 --architecture small-cnn --initial-weights random
    --recipe quick --out chest.safetensors
    """
    from uapray.cli import tables
    from uapray.cli.leaks import tell_shared_patients
    from uapray.cli.progress import board
    from uapray.cli.running import may_grow
    from uapray.data.dataset import open_data
    from uapray.errors import ClassifierError, DataError
    from uapray.models.weights import save_classifier
    from uapray.models.zoo import canonical
    from uapray.objects import check_uri
    from uapray.on_ray.session import session
    from uapray.resources import Resources
    from uapray.sources import Source
    from uapray.train_step import initial_classifier, train_classifier
    from uapray.victims import TrainStep

    if not out.endswith(".safetensors"):
        raise ClassifierError(f"--out: expected a name ending in .safetensors, got {out}")
    chosen = recipe_named(recipe, epochs)
    check_uri(out)
    opened = open_data(data)
    if "train" not in opened.splits():
        raise DataError(f"{data}: expected a split 'train' to learn from, got {', '.join(opened.splits())}")
    tell_shared_patients(opened)
    source = Source(opened.name, opened, None if size is None else (size, size))
    step = TrainStep(source, canonical(architecture), initial_weights, chosen, seed)
    images = {split: source.images(split) for split in opened.splits()}
    initial = initial_classifier(step, images["train"])
    total = step.recipe.epochs
    with board() as progress, session(address):
        progress.show("training", 0, total)
        classifier, _ = train_classifier(
            step,
            images,
            initial,
            Resources(workers=workers, cpus=cpus, gpus=gpus, may_grow=may_grow(address)),
            lambda report: progress.show(
                "training", report.epoch + 1, total, f"validation accuracy {report.balanced_accuracy:.3f}"
            ),
        )
    save_classifier(classifier, out)
    rows = [
        [
            split,
            str(scores["images"]),
            tables.interval(scores["accuracy"], (scores["accuracy_low"], scores["accuracy_high"])),
            tables.percent(scores["balanced_accuracy"]),
            "–" if scores["auc"] is None else f"{scores['auc']:.3f}",
        ]
        for split, scores in classifier.card.metrics.items()
    ]
    tables.show(out, ["split", "images", "accuracy [95 %]", "balanced", "AUC"], rows)


def recipe_named(name: str, epochs: int | None) -> "Recipe":
    """Return a recipe by name or out of a YAML file, with another number of epochs if that is asked for."""
    import yaml

    from uapray.errors import ConfigError
    from uapray.models.recipe import recipe_of
    from uapray.objects import read_uri

    try:
        values = yaml.safe_load(read_uri(name)) if name.endswith((".yaml", ".yml")) else {"base": name}
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: expected a mapping, e.g. base: papers, got {type(values).__name__}")
    return recipe_of(values if epochs is None else {**values, "epochs": epochs})
