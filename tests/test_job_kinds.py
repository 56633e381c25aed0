"""One job a kind of experiment: each stands alone, and both of its grids can be planned."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from test_report import Shop

from uapray.cli.job import Job
from uapray.errors import ConfigError
from uapray.grid import Grid
from uapray.models.zoo import PAPERS
from uapray.plan import Plan, plan_grid
from uapray.query import query
from uapray.store.results import open_results

FOLDER = Path(__file__).parent.parent / "jobs"
KINDS = {
    path.stem: runpy.run_path(str(path))["JOB"]
    for path in sorted(FOLDER.glob("*.py"))
    if "uapray.cli.job import" in path.read_text()
}
ALL_DOSES = KINDS["dose"].tables[0].format("SELECT trial_id FROM trials")
NATURAL = "phantom:chest?images=130&size=48&seed=2"
# What a grid of each kind is about, beside names, data and seeds.
ABOUT = {
    "black_box": {"rules"},
    "chest_xray": {"targets"},
    "controls": {"control_draws"},
    "dose": {"sources"},
    "filters": {"renderings"},
    "hardening": {"transfer"},
    "natural": {"sources"},
    "nontargeted": {"norms"},
    "scratch_transfer": set(),
    "source_images": {"sources"},
    "targeted": {"targets"},
    "transfer_matrix": {"transfer"},
    "zeta_sweep": {"curve", "zetas"},
}


def words(job: Job, *more: str) -> list[str]:
    source = ["--source", f"photographs={NATURAL}"] if job.name in ("dose", "natural") else []
    data = "phantom:chest?images=2000&size=32" if job.name == "source_images" else "phantom:chest?images=60&size=32"
    return ["--data", data, "--store", "results", *source, *more]


def chosen(job: Job, *more: str) -> Grid:
    return job.chosen_grid(job.parser().parse_args(words(job, *more)))[0]


def planned(job: Job, *more: str) -> Plan:
    return plan_grid(chosen(job, *more))


@pytest.fixture(params=sorted(ABOUT))
def job(request: pytest.FixtureRequest) -> Job:
    made = KINDS[request.param]
    assert isinstance(made, Job)
    return made


def test_every_kind_is_here() -> None:
    assert set(KINDS) == set(ABOUT)
    assert all(job.name == name for name, job in KINDS.items())


def test_both_sizes_can_be_planned_and_are_of_the_kind(job: Job) -> None:
    for more in ([], ["--small"]):
        grid = chosen(job, *more)
        usual = Grid(name="g", data=grid.data, classifiers=grid.classifiers)
        for name in ABOUT[job.name]:
            assert getattr(grid, name) != getattr(usual, name), f"{name} is what the grid is about"
        assert planned(job, *more).count >= 2
    assert chosen(job).name != chosen(job, "--small").name, "rows of both keep apart"
    assert chosen(job).data[0].size == 299


def test_full_is_of_the_papers_architectures(job: Job) -> None:
    architectures = {one.architecture for one in chosen(job).classifiers}
    some = {"inception_v3", "resnet50", "vgg16"}
    assert architectures == (some if job.name in ("black_box", "dose") else set(PAPERS))


def test_small_needs_no_hub_but_where_transfer_is_the_point(job: Job) -> None:
    begins = {one.initial_weights for one in chosen(job, "--small").classifiers}
    assert begins == ({"random", "pretrained"} if job.name in ("dose", "scratch_transfer") else {"random"})
    if "pretrained" in begins:
        begins = {one.initial_weights for one in chosen(job, "--small", "--weights", "w.npz").classifiers}
        assert begins == {"random", str(Path("w.npz").absolute())}


def test_its_tables_can_be_asked_for(job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job.show(planned(job, "--small"), open_results(str(tmp_path)))
    assert capsys.readouterr().out.count("╭") == len(job.tables)  # nothing hardened, no claim answered


def test_every_command_that_is_shown_is_one_it_takes(job: Job) -> None:
    text = (FOLDER / f"{job.name}.py").read_text().split('"""')[1].replace("\\\n", " ")
    shown = re.findall(rf"{job.name}\.py(.*)", text)
    assert len(shown) >= 2
    for line in shown:
        job.parser().parse_args([word for word in shlex.split(line) if word != "--"])


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([], "expected --source NAME=URI for one or more of others, photographs"),
        (["pictures=x"], "expected NAME=URI with a name of others, photographs"),
        (["photographs"], "expected NAME=URI"),
    ],
)
def test_sources_that_are_not_there_are_refused(given: list[str], text: str) -> None:
    job = KINDS["natural"]
    more = [word for one in given for word in ("--source", one)]
    with pytest.raises(ConfigError, match=re.escape(text)):
        job.chosen_grid(job.parser().parse_args(["--data", NATURAL, "--store", "results", *more]))


def test_a_source_that_is_not_given_is_left_out() -> None:
    names = [(one.name, one.uri) for one in chosen(KINDS["natural"], "--small").sources]
    assert names == [(None, None), ("photographs", NATURAL)]


def test_a_dose_is_the_mean_of_its_trainings(tmp_path: Path) -> None:
    """The several seeds of a training are one figure; between trainings the table shows the least and the most."""
    shop = Shop(open_results(str(tmp_path)))
    rates = {"net-0": (0.2, 0.4), "net-1": (0.5, 0.7)}
    for name, each in rates.items():
        for seed, rate in enumerate(each):
            shop.add(classifier=name, seed=seed, extras=False, tuned=0.5, fooling_rate=rate, clean_accuracy=0.9)
    shop.add(classifier="net-1", extras=False, tuned=0.5, fooling_rate=0.1, source="photographs/train")
    shop.add(classifier="net-1", extras=False, tuned=1.0, fooling_rate=0.3)
    half, whole = query(
        shop.results,
        f'SELECT trainings, seeds, "own %", "photographs %", "random %" FROM ({ALL_DOSES}) ORDER BY tuned',
    ).to_pylist()
    assert list(half.values()) == [2, 2, "45.0 [30.0, 60.0]", "10.0", None]
    assert list(whole.values()) == [1, 1, "30.0", None, None]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_small_one_runs_and_says_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job's own command line, with a grid that is smaller still."""
    grid = tmp_path / "filters.yaml"
    grid.write_text(
        "{name: f, data: [{uri: x, size: 32}], control_draws: 0, rules: [spgd], budget: {max_epochs: 1}, "
        "renderings: ['bits:2'], classifiers: [{architecture: tiny-cnn, initial_weights: random, "
        "recipe: {base: quick, epochs: 1}, filters: [none, 'bits:2']}]}"
    )
    data, store = "phantom:chest?images=60&size=32", str(tmp_path / "store")
    asked = ["--data", data, "--store", store, "--grid", str(grid), "--replicas", "1"]
    monkeypatch.setattr(sys, "argv", ["filters.py", *asked, "--address", "local"])
    assert KINDS["filters"].main() == 0
    said = capsys.readouterr().out
    for part in ("fooling, unaware %", "+bits:2", "image-gradients", "4 trials done, 0 stood already, 0 failed"):
        assert part in said
