"""One run: the chest X-ray evaluation of the papers, from images to rows in a store.

    ray submit ray-cluster.yaml jobs/chest_xray.py -- --data s3://… --store s3://… --gpus 1
    ray job submit --working-dir . -- python jobs/chest_xray.py --data s3://… --store s3://… --gpus 1
    python jobs/chest_xray.py --data "phantom:chest" --store results/ --small

The file stands alone: ``ray submit`` copies it, and nothing else, to the head, where uapray is installed. The
same command goes on where it stopped, however it stopped; what stands in the store is never done again.
Exit code: 0 all stands, 1 some of it failed, 2 the request cannot be served, 130 it was asked to stop.
"""

import sys

from uapray.cli.job import Job

FULL = """
name: chest-xray
data: [{uri: chest_xray.parquet, size: 299}]
classifiers:
  - architecture: inception_v3
  - architecture: vgg16
  - architecture: vgg19
  - architecture: resnet50
  - architecture: inception_resnet_v2
  - architecture: densenet121
  - architecture: densenet169
norms: [linf, l2]
zetas: [0.04]
targets: [nontargeted, all]
rules: [aimed-ascent]
seeds: [0, 1, 2]
"""

SMALL = """
name: chest-xray-small
data: [{uri: chest_xray.parquet, size: 96}]
classifiers:
  - {architecture: small-cnn, initial_weights: random, recipe: quick}
norms: [linf]
zetas: [0.04]
targets: [nontargeted, all]
rules: [aimed-ascent]
seeds: [0]
"""

JOB = Job(
    "chest_xray", "Attack chest X-ray classifiers with one perturbation for all images, into a store.", FULL, SMALL
)

if __name__ == "__main__":
    sys.exit(JOB.main())
