"""Notes of runs: what is under way, what is to do, and who was heard of lately."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from uapray.objects import open_objects
from uapray.store.runs import RENEWED_S, RunNote, latest_notes, noting, run_notes


def test_a_note_says_what_is_under_way_until_the_run_ends(tmp_path: Path) -> None:
    objects = open_objects(str(tmp_path))
    with noting(objects, "chest", 5) as note:
        (at_first,) = run_notes(objects)
        note.begun()
        note.begun()
        note.done()
        note.write(ended=False)
        (now,) = run_notes(objects)
        assert now.running(datetime.now(UTC))
    (at_last,) = run_notes(objects)
    assert (at_first.to_do, at_first.under_way) == (5, 0)
    assert (now.grid, now.run, now.to_do, now.under_way) == ("chest", at_first.run, 4, 1)
    assert (at_last.to_do, at_last.under_way, at_last.ended) == (4, 0, True)
    assert not at_last.running(datetime.now(UTC))


def test_a_run_that_was_killed_is_not_heard_of_any_more() -> None:
    said = datetime(2026, 1, 2, tzinfo=UTC)
    note = RunNote("chest", "r", 5, 2, ended=False, at=said.isoformat())
    assert note.running(said + timedelta(seconds=RENEWED_S + 1))
    assert not note.running(said + timedelta(seconds=4 * RENEWED_S))


def test_the_latest_note_comes_last_and_a_damaged_one_is_left_out(tmp_path: Path) -> None:
    objects = open_objects(str(tmp_path))
    for grid in ("first", "second"):
        with noting(objects, grid, 1):
            pass
    objects.write("runs/damaged.json", b"{")
    objects.write("runs/foreign.json", b"[1]")
    assert [note.grid for note in run_notes(objects)] == ["first", "second"]


def test_of_a_grid_in_parts_each_part_is_told_once(tmp_path: Path) -> None:
    objects = open_objects(str(tmp_path))
    with noting(objects, "chest", 90):  # before it was divided
        pass
    with noting(objects, "chest", 5, (2, 3)):
        with noting(objects, "chest", 9, (2, 3)):  # a second driver on the same part, and the first goes on
            pass
        with noting(objects, "chest", 4, (1, 3)), noting(objects, "skin", 7):
            told = latest_notes(objects, datetime.now(UTC))
    assert [(one.grid, one.part, one.of, one.to_do) for one in told] == [
        ("chest", 1, 3, 4),
        ("chest", 2, 3, 5),
        ("skin", 1, 1, 7),
    ]
    assert all(one.running(datetime.now(UTC)) for one in told)


def test_a_store_that_takes_no_note_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file in the way")
    with noting(open_objects(str(tmp_path)), "chest", 1) as note:
        note.begun()
    assert (tmp_path / "runs").is_file()
