"""From a grid to the steps that lead there."""

import os
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product
from typing import Any

import numpy as np

from uapray.clinical import Roles
from uapray.config import Threat
from uapray.curves import walk_order
from uapray.data.dataset import DataSet, open_data
from uapray.data.images import chosen_images, class_index
from uapray.errors import ConfigError
from uapray.grid import ALL_CLASSES, NONE, NONTARGETED, ClassifierEntry, DataEntry, Grid, SourceEntry
from uapray.models import foreign
from uapray.models.hardening import Hardening
from uapray.models.zoo import canonical
from uapray.rendering import parse_rendering
from uapray.sources import USUAL_IMAGES, Foreign, MadeFrom, Source
from uapray.steps import TrialStep
from uapray.victims import HardenStep, InterpolateStep, TrainStep, Victim


@dataclass(frozen=True, eq=False)
class Plan:
    """The steps of a grid, or of a part of it, in the order in which they are named.

    Attributes:
        grid: What is wanted.
        victims: The classifiers.
        trials: The searches on them.
        share: Which part it is, and of how many.
    """

    grid: Grid
    victims: tuple[Victim, ...]
    trials: tuple[TrialStep, ...]
    share: tuple[int, int] = (1, 1)

    def missing(self, trials: Sequence[TrialStep], standing: Set[tuple[str, str]]) -> tuple[TrialStep, ...]:
        """Return the trials of which a judgement, by table and key, is not among those that stand."""
        return tuple(trial for trial in trials if not all(one in standing for one in trial.judgements()))

    def transfers(self, standing: Set[tuple[str, str]]) -> Iterator[tuple[Victim, Source, tuple[TrialStep, ...]]]:
        """Yield the perturbations that are to be judged on a classifier they were not made on, where that is missing.

        Those of ``random`` are made on none: each classifier has its own draws.
        """
        if not self.grid.transfer:
            return
        for source in {trial.source.key: trial.source for trial in self.trials}.values():
            made = [trial for trial in self.trials if trial.source.key == source.key and trial.search.rule != "random"]
            for victim in self.victims:
                if victim.learnt_on not in (None, source.key):
                    continue
                left = tuple(
                    trial
                    for trial in made
                    if trial.victim.key != victim.key
                    and not {("trials", key) for key in trial.row_keys(victim)} <= standing
                )
                if left:
                    yield victim, source, left

    @cached_property
    def count(self) -> int:
        """How many perturbations × classifiers are to be judged."""
        return len(self.trials) + sum(len(trials) for _, _, trials in self.transfers(frozenset()))

    def to_do(self, standing: Set[tuple[str, str]]) -> int:
        """Return how many of them are missing."""
        return len(self.missing(self.trials, standing)) + sum(len(one) for _, _, one in self.transfers(standing))

    def part(self, number: int, of: int) -> "Plan":
        """Return the ``number``-th of so many parts, counted from 1: each trial is in one, a curve whole.

        Parts are runs of neighbours, so that few classifiers belong to two of them.
        """
        together = chains(self.trials)
        first, last = (len(together) * (number - 1) // of, len(together) * number // of)
        mine = {trial.trial_id for chain in together[first:last] for trial in chain}
        trials = tuple(trial for trial in self.trials if trial.trial_id in mine)
        return replace(self, trials=trials, share=(number, of))

    def part_named(self, text: str | None) -> "Plan":
        """Return the part that a text such as ``3/8`` names, or all for None.

        Raises:
            ConfigError: If it names none.
        """
        if text is None:
            return self
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise ConfigError(f"--part: expected NUMBER/PARTS, from 1/8 to 8/8, got {text!r}")
        return self.part(int(number), int(of))

    def groups(self) -> Iterator[tuple[Victim, Source, tuple[TrialStep, ...]]]:
        """Yield the trials that share a classifier and a data set."""
        shared: dict[tuple[str, str], list[TrialStep]] = {}
        for trial in self.trials:
            shared.setdefault((trial.victim.key, trial.source.key), []).append(trial)
        for trials in shared.values():
            yield trials[0].victim, trials[0].source, tuple(trials)


def chains(trials: Sequence[TrialStep]) -> tuple[tuple[TrialStep, ...], ...]:
    """Return what runs one after another: the trials of a curve in their order, any other trial by itself."""
    last = {one.trial_id: trial.trial_id for trial in trials for one in trial.rest_of_curve}
    together: dict[str, list[TrialStep]] = {}
    for trial in trials:
        together.setdefault(last.get(trial.trial_id, trial.trial_id), []).append(trial)
    return tuple(map(tuple, together.values()))


def plan_grid(grid: Grid, *, base: str = "", opened: Callable[[str], DataSet] = open_data) -> Plan:
    """Work out the steps that a grid asks for; nothing is written.

    Args:
        grid: What is wanted.
        base: Folder that relative paths of the grid are relative to.
        opened: How a data set is opened.

    Raises:
        ConfigError: If a target is not a class, a split has no images, or two things have one name.
    """
    foreign = _foreign(grid, base, cache(opened))
    sources = [replace(_source(entry, grid.attackers, base, opened), foreign=foreign) for entry in grid.data]
    makings = [_made_from(entry, foreign) for entry in grid.sources]
    _check_names("sources", [(str((one.name or one.split, one.images)), str(one.content)) for one in makings])
    _check_names("data sets", [(source.name, source.key) for source in sources])
    victims: dict[str, Victim] = {}
    trials: dict[str, TrialStep] = {}
    judging: dict[str, Any] = {
        "splits": grid.splits,
        "arithmetic": grid.arithmetic,
        "renderings": tuple(map(parse_rendering, grid.renderings)),
        "control_draws": grid.control_draws,
        "control_images": grid.control_images,
    }
    for source in sources:
        _check_splits(source, ("train", *grid.splits))
        targets = _targets(grid.targets, source)
        named = list(_victims(grid.classifiers, source, base))
        _check_names("classifiers", [(victim.name, victim.key) for victim in named])
        for victim in named:
            victims.setdefault(victim.key, victim)
            threats_of = {
                (norm, xi_from, target): [
                    Threat(norm=norm, zeta=zeta, xi_from=xi_from, target=target) for zeta in dict.fromkeys(grid.zetas)
                ]
                for norm, xi_from, target in product(grid.norms, grid.xi_from, targets)
            }
            for norm, xi_from, target, search, made_from, seed in product(
                grid.norms, grid.xi_from, targets, grid.searches(), makings, grid.seeds
            ):
                from_nothing = search.rule == "random" and xi_from != "source-images"
                where = USUAL_IMAGES if from_nothing else made_from
                threats = threats_of[norm, xi_from, target]
                apart = [
                    TrialStep(victims[victim.key], source, threat, search, seed, made_from=where, **judging)
                    for threat in threats
                ]
                _check_making(apart[0])
                for trial in _as_curve(apart) if grid.curve else apart:
                    trials.setdefault(trial.trial_id, trial)
    return Plan(grid, tuple(victims.values()), tuple(trials.values()))


def _as_curve(trials: Sequence[TrialStep]) -> list[TrialStep]:
    """Return trials that differ in zeta alone as a curve, in the order in which each continues from its neighbour."""
    by_zeta = {trial.threat.zeta or 0.0: trial for trial in trials}
    curve: dict[float, TrialStep] = {}
    for zeta, neighbour in walk_order(sorted(by_zeta)):
        before = curve[neighbour] if neighbour is not None and by_zeta[zeta].search.continues else None
        curve[zeta] = replace(by_zeta[zeta], continued_from=before)
    *rest, last = curve.values()
    return [*rest, replace(last, rest_of_curve=tuple(rest))]


def resolve(uri: str, base: str) -> str:
    """Return a URI of a grid file as seen from here: relative paths are relative to the grid file."""
    if not base or os.path.isabs(uri) or ":" in uri.split("/")[0]:
        return uri
    scheme, sign, folder = base.rpartition("://")
    return scheme + sign + posixpath.normpath(posixpath.join(folder, uri))


def _source(entry: DataEntry, attackers: float, base: str, opened: Callable[[str], DataSet]) -> Source:
    data = opened(resolve(entry.uri, base))
    name, size = entry.name or data.name, None if entry.size is None else (entry.size, entry.size)
    return Source(name, data, size, attackers, _roles(entry, data))


def _roles(entry: DataEntry, data: DataSet) -> Roles:
    for name in (*([] if entry.healthy is None else [entry.healthy]), *entry.referable):
        if name not in data.class_names:
            expected = ", ".join(data.class_names)
            raise ConfigError(f"{data.name}: expected healthy and referable to be of {expected}, got '{name}'")
    healthy = None if entry.healthy is None else data.class_names.index(entry.healthy)
    return Roles(healthy, frozenset(map(data.class_names.index, entry.referable)))


def _source_name(entry: SourceEntry) -> str:
    """Return what a grid calls images of another data set, which is also the name of their split."""
    assert entry.uri is not None
    return f"{entry.name or _stem(entry.uri)}/{entry.split or 'train'}"


def _foreign(grid: Grid, base: str, opened: Callable[[str], DataSet]) -> dict[str, Foreign]:
    """Return the images of other data sets by the name of their split, all that some seed of the grid chooses."""
    entries: dict[str, list[SourceEntry]] = {}
    for entry in grid.sources:
        if entry.uri is not None:
            entries.setdefault(_source_name(entry), []).append(entry)
    found = {}
    for name, mine in entries.items():
        uris = list(dict.fromkeys(resolve(entry.uri or "", base) for entry in mine))
        _check_names("sources", [(name, uri) for uri in uris])
        whole = Foreign(opened(uris[0]), mine[0].split or "train")
        sizes = [whole.known if entry.images is None else min(entry.images, whole.known) for entry in mine]
        if max(sizes) < whole.known and name not in grid.splits:
            chosen = [chosen_images(whole.known, max(sizes), seed) for seed in grid.seeds]  # fewer are among them
            whole = replace(whole, chosen=np.unique(np.concatenate(chosen)))
        found[name] = whole
    return found


def _made_from(entry: SourceEntry, foreign: Mapping[str, Foreign]) -> MadeFrom:
    if entry.uri is None:
        return MadeFrom(entry.split, entry.images, entry.name)
    name = _source_name(entry)
    return MadeFrom(name, entry.images, name, (foreign[name].data.sha256, foreign[name].split))


def _check_making(trial: TrialStep) -> None:
    source, split, images = trial.source, trial.made_on, trial.made_from.images
    if split not in source.counts:
        came = ", ".join(source.dealt.splits())
        raise ConfigError(f"sources: expected one of the splits {came} of {source.name}, got '{split}'")
    if (images or 0) > (count := source.counts[split]):
        whose = "" if split == "train" else f" of {split}"
        raise ConfigError(f"sources: expected at most {count} images{whose}, which is all there are, got {images}")


def _check_names(what: str, named: Sequence[tuple[str, str]]) -> None:
    keys: dict[str, str] = {}
    for name, key in named:
        if keys.setdefault(name, key) != key:
            raise ConfigError(f"{what}: expected a name each, got two called '{name}'; tell them apart with 'name'")


def _check_splits(source: Source, splits: tuple[str, ...]) -> None:
    for split in splits:
        if split not in source.dealt.splits():
            raise ConfigError(f"{source.name}: expected a split '{split}', got {', '.join(source.dealt.splits())}")
        source.data.check_labels(split)


def _targets(names: tuple[str, ...], source: Source) -> list[str | None]:
    targets: list[str | None] = []
    for name in names:
        if name == ALL_CLASSES:
            targets.extend(source.data.class_names)
        else:
            targets.append(None if name == NONTARGETED else name)
    for target in targets:
        class_index(source.data.class_names, target)
    return list(dict.fromkeys(targets))


def _victims(entries: tuple[ClassifierEntry, ...], source: Source, base: str) -> Iterator[Victim]:
    for entry in entries:
        if entry.weights is not None:
            there = Victim(entry.name or _stem(entry.weights), None, resolve_reference(entry.weights, base))
            yield from _variants(entry, there, source)
            continue
        assert entry.architecture is not None
        initial = entry.initial_weights
        initial = initial if initial in ("random", "pretrained") else resolve(initial, base)
        for seed in entry.train_seeds:
            step = TrainStep(source, canonical(entry.architecture), initial, entry.recipe, seed)
            name = entry.name or f"{step.architecture}-{_stem(initial)}"
            yield from _variants(
                entry, Victim(name if len(entry.train_seeds) == 1 else f"{name}-{seed}", step, None), source
            )


def _variants(entry: ClassifierEntry, bare: Victim, source: Source) -> Iterator[Victim]:
    """Yield a classifier at each share of its training, as it is and hardened, each of these behind each filter."""
    for share, hardening in product(entry.tuned, entry.hardened):
        tuned = bare if share == 1 else _interpolated(bare, share)
        victim = tuned if hardening is None else _hardened(tuned, hardening, source)
        for text in entry.filters:
            if text == NONE:
                yield victim
            else:
                yield replace(victim, name=f"{victim.name}+{text}", filter=parse_rendering(text))


def _interpolated(trained: Victim, share: float) -> Victim:
    return replace(trained, name=f"{trained.name}+tuned:{share:g}", interpolated=InterpolateStep(trained, share))


def _hardened(bare: Victim, hardening: Hardening, source: Source) -> Victim:
    """Return a classifier after all rounds of a hardening, each of which begins with the one before."""
    class_index(source.data.class_names, hardening.target)
    name = hardening.name or f"{bare.name}+{hardening.method}"
    victim = bare
    for number in range(1, hardening.rounds + 1):
        victim = replace(bare, name=name, hardened=HardenStep(victim, source, hardening, number))
    return victim


def resolve_reference(reference: str, base: str) -> str:
    """Return a classifier's reference as seen from here; ``module:function`` stays as it is."""
    return reference if foreign.is_reference(reference) else resolve(reference, base)


def _stem(uri: str) -> str:
    return os.path.splitext(os.path.basename(uri))[0] or uri
