"""Precision and compilation: close to fp32, the same bits whoever computes, and nothing left behind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from victims import SmallCNN, grey_levels, noise

import uapray
from uapray.attack.objective import Objective
from uapray.config import FP32, Arithmetic, Search, parse
from uapray.data.images import ImageSet
from uapray.errors import ConfigError
from uapray.experiment import find_missing, run_missing
from uapray.grid import parse_grid
from uapray.models import arithmetic
from uapray.models.weights import save_classifier, wrap_module
from uapray.models.zoo import build
from uapray.plan import plan_grid
from uapray.query import query
from uapray.replica import Batch, Replica
from uapray.resources import Resources, check_arithmetic
from uapray.run import Run
from uapray.store.results import open_results

IMAGES = 24
BF16 = Arithmetic(precision="bf16")
COMPILED = Arithmetic(compiled=True)
BOTH = Arithmetic(precision="bf16", compiled=True)


@pytest.fixture(autouse=True)
def _compiled_anew() -> Iterator[None]:
    yield
    torch.compiler.reset()


def batch(size: int, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    return Batch("train", rng.choice(IMAGES, size, replace=False), rng.integers(0, 3, size))


def replica(how: Arithmetic, seed: int = 0) -> Replica:
    return Replica(SmallCNN(seed=seed), {"train": grey_levels(IMAGES)}, arithmetic=how)


def gradient(made: Replica, asked: Batch, objective: Objective = Objective()) -> Tensor:  # noqa: B008 (frozen)
    (update,) = made.gradient(noise(1, scale=0.05).numpy(), [asked], objective)
    assert update.total.dtype == torch.float64
    return update.total


def angle(one: Tensor, other: Tensor) -> float:
    """Return the cosine of the angle, also of gradients so small that PyTorch's own would call it zero."""
    one, other = (each.flatten().double() / each.double().norm() for each in (one, other))
    return float(one @ other)


@given(seed=st.integers(0, 100), target=st.sampled_from([None, 1]))
def test_bf16_points_where_fp32_does_with_other_bits(seed: int, target: int | None) -> None:
    asked, objective = batch(8, seed), Objective(target)
    exact, rounded = (gradient(replica(how, seed), asked, objective) for how in (FP32, BF16))
    assert not torch.equal(exact, rounded)
    assert angle(exact, rounded) > 0.99
    assert 0.9 < float(rounded.norm() / exact.norm()) < 1.1


@pytest.mark.parametrize("loss", ["cross-entropy", "cosine"])
def test_compiled_is_the_same_but_for_rounding(loss: Any) -> None:
    asked, objective = batch(8), Objective(loss=loss)
    exact, made = (gradient(replica(how), asked, objective) for how in (FP32, COMPILED))
    torch.testing.assert_close(made, exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("how", [COMPILED, BOTH], ids=str)
def test_what_a_compiled_replica_was_asked_before_changes_no_bit(how: Arithmetic) -> None:
    fresh = gradient(replica(how), batch(8))
    torch.compiler.reset()
    used = replica(how)
    gradient(used, batch(5))  # PyTorch by itself would now make one graph for all sizes
    assert torch.equal(gradient(used, batch(8)), fresh)


def test_too_many_batch_sizes_are_refused_not_computed_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "MOST_SHAPES", 1)
    made = replica(COMPILED)
    gradient(made, batch(5))
    with pytest.raises(ConfigError, match="compiled: expected at most 1 batch sizes"):
        gradient(made, batch(8))


@pytest.mark.parametrize("how", [BF16, COMPILED, BOTH], ids=str)
def test_what_is_judged_is_fp32_as_the_classifier_is(how: Arithmetic) -> None:
    v, asked = noise(1, scale=0.05).numpy(), [batch(8)]
    assert np.array_equal(replica(how).logits(v, asked)[0], replica(FP32).logits(v, asked)[0])


def test_the_perturbation_is_not_rounded_to_bf16() -> None:
    """A change of a 1000th of a grey level moves the pixels that a bf16 gradient is taken at."""

    class Seen(nn.Module):
        pixels: Tensor

        def __deepcopy__(self, memo: dict[int, object]) -> "Seen":
            return self

        def forward(self, pixels: Tensor) -> Tensor:
            self.pixels = pixels.detach().clone()
            return pixels.flatten(1)[:, :2]

    seen, images = Seen(), np.full((2, 4, 4, 1), 200, np.uint8)
    v = np.full((1, 4, 4), 0.001 / 255, np.float32)
    Replica(seen, {"train": images}, arithmetic=BF16).gradient(
        v, [Batch("train", np.arange(2), np.zeros(2, np.int64))], Objective()
    )
    assert torch.equal(seen.pixels, torch.full((2, 1, 4, 4), 200) / 255 + float(v[0, 0, 0]))


def test_a_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(ConfigError, match=r"compiled: torch.compile cannot .* it needs a C\+\+ compiler"):
        gradient(replica(COMPILED), batch(3))


def state() -> tuple[object, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
    )


@pytest.mark.parametrize("tf32", [False, True])
def test_on_gpus_nothing_is_raced_or_rounded_unasked_and_all_is_put_back(tf32: bool) -> None:
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    try:
        before = state()
        with arithmetic.gpu_arithmetic(tf32=tf32):
            assert state() == (True, False, "high" if tf32 else "highest", tf32, False)
        assert state() == before
    finally:
        torch.backends.cudnn.benchmark = False
        torch.set_float32_matmul_precision("highest")


def test_tf32_on_a_cpu_is_refused() -> None:
    tf32 = Arithmetic(precision="tf32")
    with pytest.raises(ConfigError, match="precision: tf32 exists on GPUs only"):
        check_arithmetic(tf32, Resources())
    check_arithmetic(tf32, Resources(gpus=0.5))
    check_arithmetic(BOTH, Resources())


def test_an_unknown_precision_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"precision: unknown 'fp16'; did you mean 'bf16'\?"):
        parse(Arithmetic, {"precision": "fp16"}, origin="test")


def test_rules_that_ask_for_no_gradient_have_no_precision() -> None:
    assert Search(rule="random").gradients_in(BOTH) is None
    assert Search(rule="cma-es").gradients_in(BOTH) is None
    assert Search(rule="spgd").gradients_in(BOTH) == BOTH
    assert Search(rule="uap-fgsm").gradients_in(BOTH) == BF16


@pytest.fixture(scope="module")
def phantoms() -> ImageSet:
    return uapray.load_images("phantom:chest?images=120&size=32", "train")


def test_from_python_another_precision_is_another_perturbation(phantoms: ImageSet) -> None:
    module = build("tiny-cnn", classes=3, channels=1, size=(32, 32), seed=0)
    asked: dict[str, Any] = {"rule": "spgd", "norm": "l2", "max_epochs": 1}
    exact, rounded = (uapray.perturb(module, phantoms, precision=how, **asked) for how in ("fp32", "bf16"))
    assert not torch.equal(exact.perturbation, rounded.perturbation)
    assert angle(exact.perturbation, rounded.perturbation) > 0.9
    with pytest.raises(ConfigError, match="precision: tf32 exists on GPUs only"):
        uapray.perturb(module, phantoms, precision="tf32", **asked)
    with pytest.raises(ConfigError, match="perturb: precision: unknown 'half'"):
        uapray.perturb(module, phantoms, precision="half", **asked)


def test_rows_of_a_grid_say_in_which_precision_gradients_were_taken(tmp_path: Path, phantoms: ImageSet) -> None:
    module = build("tiny-cnn", classes=3, channels=1, size=(32, 32), seed=0)
    wrapped = wrap_module(module, phantoms.class_names, 1, (32, 32), architecture="tiny-cnn")
    save_classifier(wrapped, f"{tmp_path}/tiny.safetensors")
    results, perturbations = open_results(f"{tmp_path}/store"), {}
    for precision in ("fp32", "bf16"):
        grid = {
            "name": precision,
            "data": [{"uri": "phantom:chest?images=120&size=32"}],
            "classifiers": [{"weights": f"{tmp_path}/tiny.safetensors"}],
            "norms": ["l2"],
            "rules": ["spgd"],
            "precision": precision,
            "control_draws": 0,
            "budget": {"max_epochs": 1},
        }
        plan = plan_grid(parse_grid(yaml.safe_dump(grid), origin="test"))
        assert run_missing(Run(plan, results, Resources("local")), find_missing(plan, results)).failed == 0
        perturbations[precision] = results.read_array(plan.trials[0].trial_id)
    rows = query(results, "SELECT grid, rule, precision FROM trials ORDER BY grid DESC, rule DESC").to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("fp32", "spgd", "fp32"),
        ("fp32", "random", None),
        ("bf16", "spgd", "bf16"),
    ], "the random control stands already"
    assert not np.array_equal(perturbations["fp32"], perturbations["bf16"])
