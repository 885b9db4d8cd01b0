"""`python -m hiergen.evaluation.depth --codes CODES --test-codes CODES`: run what is missing of the study and write its tables."""

import sys

from hiergen.config import parse
from hiergen.evaluation.depth.study import DepthStudySettings, run_depth_study

if __name__ == "__main__":
    run_depth_study(parse(DepthStudySettings(), sys.argv[1:], prog="python -m hiergen.evaluation.depth"))
