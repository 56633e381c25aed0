"""From a grid to the steps that lead there."""

import hashlib
import math
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

from uapray import objects
from uapray.clinical import Roles
from uapray.config import BLACK_BOX, FP32, Arithmetic, Norm, Search, Threat
from uapray.coordinator import legs_of
from uapray.curves import walk_order
from uapray.data.dataset import ATTACKER, DataSet, open_data, with_attacker, with_source
from uapray.data.images import ImageSet
from uapray.errors import ConfigError
from uapray.grid import ALL_CLASSES, NONE, NONTARGETED, ClassifierEntry, DataEntry, Grid, SourceEntry
from uapray.models import foreign
from uapray.models.hardening import Hardening
from uapray.models.recipe import Recipe
from uapray.models.tensors import hash_tensors
from uapray.models.zoo import canonical
from uapray.pace import pace_of
from uapray.records import CanonicalJson, canonical_json, key_of
from uapray.rendering import Rendering, parse_rendering
from uapray.rounds import how_many_starts
from uapray.trial import class_index


@dataclass(frozen=True, eq=False)
class Source:
    """A data set at a size.

    Attributes:
        name: How results call it.
        data: The opened file.
        size: Height and width in pixels; None: as stored.
        attacker_share: Share of the test images that are the split ``attacker``.
        roles: What its classes mean to a clinician; no part of the key.
        foreign: Other data sets that perturbations are made from, and the split of each, by the name that it has here.
    """

    name: str
    data: DataSet
    size: tuple[int, int] | None
    attacker_share: float = 0.0
    roles: Roles = field(default_factory=Roles)
    foreign: Mapping[str, tuple[DataSet, str]] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """Key of the images: content, names of the classes, size, and what the attacker has of them."""
        content = {"sha256": self.data.sha256, "class_names": list(self.data.class_names), "size": self.size}
        return key_of("data", content | ({"attacker_share": self.attacker_share} if self.attacker_share else {}))

    @cached_property
    def dealt(self) -> DataSet:
        """The data set, with the attacker's split if he has one, and the splits that come from others."""
        dealt = with_attacker(self.data, self.attacker_share) if self.attacker_share else self.data
        for name, (other, split) in self.foreign.items():
            dealt = with_source(dealt, name, other, split)
        return dealt

    def images(self, split: str) -> ImageSet:
        """Decode a split."""
        return self.dealt.images(split, self.size)

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """How many images each split has, without decoding."""
        return Counter(self.dealt.table["split"].to_pylist())


@dataclass(frozen=True)
class MadeFrom:
    """What a perturbation is made from, where that is not all of the usual split.

    Attributes:
        split: Of the judged data set's images and of those that came to it; None: the usual one.
        images: How many, in an order drawn from the seed; None: all.
        name: How results call it; None: after the data set and the split.
        content: Hash of the other data set and name of its split; None: the judged data set.
    """

    split: str | None = None
    images: int | None = None
    name: str | None = None
    content: tuple[str, str] | None = None

    def identity(self) -> CanonicalJson | None:
        """Return what decides a search's result; None: nothing beside the usual."""
        split = None if self.content else self.split
        values = {"split": split, "images": self.images, "content": self.content and list(self.content)}
        return canonical_json(values) if any(values.values()) else None


@dataclass(frozen=True, eq=False)
class TrainStep:
    """A classifier to be trained."""

    source: Source
    architecture: str
    initial_weights: str
    recipe: Recipe
    seed: int

    @cached_property
    def key(self) -> str:
        """Key of the classifier that comes out."""
        return key_of(
            "train",
            {
                "data": self.source.key,
                "architecture": self.architecture,
                "initial_weights": _initial_key(self.initial_weights),
                "recipe": self.recipe.model_dump(mode="json"),
                "seed": self.seed,
            },
        )


@dataclass(frozen=True, eq=False)
class HardenStep:
    """A round of hardening.

    Attributes:
        base: The classifier that it begins with: of the round before, or as it was.
        source: The data set whose split ``train`` it is trained on.
        settings: How.
        round: Which one, from 1.
    """

    base: "Victim"
    source: Source
    settings: Hardening
    round: int

    @cached_property
    def key(self) -> str:
        """Key of the classifier that comes out."""
        return key_of(
            "harden",
            {
                "classifier": self.base.bare_key,
                "data": self.source.key,
                "settings": self.settings.identity(),
                "rule": _identity(self.settings.rule, self.settings.norm),
                "round": self.round,
            },
        )

    @property
    def threat(self) -> Threat:
        """What the perturbations may be and are to do."""
        return Threat(norm=self.settings.norm, zeta=self.settings.zeta, target=self.settings.target)


@dataclass(frozen=True, eq=False)
class Victim:
    """A classifier to be attacked: trained by a step of the plan, or there already.

    Attributes:
        name: How results call it.
        train: Step that trains it; None: it is there.
        reference: Where it is.
        filter: What images go through before it is asked; None: nothing.
        hardened: The last round of its hardening after that; None: it is not hardened.
    """

    name: str
    train: TrainStep | None
    reference: str | None
    filter: Rendering | None = None
    hardened: HardenStep | None = None

    @cached_property
    def key(self) -> str:
        """Key of the classifier with its filter."""
        if self.filter is None:
            return self.bare_key
        return key_of("filtered", {"classifier": self.bare_key, "filter": str(self.filter)})

    @property
    def learnt_on(self) -> str | None:
        """Key of the data set that it is trained or hardened on in this plan; None: on none."""
        if self.hardened is not None:
            return self.hardened.source.key
        return None if self.train is None else self.train.source.key

    @property
    def recipe(self) -> Recipe | None:
        """How it is trained or, in the last round of its hardening, trained on; None: it is there."""
        if self.hardened is not None:
            return self.hardened.settings.recipe
        return None if self.train is None else self.train.recipe

    @property
    def hardening(self) -> str | None:
        """Method and rounds of its hardening; None: it is not hardened."""
        return None if self.hardened is None else f"{self.hardened.settings.method}:{self.hardened.round}"

    @property
    def undefended(self) -> "Victim":
        """The classifier before its first round of hardening; itself if it is not hardened."""
        return self if self.hardened is None else self.hardened.base.undefended

    @cached_property
    def bare_key(self) -> str:
        """Key of the classifier without its filter: of the step that makes it, or of its file's content."""
        if self.hardened is not None:
            return self.hardened.key
        if self.train is not None:
            return self.train.key
        assert self.reference is not None
        return key_of("file", {"content": _content(self.reference)})


@dataclass(frozen=True, eq=False)
class TrialStep:
    """A perturbation to be made on a classifier and judged on splits.

    Attributes:
        victim: The classifier.
        source: The data set.
        threat: What the perturbation may be and is to do.
        search: How to look for it.
        seed: Of the search.
        splits: On which it is judged.
        arithmetic: How replicas are to take gradients.
        renderings: Under which it is judged once more.
        control_draws: Draws of each kind of matched control that it is judged beside; 0 for none.
        control_images: Images these are judged on at most.
        continued_from: Trial whose perturbation the search begins at, brought to this radius; None: it begins anew.
        rest_of_curve: The trials before it in its curve over zeta, if this one is the last, which writes the row.
        made_from: Images that it is made from.
    """

    victim: Victim
    source: Source
    threat: Threat
    search: Search
    seed: int
    splits: tuple[str, ...]
    arithmetic: Arithmetic = FP32
    renderings: tuple[Rendering, ...] = ()
    control_draws: int = 0
    control_images: int = 128
    continued_from: "TrialStep | None" = None
    rest_of_curve: tuple["TrialStep", ...] = ()
    made_from: MadeFrom = MadeFrom()

    @property
    def made_on(self) -> str:
        """Split that the perturbation is made on: black-box rules know none of the classifier's training images."""
        return self.made_from.split or (ATTACKER if self.search.rule in BLACK_BOX else "train")

    @property
    def measured_on(self) -> str:
        """Split whose mean norm makes zeta a radius: that it is made on, but never images of another kind or number."""
        return self.made_on if self.made_from.identity() is None else "train"

    @property
    def source_name(self) -> str:
        """What results call the images that it is made from."""
        name = self.made_from.name or f"{self.source.name}/{self.made_on}"
        return name if self.made_from.images is None else f"{name}[{self.made_from.images}]"

    @property
    def gradients_in(self) -> Arithmetic | None:
        """How the gradients of the search are taken; None: it takes none."""
        return self.search.gradients_in(self.arithmetic)

    @cached_property
    def trial_id(self) -> str:
        """Key of the perturbation."""
        described: dict[str, Any] = {
            "classifier": self.victim.key,
            "data": self.source.key,
            "threat": _plain(self.threat),
            "search": _identity(self.search, self.threat.norm),
            "seed": self.seed,
        }
        if self.gradients_in not in (None, FP32):
            described["gradients_in"] = str(self.gradients_in)
        if (made_from := self.made_from.identity()) is not None:
            described["made_from"] = made_from
        if self.continued_from is not None:
            described["continued_from"] = self.continued_from.trial_id
            described["refine_epochs"] = self.search.refine_epochs
        return key_of("trial", described)

    def row_keys(self, judged: Victim | None = None) -> tuple[str, ...]:
        """Return the keys of the rows of ``trials``, one a split; a row in the store is a judgement done.

        Args:
            judged: Another classifier that it is judged on; None: that it was made on.
        """
        where = "" if judged is None else f"-on-{judged.key}"
        return tuple(f"{self.trial_id}{where}-{split}" for split in self.splits)

    def rendering_keys(self, split: str) -> dict[Rendering, str]:
        """Return the key of each rendering's row: a trial judged before gets those that it has not."""
        return {one: f"{self.trial_id}-{split}-{one}" for one in self.renderings}

    def controls_key(self, split: str) -> str | None:
        """Return the key of the rows of ``controls``, which says how many draws and images; None: none are asked."""
        if not self.control_draws or self.search.rule == "random":
            return None
        return f"{self.trial_id}-{split}-{self.control_draws}x{self.control_images}"

    def curve(self) -> tuple["TrialStep", ...]:
        """Return the trials of the curve that this one is the last of, zetas rising; none if it is of none."""
        trials = (*self.rest_of_curve, self) if self.rest_of_curve else ()
        return tuple(sorted(trials, key=lambda trial: trial.threat.zeta or 0.0))

    def curve_key(self, split: str) -> str | None:
        """Return the key of the row of ``curves``; None: this trial is not the last of a curve."""
        ids = [trial.trial_id for trial in self.curve()]
        return f"{key_of('curve', {'trials': ids})}-{split}" if ids else None

    def judgements(self) -> frozenset[tuple[str, str]]:
        """Return table and key of everything that is to stand in the store."""
        rows = {("trials", key) for key in self.row_keys()}
        for split in self.splits:
            rows |= {("renderings", key) for key in self.rendering_keys(split).values()}
            if (key := self.controls_key(split)) is not None:
                rows.add(("controls", key))
            if (key := self.curve_key(split)) is not None:
                rows.add(("curves", key))
        return frozenset(rows)

    def image_gradients(self) -> int:
        """Estimate what the search will spend."""
        search = self.search if self.continued_from is None else self.search.refinement()
        classes, count = len(self.source.data.class_names), self.source.counts[self.made_on]
        count = min(count, self.made_from.images or count)
        return _image_gradients(search, count, classes, targeted=self.threat.target is not None)


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
        return tuple(trial for trial in trials if not trial.judgements() <= standing)

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
    foreign = {
        _source_name(entry): (opened(resolve(entry.uri, base)), entry.split or "train")
        for entry in grid.sources
        if entry.uri is not None
    }
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
                (norm, target): [Threat(norm=norm, zeta=zeta, target=target) for zeta in dict.fromkeys(grid.zetas)]
                for norm, target in product(grid.norms, targets)
            }
            for norm, target, search, made_from, seed in product(
                grid.norms, targets, grid.searches(), makings, grid.seeds
            ):
                where = MadeFrom() if search.rule == "random" else made_from  # drawn from nothing
                _check_making(source, where)
                threats = threats_of[norm, target]
                apart = [
                    TrialStep(victims[victim.key], source, threat, search, seed, made_from=where, **judging)
                    for threat in threats
                ]
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


def _made_from(entry: SourceEntry, foreign: Mapping[str, tuple[DataSet, str]]) -> MadeFrom:
    if entry.uri is None:
        return MadeFrom(entry.split, entry.images, entry.name)
    name = _source_name(entry)
    data, split = foreign[name]
    return MadeFrom(name, entry.images, name, (data.sha256, split))


def _check_making(source: Source, made_from: MadeFrom) -> None:
    if made_from.split is not None and made_from.split not in source.counts:
        came = ", ".join(source.dealt.splits())
        raise ConfigError(f"sources: expected one of the splits {came} of {source.name}, got '{made_from.split}'")
    count = source.counts[made_from.split or "train"]
    if (made_from.images or 0) > count:
        raise ConfigError(f"sources: expected at most {count} images, which is all there are, got {made_from.images}")


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
    """Yield a classifier as it is and hardened, each behind each filter."""
    for hardening in entry.hardened:
        victim = bare if hardening is None else _hardened(bare, hardening, source)
        for text in entry.filters:
            if text == NONE:
                yield victim
            else:
                yield replace(victim, name=f"{victim.name}+{text}", filter=parse_rendering(text))


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


def _initial_key(initial: str) -> str:
    return initial if initial in ("random", "pretrained") else _content(initial)


def _content(reference: str) -> str:
    """Return what stands for a classifier's content: the hash of a file, or of the weights a function returns."""
    if foreign.is_reference(reference):
        return hash_tensors(foreign.call(reference).state_dict(), reference)
    return key_of("bytes", {"hex": _sha256(objects.read_uri(reference))})


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@lru_cache
def _image_gradients(search: Search, images: int, classes: int, *, targeted: bool) -> int:
    """Estimate what a search will spend."""
    budget = search.budget
    if search.rule == "random" or search.rule in BLACK_BOX:
        return 0
    if search.max_epochs == math.inf:
        return budget.max_image_gradients or 0
    starts, _ = how_many_starts(search, classes, targeted=targeted)
    pace = pace_of(int(images - min(images * search.validation_share, search.max_validation_images)), search)
    rounds = sum(leg.starts * leg.rounds for leg in legs_of(pace, search, starts))
    return min(rounds * pace.round_size, budget.max_image_gradients or 2**62)


@lru_cache
def _plain(threat: Threat) -> CanonicalJson:
    return canonical_json(threat.model_dump(mode="json"))


@lru_cache
def _identity(search: Search, norm: Norm) -> CanonicalJson:
    """Return the settings that decide a search's result, the rule's own among them; a control has none."""
    if search.rule == "random":
        return canonical_json({"rule": search.rule})
    described = search.model_dump(mode="json", exclude={"refine_epochs"})
    limit = None if search.max_epochs == math.inf else search.max_epochs
    budget = {**described["budget"], "max_epochs": limit}
    resolved: dict[str, Any] = {"step_size": search.first_step(norm), "budget": budget}
    if limit is not None:  # else a step that falls with the budget falls with image-gradients by the number of images
        resolved["step_decay"] = search.decay()
    return canonical_json({**described, **resolved})
