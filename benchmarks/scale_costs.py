"""What very many trials cost: time of GPUs, requests to S3, bytes, and the drivers that it takes.

    python benchmarks/scale_costs.py [--trials 1000000] [--gpus 1000] [--gpus-a-driver 70]

It runs one small trial into a folder and counts what it writes; the rest is arithmetic on the options, which are
assumptions: prices are those of nobody in particular, in dollars.
"""

import argparse
import math
import tempfile
from pathlib import Path

import uapray
from uapray.experiment import find_missing, run_missing
from uapray.grid import parse_grid
from uapray.models.weights import save_classifier, wrap_module
from uapray.models.zoo import build
from uapray.plan import plan_grid
from uapray.resources import Resources
from uapray.run import Run
from uapray.store.results import open_results

PHANTOMS = "phantom:chest?images=300&size=32"
LISTED_TABLES = 4  # that a driver lists when it begins
KEYS_A_LIST = 1000


def written() -> tuple[int, int]:
    """Run one trial; return how many objects it wrote, and their bytes without the perturbation's."""
    images = uapray.load_images(PHANTOMS, "train")
    with tempfile.TemporaryDirectory() as folder:
        module = build("tiny-cnn", classes=len(images.class_names), channels=1, size=images.size, seed=0)
        save_classifier(
            wrap_module(module, images.class_names, 1, images.size, architecture="tiny-cnn"),
            f"{folder}/tiny.safetensors",
        )
        grid = {
            "name": "one",
            "data": [{"uri": PHANTOMS}],
            "classifiers": [{"weights": f"{folder}/tiny.safetensors"}],
            "control": False,
            "examples": 0,
        }
        results, plan = open_results(f"{folder}/store"), plan_grid(parse_grid(str(grid), origin="one trial"))
        run_missing(Run(plan, results, Resources("local")), find_missing(plan, results))
        files = [path for path in Path(folder, "store").rglob("*.*") if path.is_file() and path.parent.name != "runs"]
        rows = sum(path.stat().st_size for path in files if path.suffix == ".parquet")
        return len(files), rows


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1_000_000)
    parser.add_argument("--gpus", type=int, default=1000)
    parser.add_argument("--gpus-a-driver", type=float, default=70.0)
    parser.add_argument("--image-gradients", type=int, default=10_000, help="of a trial: two passes of 5,000 images")
    parser.add_argument("--image-queries", type=int, default=14_000, help="of a trial, 9,728 of them for controls")
    parser.add_argument("--batch-ms", type=float, default=50.0, help="gradients of 16 images; predictions take a third")
    parser.add_argument("--busy", type=float, default=0.9, help="share of the time that GPUs compute")
    parser.add_argument("--size", type=int, default=299)
    parser.add_argument("--gpu-hour", type=float, default=1.0, help="price")
    parser.add_argument("--core-hour", type=float, default=0.05, help="price")
    parser.add_argument("--thousand-puts", type=float, default=0.005, help="price; of as many LISTs too")
    parser.add_argument("--gigabyte-month", type=float, default=0.023, help="price")
    asked = parser.parse_args()
    if asked.gpus_a_driver <= 0:
        parser.error(f"--gpus-a-driver: expected more than 0, got {asked.gpus_a_driver}")

    objects, rows = written()
    each_s = asked.batch_ms / 1e3 / 16
    trial_s = each_s * (asked.image_gradients + asked.image_queries / 3)
    gpu_hours = asked.trials * trial_s / asked.busy / 3600
    hours, drivers = gpu_hours / asked.gpus, math.ceil(asked.gpus / asked.gpus_a_driver)
    size = rows + 4 * 3 * asked.size**2
    lists = drivers * LISTED_TABLES * asked.trials / KEYS_A_LIST
    puts = asked.trials * objects
    kept = asked.trials * size
    prices = {
        "GPUs": gpu_hours * asked.gpu_hour,
        "drivers": drivers * hours * asked.core_hour,
        "PUT": puts / 1e3 * asked.thousand_puts,
        "LIST": lists / 1e3 * asked.thousand_puts,
        "storage, a month": kept / 1e9 * asked.gigabyte_month,
    }
    amounts = {
        "GPUs": f"{gpu_hours:,.0f} GPU-hours, {hours:.1f} h on {asked.gpus:,}",
        "drivers": f"{drivers}, a core each",
        "PUT": f"{puts:,}, {puts / hours / 3600:,.0f} a second",
        "LIST": f"{lists:,.0f}, if all drivers begin once more with the store full",
        "storage, a month": f"{kept / 1e12:.2f} TB",
    }
    print(f"a trial: {trial_s:.0f} s of a GPU, {objects} objects, {rows / 1e3:.0f} kB of rows, {size / 1e6:.2f} MB")
    print(f"{asked.trials:,} trials:")
    for name, amount in amounts.items():
        print(f"{name:16}  {prices[name]:8,.0f} $  {amount}")


if __name__ == "__main__":
    main()
