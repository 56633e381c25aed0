import io
import time

import numpy as np
import pytest
from PIL import Image

from uapray.data.dataset import open_data, shared_groups
from uapray.data.phantoms import CLASS_NAMES, Request, parse, phantom_table
from uapray.errors import DataError

URI = "phantom:chest?images=120&size=32&seed=3"


def test_is_an_ordinary_data_set():
    data = open_data(URI)
    assert data.name == "synthetic-chest-phantoms"
    assert data.class_names == CLASS_NAMES
    assert data.splits() == ("train", "test")
    assert data.channels() == 1
    assert data.table.num_rows == 120
    assert all(name.startswith("synthetic-") for name in data.table["id"].to_pylist())
    assert shared_groups(data) == {}
    train, test = data.images("train"), data.images("test")
    assert train.images.shape == (len(train), 32, 32, 1)
    assert len(train) + len(test) == 120
    for part in (train, test):
        shares = np.bincount(part.labels, minlength=3) / len(part)
        assert shares.min() > 0.2


def test_patients_have_two_or_three_images():
    groups = open_data(URI).table["group"].to_pylist()[:-3]
    assert set(np.unique(groups, return_counts=True)[1]) <= {1, 2, 3}
    assert 2 < len(groups) / len(set(groups)) < 3


def test_same_seed_same_bytes_and_fewer_are_the_first_of_more():
    few = phantom_table.__wrapped__(Request(40, 32, 3))
    again = phantom_table.__wrapped__(Request(40, 32, 3))
    more = phantom_table.__wrapped__(Request(60, 32, 3))
    assert few.equals(again)
    assert few.equals(more.slice(0, 40))
    other = phantom_table.__wrapped__(Request(40, 32, 4))
    assert not set(few["image"].to_pylist()) & set(other["image"].to_pylist())


def test_images_of_a_patient_are_alike_but_not_the_same():
    rows = phantom_table(parse("phantom:chest?images=60&size=64&seed=0")).to_pylist()
    pixels = [np.asarray(Image.open(io.BytesIO(row["image"])), dtype=float) for row in rows]
    assert len({row["image"] for row in rows}) == 60

    def apart(one, other):
        return 1 - np.corrcoef(pixels[one].ravel(), pixels[other].ravel())[0, 1]

    clear = [i for i, row in enumerate(rows) if row["label_name"] == "CLEAR"]
    pairs = [(i, j) for i in clear for j in clear if i < j]
    same = [apart(i, j) for i, j in pairs if rows[i]["group"] == rows[j]["group"]]
    others = [apart(i, j) for i, j in pairs if rows[i]["group"] != rows[j]["group"]]
    assert np.median(same) < np.median(others)


@pytest.mark.parametrize("size", [32, 97, 224])
def test_other_sizes(size):
    images = open_data(f"phantom:chest?images=36&size={size}").images("train")
    assert images.size == (size, size)
    assert 60 < images.images.mean() < 190


def test_defaults():
    assert parse("phantom:chest") == Request(images=960, size=64, seed=0)
    assert parse("phantom:chest?seed=7&images=36") == Request(images=36, size=64, seed=7)


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("phantom:skull", "expected phantom:chest, got phantom:skull"),
        ("phantom:chest?image=60", "unknown parameter image; did you mean images"),
        ("phantom:chest?images=many", "expected a whole number for images, got 'many'"),
        ("phantom:chest?images=-5", "expected a whole number"),
        ("phantom:chest?images=3", "expected 36 to"),
        ("phantom:chest?size=9000", "size 32 to 512"),
    ],
)
def test_refuses_what_it_does_not_know(uri, text):
    with pytest.raises(DataError, match=text.replace("?", r"\?")):
        open_data(uri)


def test_is_quick():
    start = time.process_time()
    phantom_table.__wrapped__(Request(200, 64, 11))
    assert time.process_time() - start < 2  # 1,000 in less than 5 s, with room for a busy machine


@pytest.mark.slow
def test_is_hard_but_learnable_and_a_random_perturbation_does_not_fool():
    import torch
    from torch import nn
    from torch.nn import functional

    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = open_data("phantom:chest")

    def tensors(split):
        part = data.images(split)
        return torch.tensor(part.images).permute(0, 3, 1, 2) / 255, torch.tensor(part.labels)

    (x, y), (x_test, y_test) = tensors("train"), tensors("test")
    layers, width = [], 1
    for out in (16, 32, 64, 64):
        layers += [nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
        width = out
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 3))
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=12 * (len(x) // 32))
    for _ in range(12):
        order = torch.randperm(len(x))
        for start in range(0, len(x) // 32 * 32, 32):
            batch = order[start : start + 32]
            optimiser.zero_grad()
            functional.cross_entropy(model((x[batch] - 0.5) * 4), y[batch]).backward()
            optimiser.step()
            schedule.step()
    model.eval()
    xi = 0.04 * x.amax((1, 2, 3)).mean()
    with torch.no_grad():
        clean = model((x_test - 0.5) * 4).argmax(1)
        v = xi * torch.randn(x[0].shape).sign()
        shaken = model(((x_test + v).clamp(0, 1) - 0.5) * 4).argmax(1)
    assert 0.8 < (clean == y_test).float().mean() < 0.98
    assert (shaken != clean).float().mean() < 0.08
