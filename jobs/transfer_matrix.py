"""Made on one architecture, judged on another: the whole matrix.

Perturbations cost one search each; every other classifier costs forward passes only.

    ray submit ray-cluster.yaml jobs/transfer_matrix.py -- --data s3://… --store s3://… --gpus 1
    python jobs/transfer_matrix.py --data "chest_xray_*.parquet" --store results/ --small --address local

The file stands alone: ``ray submit`` copies it, and nothing else, to the head, where uapray is installed. The
same command goes on where it stopped, however it stopped; what stands in the store is never done again.
"""

import sys

from uapray.cli.job import Job

FULL = """
name: transfer-matrix
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
transfer: true
seeds: [0, 1, 2]
"""

SMALL = """
name: transfer-matrix-small
data: [{uri: images.parquet, size: 64}]
classifiers:
  - {architecture: small-cnn, initial_weights: random, recipe: quick}
  - {architecture: tiny-cnn, initial_weights: random, recipe: quick}
  - {architecture: test_vit, initial_weights: random, recipe: {base: quick, learning_rate: 0.001, epochs: 20}}
transfer: true
control_draws: 0
seeds: [0, 1, 2]
"""

JOB = Job("transfer_matrix", "Judge each perturbation on every other classifier.", FULL, SMALL)

if __name__ == "__main__":
    sys.exit(JOB.main())
