"""The meta-heuristics, one interface for all: the border to pymoo. Knows no images and no classifier."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.soo.nonconvex.cmaes import SimpleCMAES
from pymoo.algorithms.soo.nonconvex.de import DE
from pymoo.algorithms.soo.nonconvex.ga import GA
from pymoo.algorithms.soo.nonconvex.pso import PSO
from pymoo.core.evaluator import Evaluator
from pymoo.core.problem import Problem
from pymoo.core.termination import NoTermination
from pymoo.problems.static import StaticProblem

Points = NDArray[np.float64]


class AskTell:
    """A search that asks for the values of points, and is told them.

    All chance comes from the seed: neither numpy's global state nor what else runs in the process has a part in it.
    """

    def __init__(self, algorithm: Any, dimension: int) -> None:
        self._problem = Problem(n_var=dimension, n_obj=1, xl=-1.0, xu=1.0)
        self._algorithm = algorithm.setup(self._problem, termination=NoTermination())
        self._asked: Any = None

    def ask(self) -> Points:
        """Return the next generation, ``(n, d)``."""
        self._asked = self._algorithm.ask()
        points: Points = np.asarray(self._asked.get("X"), dtype=np.float64)
        return points

    def tell(self, values: NDArray[np.float64]) -> None:
        """Say how good the points last asked for are, ``(n,)``; more is better."""
        Evaluator().eval(StaticProblem(self._problem, F=-values[:, None]), self._asked)
        self._algorithm.tell(infills=self._asked)

    @property
    def favourite(self) -> Points:
        """The best point told of, ``(d,)``; of ``cma-es`` the mean of its distribution."""
        if isinstance(self._algorithm, SimpleCMAES):
            return np.asarray(self._algorithm.es.mean, dtype=np.float64)
        return np.asarray(self._algorithm.opt[0].X, dtype=np.float64)


def searcher(rule: str, dimension: int, *, population: int, spread: float, seed: int) -> AskTell:
    """Return a search around zero.

    ``cma-es`` keeps the variance of each coordinate and no covariances (Ros & Hansen 2008): hundreds of
    dimensions have tens of thousands of covariances, too many for some dozens of generations to learn.

    Args:
        rule: ``cma-es``, ``pso``, ``de`` or ``ga``; the last three keep to the box [-1, 1].
        dimension: Of a point.
        population: Points of a generation.
        spread: Standard deviation of the first generation.
        seed: Equal seeds give equal bits.
    """
    rng = np.random.default_rng(seed)
    if rule == "cma-es":
        return _cma_es(dimension, population, spread, rng)
    first = np.clip(rng.normal(0, spread, (population, dimension)), -1, 1)
    if rule == "pso":
        return AskTell(PSO(pop_size=population, sampling=first, seed=seed), dimension)
    if rule == "de":
        return AskTell(DE(pop_size=population, sampling=first, seed=seed), dimension)
    return AskTell(GA(pop_size=population, sampling=first, eliminate_duplicates=False, seed=seed), dimension)


def _cma_es(dimension: int, population: int, spread: float, rng: np.random.Generator) -> AskTell:
    options = {
        "popsize": population,
        "CMA_diagonal": True,
        "randn": lambda *shape: rng.standard_normal(shape),  # its default is numpy's global state
        "verbose": -9,
    }
    algorithm = SimpleCMAES(x0=np.zeros(dimension), sigma=spread, normalize=False, opts=options)
    made = AskTell(algorithm, dimension)
    algorithm.opts |= {"seed": np.nan, "bounds": [None, None]}  # not a number: leaves the global state alone
    made.ask()
    made.tell(np.zeros(1))  # pymoo asks for the first mean, which is no perturbation at all
    return made
