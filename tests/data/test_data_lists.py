"""What published lists of training and test images share."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uapray import cli
from uapray.data.lists import ListLeaks, list_leaks, read_list
from uapray.errors import DataError

paths = st.lists(st.builds("train/{}-{}-{}.jpeg".format, st.sampled_from("AB"), st.integers(1, 9), st.integers(1, 3)))


@given(paths, paths)
def test_every_image_is_counted_once(train: list[str], test: list[str]) -> None:
    found = list_leaks(train, test, r"-(\d+)-")
    assert found.repeated == len(train) - len(set(train))
    assert found.same_path == len([one for one in test if one in train])
    patients = {one.split("-")[1] for one in train}
    assert found.same_patient == len([one for one in test if one.split("-")[1] in patients])
    assert found.patients == len(patients & {one.split("-")[1] for one in test})
    assert found.same_patient >= found.same_path


def test_a_list_is_read_whatever_surrounds_it(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text("\ufefftrain/A-1-1.jpeg,A\n\n train/B-2-1.jpeg ,B\ntrain/C-3-1.jpeg\n", encoding="utf-8")
    assert read_list(str(file)) == ["train/A-1-1.jpeg", "train/B-2-1.jpeg", "train/C-3-1.jpeg"]
    file.write_text("\n")
    with pytest.raises(DataError, match="expected paths, one a row in the first column, got none"):
        read_list(str(file))


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("(", "expected a regular"), (r"\d", r"expected a \(group\)"), (r"-(x)-", "test list.*in 1 of 2.*a/C-1-2")],
)
def test_a_pattern_that_tells_no_patient_is_refused(pattern: str, text: str) -> None:
    with pytest.raises(DataError, match=text):
        list_leaks(["a/B-x-2"], ["a/C-1-2", "a/B-x-2"], pattern)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("oct", ListLeaks(7840, 3360, 185, 154, 2727, None)),
        ("chestx", ListLeaks(1800, 540, 2, 0, 159, None)),
        ("melanoma", ListLeaks(7000, 3015, 0, 0, None, None)),
    ],
)
def test_the_published_splits_leak_as_was_counted(real_data: Path, task: str, expected: ListLeaks) -> None:
    train, test = (
        read_list(str(real_data / "hirano2021_splits" / f"{task}_{part}_pre.csv")) for part in ("train", "test")
    )
    found = list_leaks(train, test, None if task == "melanoma" else r"^(\w+-\d+)-")
    for name in ("train", "test", "repeated", "same_path", "same_patient"):
        assert getattr(found, name) == getattr(expected, name), name


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("A-1-1.jpeg,A\nA-1-1.jpeg,A\nB-2-1.jpeg,B\n")
    test.write_text("A-1-2.jpeg,A\nB-2-1.jpeg,B\nB-3-1.jpeg,B\n")

    def said(*words: str, code: int = 0) -> str:
        monkeypatch.setattr("sys.argv", ["uapray", "data", "leaks", str(train), str(test), *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert (ended.value.code or 0) == code
        captured = capsys.readouterr()
        return captured.err if code else captured.out

    table = said("--group-pattern", r"-(\d+)-")
    assert "66.7 %" in table
    assert "33.3 %" in table
    assert "2 such patients; 3 training images, 1 of them listed before" in table
    assert "give --group-pattern" in said()
    assert said("--group-pattern", "(", code=2).startswith(
        "uapray: group pattern: expected a regular expression, got ("
    )
