"""Evaluations: `hiergen evaluate KIND`, and the same from Python.

What lives where:

- `runner`: the steps that every evaluation takes, once; a kind of evaluation is a subclass of `Evaluation`. `settings` has what
  evaluations are told, importable without PyTorch (shapes and videos have one of their own), `parts` the long passes that can be stopped and shared, `protocol` rounding and the environment, `report` the report.
- `images`: reconstructions (rFID) and generations (gFID), and the searches and scores of their programs. `shapes`, `videos`: their own.
- `features`: where distances are measured. The features of FID are `features.inception`, other extractors `features.extractors` and
  `features.video_extractors`; `features.references` has the statistics of references, `features.distances` what is computed from features.
- `comparison`: confidence intervals, and the difference of two reports. `study`: variants by seeds at one budget.

How to add a metric: write it in `hiergen.metrics`, where it takes tensors and knows no evaluation. A metric of pairs of images is then
entered in `images.reconstruction.ReconstructionPass.pixel_metrics` and in `images.scores.PIXEL_METRICS`; a metric of sets in
`features.distances.measure`; a metric of clips in `videos.evaluate.ClipPass`; a metric of shapes in `shapes.reconstruction.pair_scores`.
"""
