"""The best perturbation of each setting: whose pictures and flows are shown."""

from dataclasses import dataclass, fields

from uapray.trials_sql import MADE_HERE, each_trial

MAX_SHOWN = 24


@dataclass(frozen=True, slots=True)
class Best:
    """The perturbation that did most in a setting, on the split it is shown on; columns as in ``trials``.

    Attributes:
        place: From 1, in the order of settings.
        places: How many there are.
    """

    place: int
    places: int
    trial_id: str
    split: str
    data: str
    data_sha256: str
    classifier: str
    made_on: str | None
    norm: str
    zeta: float | None
    xi_grey: float
    target: str | None
    rule: str
    seed: int
    fooling_rate: float | None
    targeted_success_rate: float | None


COLUMNS = ", ".join(field.name for field in fields(Best))


def best_sql(grid: str | None, table: str) -> str:
    """Return the WITH clause of ``best``: of each setting the best perturbation that has rows in a table.

    What was to be raised decides: the fooling rate, or the targeted success rate of non-targets. A split that
    the perturbation was not made on goes before ``train``, and every search before the control.
    """
    return f"""\
WITH each AS (
  {each_trial(grid)}
), chosen AS (
  SELECT * FROM (FROM each WHERE {MADE_HERE})
  SEMI JOIN {table} USING (trial_id, split)
  QUALIFY row_number() OVER (PARTITION BY data, setting ORDER BY rule = 'random', split = 'train',
    coalesce(targeted_success_rate_non_target, targeted_success_rate, fooling_rate) DESC NULLS LAST, seed, trial_id) = 1
), best AS (
  SELECT *, count(*) OVER () AS places, row_number() OVER (ORDER BY data, classifier, classifier_sha256, norm,
    zeta NULLS LAST, xi, target NULLS FIRST) AS place FROM chosen
)"""
