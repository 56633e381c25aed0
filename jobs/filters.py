"""Input filters as a defence, attacked by who does not know them and by who does (Athalye et al. 2018).

Each filter once as a rendering of the images of an unaware attack, once in front of a classifier attacked through it.

    ray submit ray-cluster.yaml jobs/filters.py -- --data s3://… --store s3://… --gpus 1
    python jobs/filters.py --data "chest_xray_*.parquet" --store results/ --small --address local

The file stands alone: ``ray submit`` copies it, and nothing else, to the head, where uapray is installed. The
same command goes on where it stopped, however it stopped; what stands in the store is never done again.
"""

import sys

from uapray.cli.job import RATES, SPENT, Job

FULL = """
name: filters
data: [{uri: images.parquet, size: 299}]
classifiers:
  - architecture: inception_v3
    filters: &filters [none, 'jpeg:50', 'bits:3', 'median:3', 'bilateral:0.1', 'resize:0.5']
  - {architecture: vgg16, filters: *filters}
  - {architecture: vgg19, filters: *filters}
  - {architecture: resnet50, filters: *filters}
  - {architecture: inception_resnet_v2, filters: *filters}
  - {architecture: densenet121, filters: *filters}
  - {architecture: densenet169, filters: *filters}
renderings: ['jpeg:50', 'bits:3', 'median:3', 'bilateral:0.1', 'resize:0.5']
seeds: [0, 1, 2]
"""

SMALL = """
name: filters-small
data: [{uri: images.parquet, size: 64}]
classifiers:
  - architecture: small-cnn
    initial_weights: random
    recipe: quick
    filters: [none, 'jpeg:50', 'bits:3', 'median:3', 'bilateral:0.1', 'resize:0.5']
renderings: ['jpeg:50', 'bits:3', 'median:3', 'bilateral:0.1', 'resize:0.5']
control_draws: 0
seeds: [0, 1, 2]
"""

UNAWARE = """
SELECT classifier, rendering, count(*) AS runs, round(100 * avg(renderings.clean_accuracy), 1) AS "accuracy %",
       round(100 * avg(renderings.fooling_rate), 1) AS "fooling, unaware %"
FROM renderings JOIN trials USING (trial_id, split)
WHERE trial_id IN ({}) AND rule <> 'random' AND made_on = classifier AND filter IS NULL GROUP BY ALL ORDER BY ALL
"""
TABLES = (UNAWARE, RATES, SPENT)

JOB = Job("filters", "Attack classifiers behind JPEG, median, bilateral and other filters.", FULL, SMALL, tables=TABLES)

if __name__ == "__main__":
    sys.exit(JOB.main())
