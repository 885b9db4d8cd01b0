"""What models are trained on, one folder per medium.

`images/`, `videos/` and `shapes/` each hold the files of a medium, its datasets and its embedded set. `files/` is what several media read
alike: folders, archives of NumPy, and whether files still hold what they held. Beside them: `dataset` (what the training loop asks of any
dataset) and `stream` (the order of samples); `codes` and `code_importers` (caches of token pyramids); `config` and `sources` (images of a
run by the name of their source, as settings, and opened); `worker_pool` (jobs in processes that may die). Computing with meshes, without
any dataset, is `hiergen.geometry`.
"""
