"""What chance does: the random control and those matched to a perturbation, many draws.

Claim (a), with draws that share its norm, its signs' sizes, its values or its spectrum.

    ray submit ray-cluster.yaml jobs/controls.py -- --data s3://… --store s3://… --gpus 1
    python jobs/controls.py --data "chest_xray_*.parquet" --store results/ --small --address local

The file stands alone: ``ray submit`` copies it, and nothing else, to the head, where uapray is installed. The
same command goes on where it stopped, however it stopped; what stands in the store is never done again.
"""

import sys

from uapray.cli.job import SPENT, Job

FULL = """
name: controls
data: [{uri: images.parquet, size: 299}]
classifiers:
  - architecture: inception_v3
  - architecture: vgg16
  - architecture: vgg19
  - architecture: resnet50
  - architecture: inception_resnet_v2
  - architecture: densenet121
  - architecture: densenet169
norms: [linf, l2]
control_draws: 99
control_images: 512
seeds: [0, 1, 2]
"""

SMALL = """
name: controls-small
data: [{uri: images.parquet, size: 64}]
classifiers:
  - {architecture: small-cnn, initial_weights: random, recipe: quick}
norms: [linf, l2]
control_draws: 99
seeds: [0, 1, 2]
"""

CONTROLS = """
SELECT classifier, norm, kind, count(*) AS runs, any_value(draws) AS draws,
       round(100 * avg(c.fooling_rate), 1) AS "perturbation %",
       round(100 * avg(control_fooling_rate), 1) AS "draws %",
       round(100 * max(control_fooling_rate_max), 1) AS "best draw %",
       max(p_value) AS "largest p"
FROM (SELECT DISTINCT ON (trial_id, split, kind) * FROM controls ORDER BY draws DESC) c
  JOIN trials USING (trial_id, split)
WHERE trial_id IN ({}) AND made_on = classifier GROUP BY ALL ORDER BY ALL
"""
TABLES = (CONTROLS, SPENT)

JOB = Job("controls", "Hold perturbations against 99 draws of each matched control.", FULL, SMALL, tables=TABLES)

if __name__ == "__main__":
    sys.exit(JOB.main())
