"""Settings of the tasks, importable without PyTorch; a task is imported when it is built."""

from __future__ import annotations

import abc
import dataclasses
import shlex
from typing import TYPE_CHECKING, Any, Literal

from hiergen.checked import Checked, Count, CountOrZero, NotNegative, Share
from hiergen.data.config import DataConfig
from hiergen.data.shapes.config import ShapeDataConfig
from hiergen.data.text.config import CaptionConfig, TextDataConfig
from hiergen.training.tasks.term_settings import (
    AdversarialConfig,
    AlignmentConfig,
    CodebookConfig,
    DecoderConfig,
    PerceptualConfig,
    ProxyConfig,
    VAEConfig,
)

if TYPE_CHECKING:
    from torch import nn

    from hiergen.training.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class TaskConfig(Checked, abc.ABC):
    """The settings of a task. Every task has its own subclass, of JSON values only, because it is saved with the run."""

    @abc.abstractmethod
    def build(self) -> Task:
        """Return the task, with models of random weights."""

    def sketch(self) -> dict[str, nn.Module]:
        """Return the players, to be counted; subclasses make them on the meta device, without data, weights or memory."""
        return self.build().players

    def follows(self, model: str) -> str:
        """Return the command that naturally follows, once the model is trained and in a folder of that name."""
        return f"hiergen info {model}"

    def count_parameters(self) -> dict[str, int]:
        """Return the trained parameters of each player."""
        from hiergen.training.tasks.base import count_trained

        return {name: count_trained(module) for name, module in self.sketch().items()}


@dataclasses.dataclass(frozen=True)
class GeneratorTaskConfig(TaskConfig):
    """Train a generator on a cache of token pyramids.

    Attributes:
        preset: Name of a generator preset.
        overrides: Entries of the preset's config to replace (`--task.overrides.dim 256`). The tokenizer's level specs, the number of classes and, for a preset
            that does not say how to scale continuous tokens, their mean and deviation come from the cache and need not be given.
        codes: Folder that `hiergen encode` wrote.
        class_paths: Read the names of classes as paths, "group/subgroup | attribute" (`ClassHierarchy.from_names`), of which the generator
            learns every level: it can then be asked for a group, or an attribute, alone.
        class_table: CSV file of the classes' groups, coarse to fine, in place of their names (`ClassHierarchy.from_table`).
        captions: How the captions that `hiergen encode` wrote beside the codes are read, for a generator of texts; None trains one of classes.
        balance: How evenly groups of classes are visited: 0 as often as they have samples, 1 all equally often, and in between in
            proportion to their number to the power `1 - balance`. A group is the coarsest level of the classes' paths, which are their
            names or stand in `class_table`, or the class itself where there are none. Rare groups are learned sooner, and samples
            without a condition then have these shares.
        validation_codes: Folder of held-out codes of the same tokenizer, whose losses are logged as "val/..." at every checkpoint
            interval; None for none.
        tokenizer: Folder of the tokenizer that made the codes: with it samples of the first classes are drawn at every checkpoint,
            for the trackers; None draws none. A generator of the next scale needs it, for a copy of its codebook.
        random_until: Two numbers of samples seen: up to the first all orders of a `RandomOrderAR` are random, from the second on all are
            in raster order, and in between the share falls linearly. None trains the raster order alone.
    """

    preset: str = "har-tiny"
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    codes: str = "codes"
    class_paths: bool = False
    class_table: str | None = None
    captions: CaptionConfig | None = None
    balance: Share = 0.0
    validation_codes: str | None = None
    tokenizer: str | None = None
    random_until: tuple[CountOrZero, CountOrZero] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.random_until is not None and self.random_until[0] > self.random_until[1]:
            raise ValueError(
                f"random_until is {self.random_until}, expected two numbers of which the second is not less"
            )

    def build(self) -> Task:
        from hiergen.training.tasks.generator import GeneratorTask

        return GeneratorTask(self)

    def follows(self, model: str) -> str:
        from hiergen.training.tasks.generator import read_sizes

        grid: list[int] = read_sizes(self.codes)["level_specs"][0]["grid"] or []
        if len(grid) < 3:
            return _pipeline_line("ClassToImagePipeline" if self.captions is None else "TextToImagePipeline", model)
        return _pipeline_line(
            "ClassToVideoPipeline", model, f"hiergen.FrameTokenizer.of({_TOKENIZER}, num_frames={grid[0]})"
        )

    def sketch(self) -> dict[str, nn.Module]:
        """Return the generator, for the cache's levels if it is there, otherwise for the preset's."""
        import torch

        from hiergen.data.text.captioned import text_entries
        from hiergen.registry import create
        from hiergen.training.tasks.generator import read_sizes

        told = {} if self.captions is None else text_entries(self.captions)
        with torch.device("meta"):
            return {
                "generator": create(
                    self.preset,
                    **{**read_sizes(self.codes, self.class_paths, self.class_table), **told, **self.overrides},
                )
            }


@dataclasses.dataclass(frozen=True)
class TextTaskConfig(TaskConfig):
    """Train a model of sequences on texts, as bytes.

    Attributes:
        preset: Name of a preset of a model of text.
        overrides: Entries of the preset's config to replace.
        data: The texts. The rows of a model of blocks must be multiples of a block long, and its texts then begin with a block.
        validation: Held-out texts, scored at every checkpoint interval by "val/bits_per_byte" and what else the model logs; None for none.
    """

    preset: str = "hnet-tiny"
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    data: TextDataConfig = dataclasses.field(default_factory=TextDataConfig)
    validation: TextDataConfig | None = None

    def build(self) -> Task:
        from hiergen.training.tasks.text import TextTask

        return TextTask(self)

    def follows(self, model: str) -> str:
        return f'in Python, hiergen.from_pretrained("{model}").generate_text("The ")'

    def sketch(self) -> dict[str, nn.Module]:
        import torch

        from hiergen.registry import create

        with torch.device("meta"):
            return {"model": create(self.preset, **self.overrides)}


@dataclasses.dataclass(frozen=True)
class TokenizerTaskConfig(TaskConfig):
    """Train a tokenizer to reconstruct images.

    Attributes:
        preset: Name of a tokenizer preset.
        overrides: Entries of the preset's config to replace (`--task.overrides.image-size 48`).
        data: The images.
        validation: Held-out images, scored at every checkpoint interval by "val/pixel" and "val/psnr"; None for none.
        pixel_loss: Mean squared ("mse") or absolute ("l1") error in [0, 1] space.
        pixel_weight: Weight of the pixel loss.
        perceptual: Settings of a perceptual term; None for none.
        adversarial: Settings of a discriminator; None for none.
        alignment: Settings of the alignment with a teacher; None for none.
        vae: Settings of VA-VAE's objective, which replaces the weighted means above; None keeps those.
        proxy: Settings of TiTok's first stage, whose decoder predicts the ids of another tokenizer; None for none.
        codebook: Log the use of the codebook by each level, and revive dead codes; None for neither.
        decoder: Train the decoder alone, of a tokenizer of one level of continuous tokens that `init` names; None trains all of it.
    """

    preset: str = "restok-tiny"
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    validation: DataConfig | None = None
    pixel_loss: Literal["mse", "l1"] = "mse"
    pixel_weight: NotNegative = 1.0
    perceptual: PerceptualConfig | None = None
    adversarial: AdversarialConfig | None = None
    alignment: AlignmentConfig | None = None
    vae: VAEConfig | None = None
    proxy: ProxyConfig | None = None
    codebook: CodebookConfig | None = None
    decoder: DecoderConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        beside = [name for name in ("alignment", "vae", "proxy", "codebook") if getattr(self, name) is not None]
        if self.decoder is not None and beside:
            raise ValueError(f"{beside[0]} is set beside decoder, which trains no encoder: leave one out")
        if self.vae is not None and self.alignment is not None:
            raise ValueError("alignment is set beside vae, which has its own: use vae.foundation")
        if self.vae is not None and self.proxy is not None:
            raise ValueError("proxy is set beside vae, whose objective has no term of proxy codes: leave one out")
        if self.vae is not None and self.adversarial is not None and self.adversarial.is_adaptive:
            raise ValueError("adversarial.is_adaptive is set beside vae, which always adapts its weight: leave it out")

    def build(self) -> Task:
        from hiergen.training.tasks.tokenizer import TokenizerTask

        return TokenizerTask(self)

    def follows(self, model: str) -> str:
        kind, _, path = self.data.source.rpartition(":")
        if kind == "clips":
            words = ["encode", "--tokenizer", model, "--videos", path]
        elif kind or path in ("moving-digits", "moving-emoji"):
            words = ["encode", "--tokenizer", model, "--data.source", self.data.source]
        else:
            words = ["reconstruct", "--tokenizer", model, "--images", path]
        return shlex.join(["hiergen", *words])

    def sketch(self) -> dict[str, nn.Module]:
        import torch

        from hiergen.training.tasks.tokenizer import make_players

        sides = {
            name: dataclasses.replace(side, weights="random")
            for name in ("adversarial", "alignment")
            if (side := getattr(self, name)) is not None
        }
        with torch.device("meta"):
            return make_players(dataclasses.replace(self, **sides))


@dataclasses.dataclass(frozen=True)
class ShapeTokenizerTaskConfig(TaskConfig):
    """Train a `PyramidVAE` to tell inside from outside, at every level of tokens.

    Attributes:
        preset: Name of a `PyramidVAE` preset.
        overrides: Entries of the preset's config to replace.
        data: The shapes. With `data.batch.num_ordered` of at least the second largest point resolution the farthest points are
            found while loading instead of in the model.
        validation: Held-out shapes, whose losses are logged as "val/..." at every checkpoint interval; their `batch` settings are
            those of `data`. None for none.
        near_weight: Weight of the queries near the surface beside those in the volume.
        levels: "all" trains every level on every sample; "in_turn" trains sample i of a batch at level i modulo their number only:
            about half of the work for two levels. The paper draws one level per step; in turn, each level gets its share of every step.
        level_shares: How many of the samples of a turn each level gets; None gives every level one.
    """

    preset: str = "pyramid-vae-tiny"
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    data: ShapeDataConfig = dataclasses.field(default_factory=ShapeDataConfig)
    validation: ShapeDataConfig | None = None
    near_weight: NotNegative = 1.0
    levels: Literal["all", "in_turn"] = "all"
    level_shares: tuple[Count, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels not in ("all", "in_turn"):
            raise ValueError(f"levels is {self.levels!r}, expected 'all' or 'in_turn'")
        if self.level_shares is not None and self.levels != "in_turn":
            raise ValueError(f"level_shares is {list(self.level_shares)}, which expects levels 'in_turn'")

    def build(self) -> Task:
        from hiergen.training.tasks.shapes import ShapeTokenizerTask

        return ShapeTokenizerTask(self)

    def follows(self, model: str) -> str:
        return shlex.join(["hiergen", "encode", "--tokenizer", model, "--shapes", self.data.source])

    def sketch(self) -> dict[str, nn.Module]:
        import torch

        from hiergen.registry import create

        with torch.device("meta"):
            return {"tokenizer": create(self.preset, **self.overrides)}


@dataclasses.dataclass(frozen=True)
class ShapeGeneratorTaskConfig(TaskConfig):
    """Train a `MaskedCascade` on a cache of shape tokens, by class or by image.

    Attributes:
        preset: Name of a `MaskedCascade` preset.
        overrides: Entries of the preset's config to replace. The level specs, the number of classes and, with `standardize`, mean and
            deviation of the tokens come from the cache and need not be given.
        codes: Folder that `encode_shapes` wrote.
        validation_codes: Folder of held-out codes, whose losses are logged as "val/..." at every checkpoint interval; None for none.
        standardize: Give the generator mean and deviation of every channel of each level.
        condition: What the generator is conditioned on: "class", or "image", the cache's features that `encode_shapes` writes with an image
            encoder.
        stages: Which stages to train: "both" together, "low" (coarse) or "high" (fine) alone, while the other keeps its weights.
        tokenizer: Folder of the tokenizer that made the codes: samples are then drawn at every checkpoint and handed to the trackers.
        start: Folder of a cascade whose coarse stage is trained: it is taken from there, and the fine stage is initialized from it.
    """

    preset: str = "mar3d-tiny"
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    codes: str = "codes"
    validation_codes: str | None = None
    standardize: bool = True
    condition: Literal["class", "image"] = "class"
    stages: Literal["both", "low", "high"] = "both"
    start: str | None = None
    tokenizer: str | None = None

    def build(self) -> Task:
        from hiergen.training.tasks.shapes import ShapeGeneratorTask

        return ShapeGeneratorTask(self)

    def follows(self, model: str) -> str:
        # From images a pipeline has a third part, the image encoder.
        return _pipeline_line("ClassToShapePipeline", model) if self.condition == "class" else super().follows(model)

    def sketch(self) -> dict[str, nn.Module]:
        """Return the stages that are trained, for the cache's levels if it is there, otherwise for the preset's."""
        import torch

        from hiergen.registry import create
        from hiergen.training.tasks.generator import read_sizes

        derived = read_sizes(self.codes)
        if self.condition == "image":
            derived.pop("num_classes", None)
        elif not derived and self.overrides.get("feature_shapes", ()) is None:
            derived = {"num_classes": 1}
        with torch.device("meta"):
            model = create(self.preset, **{**derived, **self.overrides})
        return {"generator": model if self.stages == "both" else getattr(model, self.stages)}


_TOKENIZER = 'hiergen.from_pretrained("TOKENIZER")'


def _pipeline_line(kind: str, model: str, tokenizer: str = _TOKENIZER) -> str:
    """Return the line of Python that makes a pipeline of a trained generator and its tokenizer."""
    parts = f'tokenizer={tokenizer}, generator=hiergen.from_pretrained("{model}")'
    return f'in Python, hiergen.{kind}({parts}).save_pretrained("FOLDER")'
