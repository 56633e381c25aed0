"""The number of replicas, their speed and their death change no bit of a perturbation."""

import os
import signal
import threading

import numpy as np
import psutil
import pytest
import ray
import torch
from hurried_host import HurriedHost
from ray.util import placement_group, remove_placement_group
from torch import nn

import uapray
from uapray.api import search_settings
from uapray.arena import Arena
from uapray.attack.control import Draw, matched_controls
from uapray.attack.objective import Objective
from uapray.config import FP32, Arithmetic, Threat
from uapray.data.images import ImageSet
from uapray.errors import ConfigError
from uapray.models.card import Classifier
from uapray.models.weights import wrap_module
from uapray.models.zoo import build
from uapray.on_ray.pool import RayPool
from uapray.pool import in_turn
from uapray.rendering import parse_rendering
from uapray.replica import Batch
from uapray.resources import Resources, open_pool
from uapray.trial import Found, find

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

SIZE = (32, 32)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return uapray.load_images("phantom:chest?images=150&size=32&seed=3", "train")


@pytest.fixture(scope="module")
def classifier(images: ImageSet) -> Classifier:
    """Return a net that predicts each class about equally often, so that single images are near another class."""
    module = build("tiny-cnn", classes=3, channels=1, size=SIZE, seed=1)
    *_, last = (layer for layer in module.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        pixels = torch.tensor(images.images).permute(0, 3, 1, 2).float() / 255
        last.bias -= module.eval()(pixels).mean(0)
    return wrap_module(module, images.class_names, 1, SIZE)


def found(classifier: Classifier, images: ImageSet, resources: Resources, **settings: object) -> Found:
    search = search_settings(str(settings.pop("rule")), {"starts": 3, "survivors": 2, "max_epochs": 1.5} | settings)
    with open_pool(classifier, {"train": images}, resources) as pool:
        return find(Arena(pool, {"train": images}), Threat(norm="linf", zeta=0.04), search, seed=5)


@pytest.mark.parametrize("rule", ["spgd", *(pytest.param(rule, marks=pytest.mark.slow) for rule in ("sga", "random"))])
def test_one_two_and_four_replicas_and_this_process_agree(rule: str, classifier: Classifier, images: ImageSet) -> None:
    settings = {"rule": rule, "round_size": 32, "inner_rounds": 2}
    here = found(classifier, images, Resources("local"), **settings)
    for replicas in (1, 2, 4):
        there = found(classifier, images, Resources("ray", replicas=replicas), **settings)
        assert torch.equal(here.perturbation, there.perturbation), f"{replicas} replicas differ"
        assert here.history == there.history
    assert here.perturbation.any()


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(Arithmetic(precision="bf16"), id="bf16"),
        pytest.param(Arithmetic(precision="bf16", compiled=True), id="compiled", marks=pytest.mark.slow),
    ],
)
def test_with_bf16_and_compiled_any_number_of_replicas_agree(
    how: Arithmetic, classifier: Classifier, images: ImageSet
) -> None:
    search = search_settings("spgd", {"round_size": 32, "max_epochs": 1.5})

    def made(resources: Resources, how: Arithmetic) -> Found:
        with open_pool(classifier, {"train": images}, resources, arithmetic=how) as pool:
            return find(Arena(pool, {"train": images}), Threat(norm="linf", zeta=0.04), search, seed=5)

    here = made(Resources("local"), how)
    for replicas in (1, 3):
        there = made(Resources("ray", replicas=replicas), how)
        assert torch.equal(here.perturbation, there.perturbation), f"{replicas} replicas differ"
        assert here.history == there.history
    assert not torch.equal(here.perturbation, made(Resources("local"), FP32).perturbation)


@pytest.mark.parametrize("rule", ["hill-climb", "cma-es", "ga"])
def test_black_box_rules_agree_on_two_replicas(rule: str, classifier: Classifier, images: ImageSet) -> None:
    search = search_settings(rule, {"max_epochs": 8, "frequencies": 4, "population": 4})

    def made(resources: Resources) -> Found:
        with open_pool(classifier, {"train": images}, resources) as pool:
            return find(Arena(pool, {"train": images}), Threat(norm="linf", zeta=0.04), search, seed=5)

    here, there = made(Resources("local")), made(Resources("ray", replicas=2))
    assert torch.equal(here.perturbation, there.perturbation)
    assert here.history == there.history
    assert here.perturbation.any()


def test_image_by_image_one_and_two_replicas_and_this_process_agree(classifier: Classifier, images: ImageSet) -> None:
    settings: dict[str, object] = {"rule": "uap-fgsm", "starts": 1, "max_epochs": 3, "step_size": 1.0}
    here = found(classifier, images, Resources("local"), **settings)
    for replicas in (1, 2):
        there = found(classifier, images, Resources("ray", replicas=replicas), **settings)
        assert torch.equal(here.perturbation, there.perturbation), f"{replicas} replicas differ"
        assert here.history == there.history
    assert here.perturbation.any()


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("spgd", {"starts": 3, "survivors": 2, "max_epochs": 1.5}),
        ("uap-fgsm", {"starts": 1, "max_epochs": 3, "step_size": 1.0}),
    ],
)
def test_a_replica_killed_in_mid_search_changes_nothing(
    rule: str, changes: dict[str, object], classifier: Classifier, images: ImageSet
) -> None:
    undisturbed = found(classifier, images, Resources("local"), rule=rule, **changes)
    killed: list[int] = []
    with open_pool(classifier, {"train": images}, Resources("ray", replicas=2)) as pool:
        assert isinstance(pool, RayPool)
        before = pool.replicas()
        process = _replica_processes()[0]

        def kill_soon(_: object) -> None:
            if not killed:
                killed.append(process)
                os.kill(process, signal.SIGKILL)

        disturbed = find(
            Arena(pool, {"train": images}),
            Threat(norm="linf", zeta=0.04),
            search_settings(rule, changes),
            seed=5,
            watch=kill_soon,
        )
        assert len(pool.replicas()) == 2
        assert pool.replicas() != before, "the dead replica was not replaced"
    assert killed
    assert torch.equal(undisturbed.perturbation, disturbed.perturbation)


def test_threads_share_a_pool(classifier: Classifier, images: ImageSet) -> None:
    with open_pool(classifier, {"train": images}, Resources("ray", replicas=2)) as pool:
        deck = Arena(pool, {"train": images}).deck("train", np.arange(len(images)))
        batches = deck.shuffled(batch_size=16, seed=0, epoch=0)
        v = torch.zeros(1, *SIZE)
        alone = pool.gradient(v, batches, Objective())
        together: list[torch.Tensor] = []
        threads = [
            threading.Thread(target=lambda: together.append(pool.gradient(v, batches, Objective()).total))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(together) == 6
    assert all(torch.equal(alone.total, total) for total in together)


@pytest.mark.parametrize("replicas", [1, 3])
def test_rounds_of_several_batches_are_the_same_in_one_place_and_dealt(
    replicas: int, classifier: Classifier, images: ImageSet
) -> None:
    """One start on one replica makes them there; on three, each batch goes to another one."""
    settings: dict[str, object] = {"rule": "spgd", "batch_size": 8, "round_size": 24, "starts": 1}
    here = found(classifier, images, Resources("local"), **settings)
    there = found(classifier, images, Resources("ray", replicas=replicas), **settings)
    assert torch.equal(here.perturbation, there.perturbation)
    assert here.history == there.history


def test_what_a_replica_had_no_time_for_is_asked_again(
    classifier: Classifier, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, v = in_turn("train", np.arange(len(images))), torch.full((1, *SIZE), 0.02)
    draws = [Draw(kind, 2.0, seed) for kind in matched_controls(2.0) for seed in range(2)]
    with open_pool(classifier, {"train": images}, Resources("local")) as pool:
        logits, gradient = pool.logits(v, batches), pool.gradient(v, batches, Objective(target=0))
        likeness, drawn = pool.likeness(v, batches), pool.drawn(v, draws, batches)
        settings: dict[str, object] = {"rule": "spgd", "starts": 1}
        here = found(classifier, images, Resources("local"), **settings)
    monkeypatch.setattr("uapray.on_ray.pool.Host", HurriedHost)
    with open_pool(classifier, {"train": images}, Resources("ray", replicas=1)) as pool:
        assert np.array_equal(pool.logits(v, batches), logits)
        assert np.array_equal(pool.likeness(v, batches), likeness)
        for one, other in zip(pool.drawn(v, draws, batches), drawn, strict=True):
            assert np.array_equal(one.logits, other.logits)
            assert (one.l2, one.linf) == (other.l2, other.linf)
        assert torch.equal(pool.gradient(v, batches, Objective(target=0)).total, gradient.total)
    there = found(classifier, images, Resources("ray", replicas=1), **settings)
    assert torch.equal(here.perturbation, there.perturbation)
    assert here.history == there.history


def test_each_who_asks_has_a_share_of_the_replicas(classifier: Classifier, images: ImageSet) -> None:
    with open_pool(classifier, {"train": images}, Resources("ray", replicas=3)) as pool:
        assert pool.share == 3
        asking = threading.Thread(target=lambda: pool.logits(None, in_turn("train", np.arange(len(images))) * 40))
        asking.start()
        shares = set()
        while asking.is_alive():
            shares.add(pool.share)
        asking.join()
        assert pool.share == 3
    assert 1 in shares


def test_an_error_of_a_replica_is_its_own_and_costs_nobody_a_turn(classifier: Classifier, images: ImageSet) -> None:
    with open_pool(classifier, {"train": images}, Resources("ray", replicas=2)) as pool:
        for _ in range(5):  # a turn kept each time would leave none
            with pytest.raises(KeyError, match=r"^'nowhere'$"):
                pool.logits(None, [Batch("nowhere", np.arange(4))] * 6)
        assert pool.logits(None, [Batch("train", np.arange(4))]).shape == (4, 3)


def test_while_a_replica_is_yet_to_come_the_others_do_the_work(classifier: Classifier, images: ImageSet) -> None:
    """Two replicas take all eight cores; when one dies, somebody else is waiting for its four already."""
    batches = [Batch("train", np.arange(first, first + 8)) for first in range(0, 64, 8)]
    with open_pool(classifier, {"train": images}, Resources("ray", replicas=2, cpus=4)) as pool:
        assert isinstance(pool, RayPool)
        undisturbed = pool.logits(None, batches)
        reserved = placement_group([{"CPU": 4}])
        doomed = pool.replicas()[0]
        ray.kill(doomed)
        assert reserved.wait(60)
        for _ in range(3):
            assert np.array_equal(pool.logits(None, batches), undisturbed)
        assert doomed not in pool.replicas()
        assert len(pool.replicas()) == 2
        remove_placement_group(reserved)


def test_more_replicas_than_the_cluster_holds_are_refused(classifier: Classifier, images: ImageSet) -> None:
    with (
        pytest.raises(ConfigError, match=r"expected at most 8.*got 99"),
        open_pool(classifier, {"train": images}, Resources("ray", replicas=99)),
    ):
        pass


def _replica_processes() -> list[int]:
    """Return the processes of the replicas that this test's Ray runs."""
    children = psutil.Process().children(recursive=True)
    return [child.pid for child in children if "ray::Host" in " ".join(child.cmdline())]


@pytest.mark.parametrize("name", ["uint8", "jpeg:40", "resize:0.5+uint8"])
def test_replicas_render_to_the_same_bits(name: str, classifier: Classifier, images: ImageSet) -> None:
    rendering, v = parse_rendering(name), torch.full((1, *SIZE), 0.03)
    batches = in_turn("train", np.arange(100))
    answers = []
    for resources in (Resources("local"), Resources("ray", replicas=2)):
        with open_pool(classifier, {"train": images}, resources) as pool:
            answers.append([pool.logits(moved, batches, rendering) for moved in (None, v)])
    assert np.array_equal(answers[0], answers[1])
    assert not np.array_equal(*answers[0])
