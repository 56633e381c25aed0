"""How many images a perturbation has to be made from (Hirano & Takemoto 2020, Koga & Takemoto 2022).

Nested subsets of the train split: those of a smaller number are among those of a larger one.

    ray submit ray-cluster.yaml jobs/source_images.py -- --data s3://… --store s3://… --gpus 1
    python jobs/source_images.py --data "chest_xray_*.parquet" --store results/ --small --address local

The file stands alone: ``ray submit`` copies it, and nothing else, to the head, where uapray is installed. The
same command goes on where it stopped, however it stopped; what stands in the store is never done again.
"""

import sys

from uapray.cli.job import Job

FULL = """
name: source-images
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
  - {images: 25}
  - {images: 50}
  - {images: 100}
  - {images: 200}
  - {images: 400}
  - {images: 800}
  - {}
seeds: [0, 1, 2]
"""

SMALL = """
name: source-images-small
data: [{uri: images.parquet, size: 64}]
classifiers:
  - {architecture: small-cnn, initial_weights: random, recipe: quick}
  - {architecture: tiny-cnn, initial_weights: random, recipe: quick}
  - {architecture: test_vit, initial_weights: random, recipe: {base: quick, learning_rate: 0.001, epochs: 20}}
sources:
  - {images: 10}
  - {images: 30}
  - {images: 100}
  - {images: 300}
  - {images: 1000}
  - {}
control_draws: 0
seeds: [0, 1, 2]
"""

JOB = Job("source_images", "Make perturbations from fewer and more images.", FULL, SMALL)

if __name__ == "__main__":
    sys.exit(JOB.main())
