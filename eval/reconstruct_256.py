"""rFID of a tokenizer at 256 x 256, with every prefix of its levels: `accelerate launch eval/reconstruct_256.py --tokenizer DIR
--data.source VAL_FOLDER --extractor.weights FILE`."""

from __future__ import annotations

import sys

from hiergen.__main__ import explain
from hiergen.config import parse
from hiergen.data.config import DataConfig
from hiergen.evaluation.images.reconstruction import evaluate_reconstructions
from hiergen.evaluation.runner import tell
from hiergen.evaluation.settings import RfidSettings

DEFAULT = RfidSettings(
    tokenizer="runs/restok_l_128/model",
    out="evaluation/reconstruct_256",
    data=DataConfig(source="imagenet/val", size=256, in_memory=False),
    prefixes=True,
)

if __name__ == "__main__":
    sys.exit(
        explain(lambda: tell(evaluate_reconstructions(parse(DEFAULT, None, prog="reconstruct_256"))), "reconstruct_256")
    )
