"""What ends a step, so that its rows count."""

from uapray.store.results import Results


def finish(results: Results, grid: str, *keys: str) -> None:
    """End steps as runs do: a row of trials (here an object without rows) and a classifier."""
    for key in keys:
        results.write_rows("trials", grid, key, [])
        results.objects.write(f"models/{key.partition('-')[0]}.safetensors", b"")
