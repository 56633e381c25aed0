"""What queries share: the trials of a grid, once each, and what makes a setting."""

MADE_HERE = "coalesce(made_on, classifier) = classifier"
"""Of trials: judged on the classifier that the perturbation was made on, or made on none."""


def each_trial(grid: str | None) -> str:
    """Return the SELECT of the trials of a grid, or of all grids, with what makes the setting of each.

    Two grids that asked for the same judgement at the same time may both have written it; it counts once.
    Xi makes the setting only where no zeta does: the same zeta on other images is another xi. Where zeta is not a share
    of the usual norm, ``xi_from`` says of which, and of source images also which these are.

    ``success`` is the fooling rate, targeted the success on images not of the target when clean. It is a share of
    ``success_images``: from the table ``classes``, how many clean images were predicted as the target is known.
    """
    return f"""\
SELECT DISTINCT ON (trial_id, classifier_sha256, data_sha256, split) trials.*,
    {{'data': data_sha256, 'classifier': classifier_sha256, 'norm': norm, 'zeta': zeta,
     'xi': CASE WHEN zeta IS NULL THEN xi END, 'target': target,
     'xi_from': CASE xi_from WHEN 'whole-images' THEN NULL WHEN 'source-images' THEN 'source-images ' || source
       ELSE xi_from END}} AS setting,
    CASE WHEN target IS NULL THEN fooling_rate ELSE targeted_success_rate_non_target END AS success,
    images - CASE WHEN target IS NULL THEN 0 ELSE coalesce(round(natives), 0) END AS success_images
  FROM trials LEFT JOIN (  -- clean images predicted as a class: those of it that are, and those of others
    SELECT DISTINCT ON (trial_id, split, class_name) trial_id, split, class_name AS target,
      coalesce(sensitivity_clean, 0) * images
        + (1 - coalesce(specificity_clean, 1)) * (sum(images) OVER (PARTITION BY trial_id, split, grid) - images)
        AS natives
    FROM classes
  ) USING (trial_id, split, target){of_grid(grid)} ORDER BY finished_at DESC"""


def of_grid(grid: str | None) -> str:
    """Return the WHERE clause that keeps one grid, or nothing for all."""
    return "" if grid is None else f" WHERE grid = {quoted(grid)}"


def quoted(text: str) -> str:
    """Return a text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"
