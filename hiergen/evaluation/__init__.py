"""Evaluations: `hiergen evaluate KIND`, and the same from Python.

What lives where:

- `runner`: the steps that every evaluation takes, once; a kind of evaluation is a subclass of `Evaluation`. `settings` has what
  evaluations are told, importable without PyTorch (shapes and videos have one of their own), `parts` the long passes that can be stopped and shared, `protocol` rounding and the environment, `report` the report.
- `images`: reconstructions (rFID) and generations (gFID), and the searches and scores of their programs. `shapes`, `videos`: their own.
  `texts`: bits per byte, and the study of models of bytes.
- `features`: where distances are measured. The features of FID are `features.inception`, other extractors `features.extractors` and
  `features.video_extractors`; `features.references` has the statistics of references, `features.distances` what is computed from features.
- `comparison`: confidence intervals, and the difference of two reports. `study`: variants by seeds at one budget.

How to add a metric: write it in `hiergen.metrics`, where it takes tensors and knows no evaluation. One entry in a table brings it into the
reports: `images.pair_metrics.PAIR_METRICS` for pairs of images, `features.distances.SET_METRICS` for the features of two sets. A metric of
clips goes into `videos.evaluate.ClipPass`, one of shapes into `shapes.reconstruction.pair_scores`.
"""
