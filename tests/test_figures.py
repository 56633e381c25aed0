"""One figure for each kind of experiment: the right points in the right order, and none where there are no rows."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops
from test_defence import add, hardening
from test_job_kinds import KINDS as JOBS
from test_report import Shop, chance_rows

from uapray.errors import ConfigError, StoreError
from uapray.over_seeds import mean_over_seeds
from uapray.report.charts import Chart, Panel, Point, draw
from uapray.report.figures import CEILING, CONTROL, KINDS, chart, file_ending
from uapray.store.results import Results, open_results

SEEDS = range(3)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(open_results(str(tmp_path / "store")))


def searches(shop: Shop, **changes: Any) -> list[dict[str, Any]]:
    """Write three seeds of a search."""
    return [shop.add(seed=seed, extras=False, **changes) for seed in SEEDS]


def shown(results: Results, kind: str, rows: list[dict[str, Any]]) -> Chart:
    """Return the figure of some trials, that was drawn too."""
    made = chart(results, kind, list(dict.fromkeys(row["trial_id"] for row in rows)))
    picture = Image.open(io.BytesIO(draw(made, ".png")))
    assert len(picture.getcolors() or range(1000)) > 4, "not blank"
    return made


def cells(panel: Panel) -> dict[tuple[str | float, str], float]:
    return {(point.place, point.series): pytest.approx(point.value) for point in panel.points}


def test_every_job_has_its_figure() -> None:
    assert set(JOBS) >= set(KINDS)


def test_a_rate_is_the_mean_of_its_seeds_beside_control_and_ceiling(shop: Shop) -> None:
    mine = [row for norm in ("linf", "l2") for row in searches(shop, norm=norm)]
    draws = searches(shop, rule="random")
    searches(shop, classifier="vgg16")  # of another grid
    made = shown(shop.results, "nontargeted", mine)
    (panel,) = made.panels
    assert [(point.place, point.series) for point in panel.points] == [("resnet18", "linf"), ("resnet18", "l2")]
    first, second = panel.points
    rates = [row["fooling_rate"] for row in mine[:3]]
    mean = mean_over_seeds(rates, 150, ())
    assert (first.value, first.interval) == (mean.value, mean.interval)
    assert first.marks[CONTROL] == pytest.approx(sum(row["fooling_rate"] for row in draws) / 3)
    assert first.marks[CEILING] == pytest.approx(sum(row["fooling_rate_ceiling"] for row in mine[:3]) / 3)
    assert list(second.marks) == [CEILING], "no control of that norm"
    assert made.rate == "fooled (% of images)"
    assert made.note.startswith("chest, 150 images of test, own images, ζ 0.04, spgd. Mean of 3 seeds")


def test_a_seed_with_several_searches_counts_once(shop: Shop) -> None:
    mine = searches(shop)
    again = shop.add(seed=0, extras=False, push=0.9)
    made = shown(shop.results, "nontargeted", [*mine, again])
    rates = [(mine[0]["fooling_rate"] + again["fooling_rate"]) / 2, *(row["fooling_rate"] for row in mine[1:])]
    assert again["fooling_rate"] != mine[0]["fooling_rate"]
    assert made.panels[0].points[0].value == pytest.approx(sum(rates) / 3)
    assert "Mean of 3 seeds" in made.note


def test_what_place_and_colour_do_not_say_makes_panels(shop: Shop) -> None:
    mine = [row for zeta in (0.02, 0.04) for name in ("a", "b") for row in searches(shop, zeta=zeta, classifier=name)]
    made = shown(shop.results, "nontargeted", mine)
    assert [panel.title for panel in made.panels] == ["ζ 0.02", "ζ 0.04"]
    assert [[point.place for point in panel.points] for panel in made.panels] == [["a", "b"]] * 2
    assert "ζ" not in made.note


def test_bars_of_many_series_are_told_apart() -> None:
    def drawn(names: tuple[str, ...]) -> Image.Image:
        points = tuple(Point("a", name, 0.5, None, {}) for name in names)
        made = Chart("bars", "t", "n", "r", "", "", tuple("abcdefg"), (Panel("", points),))
        return Image.open(io.BytesIO(draw(made, ".png"))).convert("RGB")

    alike = ImageChops.difference(drawn(("a",)), drawn(("a",)))
    assert alike.getbbox() is None
    assert ImageChops.difference(drawn(("a",)), drawn(("g",))).getbbox() is not None, "the seventh is not the first"


def test_targeted_rates_are_of_the_images_of_other_classes(shop: Shop) -> None:
    targets = ("PNEUMONIA", "NORMAL")
    # of 50 images of the class 45 are seen as it, and 10 of the other 100 too: 95 are of other classes
    shares = {"sensitivity_clean": 0.9, "sensitivity": 1.0, "specificity_clean": 0.9, "specificity": 0.1}
    for number in range(6):
        trial_id = f"{shop.grid}{number + 1:05d}"  # of a trial, whose row comes last
        of_class = {"trial_id": trial_id, "split": "test", "class_name": targets[number // 3], "images": 50}
        rest = of_class | {"class_name": "the rest", "images": 100} | dict.fromkeys(shares)
        shop.results.write_rows("classes", shop.grid, f"{trial_id}-test", [of_class | shares, rest])
    mine = [row for target in targets for row in searches(shop, target=target)]
    made = shown(shop.results, "targeted", mine)
    (panel,) = made.panels
    assert made.series == ("towards PNEUMONIA", "towards NORMAL")
    rates = [row["targeted_success_rate_non_target"] for row in mine[:3]]
    assert panel.points[0].interval == pytest.approx(mean_over_seeds(rates, 95, ()).interval)
    assert CEILING not in panel.points[0].marks
    assert made.rate == "brought to the target (% of images of other classes)"
    both = shown(shop.results, "chest_xray", [*mine, *searches(shop)])
    assert both.series[-1] == "nontargeted"
    assert both.rate == "fooled (% of images; targeted: % of images of other classes)"


def test_sources_by_their_name_and_number(shop: Shop) -> None:
    others = searches(shop, source="photographs/train", source_images=300)
    few = searches(shop, source="chest/train[10]", source_images=8)
    own = searches(shop)
    assert shown(shop.results, "natural", [*own, *others]).series == ("own images", "photographs")
    made = shown(shop.results, "source_images", [*own, *few])
    assert made.logarithmic
    assert sorted(point.place for panel in made.panels for point in panel.points) == [8, 400]


def test_lines_run_over_zeta(shop: Shop) -> None:
    zetas = (0.01, 0.02, 0.04)
    mine = [row for zeta in zetas for name in ("a", "b") for row in searches(shop, zeta=zeta, classifier=name)]
    (panel,) = shown(shop.results, "zeta_sweep", [*mine, *searches(shop, zeta=None)]).panels
    assert Counter(point.series for point in panel.points) == {"a": 3, "b": 3}
    assert {point.place for point in panel.points} == set(zetas)


def test_scratch_beside_other_weights_without_the_path_of_their_file(shop: Shop) -> None:
    begun = {"initial_weights": "/somewhere/imagenet.npz", "classifier": "begun"}
    mine = [*searches(shop, initial_weights="random"), *searches(shop, **begun)]
    made = shown(shop.results, "scratch_transfer", mine)
    assert made.series == ("from scratch", "begun with imagenet.npz")
    assert {point.place for point in made.panels[0].points} == {"resnet18"}


def test_a_matrix_has_all_that_were_attacked_and_no_others(shop: Shop) -> None:
    names = ("a", "b")
    mine = [row for name in names for row in searches(shop, classifier=name)]
    for row in mine:
        for number, other in enumerate((*names, "hardened")):
            if other != row["classifier"]:
                judged = {"classifier": other, "classifier_sha256": f"sha of {other}", "fooling_rate": 0.1 * number}
                shop.results.write_rows("trials", shop.grid, f"{row['trial_id']}-test-{other}", [row | judged])
    (panel,) = shown(shop.results, "transfer_matrix", mine).panels
    found = {(point.series, point.place): point.value for point in panel.points}
    assert set(found) == {(one, other) for one in names for other in names}
    assert (found["a", "b"], found["b", "a"]) == pytest.approx((0.1, 0.0))


def test_rules_by_their_name_white_box_first(shop: Shop) -> None:
    mine = [row for rule in ("spgd", "hill-climb", "ga") for row in searches(shop, rule=rule)]
    (panel,) = shown(shop.results, "black_box", mine).panels
    assert [point.place for point in panel.points] == ["spgd", "hill-climb", "ga"]


def test_perturbations_beside_the_draws_of_each_kind(shop: Shop) -> None:
    mine = searches(shop)
    for row in mine:
        chance_rows(shop, row)
    (panel,) = shown(shop.results, "controls", mine).panels
    perturbation, *draws = panel.points
    assert (perturbation.place, perturbation.value) == ("the perturbation", pytest.approx(0.61))
    assert perturbation.interval == pytest.approx(mean_over_seeds([0.61] * 3, 128, ()).interval)
    assert [point.place for point in draws] == ["random", "signs", "permuted", "scrambled"]
    assert all(point.interval is None for point in draws)
    assert (draws[0].value, draws[0].marks) == (pytest.approx(0.033), {"best draw of 57": pytest.approx(0.063)})


def test_filters_by_who_knows_them(shop: Shop) -> None:
    bare = searches(shop, classifier="net", filter=None)
    behind = searches(shop, classifier="net+bits:3", filter="bits:3", fooling_rate=0.4)
    for row in bare:
        rates = {"images": 150, "clean_accuracy": 0.9, "robust_accuracy": 0.7, "fooling_rate": 0.2}
        limits = {"fooling_rate_low": 0.1, "fooling_rate_high": 0.3, "targeted_success_rate": None}
        of = {"trial_id": row["trial_id"], "split": "test", "finished_at": row["finished_at"]}
        rendered = [of | rates | limits | {"rendering": name} for name in ("uint8", "bits:3")]
        rendered = [one | {"targeted_success_rate_non_target": None} for one in rendered]
        shop.results.write_rows("renderings", shop.grid, f"{row['trial_id']}-test-r", rendered)
    made = shown(shop.results, "filters", [*bare, *behind])
    (panel,) = made.panels
    assert made.series == ("made without knowing it", "attacked through the filter")
    assert cells(panel) == {
        ("no filter", made.series[1]): sum(row["fooling_rate"] for row in bare) / 3,
        ("bits:3", made.series[0]): 0.2,
        ("bits:3", made.series[1]): 0.4,
    }


def test_a_hardening_attack_by_attack(shop: Shop) -> None:
    hardening(shop.results)
    add(shop.results, "net", 0.6, rule="aimed-ascent")
    add(shop.results, "hard", 0.2, rule="aimed-ascent")
    add(shop.results, "hard", 0.5, rule="aimed-ascent", made_on="net")
    rows = shop.results.rows("trials").to_pylist()
    made = shown(shop.results, "hardening", rows)
    (panel,) = made.panels
    assert made.series == ("before", "retraining:5")
    assert cells(panel) == {
        ("those it was trained with", "retraining:5"): 0.07,
        ("aimed-ascent, made on it", "before"): 0.6,
        ("aimed-ascent, made on it", "retraining:5"): 0.2,
        ("aimed-ascent, made on net", "before"): 0.6,
        ("aimed-ascent, made on net", "retraining:5"): 0.5,
    }
    with pytest.raises(StoreError, match="expected rows"):
        chart(shop.results, "hardening", ["another"])


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_no_figure(kind: str, shop: Shop) -> None:
    searches(shop, rule="random")
    with pytest.raises(StoreError, match=f"expected rows for the figure of {kind}, found none of these trials"):
        chart(shop.results, kind, ["made-up00001"])
    with pytest.raises(StoreError):
        chart(shop.results, kind, [])


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_equal_charts_are_equal_files(ending: str) -> None:
    points = tuple(Point(f"class{index}", "a" * 30, 0.1 * index, (0.0, 1.0), {"control": 0.05}) for index in range(9))
    made = Chart("bars", "A title. " * 12, "A note. " * 30, "rate", "", "", ("a" * 30,), (Panel("", points),) * 3)
    first, second = draw(made, ending), draw(made, ending)
    assert first == second
    assert first.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[ending])


class TestJob:
    """The option of a job's command line."""

    @pytest.fixture
    def words(self, tmp_path: Path) -> list[str]:
        return ["--data", "phantom:chest?images=60&size=32", "--store", str(tmp_path / "store"), "--address", "local"]

    @pytest.mark.parametrize(("name", "text"), [("x.jpg", "expected a name ending in .png, .svg, .pdf, got")])
    def test_another_kind_of_file_is_refused_before_any_work(
        self, name: str, text: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert JOBS["nontargeted"].main([*words, "--small", "--figure", str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert text in said
        assert said.count("\n") == 1
        assert not list(tmp_path.iterdir())

    def test_a_job_without_a_figure_says_so(self) -> None:
        with pytest.raises(ConfigError, match=r"expected a job of nontargeted, targeted, .*; mine has none"):
            file_ending("mine", "x.png")

    @pytest.mark.ray
    @pytest.mark.usefixtures("ray_session")
    def test_it_is_written_at_the_end(
        self, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        grid, out = tmp_path / "grid.yaml", tmp_path / "folder" / "x.svg"
        grid.write_text(
            "{name: f, data: [{uri: x, size: 32}], control_draws: 0, rules: [spgd], budget: {max_epochs: 1}, "
            "classifiers: [{name: tiny, architecture: tiny-cnn, initial_weights: random, "
            "recipe: {base: quick, epochs: 1}}]}"
        )
        words += ["--grid", str(grid), "--replicas", "1"]
        assert JOBS["nontargeted"].main([*words, "--figure", str(out)]) == 0
        assert b"tiny" in out.read_bytes()
        out.unlink()
        assert JOBS["filters"].main([*words, "--figure", str(out)]) == 0, "the bare classifier is one of its bars"
        assert JOBS["controls"].main([*words, "--figure", str(tmp_path / "c.png")]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"controls: {words[3]}: expected rows for the figure of controls, found none")
        assert not (tmp_path / "c.png").exists()
