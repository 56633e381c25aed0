"""Black-box search and meta-heuristics at equal queries (Koga & Takemoto 2022), beside a white box.

Claim (i): who only sees the answers succeeds on 40 % and more. Made on test images of the attacker, judged on the rest.

    ray submit ray-cluster.yaml jobs/black_box.py -- --data s3://… --store s3://… --gpus 1
    python jobs/black_box.py --data "chest_xray_*.parquet" --store results/ --small --address local

The file stands alone: ``ray submit`` copies it, and nothing else, to the head, where uapray is installed. The
same command goes on where it stopped, however it stopped; what stands in the store is never done again.
"""

import sys

from uapray.cli.job import Job

FULL = """
name: black-box
data: [{uri: images.parquet, size: 299}]
classifiers:
  - architecture: inception_v3
  - architecture: resnet50
  - architecture: vgg16
norms: [linf, l2]
rules:
  - aimed-ascent
  - {rule: hill-climb, budget: {max_image_queries: 1000000}}
  - {rule: cma-es, budget: {max_image_queries: 1000000}}
  - {rule: pso, budget: {max_image_queries: 1000000}}
  - {rule: de, budget: {max_image_queries: 1000000}}
  - {rule: ga, budget: {max_image_queries: 1000000}}
seeds: [0, 1, 2]
"""

SMALL = """
name: black-box-small
data: [{uri: images.parquet, size: 64}]
classifiers:
  - {architecture: small-cnn, initial_weights: random, recipe: quick}
rules:
  - aimed-ascent
  - {rule: hill-climb, budget: {max_image_queries: 20000}}
  - {rule: cma-es, budget: {max_image_queries: 20000}}
  - {rule: pso, budget: {max_image_queries: 20000}}
  - {rule: de, budget: {max_image_queries: 20000}}
  - {rule: ga, budget: {max_image_queries: 20000}}
control_draws: 0
seeds: [0, 1, 2]
"""

JOB = Job("black_box", "Search for perturbations by predictions only.", FULL, SMALL)

if __name__ == "__main__":
    sys.exit(JOB.main())
