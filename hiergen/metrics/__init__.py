"""Metrics: functions of tensors, meshes or features that know no evaluation.

- images: `pixel` (PSNR, SSIM, MS-SSIM), `fidelity` (distances of sets on a feature extractor), `frechet` (the Fréchet distance),
  `neighbors` (how near they are to training images).
- shapes: `geometry` (pairs), `shape_sets` (sets); clips: `video`.
- tokens: `codebook` (discrete), `latents` (continuous).
- `classifiers`, `clip_classifiers`: judges that are trained on the spot; `intervals`: confidence intervals.

`hiergen.evaluation` says how a metric enters a report.
"""
