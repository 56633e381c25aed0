"""``uapray data``: image sets in and out."""

from typing import Annotated, Literal

import typer

app = typer.Typer(help="Import, fetch and look at image sets.", no_args_is_help=True)


@app.command("import", epilog="Example: uapray data import scans/ scans.parquet --group-pattern '(person\\d+)_'")
def import_(
    source: Annotated[
        str,
        typer.Argument(help="Class folders, a MedMNIST .npz, a CSV of paths and labels, or DICOM folders."),
    ],
    destination: Annotated[str, typer.Argument(help="The .parquet to write: a path or s3://…")],
    kind: Annotated[
        Literal["auto", "folder", "npz", "csv", "dicom"], typer.Option(help="What the source is.")
    ] = "auto",
    test_share: Annotated[float, typer.Option(help="Share of test images where the source names no splits.")] = 0.2,
    val_share: Annotated[float, typer.Option(help="Share of validation images, likewise.")] = 0.0,
    group_pattern: Annotated[
        str | None,
        typer.Option(help="Pattern on file names whose first group is the patient.", show_default=False),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="Classes in the order of their labels: A,B,C; default: sorted.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the splits.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the destination.")] = False,
) -> None:
    """Make one data set file; every picture is checked before anything is written."""
    from uapray.cli.progress import board
    from uapray.data.imports import import_data

    with board() as progress:
        summary = import_data(
            source,
            destination,
            kind=kind,
            test_share=test_share,
            val_share=val_share,
            group_pattern=group_pattern,
            class_names=None if classes is None else [name.strip() for name in classes.split(",")],
            seed=seed,
            overwrite=overwrite,
            progress=lambda done, total: progress.show("checking pictures", done, total),
        )
    _show(destination, expected=summary.images)


@app.command(epilog="Example: uapray data fetch pneumoniamnist --size 64 --out pneumonia.parquet")
def fetch(
    name: Annotated[str, typer.Argument(help="Name of a MedMNIST set, e.g. pneumoniamnist.")],
    out: Annotated[
        str | None,
        typer.Option(help="The .parquet to write; default: NAME_SIZE.parquet.", show_default=False),
    ] = None,
    size: Annotated[int, typer.Option(help="28, 64, 128 or 224 pixels.")] = 28,
    base_url: Annotated[
        str | None, typer.Option(help="A mirror; default: the authors' record.", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the destination.")] = False,
) -> None:
    """Fetch a public data set by name; checked, cached, resumed where it broke off."""
    from uapray.cli.progress import board
    from uapray.data.fetch import fetch as fetch_by_name

    with board() as progress:
        destination = fetch_by_name(
            name,
            out or f"{name}_{size}.parquet",
            size=size,
            base_url=base_url,
            overwrite=overwrite,
            progress=lambda done, total: progress.show(f"fetching {name}", done, total),
        )
    _show(destination)


@app.command(epilog="Example: uapray data show 'chest_*.parquet'")
def show(
    data: Annotated[str, typer.Argument(help="Data set: a file, folder, pattern, s3://… or phantom:chest.")],
) -> None:
    """Show classes, splits, sizes and mean norms, and say loudly if splits share patients."""
    _show(data)


@app.command(epilog="Example: uapray data leaks oct_train_pre.csv oct_test_pre.csv --group-pattern '^(\\w+-\\d+)-'")
def leaks(
    train: Annotated[str, typer.Argument(help="List of the training images: a CSV, the paths in its first column.")],
    test: Annotated[str, typer.Argument(help="List of the test images, likewise.")],
    group_pattern: Annotated[
        str | None,
        typer.Option(help="Pattern on file names whose first group is the patient.", show_default=False),
    ] = None,
) -> None:
    """Count what of a published test split was in its training split: same images, same patients. Needs no images."""
    from uapray.cli import tables
    from uapray.data.lists import list_leaks, read_list

    found = list_leaks(read_list(train), read_list(test), group_pattern)

    def of_test(count: int | None) -> list[str]:
        return ["unknown", "–"] if count is None else [f"{count:,}", tables.percent(count / found.test)]

    rows = [
        ["test images", *of_test(found.test)],
        ["whose path is in the training list", *of_test(found.same_path)],
        ["whose patient is in the training list", *of_test(found.same_patient)],
    ]
    patients = (
        "give --group-pattern to count patients" if found.patients is None else f"{found.patients:,} such patients"
    )
    note = f"{patients}; {found.train:,} training images, {found.repeated:,} of them listed before"
    tables.show(f"{test} against {train}", ["", "images", "of the test images"], rows, note)


def _show(uri: str, expected: int | None = None) -> None:
    from collections import Counter

    from uapray.cli import tables
    from uapray.cli.leaks import tell_shared_patients
    from uapray.data.dataset import open_data
    from uapray.data.overview import overview

    data = open_data(uri)
    assert expected is None or expected == data.table.num_rows
    splits = data.splits()
    counted = Counter(zip(data.table["split"].to_pylist(), data.table["label"].to_pylist(), strict=True))
    rows = [[name, *(str(counted[split, index]) for split in splits)] for index, name in enumerate(data.class_names)]
    in_all = Counter(data.table["split"].to_pylist())
    unlabelled = [str(counted[split, None] + counted[split, -1]) for split in splits]
    if any(number != "0" for number in unlabelled):
        rows.append(["(no label)", *unlabelled])
    rows.append(["all", *(str(in_all[split]) for split in splits)])
    patients = len(set(data.table["group"].to_pylist()) - {None})
    facts = overview(data)
    note = (
        f"{data.table.num_rows} images, {facts.channels} channel{'s' if facts.channels > 1 else ''}, "
        f"{facts.sizes}; mean norm of an image: l2 {facts.mean_l2:.2f}, linf {facts.mean_linf:.3f} (pixels in [0, 1])\n"
        f"{f'{patients} patients' if patients else 'patients unknown: that splits share none cannot be told'}; "
        f"content sha256 {data.sha256}"
    )
    tables.show(f"{data.name}: images by class and split", ["class", *splits], rows, note)
    tell_shared_patients(data)
