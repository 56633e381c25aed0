"""The page: right numbers, nothing from outside, and no text of users taken for HTML."""

import io
import re
import statistics
from collections import Counter
from collections.abc import Iterator
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
from steps import finish

from uapray.errors import StoreError
from uapray.measures import Outcome
from uapray.query import query
from uapray.report import controls, curves, flows, pictures, plots, wording
from uapray.report.page import write_report
from uapray.report.rates import rates, rates_sql
from uapray.store.results import Results, open_results

BOLD = '<b>bold & "quoted"</b> $x$'
CLASSES = ("NORMAL", BOLD, "PNEUMONIA")
PUSH = {None: 0.6, "NORMAL": 0.9, BOLD: 0.5, "PNEUMONIA": 0.7}
VOID = {"meta", "link", "img", "br"}


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
        if extras:
            self._add_extras(row, outcome)
        self.results.write_rows("trials", self.grid, key, [row])
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
                "certainty": float(np.clip(rate, 0, 1)),
            }


class Page(HTMLParser):
    """Checks that elements are closed in order, and keeps attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, name: str) -> list[str]:
        return [value for attribute, value in self.attributes if attribute == name]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\N{NO-BREAK SPACE}", " ").split())


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(open_results(str(tmp_path / "store")))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Every target, two seeds, a control, a failure."""
    results = open_results(str(tmp_path_factory.mktemp("report") / "store"))
    shop = Shop(results)
    for target in (None, *CLASSES):
        for seed in (0, 1):
            shop.add(target=target, seed=seed)
            shop.add(target=target, seed=seed, rule="random", extras=False)
    failure = {"trial_id": "t<1>", "step": "trial", "error": "TrialError", "attempt": 1, "at": datetime.now(UTC)}
    results.write_rows("failures", "made-up", "f", [failure | {"message": "zero <script>gradients</script>"}])
    return results


@pytest.fixture(scope="module")
def html(full: Results) -> str:
    return write_report(full)


def test_needs_nothing_from_outside(html: str) -> None:
    page = Page(html)
    assert "script" not in page.tags
    assert all(value.startswith(("data:", "#")) for name in ("src", "href", "xlink:href") for value in page.all(name))
    assert set(re.findall(r"url\(([^)])", html)) == {"#"}
    assert "@import" not in html
    outside = re.findall(r'(xmlns(?::xlink)?=")?(https?:)?//', re.sub(r"data:[^\"]*", "", html))
    assert all(name for name, _ in outside)
    assert "default-src 'none'" in html


def test_identifiers_are_unique_and_point_somewhere(html: str) -> None:
    page = Page(html)
    names = page.all("id")
    assert len(names) == len(set(names))
    pointers = [value for name in ("href", "xlink:href") for value in page.all(name) if value.startswith("#")]
    assert {value[1:] for value in [*pointers, *re.findall(r"url\((#[^)]*)\)", html)]} <= set(names)


def test_text_of_users_stays_text(html: str) -> None:
    page = Page(html)
    assert "<b>bold" not in html
    assert "<script>" not in html
    assert f"→ {BOLD}" in page.text
    assert "zero <script>gradients</script>" in page.text


def test_says_everything_in_order(html: str) -> None:
    text = Page(html).text
    heads = re.findall("<h2>(.*?)</h2>", html)
    assert heads == [
        "How to read it",
        "Rates",
        "Pictures",
        "Course of the search",
        "Who goes where",
        "Failures",
        "Origin",
    ]
    assert "8 searches, 8 random draws as control" in text
    assert "150 images of split test" in text
    assert "fooling rate (% of images)" in text
    assert "image-gradients spent" in text


def bars(html: str) -> list[dict[str, float]]:
    """Return where the marks of each fooling rate's bar are, per cent of its width."""
    found = []
    for label, marks in re.findall(
        r'<div class="bar" role="img" aria-label="(fooling rate[^"]*)">(.*?)</div>', html, re.S
    ):
        assert "control" in label
        styles = dict(re.findall(r'<i class="(\w+)" style="([^"]*)"', marks))
        numbers = {
            name: [float(number) for number in re.findall(r"([\d.]+)%", style)] for name, style in styles.items()
        }
        low, _, high = numbers.pop("interval")
        found.append({name: at[0] for name, at in numbers.items()} | {"low": low, "high": high})
    return found


def test_bars_agree_with_the_rows(full: Results, html: str) -> None:
    trials, text = full.rows("trials").to_pylist(), Page(html).text
    for bar, target in zip(bars(html), [None, *sorted(CLASSES)], strict=True):
        rows = [row for row in trials if row["target"] == target and row["rule"] == "spgd"]
        control = [row for row in trials if row["target"] == target and row["rule"] == "random"]
        assert len(rows) == len(control) == 2
        columns = {"": "rate", "_low": "low", "_high": "high", "_ceiling": "ceiling"}
        expected = {
            name: 100 * statistics.fmean(row[f"fooling_rate{suffix}"] for row in rows)
            for suffix, name in columns.items()
        }
        expected["control"] = 100 * statistics.fmean(row["fooling_rate"] for row in control)
        assert bar == pytest.approx(expected, abs=0.006)
        low, high = sorted(row["fooling_rate"] for row in rows)
        assert f"seeds {100 * low:.1f}–{100 * high:.1f}" in text


def test_query_on_the_page_gives_the_table(full: Results, html: str) -> None:
    shown = re.findall(r"<pre>(.*?)</pre>", html, re.S)[-1]
    sql = shown.replace("&#39;", "'").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert sql == rates_sql(None)
    assert len(query(full, sql)) == len(CLASSES) + 1


def test_one_trial_and_nothing_else(shop: Shop) -> None:
    row = shop.add(extras=False)
    page = Page(write_report(shop.results))
    assert "svg" not in page.tags
    assert f"{100 * row['fooling_rate']:.1f} %" in page.text
    for absent in ("Pictures", "Course of the search", "Who goes where", "Failures", "Synthetic"):
        assert absent not in page.text


def test_flows_without_names_are_numbered(shop: Shop) -> None:
    row = shop.add(extras=False)
    way = {"trial_id": row["trial_id"], "split": "test", "label": 1, "clean_prediction": 1, "images": 3}
    ways = [way | {"perturbed_prediction": 0}, way | {"perturbed_prediction": 1, "images": 1}]
    shop.results.write_rows("flows", shop.grid, "key", ways)
    finish(shop.results, shop.grid, "key")
    (flow,) = flows.flows(shop.results, None)
    assert flow.names == ("class 0", "class 1")
    assert [(one.name, one.images, one.shares, one.stay) for one in flow.rows] == [("class 1", 4, (0.75, 0.25), 1)]
    assert "75.0 %" in Page(write_report(shop.results)).text


def test_flows_of_many_classes_are_folded(shop: Shop) -> None:
    row = shop.add(extras=False)
    way = {"trial_id": row["trial_id"], "split": "test", "label": 0}
    ways = [
        way | {"clean_prediction": clean, "perturbed_prediction": clean % 3, "images": 100 - clean}
        for clean in range(40)
    ]
    shop.results.write_rows("flows", shop.grid, "key", ways)
    finish(shop.results, shop.grid, "key")
    (flow,) = flows.flows(shop.results, None)
    assert len(flow.names) == flows.MAX_CLASSES
    assert flow.names[-1] == "29 others"
    assert all(sum(one.shares) == pytest.approx(1) for one in flow.rows)


def test_flow_shares_agree_with_the_rows(full: Results) -> None:
    ways = full.rows("flows").to_pylist()
    for flow in flows.flows(full, None):
        for row in flow.rows:
            clean = CLASSES.index(row.name)
            counts = Counter[int]()
            for way in ways:
                if (way["trial_id"], way["clean_prediction"]) == (flow.best.trial_id, clean):
                    counts[way["perturbed_prediction"]] += way["images"]
            assert row.shares == tuple(counts[index] / row.images for index in range(len(CLASSES)))


def test_best_seed_is_shown_and_fooled_images_marked(full: Results, html: str) -> None:
    trials = full.rows("trials").to_pylist()
    panels = pictures.panels(full, None)
    assert [panel.best.target for panel in panels] == [None, *sorted(CLASSES)]
    for panel in panels:
        raised = "fooling_rate" if panel.best.target is None else "targeted_success_rate_non_target"
        rivals = [row for row in trials if row["target"] == panel.best.target and row["rule"] == "spgd"]
        assert max(rivals, key=lambda row: row[raised])["trial_id"] == panel.best.trial_id
        assert len(panel.pairs) == pictures.MAX_PICTURES
        assert (panel.width, panel.height) == (48, 32)
        assert all(pair.fooled == (pair.clean_class != pair.perturbed_class) for pair in panel.pairs)
    fooled = sum(pair.fooled for panel in panels for pair in panel.pairs)
    assert html.count('<div class="fooled">') == fooled > 0


def test_control_of_another_grid_counts(shop: Shop) -> None:
    control = shop.add(rule="random", extras=False)
    Shop(shop.results, "second").add(extras=False)
    (row,) = rates(shop.results, "second")
    assert (row.control, row.draws) == (control["fooling_rate"], 1)
    assert "made-up" not in Page(write_report(shop.results, grid="second")).text


def test_control_of_another_setting_does_not(shop: Shop) -> None:
    shop.add(extras=False)
    for changed in ({"norm": "l2"}, {"zeta": 0.02}, {"split": "val"}, {"target": "NORMAL"}, {"classifier": "other"}):
        shop.add(rule="random", extras=False, **changed)
    row = next(row for row in rates(shop.results, None) if not row.is_control)
    assert row.control is None
    assert "none" in Page(write_report(shop.results)).text


def test_radius_given_as_xi(shop: Shop) -> None:
    shop.add(zeta=None, extras=False)
    shop.add(zeta=None, rule="random", extras=False)
    shop.add(zeta=None, rule="random", extras=False, xi=0.5)
    row = next(row for row in rates(shop.results, None) if not row.is_control)
    assert row.draws == 1
    assert "linf, 7.9 grey levels" in Page(write_report(shop.results)).text.replace("7.91", "7.9")


def test_a_control_alone_is_a_row(shop: Shop) -> None:
    shop.add(rule="random")
    (row,) = rates(shop.results, None)
    assert row.is_control
    assert "random control" in Page(write_report(shop.results)).text


def test_a_trial_of_two_grids_counts_once(shop: Shop) -> None:
    for grid in ("one", "two"):
        Shop(shop.results, grid).add(trial_id="same")
    (row,) = rates(shop.results, None)
    assert row.searches == 1
    (flow,) = flows.flows(shop.results, None)
    assert sum(one.images for one in flow.rows) == 150


def test_steps_that_differ_are_told_apart(shop: Shop) -> None:
    for epsilon in (0.01, 0.02):
        shop.add(epsilon=epsilon)
    assert [row.step_grey for row in rates(shop.results, None)] == pytest.approx([2.55, 5.1])
    (drawn,) = curves.curves(shop.results, None)
    assert [line.step_grey for line in drawn.lines] == pytest.approx([2.55, 5.1])
    assert "step 2.55 grey levels" in Page(write_report(shop.results)).text


def test_sources_that_differ_are_told_apart(shop: Shop) -> None:
    for source in ("chest/train[100]", "photographs/train"):
        for _ in range(2):
            shop.add(source=source)
    (drawn,) = curves.curves(shop.results, None)
    assert [(line.source, line.searches) for line in drawn.lines] == [("chest/train[100]", 2), ("photographs/train", 2)]
    text = Page(write_report(shop.results)).text
    assert "made from photographs/train (2 searches)" in text


def test_a_rate_no_better_than_the_control_is_marked(shop: Shop) -> None:
    shop.add(push=0.02, extras=False)
    shop.add(rule="random", push=0.05, extras=False)
    assert "interval reaches down to the control" in Page(write_report(shop.results)).text


@pytest.mark.parametrize("data", ["synthetic-chest-phantoms", "Synthetic faces"])
def test_synthetic_images_are_called_so(shop: Shop, data: str) -> None:
    shop.add(data=data, extras=False)
    assert f"Synthetic images ({data})" in Page(write_report(shop.results)).text


def test_no_trial_is_a_clear_error(shop: Shop) -> None:
    with pytest.raises(StoreError, match="expected trials to report on, found none"):
        write_report(shop.results)
    shop.add(extras=False)
    with pytest.raises(StoreError, match=r"no trial of grid \"it's\"; there are trials of made-up"):
        write_report(shop.results, grid="it's")


def test_what_is_left_out_is_said_and_can_be_asked_for(full: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_SHOWN", 3)
    monkeypatch.setattr(flows, "MAX_SHOWN", 1)
    monkeypatch.setattr(curves, "MAX_FIGURES", 1)
    monkeypatch.setattr("uapray.report.page.MAX_ROWS", 2)
    text = Page(write_report(full)).text
    assert "3 of 4 settings are shown" in text
    assert "1 of 4 settings are shown" in text
    assert "1 of 2 plots are shown" in text
    assert "The first 2 of 4 rows" in text
    rest = query(full, pictures.rest_sql(None, 3)).to_pylist()
    assert {row["target"] for row in rest} == {"PNEUMONIA"}
    assert all(row["clean_png"] for row in rest)
    assert {row["place"] for row in query(full, flows.rest_sql(None, 1)).to_pylist()} == {2, 3, 4}
    assert {row["place"] for row in query(full, curves.rest_sql(None, 1)).to_pylist()} == {2}


def test_pictures_stay_within_their_bytes(full: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    one = pictures.panels(full, None)[0]
    size = len(one.perturbation) + sum(len(pair.clean + pair.perturbed) for pair in one.pairs)
    monkeypatch.setattr(pictures, "MAX_BYTES", int(2.5 * size))
    assert len(pictures.panels(full, None)) == 2


def test_curve_is_the_median_of_the_best_so_far(full: Results) -> None:
    nontargeted, targeted = curves.curves(full, None)
    assert [line.target for line in targeted.lines] == sorted(CLASSES)
    (line,) = nontargeted.lines
    assert line.searches == 2
    assert line.image_gradients.tolist() == [500 * number for number in range(1, 9)]
    assert (np.diff(line.median) >= 0).all()
    sql = "SELECT max(h.fooling_rate) AS best FROM history h JOIN trials USING (trial_id) WHERE target IS NULL"
    bests = [row["best"] for row in query(full, f"{sql} GROUP BY trial_id").to_pylist()]
    assert line.median[-1] == pytest.approx(statistics.median(bests))
    assert (line.low[-1], line.high[-1]) == (min(bests), max(bests))


@given(st.lists(st.dictionaries(st.integers(1, 50), st.floats(0, 1), min_size=1), min_size=1, max_size=4))
@settings(deadline=None)
def test_rates_hold_until_the_next_measurement(searches: list[dict[int, float]]) -> None:
    courses = [
        (np.array(sorted(one)), np.array([rate for _, rate in sorted(one.items())], dtype=np.float64))
        for one in searches
    ]
    axis, held = curves.over_searches(courses)
    assert axis[0] == max(min(one) for one in searches)
    for rates_held, one in zip(held, searches, strict=True):
        for at, rate in zip(axis, rates_held, strict=True):
            assert rate == one[max(key for key in one if key <= at)]


def test_plot_is_an_element_of_its_own(full: Results) -> None:
    lines = curves.curves(full, None)[1].lines
    svg = plots.curve_svg(lines, rate_name="fooling rate", prefix="mine-")
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "width" not in root.attrib
    assert all(one.attrib["id"].startswith("mine-") for one in root.iter() if "id" in one.attrib)
    assert "<style" not in svg
    assert svg == plots.curve_svg(lines, rate_name="fooling rate", prefix="mine-")


@given(st.one_of(st.none(), st.floats()))
def test_every_rate_can_be_written(share: float | None) -> None:
    assert re.fullmatch(r"\d+(\.\d+)?%", wording.css(share))
    assert 0 <= float(wording.css(share)[:-1]) <= 100
    assert wording.percent(share)


@pytest.mark.parametrize(
    ("zeta", "grey", "text"),
    [
        (0.04, 9.7123, "ζ 4 % (9.71 grey levels)"),
        (0.005, 1234.5, "ζ 0.5 % (1,234 grey levels)"),
        (None, 0.5, "0.5 grey levels"),
    ],
)
def test_radius_in_words(zeta: float | None, grey: float, text: str) -> None:
    assert wording.radius(zeta, grey).replace("\N{NO-BREAK SPACE}", " ") == text


def chance_rows(shop: Shop, row: dict[str, Any], *, draws: int = 19, p: float | None = 0.05) -> None:
    """Write what draws of every kind did beside a trial."""
    targeted = row["target"] is not None
    rows = [
        {
            "trial_id": row["trial_id"],
            "split": row["split"],
            "kind": kind,
            "draws": draws,
            "images": 128,
            "fooling_rate": 0.61,
            "control_fooling_rate": 0.011 * place,
            "control_fooling_rate_max": 0.021 * place,
            "targeted_success_rate_non_target": 0.72 if targeted else None,
            "control_targeted_success_rate_non_target": 0.013 * place if targeted else None,
            "control_targeted_success_rate_non_target_max": 0.023 * place if targeted else None,
            "p_value": p,
            "control_l2": 2.0,
            "control_linf": 0.05,
            "finished_at": datetime(2025, 3, 4, tzinfo=UTC),
        }
        for place, kind in enumerate(("scrambled", "signs", "random", "permuted"), 1)
    ]
    shop.results.write_rows("controls", shop.grid, f"{row['trial_id']}-{row['split']}-{draws}x128", rows)


def test_chance_is_told_by_kind_and_by_what_was_to_be_raised(shop: Shop) -> None:
    chance_rows(shop, shop.add())
    aimed = shop.add(target="NORMAL", seed=1)
    chance_rows(shop, aimed, draws=9, p=0.9)
    chance_rows(shop, aimed, p=0.35)
    shop.add(rule="random")
    away, towards = controls.controls(shop.results, None)
    assert list(away.kinds) == list(towards.kinds) == ["random", "signs", "permuted", "scrambled"]
    assert (away.rate, away.kinds["random"].mean, away.kinds["random"].highest) == pytest.approx((0.61, 0.033, 0.063))
    assert (towards.rate, towards.kinds["signs"].mean, towards.kinds["signs"].highest) == pytest.approx(
        (0.72, 0.026, 0.046)
    )
    assert (towards.draws, towards.images) == (19, 128), "of two settings the one with more draws"
    assert [row.kinds["random"].likely for row in (away, towards)] == [False, True]
    text = write_report(shop.results)
    Page(text)
    chance = text[text.index('id="chance"') : text.index('id="pictures"')]
    assert chance.count('class="warn">p 0.35') == 4
    assert chance.count("p 0.05") == 4
    assert "72.0" in chance


def test_chance_that_cannot_be_told_is_a_dash_and_no_controls_no_section(shop: Shop) -> None:
    row = shop.add()
    assert 'id="chance"' not in write_report(shop.results)
    chance_rows(shop, row, p=None)
    text = write_report(shop.results)
    chance = text[text.index('id="chance"') : text.index('id="pictures"')]
    assert chance.count('<span class="soft">–</span>') == 4


def test_searches_left_out_of_chance_can_be_asked_for(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        chance_rows(shop, shop.add(seed=seed))
    monkeypatch.setattr(controls, "MAX_ROWS", 1)
    assert "1 of 3 searches are shown" in Page(write_report(shop.results)).text
    rest = query(shop.results, controls.rest_sql(None)).to_pylist()
    assert sorted({row["seed"] for row in rest}) == [1, 2]
