"""gFID of a generator at 256 x 256 with 50,000 images: `accelerate launch eval/generate_256.py --pipeline DIR
--reference VIRTUAL_imagenet256_labeled.npz --extractor.weights FILE`."""

from __future__ import annotations

import sys

from hiergen.__main__ import explain
from hiergen.config import parse
from hiergen.evaluation.images.generation import evaluate_generations
from hiergen.evaluation.runner import tell
from hiergen.evaluation.settings import GfidSettings

DEFAULT = GfidSettings(
    pipeline="runs/har_l_128/pipeline",
    out="evaluation/generate_256",
    num_images=50_000,
    reference="VIRTUAL_imagenet256_labeled.npz",
    keep="npz",
)

if __name__ == "__main__":
    sys.exit(explain(lambda: tell(evaluate_generations(parse(DEFAULT, None, prog="generate_256"))), "generate_256"))
