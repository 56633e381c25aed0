"""Pictures are read as they are wanted: the same ones as when all are read, and little else."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from s3_server import S3Server

from uapray import objects
from uapray.data import dataset as module
from uapray.data.dataset import open_data, with_source
from uapray.data.encoded import AT_ONCE, Encoded, read
from uapray.data.pictures import png
from uapray.errors import DataError, NotFoundError, StoreError

PER_GROUP = 100


def body_of(count: int, *, size: int = 400, per_group: int = PER_GROUP, begin: int = 0) -> bytes:
    """Return a Parquet file of made-up bytes."""
    rng = np.random.default_rng(begin)
    pictures = [rng.bytes(size) for _ in range(count)]
    table = {"id": [f"p{begin + i}" for i in range(count)], "image": pictures, "split": ["train"] * count}
    body = io.BytesIO()
    pq.write_table(pa.table(table), body, row_group_size=per_group)
    return body.getvalue()


def encoded(body: bytes) -> Encoded:
    return Encoded("made.parquet", pq.read_metadata(pa.BufferReader(body)), partial(pa.BufferReader, body))


BODIES = [body_of(count, begin=begin, size=20) for begin, count in ((0, 230), (230, 1), (231, 99))]
WHOLE = pa.concat_tables([pq.read_table(pa.BufferReader(body)) for body in BODIES])["image"].to_pylist()


@given(st.lists(st.integers(0, len(WHOLE) - 1), unique=True).map(sorted))
def test_any_pictures_of_several_files_are_those_of_the_whole(places: list[int]) -> None:
    came = list(read([encoded(body) for body in BODIES], np.array(places, dtype=np.int64)))
    assert [one for some in came for one in some] == [WHOLE[place] for place in places]
    assert all(0 < len(some) <= AT_ONCE for some in came)


class Counting(io.BytesIO):
    """Counts the bytes that are read."""

    most, total = 0, 0

    def read(self, size: int | None = -1, /) -> bytes:
        body = super().read(size)
        Counting.most, Counting.total = max(Counting.most, len(body)), Counting.total + len(body)
        return body


def test_row_groups_without_any_are_passed_over_and_none_is_held_whole() -> None:
    """Of 40 MB in five row groups two are read, in pieces, one group at a time in memory: packed and unpacked."""
    size, count = 100_000, 400
    body = body_of(count, size=size, per_group=80)
    one = replace(encoded(body), opened=partial(Counting, body))
    Counting.most = Counting.total = 0
    before = pa.total_allocated_bytes()
    held = []
    for some in one.read(np.array([81, 82, 330])):
        held.append(pa.total_allocated_bytes() - before)
        assert all(len(picture) == size for picture in some)
    assert Counting.total < 2.2 * 80 * size
    assert Counting.most <= 9 * 2**20
    assert max(held) < 2 * 80 * size + 9 * 2**20


def test_only_the_chosen_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(name: str, count: int) -> str:
        pictures = [png(np.full((8, 8), i % 256, np.uint8)) for i in range(count)]
        columns = {
            "id": [f"{name}{i}" for i in range(count)],
            "image": pictures,
            "label": [i % 2 for i in range(count)],
        }
        pq.write_table(pa.table(columns | {"split": ["train"] * count}), tmp_path / name, row_group_size=50)
        return str(tmp_path / name)

    judged, natural = open_data(write("judged.parquet", 6)), open_data(write("natural.parquet", 300))
    chosen = np.array([3, 70, 71, 299])
    both = with_source(judged, "natural/train", natural, "train", chosen)
    every = with_source(judged, "natural/train", natural, "train").images("natural/train")
    judged.channels()
    decoded = []

    def counted(body: bytes, name: str) -> object:
        decoded.append(name)
        return original(body, name)

    original = module.decode
    monkeypatch.setattr(module, "decode", counted)
    images = both.images("natural/train")
    assert sorted(decoded) == sorted(images.ids) == sorted(f"natural.parquet{row}" for row in chosen)
    assert np.array_equal(images.images, every.images[chosen])
    assert (images.ids, images.groups) == (tuple(every.ids[row] for row in chosen), (None,) * 4)
    assert np.array_equal(both.images("train").images, judged.images("train").images)


@contextmanager
def at(server: S3Server, monkeypatch: pytest.MonkeyPatch, bucket: str) -> Iterator[str]:
    import boto3

    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket=bucket)
    yield f"s3://{bucket}"


@pytest.mark.s3
def test_a_bucket_is_read_in_pieces(moto_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with at(moto_s3, monkeypatch, "pieces") as bucket:
        for number, body in enumerate(BODIES):
            objects.write_uri(f"{bucket}/natural_{number}.parquet", body)
        data = open_data(f"{bucket}/natural_*.parquet")
        places = np.array([0, 99, 100, 229, 230, 231, 329])
        came = [one for some in read(data.pictures, places) for one in some]
        assert came == [WHOLE[place] for place in places]
        with pytest.raises(NotFoundError, match="no such object"):
            objects.open_uri(f"{bucket}/gone.parquet")
        file = objects.open_uri(f"{bucket}/natural_0.parquet")
        assert file.read(4) == b"PAR1"
        objects.write_uri(f"{bucket}/natural_0.parquet", BODIES[1])
        with pytest.raises(StoreError, match="expected the object that was opened, got another"):
            file.read(4)
        with pytest.raises(DataError, match="expected the file that was opened, got another"):
            list(read(data.pictures, places))


def test_a_file_that_was_replaced_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "made.parquet"
    path.write_bytes(BODIES[0])
    data = open_data(str(path))
    path.write_bytes(body_of(230, begin=1, size=20))
    with pytest.raises(DataError, match=r"made\.parquet: expected the file that was opened, got another; start again"):
        data.sha256  # noqa: B018
    path.unlink()
    with pytest.raises(StoreError, match="no such file"):
        data.sha256  # noqa: B018


def test_a_file_damaged_within_is_told_in_a_line(tmp_path: Path) -> None:
    body = bytearray(body_of(100, size=1000))
    column = pq.read_metadata(pa.BufferReader(body)).row_group(0).column(1)
    begin = column.dictionary_page_offset or column.data_page_offset
    body[begin : begin + 500] = bytes(500)
    path = tmp_path / "made.parquet"
    path.write_bytes(body)
    data = open_data(str(path))
    with pytest.raises(DataError, match=r"made\.parquet: expected a Parquet file, got one that cannot be read"):
        data.sha256  # noqa: B018
