"""Classifiers retrained against perturbations, judged by attacks they never saw (Hirano et al. 2021).

Claim (e): retraining rarely helps. Fresh perturbations, transferred ones, and a black box that tells masked gradients.

    ray submit ray-cluster.yaml jobs/hardening.py -- --data s3://… --store s3://… --gpus 1
    python jobs/hardening.py --data "chest_xray_*.parquet" --store results/ --small --address local

The file stands alone: ``ray submit`` copies it, and nothing else, to the head, where uapray is installed. The
same command goes on where it stopped, however it stopped; what stands in the store is never done again.
"""

import sys

from uapray.cli.job import RATES, SPENT, Job

FULL = """
name: hardening
data: [{uri: images.parquet, size: 299}]
classifiers:
  - architecture: inception_v3
    hardened: &both
      - none
      - {method: retraining, rounds: 5, perturbations: 10}
      - {method: universal-training}
  - {architecture: vgg16, hardened: *both}
  - {architecture: vgg19, hardened: *both}
  - {architecture: resnet50, hardened: *both}
  - {architecture: inception_resnet_v2, hardened: *both}
  - {architecture: densenet121, hardened: *both}
  - {architecture: densenet169, hardened: *both}
rules: [aimed-ascent, {rule: hill-climb, budget: {max_image_queries: 1000000}}]
transfer: true
seeds: [0, 1, 2]
"""

SMALL = """
name: hardening-small
data: [{uri: images.parquet, size: 64}]
classifiers:
  - architecture: small-cnn
    initial_weights: random
    recipe: quick
    hardened:
      - none
      - {method: retraining, rounds: 3, perturbations: 5, recipe: {optimizer: adamw}}
      - {method: universal-training, recipe: {optimizer: adamw, epochs: 10}}
rules: [aimed-ascent, {rule: hill-climb, budget: {max_image_queries: 20000}}]
transfer: true
control_draws: 0
seeds: [0, 1, 2]
"""

ROUNDS = """
SELECT classifier, round, norm, zeta, coalesce(target, 'nontargeted') AS target, split,
       round(100 * clean_accuracy, 1) AS "accuracy %",
       round(100 * fooling_rate_before, 1) AS "fooling before %",
       round(100 * fooling_rate, 1) AS "fooling after %",
       round(100 * known_fooling_rate, 1) AS "of those trained with %"
FROM hardening ORDER BY classifier, round
"""
TABLES = (ROUNDS, RATES, SPENT)

JOB = Job("hardening", "Harden classifiers and attack them again.", FULL, SMALL, tables=TABLES)

if __name__ == "__main__":
    sys.exit(JOB.main())
