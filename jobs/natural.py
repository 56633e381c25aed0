"""Perturbations made from natural images (Minagi et al. 2022), beside those from the classifier's own kind.

Claim (f): they do more than random ones, and less than those from own images. ``photographs`` and ``others`` are two
kinds of sources; one that is not given is left out.

    ray submit ray-cluster.yaml jobs/natural.py -- --data s3://… --store s3://… --gpus 1 \
        --source photographs=natural.parquet
    python jobs/natural.py --data "chest_xray_*.parquet" --store results/ --small --address local \
        --source photographs=natural.parquet

The file stands alone: ``ray submit`` copies it, and nothing else, to the head, where uapray is installed. The
same command goes on where it stopped, however it stopped; what stands in the store is never done again.
"""

import sys

from uapray.cli.job import Job

FULL = """
name: natural
data: [{uri: images.parquet, size: 299}]
classifiers:
  - architecture: inception_v3
  - architecture: vgg16
  - architecture: vgg19
  - architecture: resnet50
  - architecture: inception_resnet_v2
  - architecture: densenet121
  - architecture: densenet169
sources:
  - {}
  - {uri: photographs.parquet, name: photographs}
  - {uri: others.parquet, name: others}
norms: [linf, l2]
targets: [nontargeted, all]
seeds: [0, 1, 2]
"""

SMALL = """
name: natural-small
data: [{uri: images.parquet, size: 64}]
classifiers:
  - {architecture: small-cnn, initial_weights: random, recipe: quick}
  - {architecture: tiny-cnn, initial_weights: random, recipe: quick}
  - {architecture: test_vit, initial_weights: random, recipe: {base: quick, learning_rate: 0.001, epochs: 20}}
sources:
  - {}
  - {uri: photographs.parquet, name: photographs}
  - {uri: others.parquet, name: others}
control_draws: 0
seeds: [0, 1, 2]
"""

JOB = Job("natural", "Make perturbations from other images than those judged.", FULL, SMALL)

if __name__ == "__main__":
    sys.exit(JOB.main())
