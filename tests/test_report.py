"""The page: right numbers, nothing from outside, and no text of users taken for HTML."""

import io
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from uapray.errors import StoreError
from uapray.measures import Outcome
from uapray.query import query
from uapray.report import curves, flows, pictures, plots, wording
from uapray.report.page import write_report
from uapray.report.rates import rates, rates_sql
from uapray.store.results import Results, open_results

CLASSES = ("NORMAL", "<b>bold & \"quoted\"</b>", "PNEUMONIA")
PUSH = {None: 0.6, "NORMAL": 0.9, "<b>bold & \"quoted\"</b>": 0.5, "PNEUMONIA": 0.7}


def png(seed: int) -> bytes:
    body = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 48), dtype=np.uint8)
    Image.fromarray(pixels).save(body, "PNG")
    return body.getvalue()


def outcome_of(seed: int, push: float, images: int, target: int) -> Outcome:
    """Predictions of which a share goes to the target."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % len(CLASSES)
    clean = np.where(rng.random(images) < 0.9, labels, (labels + 1) % len(CLASSES))
    perturbed = np.where(rng.random(images) < push, target, clean)
    return Outcome(labels, clean, perturbed, len(CLASSES))


class Shop:
    """Fills a store with trials that hang together."""

    def __init__(self, results: Results, grid: str = "made-up") -> None:
        self.results, self.grid, self.number = results, grid, 0

    def add(
        self,
        *,
        rule: str = "spgd",
        target: str | None = None,
        seed: int = 0,
        zeta: float | None = 0.04,
        norm: str = "linf",
        split: str = "test",
        data: str = "chest",
        classifier: str = "resnet18",
        images: int = 150,
        push: float | None = None,
        extras: bool = True,
        epsilon: float | None = 0.01,
        **changed: Any,
    ) -> dict[str, Any]:
        """Write one trial, and unless told otherwise its history, flows and examples; return its row."""
        self.number += 1
        trial_id = f"{self.grid}{self.number:05d}"
        index = CLASSES.index(target) if target else 2
        push = (0.02 if rule == "random" else PUSH[target] + 0.02 * seed) if push is None else push
        outcome = outcome_of(seed + 100 * self.number, push, images, index)
        low, high = outcome.fooling.interval
        row = {
            "trial_id": trial_id,
            "data": data,
            "data_sha256": f"sha of {data}",
            "classifier": classifier,
            "architecture": "resnet18",
            "initial_weights": "pretrained",
            "classifier_sha256": f"sha of {classifier}",
            "made_on": None if rule == "random" else classifier,
            "source": None if rule == "random" else f"{data}/train",
            "source_images": 0 if rule == "random" else 400,
            "rule": rule,
            "norm": norm,
            "zeta": zeta,
            "xi": 0.031,
            "xi_grey": 255 * 0.031,
            "target": target,
            "epsilon": None if rule == "random" else epsilon,
            "seed": seed,
            "split": split,
            "images": images,
            "clean_accuracy": outcome.clean_accuracy,
            "robust_accuracy": outcome.robust_accuracy,
            "fooling_rate": outcome.fooling.share,
            "fooling_rate_low": low,
            "fooling_rate_high": high,
            "fooling_rate_ceiling": outcome.ceiling,
            "targeted_success_rate": outcome.towards(index).share if target else None,
            "targeted_success_rate_non_target": outcome.towards_non_target(index).share if target else None,
            "dominant_label": CLASSES[outcome.dominant],
            "l2": 2.0,
            "linf": 0.031,
            "psnr": 31.0,
            "ssim": 0.91,
            "image_gradients": 0 if rule == "random" else 4000,
            "image_queries": 900,
            "wall_s": 3.0,
            "device": "cpu",
            "replicas": 2,
            "uapray_version": "0.1.0",
            "finished_at": datetime(2025, 3, 4, 5, 6, tzinfo=UTC),
        } | changed
        key = f"{row['trial_id']}-{split}"
        self.results.write_rows("trials", self.grid, key, [row])
        if extras:
            self._add_extras(row, outcome)
        return row

    def _add_extras(self, row: dict[str, Any], outcome: Outcome) -> None:
        of = {"trial_id": row["trial_id"], "split": row["split"]}
        key = f"{row['trial_id']}-{row['split']}"
        ways = ("label", "clean_prediction", "perturbed_prediction", "images")
        rows = [{**of, **dict(zip(ways, way, strict=True))} for way in outcome.flows()]
        self.results.write_rows("flows", self.grid, key, rows)
        examples = [
            {
                **of,
                "id": f"image {image}",
                "label": int(outcome.labels[image]),
                "clean_prediction": int(outcome.clean[image]),
                "perturbed_prediction": int(outcome.perturbed[image]),
                "clean_png": png(image),
                "perturbed_png": png(image + 1000),
                "perturbation_png": png(self.number + 2000),
                "class_names": list(CLASSES),
            }
            for image in range(6)
        ]
        self.results.write_rows("examples", self.grid, key, examples)
        if row["rule"] != "random":
            self.results.write_rows("history", self.grid, row["trial_id"], list(self._history(row)))

    def _history(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        rng = np.random.default_rng(self.number)
        for measurement in range(1, 9):
            rate = row["fooling_rate"] * (1 - np.exp(-measurement / 2)) + rng.normal(0, 0.02)
            yield {
                "trial_id": row["trial_id"],
                "start": 0,
                "round": 5 * measurement,
                "epoch": measurement / 2,
                "images_used": 400,
                "image_gradients": 500 * measurement,
                "image_queries": 100 * measurement,
                "l2": 2.0,
                "linf": 0.031,
                "fooling_rate": float(np.clip(rate, 0, 1)),
                "targeted_success_rate": None if row["target"] is None else float(np.clip(rate, 0, 1)),
            }
