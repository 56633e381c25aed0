"""Nontargeted perturbations × architectures × norms (Hirano et al. 2021).

Claims (a) far above chance, (b) unseen images as those it was made from, (c) more than 80 %, (d) architectures alike.

    ray submit ray-cluster.yaml jobs/nontargeted.py -- --data s3://… --store s3://… --gpus 1
    python jobs/nontargeted.py --data "chest_xray_*.parquet" --store results/ --small --address local

The file stands alone: ``ray submit`` copies it, and nothing else, to the head, where uapray is installed. The
same command goes on where it stopped, however it stopped; what stands in the store is never done again.
"""

import sys

from uapray.cli.job import Job

FULL = """
name: nontargeted
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
seeds: [0, 1, 2]
"""

SMALL = """
name: nontargeted-small
data: [{uri: images.parquet, size: 64}]
classifiers:
  - {architecture: small-cnn, initial_weights: random, recipe: quick}
  - {architecture: tiny-cnn, initial_weights: random, recipe: quick}
  - {architecture: test_vit, initial_weights: random, recipe: {base: quick, learning_rate: 0.001, epochs: 20}}
norms: [linf, l2]
seeds: [0, 1, 2]
"""

JOB = Job("nontargeted", "Fool each classifier on as many images as possible, in both norms.", FULL, SMALL)

if __name__ == "__main__":
    sys.exit(JOB.main())
