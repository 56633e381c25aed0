"""The rate against the radius, and the zeta at which half is fooled.

One curve a classifier, norm and seed, for the price of about two searches.

    ray submit ray-cluster.yaml jobs/zeta_sweep.py -- --data s3://… --store s3://… --gpus 1
    python jobs/zeta_sweep.py --data "chest_xray_*.parquet" --store results/ --small --address local

The file stands alone: ``ray submit`` copies it, and nothing else, to the head, where uapray is installed. The
same command goes on where it stopped, however it stopped; what stands in the store is never done again.
"""

import sys

from uapray.cli.job import SPENT, Job

FULL = """
name: zeta-sweep
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
zetas: [0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08]
curve: true
seeds: [0, 1, 2]
"""

SMALL = """
name: zeta-sweep-small
data: [{uri: images.parquet, size: 64}]
classifiers:
  - {architecture: small-cnn, initial_weights: random, recipe: quick}
  - {architecture: tiny-cnn, initial_weights: random, recipe: quick}
  - {architecture: test_vit, initial_weights: random, recipe: {base: quick, learning_rate: 0.001, epochs: 20}}
zetas: [0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08]
curve: true
control_draws: 0
seeds: [0, 1, 2]
"""

CURVES = """
SELECT classifier, norm, seed, zeta50, zeta50_low, zeta50_high, zeta50_of_ceiling, image_gradients,
       [round(100 * rate, 1) FOR rate IN rates] AS "rates %"
FROM curves WHERE trial_id IN ({}) ORDER BY classifier, norm, seed
"""
TABLES = (CURVES, SPENT)

JOB = Job("zeta_sweep", "Measure how the fooling rate grows with zeta.", FULL, SMALL, tables=TABLES)

if __name__ == "__main__":
    sys.exit(JOB.main())
