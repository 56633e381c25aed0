"""The same promises on the local disk, on moto and on SeaweedFS."""

import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from uapray.errors import NotFoundError, StoreError
from uapray.objects import (
    LocalObjects,
    Objects,
    S3Objects,
    exists_uri,
    expand_uri,
    keeps_first,
    open_objects,
    read_all,
    read_uri,
    write_uri,
)

ODD = [
    *(
        "a b",
        "a+b",
        "a%20b",
        "a=b",
        "grid=x/y",
        "ü",
        "日本語",
        "it's",
        "a&b",
        "a#b",
        "a?b",
        "*",
        "[x]",
        "~",
        "a~1",
    ),
    *("dot.", ".hidden", "..two", "comma,semi;", '"quoted"', "(round)", "@at:colon", "x" * 200, "<tag>"),
]


def test_what_was_written_is_read(objects: Objects) -> None:
    objects.write("a", b"one")
    assert objects.read("a") == b"one"
    assert objects.exists("a")


def test_overwriting_replaces_the_whole(objects: Objects) -> None:
    objects.write("a", b"a long body")
    objects.write("a", b"new")
    assert objects.read("a") == b"new"
    assert objects.keys() == ["a"]


def test_empty_body(objects: Objects) -> None:
    objects.write("empty", b"")
    assert objects.read("empty") == b""
    assert objects.exists("empty")
    assert objects.keys() == ["empty"]


@pytest.mark.parametrize("mebibytes", [8, 40])  # of S3, one PUT and three parts
def test_large_body(objects: Objects, mebibytes: int) -> None:
    body = bytes(range(256)) * (mebibytes * 2**20 // 256)
    objects.write("large", body)
    assert objects.read("large") == body


def test_the_first_of_two_that_write_once_stays(objects: Objects) -> None:
    assert objects.write_once("a/b", b"first")
    assert not objects.write_once("a/b", b"second")
    assert objects.write_once("a/b", b"first"), "the same bytes stand there"
    assert objects.read("a/b") == b"first"
    assert objects.keys() == ["a/b"]
    objects.write("a/b", b"replaced")
    assert not objects.write_once("a/b", b"first")
    objects.delete("a/b")
    assert objects.write_once("a/b", b"")
    assert objects.read("a/b") == b""


def test_one_of_many_that_write_once_wins(objects: Objects) -> None:
    bodies = [bytes([number]) * 5_000 for number in range(8)]
    for name in ("one", "two"):
        with ThreadPoolExecutor(8) as threads:
            won = list(threads.map(lambda body, name=name: objects.write_once(name, body), bodies))
        assert [body for body, has in zip(bodies, won, strict=True) if has] == [objects.read(name)]
    assert objects.keys() == ["one", "two"]


def test_every_store_here_keeps_the_first(objects: Objects) -> None:
    assert keeps_first(objects)
    assert objects.keys() == []


def test_the_end_of_an_object(objects: Objects) -> None:
    objects.write("a", b"0123456789")
    objects.write("empty", b"")
    assert [objects.read_end("a", size) for size in (0, 1, 4, 10, 99)] == [
        *(b"", b"9", b"6789", b"0123456789", b"0123456789"),
    ]
    assert objects.read_end("empty", 5) == b""
    with pytest.raises(NotFoundError, match="gone"):
        objects.read_end("gone", 5)


def test_an_object_in_pieces(objects: LocalObjects | S3Objects) -> None:
    objects.write("a", b"0123456789")
    objects.write("empty", b"")
    with closing(objects.open("a")) as file:
        assert [file.read(4), file.tell(), file.read(), file.read(3)] == [b"0123", 4, b"456789", b""]
        assert [file.seek(-2, 2), file.read(9), file.seek(1), file.seek(2, 1), file.read(2)] == [8, b"89", 1, 3, b"34"]
    with closing(objects.open("empty")) as file:
        assert file.read() == b""
    with pytest.raises(NotFoundError, match="gone"):
        objects.open("gone")


def test_missing(objects: Objects) -> None:
    with pytest.raises(NotFoundError, match="gone"):
        objects.read("gone")
    assert not objects.exists("gone")
    objects.delete("gone")
    assert objects.keys() == []


def test_a_folder_is_no_object(objects: Objects) -> None:
    objects.write("a/b", b"")
    assert not objects.exists("a")
    with pytest.raises(NotFoundError):
        objects.read("a")
    objects.delete("a")
    assert objects.keys() == ["a/b"]
    with pytest.raises(NotFoundError):
        objects.read("a/b/c")


def test_delete(objects: Objects) -> None:
    objects.write("a/b", b"1")
    objects.write("a/c", b"2")
    objects.delete("a/b")
    assert not objects.exists("a/b")
    assert objects.keys() == ["a/c"]


def test_keys_are_relative_sorted_and_deep(objects: Objects) -> None:
    names = ["b", "a/z", "a/b/c", "a-b", "ab", "a/b.d", "Z"]
    for name in names:
        objects.write(name, b"x")
    assert objects.keys() == sorted(names)
    assert objects.keys("a") == sorted(name for name in names if name.startswith("a"))
    assert objects.keys("a/") == ["a/b.d", "a/b/c", "a/z"]
    assert objects.keys("a/b") == ["a/b.d", "a/b/c"]
    assert objects.keys("a/b/") == ["a/b/c"]
    assert objects.keys("b/") == []
    assert objects.keys("none/there") == []


def test_odd_names(objects: Objects) -> None:
    for name in ODD:
        objects.write(f"odd/{name}", name.encode())
    assert objects.keys("odd/") == sorted(f"odd/{name}" for name in ODD)
    assert read_all(objects, [f"odd/{name}" for name in ODD]) == [name.encode() for name in ODD]
    for name in ODD:
        assert objects.exists(f"odd/{name}")
        objects.delete(f"odd/{name}")
    assert objects.keys() == []


def test_keys_that_no_store_takes(objects: Objects) -> None:
    for key in ("", "/a", "a/", "a//b", "..", "../a", "a/../b", "./a", "a\nb", "a\0b", "a\\b"):
        for act in (
            *(objects.read, objects.exists, objects.delete, lambda k: objects.write(k, b"x")),
            *(lambda k: objects.write_once(k, b"x"), lambda k: objects.read_end(k, 1)),
        ):
            with pytest.raises(StoreError, match="key"):
                act(key)
    assert objects.keys() == []


def test_stores_do_not_see_each_other(place: str) -> None:
    one, other = open_objects(f"{place}/one"), open_objects(f"{place}/on")
    one.write("a", b"1")
    assert other.keys() == []
    assert open_objects(place).keys() == ["one/a"]


def test_pickles(objects: Objects) -> None:
    objects.write("a", b"1")
    twin = pickle.loads(pickle.dumps(objects))
    assert twin == objects
    assert twin.read("a") == b"1"


def test_check_leaves_nothing(objects: Objects) -> None:
    objects.check()
    assert objects.keys() == []


def test_a_race_ends_with_one_whole_body(objects: Objects) -> None:
    bodies = [bytes([number]) * 50_000 for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda body: objects.write("raced", body), bodies))
    assert objects.read("raced") in bodies
    assert objects.keys() == ["raced"]


def test_many_objects_are_listed_and_read_in_order(objects: Objects) -> None:
    names = [f"many/{number:04}" for number in range(60)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: objects.write(name, name.encode()), names))
    assert objects.keys("many/") == names
    assert read_all(objects, names[::-1]) == [name.encode() for name in names[::-1]]
    assert read_all(objects, []) == []
    with pytest.raises(NotFoundError):
        read_all(objects, [*names, "gone"])


def test_uris(place: str) -> None:
    write_uri(f"{place}/sub/a.bin", b"1")
    assert read_uri(f"{place}/sub/a.bin") == b"1"
    assert exists_uri(f"{place}/sub/a.bin")
    assert not exists_uri(f"{place}/sub")
    assert not exists_uri(f"{place}/sub/b.bin")
    with pytest.raises(NotFoundError, match=r"b\.bin"):
        read_uri(f"{place}/sub/b.bin")


def test_expanding(place: str) -> None:
    for name in (
        "b.parquet",
        "a.parquet",
        "c.csv",
        "deep/d.parquet",
        "deep/e[1].parquet",
        "deeper/f.parquet",
    ):
        write_uri(f"{place}/{name}", b"")
    at = open_objects(place).uri

    def expanded(pattern: str) -> list[str]:
        return [uri.removeprefix(f"{at}/") for uri in expand_uri(f"{place}{pattern}")]

    assert expanded("") == ["a.parquet", "b.parquet"]
    assert expanded("/") == ["a.parquet", "b.parquet"]
    assert expanded("/deep") == ["deep/d.parquet", "deep/e[1].parquet"]
    assert expanded("/c.csv") == ["c.csv"]
    assert expanded("/deep/e[1].parquet") == ["deep/e[1].parquet"]
    assert expanded("/[ac].*") == ["a.parquet", "c.csv"]
    assert expanded("/?.parquet") == ["a.parquet", "b.parquet"]
    assert expanded("/dee*/*.parquet") == ["deep/d.parquet", "deep/e[1].parquet", "deeper/f.parquet"]
    for nothing in ("/none.parquet", "/none/*", "/*.png", "/none"):
        with pytest.raises(NotFoundError, match="found none"):
            expanded(nothing)


def test_reading_many_is_not_serial(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = open_objects(place)
    kind, read = type(objects), type(objects).read

    eight = threading.Barrier(8, timeout=60)

    def in_company(self: Objects, key: str) -> bytes:
        eight.wait()  # no read ends before eight have begun
        return read(self, key)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, "read", in_company)
    for number in range(32):
        objects.write(str(number), b"x")
    assert read_all(objects, [str(number) for number in range(32)]) == [b"x"] * 32


def test_local_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_uri(f"{tmp_path}/a b%20ü", b"1")
    assert read_uri(f"file://{tmp_path}/a%20b%2520%C3%BC") == b"1"
    assert read_uri(f"file://localhost{tmp_path}/a%20b%2520%C3%BC") == b"1"
    monkeypatch.chdir(tmp_path)
    assert read_uri("a b%20ü") == b"1"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_uri("~/a b%20ü") == b"1"
    assert open_objects("sub/../x").uri == str(tmp_path / "x")


def test_a_bucket_is_no_object() -> None:
    assert open_objects("s3://bucket//a/b/").uri == "s3://bucket/a/b"
    with pytest.raises(StoreError, match="no key"):
        read_uri("s3://bucket")


def test_importing_is_quick() -> None:
    heavy = "{'boto3', 'botocore', 'pyarrow', 'numpy', 'torch'}"
    code = f"import sys, uapray.objects; assert not {heavy} & set(sys.modules), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
