"""The table of rates: searches beside their control, the mean over seeds."""

from dataclasses import dataclass

from uapray.query import query
from uapray.store.results import Results
from uapray.trials_sql import each_trial


@dataclass(frozen=True, slots=True)
class RateRow:
    """One setting judged on one split; rates are means over searches, columns as in table ``trials``.

    Attributes:
        xi_from: Whose mean norm zeta is a share of where that is not the usual one, else None.
        source: What the perturbations were made from where that tells rows apart, else None.
        step_grey: Length of one step in grey levels where the step is all that tells rows apart, else None.
        fooling_rate_low: Mean of the searches' lower Wilson limits.
        fooling_rate_high: Mean of the searches' upper Wilson limits.
        fooling_rate_min: Of the searches.
        fooling_rate_max: Of the searches.
        dominant_labels: Of the searches, each once.
        searches: How many were averaged.
        seeds: How many seeds they had.
        control: Mean fooling rate of the random draws of the same setting; None if there is none.
        control_min: Of the draws.
        control_max: Of the draws.
        control_targeted: Their mean targeted success rate.
        control_targeted_non_target: The same of images not predicted as the target when clean.
        draws: How many random draws there are.
    """

    data: str
    classifier: str
    classifier_sha256: str
    made_on: str | None
    split: str
    norm: str
    zeta: float | None
    xi_from: str | None
    xi_grey: float
    target: str | None
    rule: str
    source: str | None
    step_grey: float | None
    images: int
    fooling_rate: float | None
    fooling_rate_low: float | None
    fooling_rate_high: float | None
    fooling_rate_min: float | None
    fooling_rate_max: float | None
    fooling_rate_ceiling: float | None
    control: float | None
    control_min: float | None
    control_max: float | None
    draws: int
    targeted_success_rate: float | None
    targeted_success_rate_non_target: float | None
    control_targeted: float | None
    control_targeted_non_target: float | None
    clean_accuracy: float
    robust_accuracy: float
    dominant_labels: list[str]
    ssim: float | None
    image_gradients: float
    searches: int
    seeds: int

    @property
    def is_control(self) -> bool:
        """Whether it is the control itself, for want of a search in that setting."""
        return self.rule == "random"

    @property
    def reaches_control(self) -> bool:
        """Whether the interval reaches down to the mean of the control."""
        return self.control is not None and self.fooling_rate_low is not None and self.fooling_rate_low <= self.control


def rates(results: Results, grid: str | None) -> list[RateRow]:
    """Return the rows of the table, in order."""
    return [RateRow(**row) for row in query(results, rates_sql(grid)).to_pylist()]


def rates_sql(grid: str | None) -> str:
    """Return the SQL that gives the table.

    The control of a row is looked for in all grids: a draw that stands is not drawn again for another grid.
    """
    return f"""\
WITH each AS (
  {each_trial(grid)}
), searches AS (
  SELECT data, classifier, classifier_sha256, made_on, setting, split, norm, zeta, target, rule, source,
    round(epsilon / xi, 9) AS step_share, images, avg(xi) AS xi, avg(xi_grey) AS xi_grey,
    avg(fooling_rate) AS fooling_rate,
    avg(fooling_rate_low) AS fooling_rate_low, avg(fooling_rate_high) AS fooling_rate_high,
    min(fooling_rate) AS fooling_rate_min, max(fooling_rate) AS fooling_rate_max,
    avg(fooling_rate_ceiling) AS fooling_rate_ceiling, avg(targeted_success_rate) AS targeted_success_rate,
    avg(targeted_success_rate_non_target) AS targeted_success_rate_non_target,
    avg(clean_accuracy) AS clean_accuracy, avg(robust_accuracy) AS robust_accuracy,
    coalesce(list_sort(list(DISTINCT dominant_label) FILTER (dominant_label IS NOT NULL)), []) AS dominant_labels,
    avg(ssim) AS ssim, avg(image_gradients) AS image_gradients,
    count(*) AS searches, count(DISTINCT seed) AS seeds
  FROM each GROUP BY ALL
), draws AS (
  {each_trial(None)}
), control AS (
  SELECT setting, split, images, count(*) AS draws,
    avg(fooling_rate) AS control, min(fooling_rate) AS control_min, max(fooling_rate) AS control_max,
    avg(targeted_success_rate) AS control_targeted,
    avg(targeted_success_rate_non_target) AS control_targeted_non_target
  FROM draws WHERE rule = 'random' GROUP BY ALL
)
SELECT data, classifier, classifier_sha256, made_on, split, norm, zeta, setting.xi_from AS xi_from, xi_grey, target,
  rule,
  CASE WHEN count(DISTINCT source) OVER (PARTITION BY data, setting, split, images, rule, made_on) > 1 THEN source END
    AS source,
  CASE WHEN count(*) OVER (PARTITION BY data, setting, split, images, rule, made_on, source) > 1
    THEN xi_grey * step_share END AS step_grey,
  images, fooling_rate, fooling_rate_low, fooling_rate_high, fooling_rate_min, fooling_rate_max, fooling_rate_ceiling,
  control, control_min, control_max, coalesce(draws, 0) AS draws,
  targeted_success_rate, targeted_success_rate_non_target, control_targeted, control_targeted_non_target,
  clean_accuracy, robust_accuracy, dominant_labels, ssim, image_gradients, searches, seeds
FROM searches LEFT JOIN control USING (setting, split, images)
QUALIFY rule <> 'random' OR count(*) FILTER (rule <> 'random') OVER (PARTITION BY data, setting, split, images) = 0
ORDER BY data, classifier, classifier_sha256, split, images DESC, norm, zeta NULLS LAST, setting.xi_from NULLS FIRST,
  xi, target NULLS FIRST, rule, made_on, searches.source, step_share"""
