import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFile

from uapray.data.dataset import load_images, open_data, shared_groups, with_source
from uapray.errors import DataError, NotFoundError


def encoded(pixels, kind="PNG", **options):
    body = io.BytesIO()
    Image.fromarray(pixels).save(body, kind, **options)
    return body.getvalue()


def noise(seed, shape=(24, 20), dtype=np.uint8, top=256):
    return np.random.default_rng(seed).integers(0, top, shape, dtype=dtype)


def smooth(seed, shape=(64, 64)):
    """Return a picture that JPEG keeps well."""
    small = Image.fromarray(noise(seed, (8, 8)))
    return np.asarray(small.resize(shape[::-1], Image.Resampling.BICUBIC))


def rows(count=6, **changes):
    made = {
        "id": [f"p{i}.png" for i in range(count)],
        "image": [encoded(noise(i)) for i in range(count)],
        "label": [i % 2 for i in range(count)],
        "label_name": [["NORMAL", "ILL"][i % 2] for i in range(count)],
        "split": ["train"] * (count - 2) + ["test"] * 2,
        "group": [f"patient{i // 2}" for i in range(count)],
    }
    return made | changes


@pytest.fixture
def write(tmp_path):
    def write(columns, name="made.parquet"):
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        pq.write_table(table, tmp_path / name)
        return str(tmp_path / name)

    return write


def test_decodes_what_was_written(write):
    data = open_data(write(rows()))
    assert (data.name, data.class_names, data.splits()) == ("made", ("NORMAL", "ILL"), ("train", "test"))
    train = data.images("train")
    assert train.images.shape == (4, 24, 20, 1)
    for i in range(4):
        assert np.array_equal(train.images[i, :, :, 0], noise(i))
    assert train.labels.tolist() == [0, 1, 0, 1]
    assert train.ids == ("p0.png", "p1.png", "p2.png", "p3.png")
    assert train.groups == ("patient0", "patient0", "patient1", "patient1")
    assert (train.name, train.split, train.channels, train.size) == ("made", "train", 1, (24, 20))
    test = load_images(data.uri, "test")
    assert test.ids == ("p4.png", "p5.png")


def test_more_pictures_than_a_thread_takes(write):
    train = load_images(write(rows(150)))
    assert train.ids == tuple(f"p{i}.png" for i in range(148))
    assert all(np.array_equal(train.images[i, :, :, 0], noise(i)) for i in range(148))


def test_filename_is_an_id_and_further_columns_are_passed_over(write):
    columns = rows()
    columns["filename"] = columns.pop("id")
    data = open_data(write(columns | {"age": list(range(6))}))
    assert data.table["id"].to_pylist()[0] == "p0.png"
    assert "age" not in data.table.column_names


def test_several_files_are_one_data_set(write, tmp_path):
    half = pa.table(rows())
    write(half.slice(0, 4), "chest_224_train.parquet")
    write(half.slice(4).append_column("age", pa.array([1, 2])), "chest_224_test.parquet")
    for uri in (str(tmp_path), f"{tmp_path}/chest_*.parquet", f"file://{tmp_path}/chest_*.parquet"):
        data = open_data(uri)
        assert (data.name, data.table.num_rows, data.splits()) == ("chest_224", 6, ("train", "test"))


def test_name_of_one_split_and_of_unlike_files(write, tmp_path):
    assert open_data(write(rows(), "skin_test.parquet")).name == "skin"
    write(rows(id=[f"q{i}" for i in range(6)]), "other.parquet")
    assert open_data(str(tmp_path)).name == tmp_path.name


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("keep", [0.3, 0.9, 0.0])
def test_truncated_picture_is_named(write, kind, keep, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as other libraries leave it
    columns = rows()
    whole = encoded(noise(3), kind)
    columns["image"][3] = whole[: int(len(whole) * keep)]
    data = open_data(write(columns))
    for call in (lambda: data.images("train"), lambda: data.images("train", (8, 8)), data.channels):
        with pytest.raises(DataError, match=r"p3\.png: expected a whole PNG or JPEG"):
            call()


def test_damaged_bytes_inside_a_png_are_noticed(write):
    columns = rows()
    body = bytearray(columns["image"][2])
    body[len(body) // 2] ^= 0x10
    columns["image"][2] = bytes(body)
    with pytest.raises(DataError, match=r"p2\.png"):
        open_data(write(columns)).images("train")


@pytest.mark.parametrize("missing", [None, -1])
def test_missing_labels_are_counted(write, missing):
    data = open_data(write(rows(label=[0, 1, 0, 1, 0, missing])))
    assert len(data.images("train")) == 4
    with pytest.raises(DataError, match="label for every image of split test, got none for 1 of 2"):
        data.images("test")


def test_no_label_column(write):
    columns = rows()
    del columns["label"], columns["label_name"]
    data = open_data(write(columns))
    assert data.class_names == ()
    with pytest.raises(DataError, match="split train, got none for 4 of 4"):
        data.images("train")


def test_labels_as_pandas_leaves_them(write):
    labels = pa.array([0.0, 1.0, 0.0, 1.0, float("nan"), 1.0])
    data = open_data(write(rows(label=labels)))
    assert data.table["label"].to_pylist() == [0, 1, 0, 1, None, 1]


def test_unknown_split(write):
    with pytest.raises(DataError, match="expected one of the splits train, test, got dev"):
        open_data(write(rows())).images("dev")


def test_sizes_that_differ(write):
    columns = rows()
    columns["image"][2] = encoded(noise(2, (30, 20)))
    data = open_data(write(columns))
    with pytest.raises(DataError, match=r"p0\.png is 24x20 and p2\.png 30x20.*give a size"):
        data.images("train")
    assert data.images("train", (10, 12)).images.shape == (4, 10, 12, 1)
    with pytest.raises(DataError, match="at least 1 pixel"):
        data.images("train", (0, 12))


def test_resizing_averages(write):
    board = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)
    half = load_images(write(rows(image=[encoded(board)] * 6)), "train", (8, 8)).images
    assert half.min() > 110
    assert half.max() < 145


def test_grey_kept_as_colour_jpeg_is_grey(write):
    grey = [encoded(np.dstack([smooth(i)] * 3), "JPEG", quality=75) for i in range(6)]
    data = open_data(write(rows(image=grey)))
    assert data.channels() == 1
    assert data.images("train").channels == 1


def test_one_colour_picture_anywhere_makes_all_colour(write):
    columns = rows()
    coloured = np.dstack([noise(5)] * 3)
    coloured[0, 0] = (10, 13, 10)
    columns["image"][5] = encoded(coloured)
    data = open_data(write(columns))
    assert data.channels() == 3
    train = data.images("train")
    assert train.images.shape == (4, 24, 20, 3)
    assert np.array_equal(train.images[0], np.dstack([noise(0)] * 3))
    assert np.array_equal(data.images("test").images[1], coloured)


@pytest.mark.parametrize("top", [255, 4095, 65535])
def test_deep_grey_is_scaled(write, top):
    deep = noise(0, top=top + 1, dtype=np.uint16)
    deep[0, 0] = top
    train = load_images(write(rows(image=[encoded(deep)] * 6)))
    assert train.channels == 1
    assert train.images.max() == 255
    assert np.abs(train.images[0, :, :, 0] / 255 - deep / top).max() < 0.003


def test_palette_and_transparency(write):
    columns = rows()
    picture = Image.fromarray(np.dstack([noise(0), noise(1), noise(2)]))
    for place, mode in enumerate(("P", "RGBA", "1", "LA")):
        body = io.BytesIO()
        picture.convert(mode).save(body, "PNG")
        columns["image"][place] = body.getvalue()
    assert load_images(write(columns)).images.shape == (4, 24, 20, 3)


def test_label_names_that_contradict(write, tmp_path):
    write(rows(), "a.parquet")
    write(rows(id=[f"q{i}" for i in range(6)], label_name=["ILL", "NORMAL"] * 3), "b.parquet")
    with pytest.raises(DataError, match="one name for label 0, got ILL and NORMAL"):
        open_data(str(tmp_path))
    with pytest.raises(DataError, match="one label for class ILL, got 0 and 1"):
        open_data(write(rows(label_name=["ILL"] * 6), "c.parquet"))


def test_class_names_without_names_or_with_gaps(write):
    assert open_data(write(rows(label=[0, 2] * 3))).class_names == ("NORMAL", "1", "ILL")
    columns = rows()
    del columns["label_name"]
    assert open_data(write(columns)).class_names == ("0", "1")


def test_duplicate_ids(write):
    with pytest.raises(DataError, match=r"every id once, got p1\.png 2 times"):
        open_data(write(rows(id=["p0.png", "p1.png", "p1.png", "p3.png", "p4.png", "p5.png"])))


def test_what_is_no_data_set(write, tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="expected a Parquet file"):
        open_data(str(tmp_path / "x.parquet"))
    with pytest.raises(DataError, match=r"expected the columns id, image, split, got a; import it first"):
        open_data(write({"a": [1]}))
    with pytest.raises(DataError, match="column image: expected binary, got int64"):
        open_data(write(rows(image=list(range(6)))))
    with pytest.raises(DataError, match="every row of image, got 1 nulls"):
        open_data(write(rows(image=[None] + [encoded(noise(0))] * 5))).images("train")
    with pytest.raises(DataError, match="empty table"):
        open_data(write(pa.table(rows()).slice(0, 0)))
    with pytest.raises(NotFoundError):
        open_data(str(tmp_path / "missing.parquet"))


def test_hash_is_of_the_content(write):
    one = open_data(write(rows()))
    same = open_data(write(pa.table(rows() | {"age": list(range(6))}), "renamed.parquet"))
    assert one.sha256 == same.sha256
    for change in (
        {"id": [f"q{i}" for i in range(6)]},
        {"image": [encoded(noise(9))] * 6},
        {"label": [0, 1, 0, 1, 1, 1], "label_name": [None] * 6},
        {"split": ["train"] * 6},
        {"group": pa.nulls(6, pa.string())},
    ):
        assert open_data(write(rows(**change), "changed.parquet")).sha256 != one.sha256


def test_patients_in_two_splits_are_counted(write):
    assert shared_groups(open_data(write(rows()))) == {}
    split = ["train", "test", "train", "val", "test", "val"]
    group = ["a", "a", "b", "b", "b", None]
    shared = shared_groups(open_data(write(rows(split=split, group=group), "b.parquet")))
    assert shared == {("train", "val"): 1, ("train", "test"): 2, ("val", "test"): 1}


def test_real_pictures(real_data):
    data = open_data(str(real_data / "oct_224_sample.parquet"))
    assert (data.name, data.channels()) == ("oct_224_sample", 1)
    with pytest.raises(DataError, match=r"224x231 and .*give a size"):
        data.images("test")
    images = data.images("test", (64, 64))
    assert images.images.shape == (60, 64, 64, 1)
    assert np.bincount(images.labels).tolist() == [15] * 4
    chest = open_data(str(real_data / "chest_xray_224_*.parquet"))
    assert (chest.name, chest.class_names) == ("chest_xray_224", ("NORMAL", "PNEUMONIA"))
    assert shared_groups(chest) == {}


def test_images_of_another_data_set_come_in_a_split_of_their_own(tmp_path):
    own, other = tmp_path / "own.parquet", tmp_path / "other.parquet"
    pq.write_table(pa.table(rows()), own)
    colour = [encoded(noise(place, (30, 16, 3))) for place in range(6)]
    pq.write_table(pa.table(rows(image=colour)), other)
    judged, foreign = open_data(str(own)), open_data(str(other))
    both = with_source(judged, "other/train", foreign, "train")
    taken = foreign.images("train", (24, 20))
    mixed = both.images("other/train", (24, 20))
    assert (mixed.ids, mixed.groups, mixed.channels) == (taken.ids, taken.groups, judged.channels())
    assert not mixed.labels.any()
    assert both.class_names == judged.class_names
    for split in judged.splits():
        assert np.array_equal(both.images(split).images, judged.images(split).images)
    assert "other/train" not in judged.splits()
    for name, split, said in (("train", "train", "a name that none of the splits has"), ("x", "val", "got val")):
        with pytest.raises(DataError, match=said):
            with_source(judged, name, foreign, split)
