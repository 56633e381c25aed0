import csv
import io
import pathlib
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from uapray.data.dataset import open_data
from uapray.data.imports import import_data
from uapray.errors import DataError, StoreError


def picture(seed, kind="PNG", shape=(12, 10)):
    body = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(body, kind)
    return body.getvalue()


def put(folder, names, kind="PNG"):
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(seed, kind))
    return folder


@pytest.fixture
def classes(tmp_path):
    """Twenty patients with two images each, in two class folders."""
    names = [f"{'ILL' if p % 2 else 'NORMAL'}/deep/patient-{p}-{i}.png" for p in range(20) for i in range(2)]
    return put(tmp_path / "classes", names)


def test_class_folders(classes, tmp_path):
    put(classes, ["ILL/notes.txt", ".hidden/x.png", "NORMAL/.thumb.png"])
    calls = []
    summary = import_data(
        str(classes),
        str(tmp_path / "out.parquet"),
        test_share=0.25,
        group_pattern=r"patient-(\d+)",
        progress=lambda done, total: calls.append((done, total)),
    )
    assert summary.images == 40
    assert summary.classes == {"ILL": 20, "NORMAL": 20}
    assert summary.splits == {"train": 30, "test": 10}
    assert (summary.groups, summary.shared_groups) == (20, {})
    assert calls == [(i + 1, 40) for i in range(40)]
    data = open_data(summary.uri)
    assert data.class_names == ("ILL", "NORMAL")
    rows = {row["id"]: row for row in pq.read_table(summary.uri).to_pylist()}
    row = rows["ILL/deep/patient-3-1.png"]
    assert row["image"] == (classes / "ILL/deep/patient-3-1.png").read_bytes()
    assert (row["label"], row["label_name"], row["group"]) == (0, "ILL", "3")
    assert summary.size_bytes == (tmp_path / "out.parquet").stat().st_size


def test_file_format(tmp_path):
    put(tmp_path / "many", [f"{'AB'[i % 2]}/{i}.png" for i in range(600)])
    import_data(str(tmp_path / "many"), str(tmp_path / "out.parquet"))
    file = pq.ParquetFile(tmp_path / "out.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(3)] == [256, 256, 88]
    assert file.metadata.row_group(0).column(1).compression == "ZSTD"
    assert file.schema_arrow.names == ["id", "image", "label", "label_name", "split", "group"]


def test_splits_are_the_same_for_a_seed_and_by_patient(classes, tmp_path):
    def split(seed, name):
        made = import_data(
            str(classes),
            str(tmp_path / name),
            seed=seed,
            val_share=0.2,
            test_share=0.3,
            group_pattern=r"-(\d+)-",
        )
        assert made.splits == {"train": 20, "val": 8, "test": 12}
        assert made.shared_groups == {}
        return open_data(made.uri).table["split"].to_pylist()

    assert split(0, "a.parquet") == split(0, "b.parquet")
    assert split(0, "c.parquet") != split(1, "d.parquet")


def test_split_folders_are_kept_and_shared_patients_seen(tmp_path):
    names = [f"{s}/{c}/p{i}.jpeg" for s in ("train", "Test") for c in "AB" for i in range(10)]
    root = put(tmp_path / "src", names, "JPEG")
    out = str(tmp_path / "out.parquet")
    summary = import_data(str(root), out, group_pattern=r"(p\d+)")
    assert summary.splits == {"train": 20, "test": 20}
    assert summary.shared_groups == {("train", "test"): 10}
    summary = import_data(str(root), out, val_share=0.1, overwrite=True)
    assert summary.splits == {"train": 16, "val": 4, "test": 20}


def test_class_order_can_be_given(classes, tmp_path):
    out = str(tmp_path / "out.parquet")
    import_data(str(classes), out, class_names=["NORMAL", "ILL"])
    assert open_data(out).class_names == ("NORMAL", "ILL")
    with pytest.raises(DataError, match="expected the classes NORMAL, got also ILL"):
        import_data(str(classes), out, class_names=["NORMAL"], overwrite=True)


def test_damaged_pictures_are_all_counted_ten_named_and_nothing_written(classes, tmp_path):
    for p in range(12):
        path = classes / f"{'ILL' if p % 2 else 'NORMAL'}/deep/patient-{p}-0.png"
        path.write_bytes(path.read_bytes()[:-40] if p else b"")
    out = tmp_path / "out.parquet"
    with pytest.raises(DataError) as caught:
        import_data(str(classes), str(out))
    text = str(caught.value)
    assert "12 of 40 pictures cannot be used; nothing was written" in text
    assert "ILL/deep/patient-1-0.png: expected a whole PNG or JPEG" in text
    assert len(text.splitlines()) == 12
    assert text.endswith("and 2 more")
    assert not out.exists()


def test_destination(classes, tmp_path):
    out = tmp_path / "out.parquet"
    out.write_bytes(b"mine")
    with pytest.raises(DataError, match="is there already"):
        import_data(str(classes), str(out))
    assert out.read_bytes() == b"mine"
    with pytest.raises(DataError, match=r"ends in \.parquet"):
        import_data(str(classes), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"group_pattern": "("}, "expected a regular expression"),
        ({"group_pattern": "patient"}, r"expected a \(group\)"),
        ({"group_pattern": "(zz)"}, "finds no patient in 40 of 40 file names"),
        ({"test_share": 0.7, "val_share": 0.4}, "below 1 together"),
        ({"test_share": -0.1}, "share to hold out"),
        ({"kind": "tar"}, "one of the kinds"),
        ({"kind": "dicom"}, r"expected \*\.dcm"),
    ],
)
def test_settings_that_make_no_sense(classes, tmp_path, options, text):
    with pytest.raises(DataError, match=text):
        import_data(str(classes), str(tmp_path / "out.parquet"), **options)
    assert not (tmp_path / "out.parquet").exists()


def test_sources_that_are_none(tmp_path):
    out = str(tmp_path / "out.parquet")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    for source, text in (
        ("missing", "expected a local file or folder"),
        ("empty", r"expected \*\.png, \*\.jpg, \*\.jpeg in CLASS/ or SPLIT/CLASS/ folders"),
        ("file.txt", "expected a folder of class folders, a .npz or a .csv"),
    ):
        with pytest.raises(DataError, match=text):
            import_data(str(tmp_path / source), out)
    with pytest.raises(DataError, match="two or more classes, got A"):
        import_data(str(put(tmp_path / "one", ["A/1.png", "A/2.png"])), out)


def test_csv_with_header_and_extra_columns(tmp_path):
    put(tmp_path, [f"pictures/{i}.png" for i in range(8)])
    lines = ["Filename,age,Label,Split,patient_id"]
    lines += [f"pictures/{i}.png,4{i},{i % 2},{'training' if i < 6 else 'test'},g{i // 2}" for i in range(8)]
    (tmp_path / "list.csv").write_text("\n".join([*lines, ""]))
    summary = import_data(str(tmp_path / "list.csv"), str(tmp_path / "out.parquet"))
    assert summary.classes == {"0": 4, "1": 4}
    assert summary.splits == {"train": 6, "test": 2}
    assert (summary.groups, summary.shared_groups) == (4, {})


def test_csv_of_pictures_that_are_neither_png_nor_jpeg(tmp_path):
    put(tmp_path, ["a.bmp", "b.bmp"], "BMP")
    (tmp_path / "list.csv").write_text("path,label,split\na.bmp,X,train\nb.bmp,Y,train\n")
    import_data(str(tmp_path / "list.csv"), str(tmp_path / "out.parquet"))
    images = open_data(str(tmp_path / "out.parquet")).images("train").images
    assert np.array_equal(images[0, :, :, 0], np.asarray(Image.open(tmp_path / "a.bmp")))


def test_lists_of_the_papers(real_data, tmp_path):
    source = real_data / "hirano2021_splits" / "chestx_test_pre.csv"
    (tmp_path / "list.csv").write_bytes(source.read_bytes())
    with source.open(newline="") as lines:
        names = [row[0] for row in csv.reader(lines)]
    put(tmp_path, names, "JPEG")
    summary = import_data(
        str(tmp_path / "list.csv"),
        str(tmp_path / "out.parquet"),
        group_pattern=r"-(\d+)-\d+\.",
        test_share=0.5,
    )
    assert summary.classes == {"NORMAL": 270, "PNEUMONIA": 270}
    assert abs(summary.splits["test"] - 270) <= 4
    assert summary.shared_groups == {}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "got an empty file"),
        ("a.png,X,1\n", "expected a header path,label"),
        ("path,label\na.png\n", "expected 2 columns in row 2, got 1"),
        ("path,label\na.png,\n", "expected a path and a label in row 2"),
        ("path,label,split\na.png,X,dev\n", "row 2: expected split train, val or test, got dev"),
        (
            "path,label,split\na.png,X,train\nb.png,Y,\n",
            "a split for every picture or for none, got none for 1",
        ),
        ("a.png,X\na.png,Y\n", r"every picture once, got a\.png 2 times"),
        ("a.png,X\nzz.png,Y\n", r"zz\.png: No such file"),
        ("a.png,X\n../list.csv,Y\n", r"list\.csv: "),
    ],
)
def test_csv_mistakes(tmp_path, text, error):
    put(tmp_path, ["a.png", "b.png"])
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match=error):
        import_data(str(tmp_path / "list.csv"), str(tmp_path / "out.parquet"))
    assert not (tmp_path / "out.parquet").exists()


def arrays(shape=(28, 28), classes=3, label_shape=(-1, 1), **changes):
    rng = np.random.default_rng(0)
    made = {}
    for split, count in (("train", 12), ("val", 3), ("test", 6)):
        made[f"{split}_images"] = rng.integers(0, 256, (count, *shape), np.uint8)
        made[f"{split}_labels"] = (np.arange(count) % classes).astype(np.uint8).reshape(label_shape)
    return made | changes


@pytest.mark.parametrize(("shape", "channels"), [((28, 28), 1), ((28, 28, 3), 3), ((28, 28, 1), 1)])
def test_npz(tmp_path, shape, channels):
    made = arrays(shape)
    np.savez(tmp_path / "madmnist.npz", **made)
    summary = import_data(str(tmp_path / "madmnist.npz"), str(tmp_path / "out.parquet"), class_names=["x", "y", "z"])
    assert summary.splits == {"train": 12, "val": 3, "test": 6}
    data = open_data(summary.uri)
    assert data.class_names == ("x", "y", "z")
    test = data.images("test")
    assert np.array_equal(test.images, made["test_images"].reshape(6, 28, 28, channels))
    assert test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert test.ids[5] == "madmnist-test-000005"


def test_npz_without_names_and_flat_labels(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **arrays(label_shape=(-1,), classes=2))
    summary = import_data(str(tmp_path / "a.npz"), str(tmp_path / "out.parquet"))
    assert list(summary.classes) == ["0", "1"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"train_labels": np.zeros((12, 14), np.uint8)}, r"got 14 \(multi-label\)"),
        ({"train_images": np.zeros((12, 28, 28, 28), np.uint8)}, r"expected train_images uint8 \(n, h, w\)"),
        ({"train_images": np.zeros((12, 28, 28), np.float32)}, "got float32"),
        ({"train_labels": np.zeros(3, np.uint8)}, "one for each of 12"),
        ({"train_labels": np.full((12, 1), 7, np.uint8)}, "from 0 to 2, got 0 to 7"),
    ],
)
def test_npz_mistakes(tmp_path, changes, text):
    np.savez(tmp_path / "a.npz", **arrays(**changes))
    with pytest.raises(DataError, match=text):
        import_data(str(tmp_path / "a.npz"), str(tmp_path / "out.parquet"), class_names=["x", "y", "z"])


def test_npz_that_is_none(tmp_path):
    out = str(tmp_path / "out.parquet")
    source = tmp_path / "a.npz"
    np.savez(source, weights=np.zeros(3))
    with pytest.raises(DataError, match="expected train_images, train_labels, val_…, test_…, got weights"):
        import_data(str(source), out)
    source.write_bytes(source.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"a\.npz: expected a"):
        import_data(str(source), out)
    np.savez(source, train_images=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"a\.npz: expected a"):
        import_data(str(source), out)


def dicom(path, pixels, *, kind="MONOCHROME2", bits=12, patient="P1", **tags):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.PatientID = patient
    dataset.PhotometricInterpretation = kind
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated = pixels.dtype.itemsize * 8
    dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = bits, bits - 1, 0
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def imported_dicom(tmp_path):
    import_data(str(tmp_path / "dicom"), str(tmp_path / "out.parquet"), test_share=0)
    images = open_data(str(tmp_path / "out.parquet")).images("train")
    return {name: images.images[i] for i, name in enumerate(images.ids)}, images


def test_dicom_window_inversion_and_patient(tmp_path):
    ramp = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)
    root = tmp_path / "dicom"
    dicom(root / "ILL" / "window.dcm", ramp, WindowCenter=1000, WindowWidth=500)
    dicom(root / "ILL" / "inverted.dcm", ramp, kind="MONOCHROME1", WindowCenter=1000, WindowWidth=500)
    dicom(
        root / "ILL" / "rescaled.dcm",
        ramp,
        RescaleSlope=2,
        RescaleIntercept=-100,
        WindowCenter=1900,
        WindowWidth=1000,
    )
    dicom(root / "ILL" / "sigmoid.dcm", ramp, WindowCenter=1000, WindowWidth=500, VOILUTFunction="SIGMOID")
    dicom(root / "NORMAL" / "plain.dcm", ramp // 2 + 100, patient="P2")
    dicom(root / "NORMAL" / "bytes.DCM", (ramp // 16).astype(np.uint8), bits=8, patient="")
    made, images = imported_dicom(tmp_path)
    expected = np.clip((ramp - 999.5) / 499 + 0.5, 0, 1)[..., None] * 255
    assert np.abs(made["ILL/window.dcm"] - expected).max() <= 1
    assert np.abs(made["ILL/inverted.dcm"] - (255 - expected)).max() <= 1
    assert np.abs(made["ILL/rescaled.dcm"] - expected).max() <= 1.2
    assert made["ILL/sigmoid.dcm"].max() == 255
    assert np.array_equal(made["NORMAL/plain.dcm"], np.rint(np.linspace(0, 255, 256)).reshape(16, 16, 1))
    assert np.array_equal(made["NORMAL/bytes.DCM"][..., 0], ramp // 16)
    assert dict(zip(images.ids, images.groups, strict=True)) == {
        "ILL/window.dcm": "P1",
        "ILL/inverted.dcm": "P1",
        "ILL/rescaled.dcm": "P1",
        "ILL/sigmoid.dcm": "P1",
        "NORMAL/plain.dcm": "P2",
        "NORMAL/bytes.DCM": None,
    }


def test_dicom_in_colour(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    dicom(tmp_path / "dicom" / "A" / "1.dcm", colour, kind="RGB", bits=8)
    dicom(tmp_path / "dicom" / "B" / "2.dcm", colour[..., 0].copy(), bits=8)
    made, _ = imported_dicom(tmp_path)
    assert np.array_equal(made["A/1.dcm"], colour)


def test_damaged_dicom_is_named(tmp_path):
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
    root = tmp_path / "dicom"
    dicom(root / "A" / "good.dcm", ramp)
    dicom(root / "B" / "cut.dcm", ramp)
    (root / "B" / "cut.dcm").write_bytes((root / "B" / "cut.dcm").read_bytes()[:-200])
    (root / "B" / "none.dcm").write_bytes(b"no dicom at all")
    dicom(root / "B" / "frames.dcm", np.concatenate([ramp, ramp]), Rows=16, NumberOfFrames=2)
    with pytest.raises(DataError, match="3 of 4 pictures cannot be used") as caught:
        import_data(str(root), str(tmp_path / "out.parquet"))
    for name in ("B/cut.dcm", "B/none.dcm", "B/frames.dcm: expected a DICOM picture"):
        assert name in str(caught.value)
    assert not (tmp_path / "out.parquet").exists()


def test_dicom_without_pydicom(tmp_path, monkeypatch):
    put(tmp_path / "dicom", ["A/1.dcm", "B/2.dcm"])
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DataError, match=r"pip install 'uapray\[dicom\]'"):
        import_data(str(tmp_path / "dicom"), str(tmp_path / "out.parquet"))


@pytest.mark.s3
def test_to_s3_and_back(classes, monkeypatch):
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        for name, value in (("ENDPOINT_URL", endpoint), ("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s")):
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="images")
        import_data(str(classes), "s3://images/sets/made_1.parquet")
        assert open_data("s3://images/sets/made_*.parquet").images("train").images.shape == (32, 12, 10, 1)
        with pytest.raises(DataError, match="is there already"):
            import_data(str(classes), "s3://images/sets/made_1.parquet")
    finally:
        server.stop()


def test_splits_beside_classes_are_refused(tmp_path: pathlib.Path) -> None:
    for name in ("train/ILL", "train/WELL", "test/ILL", "test/WELL", "chest_xray/train"):
        (tmp_path / "zip" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "zip" / name / "a.png")
    with pytest.raises(DataError, match="got test, train beside chest_xray"):
        import_data(str(tmp_path / "zip"), str(tmp_path / "out.parquet"))


def test_copies_in_hidden_folders_are_passed_over(tmp_path: pathlib.Path) -> None:
    for name in ("ILL", "WELL", "ILL/.ipynb_checkpoints"):
        (tmp_path / "scans" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("L", (8, 8), number).save(tmp_path / "scans" / name / f"{number}.png")
    assert import_data(str(tmp_path / "scans"), str(tmp_path / "out.parquet")).images == 6


def test_a_pattern_that_misses_some_names_is_refused(tmp_path: pathlib.Path) -> None:
    for name in ("ILL/p1_a.png", "ILL/p1_b.png", "WELL/p2_a.png", "WELL/scan.png"):
        (tmp_path / "scans" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / "scans" / name)
    with pytest.raises(DataError, match=r"finds no patient in 1 of 4 file names, the first WELL/scan.png"):
        import_data(str(tmp_path / "scans"), str(tmp_path / "out.parquet"), group_pattern=r"(p\d+)_")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array([[0.6], [1.6]] * 6), "whole numbers, got float64"),
        (np.array([["a"], ["b"]] * 6), "whole numbers, got <U1"),
        (np.array([[-1], [1]] * 6), "got -1 to 1"),
        (np.array([[0], [10**9]] * 6), "got 0 to 1000000000"),
        (np.array(3), "one for each"),
    ],
)
def test_labels_of_other_kinds_are_refused(tmp_path: pathlib.Path, labels: np.ndarray, said: str) -> None:
    np.savez(tmp_path / "x.npz", train_images=np.zeros((12, 8, 8), np.uint8), train_labels=labels)
    with pytest.raises(DataError, match=said):
        import_data(str(tmp_path / "x.npz"), str(tmp_path / "out.parquet"))


def test_deep_pictures_of_a_set_are_scaled_alike(tmp_path: pathlib.Path) -> None:
    for name, brightest in (("ILL/dim", 4000), ("ILL/bright", 60000), ("WELL/dim", 4000), ("WELL/bright", 60000)):
        (tmp_path / "scans" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((8, 8), 2000, np.uint16)
        pixels[0, 0] = brightest
        Image.fromarray(pixels).save(tmp_path / "scans" / f"{name}.png")
    import_data(str(tmp_path / "scans"), str(tmp_path / "out.parquet"))
    data = open_data(str(tmp_path / "out.parquet"))
    pixels = [data.images(split).images[:, 1:].ravel() for split in data.splits()]
    assert set(np.concatenate(pixels).tolist()) == {round(2000 / 65535 * 255)}


def test_dicom_beside_other_pictures_needs_a_word(tmp_path: pathlib.Path) -> None:
    for name in ("ILL/a.png", "WELL/b.dcm"):
        (tmp_path / "scans" / name).parent.mkdir(parents=True)
        (tmp_path / "scans" / name).write_bytes(b"")
    with pytest.raises(DataError, match="--kind dicom or folder"):
        import_data(str(tmp_path / "scans"), str(tmp_path / "out.parquet"))


def test_a_destination_that_cannot_be_written_is_told_before_the_work(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="expected a folder, found a file"):
        import_data(str(tmp_path / "nothing"), str(tmp_path / "file" / "out.parquet"))
