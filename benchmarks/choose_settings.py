"""What settings of the default rule are worth, on images of the train split that the search has not seen.

    python benchmarks/choose_settings.py --data 'ham10000_200x150_*.parquet' --zeta 0.02 --image-gradients 768 \
        --classifier ham10000-small-cnn.safetensors --settings batch_size=5,round_size=5 --settings momentum=0

Settings are chosen here, so that the test split judges what it had no say in. Each draw takes source images from the
train split, mixed as the test split is, and judges on others of it, of other patients or lesions; what a classifier
was trained on may be among them, so that rates differ from those of the test split. Printed: the mean
rate of the defaults and of each list of settings, and how far it is above the defaults on the same draws and seeds,
with its standard error over them.
"""

import argparse
from typing import Any

import numpy as np
import torch
from compare_rules import (
    OURS,
    aim,
    as_mixed,
    ask_what_is_attacked,
    attacked,
    classifiers,
    own_settings,
    run,
    with_error,
)

from uapray.api import search_settings
from uapray.data.images import ImageSet
from uapray.errors import ConfigError

DEFAULTS = ""
LAST = 2**62  # of the measurements only the last is judged


def main() -> None:
    """Search with the defaults and with each list of settings, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    ask_what_is_attacked(parser)
    parser.add_argument("--judged-images", type=int, default=1400, help="others of the train split, at most")
    parser.add_argument("--image-gradients", type=int, default=768, help="what a search may take")
    parser.add_argument("--settings", action="append", default=[], help="NAME=VALUE,…, beside the defaults")
    parser.add_argument("--draws", type=int, default=4, help="of the source images")
    parser.add_argument("--first-draw", type=int, default=0, help="number of the first of them")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    if asked.draws * asked.seeds < 2:
        parser.error("--draws, --seeds: expected two searches or more, since one has no error; raise one of them")
    limit = {"max_image_gradients": asked.image_gradients}
    try:
        lists = {settings: limit | named(settings) for settings in (DEFAULTS, *asked.settings)}
        for changes in lists.values():
            search_settings(OURS, changes)
    except ConfigError as error:
        parser.error(f"--settings: {error}")
    torch.set_num_threads(1)

    train, test, threat = attacked(parser, asked)
    for name, classifier in classifiers(asked.classifier, train):
        rates: dict[str, list[float]] = {settings: [] for settings in lists}
        for number in range(asked.first_draw, asked.first_draw + asked.draws):
            source, judged = drawn(train, test, number, asked.images, asked.judged_images)
            if not len(judged):
                parser.error(f"--images: expected some of the train split to be left to judge on, got {asked.images}")
            for seed in range(asked.seeds):
                for settings, found in rates.items():
                    points = run(classifier, source, judged, threat, OURS, lists[settings], seed, judge_every=LAST)
                    found.append(points[-1]["rate"])
        searches = f"{asked.draws} draws, {asked.seeds} seeds"
        budget = f"{asked.image_gradients:,} image-gradients"
        print(f"\n{name}: {OURS}, {aim(asked)}, {asked.norm}, zeta {asked.zeta:g}, {budget}; {searches}")
        print("| settings | rate | above the defaults |\n|---|---|---|")
        for settings, found in rates.items():
            above = "–" if settings == DEFAULTS else with_error(np.subtract(found, rates[DEFAULTS]))
            print(f"| {settings or 'defaults'} | {np.mean(found):.4f} | {above} |", flush=True)


def named(settings: str) -> dict[str, Any]:
    """Return what NAME=VALUE,… says."""
    return own_settings([f"{OURS}:{pair}" for pair in settings.split(",") if pair], OURS)


def drawn(train: ImageSet, test: ImageSet, number: int, images: int, judged: int) -> tuple[ImageSet, ImageSet]:
    """Return source images, and others of the same split to judge on; no patient has images in both."""
    source = as_mixed(train, test, images, number)
    ids, groups = set(source.ids), set(source.groups) - {None}
    others = [one not in ids and group not in groups for one, group in zip(train.ids, train.groups, strict=True)]
    return source, as_mixed(train.select(np.flatnonzero(others)), test, judged, number)


if __name__ == "__main__":
    main()
