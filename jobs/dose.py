"""Classifiers between pretrained and fine-tuned weights: how vulnerability changes with how far they have drifted.

Two doses of training: ``tuned``, the share of the way that the weights have gone, and ``frozen_blocks``, how many of
the first blocks stay as they were; a classifier from scratch beside them. Perturbations are made from images of the
classifier's own kind and from photographs, which are what the pretrained weights know. The table has a row a dose: the
mean of its trainings (``train_seeds``) and, where there are several, the least and the most in brackets.

    ray submit ray-cluster.yaml jobs/dose.py -- --data s3://… --store s3://… --gpus 1 \
        --source photographs=natural.parquet
    python jobs/dose.py --data "chest_xray_*.parquet" --store results/ --small --address local \
        --weights efficientnet_lite0.safetensors --source photographs=natural.parquet

Where there is no hub, ``--weights`` is a file (docs/classifiers.md: ImageNet weights without the hub).

The file stands alone: ``ray submit`` copies it, and nothing else, to the head, where uapray is installed. The
same command goes on where it stopped, however it stopped; what stands in the store is never done again.
"""

import sys

from uapray.cli.job import SPENT, Job

FULL = """
name: dose
data: [{uri: images.parquet, size: 299}]
classifiers:
  - {architecture: inception_v3, train_seeds: &three [0, 1, 2], tuned: &shares [0, 0.25, 0.5, 0.75, 1]}
  - {architecture: inception_v3, train_seeds: *three,
     recipe: &four {base: papers, frozen_blocks: 4}, name: inception_v3-frozen-4}
  - {architecture: inception_v3, train_seeds: *three,
     recipe: &eight {base: papers, frozen_blocks: 8}, name: inception_v3-frozen-8}
  - {architecture: inception_v3, train_seeds: *three,
     recipe: &twelve {base: papers, frozen_blocks: 12}, name: inception_v3-frozen-12}
  - {architecture: inception_v3, train_seeds: *three, initial_weights: random}
  - {architecture: vgg16, train_seeds: *three, tuned: *shares}
  - {architecture: vgg16, train_seeds: *three, recipe: *four, name: vgg16-frozen-4}
  - {architecture: vgg16, train_seeds: *three, recipe: *eight, name: vgg16-frozen-8}
  - {architecture: vgg16, train_seeds: *three, recipe: *twelve, name: vgg16-frozen-12}
  - {architecture: vgg16, train_seeds: *three, initial_weights: random}
  - {architecture: resnet50, train_seeds: *three, tuned: *shares}
  - {architecture: resnet50, train_seeds: *three, recipe: *four, name: resnet50-frozen-4}
  - {architecture: resnet50, train_seeds: *three, recipe: *eight, name: resnet50-frozen-8}
  - {architecture: resnet50, train_seeds: *three, recipe: *twelve, name: resnet50-frozen-12}
  - {architecture: resnet50, train_seeds: *three, initial_weights: random}
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
  - {architecture: tf_efficientnet_lite0, initial_weights: pretrained, name: pretrained,
     recipe: {base: quick, epochs: 8}, tuned: [0, 0.25, 0.5, 0.75, 1]}
  - {architecture: tf_efficientnet_lite0, initial_weights: pretrained, name: frozen-6,
     recipe: {base: quick, epochs: 8, frozen_blocks: 6}}
  - {architecture: tf_efficientnet_lite0, initial_weights: pretrained, name: frozen-12,
     recipe: {base: quick, epochs: 8, frozen_blocks: 12}}
  - {architecture: tf_efficientnet_lite0, initial_weights: random, name: random, recipe: {base: quick, epochs: 8}}
sources:
  - {}
  - {uri: photographs.parquet, name: photographs}
control_draws: 0
seeds: [0, 1, 2]
"""


def over_trainings(name: str) -> str:
    """Return a column in per cent: the mean of the trainings, and the least and the most where there are several."""
    return (
        f"CASE WHEN count({name}) > 1 THEN printf('%.1f [%.1f, %.1f]', 100 * avg({name}), 100 * min({name}), "
        f"100 * max({name})) ELSE printf('%.1f', 100 * avg({name})) END AS \"{name} %\""
    )


RATES = ("accuracy", "own", "photographs", "random", "ceiling")
DOSE = f"""
WITH trained AS (
    SELECT architecture, CASE initial_weights WHEN 'random' THEN 'random' ELSE 'pretrained' END AS begun,
           frozen_blocks AS frozen, tuned, norm, zeta, target, classifier_sha256, count(DISTINCT seed) AS seeds,
           avg(clean_accuracy) AS accuracy,
           avg(fooling_rate) FILTER (starts_with(source, data || '/')) AS own,
           avg(fooling_rate) FILTER (starts_with(source, 'photographs/')) AS photographs,
           avg(fooling_rate) FILTER (rule = 'random') AS random,
           avg(fooling_rate_ceiling) AS ceiling
    FROM trials WHERE trial_id IN ({{}}) GROUP BY ALL
)
SELECT architecture, begun, frozen, tuned, norm, zeta, target, count(*) AS trainings, max(seeds) AS seeds,
       {", ".join(map(over_trainings, RATES))}
FROM trained GROUP BY ALL ORDER BY ALL
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
