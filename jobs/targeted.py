"""Perturbations towards every class in turn (Hirano & Takemoto 2020, Hirano et al. 2021).

Claim (h): it works for each class.

    ray submit ray-cluster.yaml jobs/targeted.py -- --data s3://… --store s3://… --gpus 1
    python jobs/targeted.py --data "chest_xray_*.parquet" --store results/ --small --address local

The file stands alone: ``ray submit`` copies it, and nothing else, to the head, where uapray is installed. The
same command goes on where it stopped, however it stopped; what stands in the store is never done again.
"""

import sys

from uapray.cli.job import Job

FULL = """
name: targeted
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
targets: [all]
seeds: [0, 1, 2]
"""

SMALL = """
name: targeted-small
data: [{uri: images.parquet, size: 64}]
classifiers:
  - {architecture: small-cnn, initial_weights: random, recipe: quick}
  - {architecture: tiny-cnn, initial_weights: random, recipe: quick}
  - {architecture: test_vit, initial_weights: random, recipe: {base: quick, learning_rate: 0.001, epochs: 20}}
targets: [all]
control_draws: 0
seeds: [0, 1, 2]
"""

JOB = Job("targeted", "Bring each classifier to say each class in turn.", FULL, SMALL)

if __name__ == "__main__":
    sys.exit(JOB.main())
