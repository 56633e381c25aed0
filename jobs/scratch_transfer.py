"""Classifiers trained from scratch beside those that began with weights of natural images.

Claim (g): those from scratch are fooled less, and more than by chance (Minagi et al. 2022).

    ray submit ray-cluster.yaml jobs/scratch_transfer.py -- --data s3://… --store s3://… --gpus 1
    python jobs/scratch_transfer.py --data "chest_xray_*.parquet" --store results/ --small --address local \
        --weights efficientnet_lite0.safetensors

Where there is no hub, ``--weights`` is a file (docs/classifiers.md: ImageNet weights without the hub).

The file stands alone: ``ray submit`` copies it, and nothing else, to the head, where uapray is installed. The
same command goes on where it stopped, however it stopped; what stands in the store is never done again.
"""

import sys

from uapray.cli.job import Job

FULL = """
name: scratch-transfer
data: [{uri: images.parquet, size: 299}]
classifiers:
  - {architecture: inception_v3, initial_weights: random}
  - {architecture: inception_v3, initial_weights: pretrained}
  - {architecture: vgg16, initial_weights: random}
  - {architecture: vgg16, initial_weights: pretrained}
  - {architecture: vgg19, initial_weights: random}
  - {architecture: vgg19, initial_weights: pretrained}
  - {architecture: resnet50, initial_weights: random}
  - {architecture: resnet50, initial_weights: pretrained}
  - {architecture: inception_resnet_v2, initial_weights: random}
  - {architecture: inception_resnet_v2, initial_weights: pretrained}
  - {architecture: densenet121, initial_weights: random}
  - {architecture: densenet121, initial_weights: pretrained}
  - {architecture: densenet169, initial_weights: random}
  - {architecture: densenet169, initial_weights: pretrained}
norms: [linf, l2]
seeds: [0, 1, 2]
"""

SMALL = """
name: scratch-transfer-small
data: [{uri: images.parquet, size: 64}]
classifiers:
  - {architecture: tf_efficientnet_lite0, initial_weights: random, name: random, recipe: {base: quick, epochs: 8}}
  - {architecture: tf_efficientnet_lite0, initial_weights: pretrained, name: pretrained,
     recipe: {base: quick, epochs: 8}}
control_draws: 0
seeds: [0, 1, 2]
"""

JOB = Job("scratch_transfer", "Attack classifiers that began at random and at pretrained weights.", FULL, SMALL)

if __name__ == "__main__":
    sys.exit(JOB.main())
