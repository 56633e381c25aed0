"""Classifiers between pretrained and fine-tuned weights: how vulnerability changes with how far they have drifted.

Two doses of training: ``tuned``, the share of the way that the weights have gone, and ``frozen_blocks``, how many of
the first blocks stay as they were; a classifier from scratch beside them. Perturbations are made from images of the
classifier's own kind and from photographs, which are what the pretrained weights know.

    ray submit ray-cluster.yaml jobs/dose.py -- --data s3://… --store s3://… --gpus 1 --weights imagenet.npz \
        --source photographs=natural.parquet
    python jobs/dose.py --data "chest_xray_*.parquet" --store results/ --small --address local \
        --weights imagenet.npz --source photographs=natural.parquet

The file stands alone: ``ray submit`` copies it, and nothing else, to the head, where uapray is installed. The
same command goes on where it stopped, however it stopped; what stands in the store is never done again.
"""

import sys

from uapray.cli.job import SPENT, Job

FULL = """
name: dose
data: [{uri: images.parquet, size: 299}]
classifiers:
  - {architecture: inception_v3, tuned: &shares [0, 0.25, 0.5, 0.75, 1]}
  - {architecture: inception_v3, recipe: &four {base: papers, frozen_blocks: 4}, name: inception_v3-frozen-4}
  - {architecture: inception_v3, recipe: &eight {base: papers, frozen_blocks: 8}, name: inception_v3-frozen-8}
  - {architecture: inception_v3, recipe: &twelve {base: papers, frozen_blocks: 12}, name: inception_v3-frozen-12}
  - {architecture: inception_v3, initial_weights: random}
  - {architecture: vgg16, tuned: *shares}
  - {architecture: vgg16, recipe: *four, name: vgg16-frozen-4}
  - {architecture: vgg16, recipe: *eight, name: vgg16-frozen-8}
  - {architecture: vgg16, recipe: *twelve, name: vgg16-frozen-12}
  - {architecture: vgg16, initial_weights: random}
  - {architecture: resnet50, tuned: *shares}
  - {architecture: resnet50, recipe: *four, name: resnet50-frozen-4}
  - {architecture: resnet50, recipe: *eight, name: resnet50-frozen-8}
  - {architecture: resnet50, recipe: *twelve, name: resnet50-frozen-12}
  - {architecture: resnet50, initial_weights: random}
sources:
  - {}
  - {uri: photographs.parquet, name: photographs}
norms: [linf, l2]
seeds: [0, 1, 2]
"""

SMALL = """
name: dose-small
data: [{uri: images.parquet, size: 64}]
classifiers:
  - {architecture: 'torchvision:squeezenet1_0', initial_weights: pretrained, name: pretrained,
     tuned: [0, 0.25, 0.5, 0.75, 1], recipe: {base: quick, epochs: 6, learning_rate: 0.001}}
  - {architecture: 'torchvision:squeezenet1_0', initial_weights: pretrained, name: frozen-4,
     recipe: {base: quick, epochs: 6, learning_rate: 0.001, frozen_blocks: 4}}
  - {architecture: 'torchvision:squeezenet1_0', initial_weights: pretrained, name: frozen-8,
     recipe: {base: quick, epochs: 6, learning_rate: 0.001, frozen_blocks: 8}}
  - {architecture: 'torchvision:squeezenet1_0', initial_weights: random, name: random,
     recipe: {base: quick, epochs: 6, learning_rate: 0.0003}}
sources:
  - {}
  - {uri: photographs.parquet, name: photographs}
control_draws: 0
seeds: [0, 1, 2]
"""

DOSE = """
SELECT architecture, CASE initial_weights WHEN 'random' THEN 'random' ELSE 'pretrained' END AS begun,
       frozen_blocks AS frozen, tuned, norm, zeta, target, count(DISTINCT seed) AS seeds,
       round(100 * avg(clean_accuracy), 1) AS "accuracy %",
       round(100 * avg(fooling_rate) FILTER (starts_with(source, data || '/')), 1) AS "own %",
       round(100 * avg(fooling_rate) FILTER (starts_with(source, 'photographs/')), 1) AS "photographs %",
       round(100 * avg(fooling_rate) FILTER (rule = 'random'), 1) AS "random %",
       round(100 * avg(fooling_rate_ceiling), 1) AS "ceiling %"
FROM trials WHERE trial_id IN ({}) GROUP BY ALL ORDER BY ALL
"""

JOB = Job(
    "dose",
    "Attack classifiers part of the way from pretrained to fine-tuned.",
    FULL,
    SMALL,
    tables=(DOSE, SPENT),
)

if __name__ == "__main__":
    sys.exit(JOB.main())
