"""Settings that several evaluations share."""

from __future__ import annotations

import dataclasses

import torch

from hiergen.checked import Checked
from hiergen.data.sources import DataConfig
from hiergen.evaluation.features.distances import DistanceConfig
from hiergen.evaluation.features.extractors import ExtractorConfig
from hiergen.evaluation.images.sampling import DRAW_RULE, LABEL_RULES, LabelRule, SamplingConfig, TokenSource
from hiergen.evaluation.protocol import PassConfig, Rounding


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Checked):
    """What every evaluation is told.

    Attributes:
        out: Folder of the report. A stopped run that is started again continues; a finished one is drawn anew.
        passes: Batch size, size of the stored parts, and device.
    """

    out: str = "evaluation"
    passes: PassConfig = dataclasses.field(default_factory=PassConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorSettings(EvaluationSettings):
    """How a pipeline generates what is evaluated.

    Attributes:
        pipeline: Folder or Hub id of a pipeline that generates from class labels.
        labels: Rule that gives each item its class label, "balanced" or "iid"; the report spells it out.
        seed: Seed of all random draws; an item draws from the seed and its own index.
        sampling: Settings of the generator.
    """

    pipeline: str = ""
    labels: LabelRule = "balanced"
    seed: int = 0
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)

    @property
    def draw_protocol(self) -> dict[str, str]:
        """What a report says about the draws."""
        return {"labels": LABEL_RULES[self.labels], "draws": DRAW_RULE, "sampling": str(self.sampling)}

    def open_tokens(self, kind: str, device: torch.device) -> TokenSource:
        """Return what draws the tokens of items.

        Args:
            kind: Class name that the pipeline must have.
            device: Device to draw on.

        Raises:
            ValueError: If the pipeline is another one, or the generator has no such setting.
        """
        tokens = TokenSource(self.pipeline, labels=self.labels, sampling=self.sampling, seed=self.seed, device=device)
        if tokens.kind != kind:
            raise ValueError(f"{self.pipeline!r} holds a {tokens.kind}, expected a {kind}")
        return tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSettings(EvaluationSettings):
    """How sets of images are compared.

    Attributes:
        data: Real images.
        reference: Statistics file (.npz), such as ADM's, that stands in for the real images in distances.
        extractor: Feature extractor on which distances are measured.
        rounding: Rule that rounds pixels of both sets to bytes: "nearest" or "truncate".
        distances: Subset sizes, bootstrap draws and their seed.
        cache: Folder of what was computed from real images: statistics of references, classifiers of extractor "own".
    """

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    reference: str = ""
    extractor: ExtractorConfig = dataclasses.field(default_factory=ExtractorConfig)
    rounding: Rounding = "nearest"
    distances: DistanceConfig = dataclasses.field(default_factory=DistanceConfig)
    cache: str = "~/.cache/hiergen/references"


def check_one_given(settings: EvaluationSettings, *names: str) -> None:
    """Raise a ValueError unless exactly one of some settings is given."""
    given = [name for name in names if getattr(settings, name)]
    if len(given) != 1:
        options = [f"--{name}" for name in names]
        listed = f"{', '.join(options[:-1])} and {options[-1]}"
        raise ValueError(f"got {' and '.join(given) or 'none'} of {listed}, expected one")
