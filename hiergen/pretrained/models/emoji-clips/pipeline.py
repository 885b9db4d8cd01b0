"""Lets DiffusionPipeline find the class of this pipeline; `hiergen.from_pretrained` does not need it."""

from hiergen import ClassToVideoPipeline

__all__ = ["ClassToVideoPipeline"]
