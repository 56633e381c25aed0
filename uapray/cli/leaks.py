"""Patients that splits share, said loudly wherever such splits are used."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from uapray.data.dataset import DataSet


def tell_shared_patients(data: "DataSet") -> None:
    """Say on standard error how many patients each pair of splits shares; nothing if none does."""
    from uapray.data.dataset import shared_groups

    for (one, other), count in shared_groups(data).items():
        typer.secho(
            f"WARNING: {data.name}: {count} patients are in both '{one}' and '{other}': "
            f"figures on '{other}' will be too good",
            fg="red",
            bold=True,
            err=True,
        )
