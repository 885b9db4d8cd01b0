"""Models of bytes at equal compute and at equal parameters, three seeds each: what blocks, words and learned chunks give.

    run_sequence_study(SequenceStudySettings(out="runs/sequences", part="models"))

"models" trains flat models, blocks, words and chunks on the same bytes and scores held-out texts, also misspelled; "compression" asks H-Net
for chunks of several lengths. A stopped study continues. No setting was tuned for one of the models.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor

from hiergen.checked import Count, Positive, Range, Share
from hiergen.data.text.config import TextDataConfig
from hiergen.data.text.dataset import TextSet
from hiergen.data.text.sources import Documents, open_documents
from hiergen.evaluation.study import Study, StudyResult, StudySettings
from hiergen.evaluation.texts.noise import misspelled
from hiergen.evaluation.texts.rules import Rule, follow_rule
from hiergen.evaluation.texts.scores import bits_per_byte, count_operations, share_at_words
from hiergen.evaluation.texts.tasks import StudyTextTaskConfig
from hiergen.evaluation.texts.vocabulary import PieceSet, Vocabulary
from hiergen.files import write_text
from hiergen.generators.sequences.base import SequenceModel
from hiergen.generators.sequences.hnet.model import HNet
from hiergen.pipelines.loading import from_pretrained
from hiergen.registry import create
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.loop import FitResult, fit


@dataclasses.dataclass(frozen=True)
class Variant:
    """One of the compared models.

    Attributes:
        preset: Preset of its class.
        sizes: Entries of the preset's config that are replaced.
        rule: What cuts the chunks of an H-Net.
        vocab_size: Size of its vocabulary; 256 is bytes.
    """

    preset: str
    sizes: dict[str, Any]
    rule: Rule = "router"
    vocab_size: int = 256


def _hnet(layout: list[Any], *dims: int, **changes: Any) -> dict[str, Any]:
    return {"layout": layout, "dims": list(dims), "num_heads": [4] * len(dims), **changes}


_H_NET = _hnet(["m2", ["T5"], "m2"], 64, 128)
_H_NET_SMALL = _hnet(["m2", ["T1"], "m2"], 64, 96)
_BYTES = {"byte_dim": 64, "byte_heads": 4, "byte_ffn_dim": 176, "encoder_depth": 2, "decoder_depth": 2, "window": 64}
#: About as many multiply-adds per byte each (0.4 to 0.5 M), and of those named "small" as many parameters as the flat ones. The first is the
#: baseline.
VARIANTS = {
    "flat-transformer": Variant("flat-transformer-tiny", _hnet(["T4"], 64)),
    "flat-mamba": Variant("flat-mamba-tiny", _hnet(["m9"], 64)),
    "block": Variant("block-tiny", {"dim": 128, "depth": 4, "token_dim": 64, "token_depth": 3}),
    "byte-word": Variant(
        "byte-word-tiny",
        {"dim": 128, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 384, **_BYTES, "encoder_depth": 1},
    ),
    "hnet": Variant("hnet-tiny", _H_NET),
    "hnet-every-6": Variant("hnet-tiny", _H_NET, "every"),
    "hnet-spaces": Variant("hnet-tiny", _H_NET, "spaces"),
    "block-small": Variant("block-tiny", {"dim": 96, "depth": 1, "token_dim": 72, "token_depth": 2}),
    "byte-word-small": Variant(
        "byte-word-tiny", {"dim": 64, "depth": 1, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 176, **_BYTES}
    ),
    "hnet-small": Variant("hnet-tiny", _H_NET_SMALL),
    "flat-vocabulary": Variant("flat-transformer-tiny", _hnet(["T5"], 96), vocab_size=1024),
}
#: What H-Net is asked for, in bytes per chunk.
TARGETS = (3.0, 6.0, 12.0)
#: Rows of a vocabulary's ids hold so many times fewer ids than rows of bytes.
_IDS_PER_ROW = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceStudySettings(StudySettings):
    """Budget and data of the study.

    Attributes:
        part: "models" compares models, "compression" what H-Net is asked for with what it reaches.
        variants: Names of the models; all if none is named. The first is what others are compared with.
        source: Texts, as in `TextDataConfig`.
        length: Bytes of a row, a multiple of 8.
        samples: Number of rows that a model is trained on.
        compression_samples: Number of rows for each asked compression.
        batch_size: Rows per step.
        lr: Learning rate of models without rates per stage; those with them take half of it, times their factors.
        noise: Share of letters that are misspelled in the noisy texts.
    """

    out: str = "runs/sequences"
    part: Literal["models", "compression"] = "models"
    variants: tuple[str, ...] = ()
    source: str = "topics"
    length: Annotated[int, Range(16)] = 256
    samples: Count = 6_400
    compression_samples: Count = 1_200
    batch_size: Count = 8
    lr: Positive = 2e-3
    noise: Share = 0.1


class SequenceStudy(Study[SequenceStudySettings]):
    """The runs of all models."""

    FREE = (*Study.FREE, "variants", "part")

    def __init__(self, settings: SequenceStudySettings) -> None:
        super().__init__(settings)
        chosen = settings.variants or tuple(VARIANTS)
        if unknown := [name for name in chosen if name not in VARIANTS]:
            raise ValueError(f"variants holds {unknown}, expected some of {', '.join(VARIANTS)}")
        self.chosen = chosen
        self.train = open_documents(self._data())
        self.test = open_documents(self._data(split="test"))

    def models(self) -> StudyResult:
        """Train and measure the models."""

        def run(name: str, seed: int, folder: Path) -> Mapping[str, float]:
            return self._measure(VARIANTS[name], self.settings.samples, seed, folder)

        return self.run("models", run, self.chosen, {name: dataclasses.asdict(VARIANTS[name]) for name in self.chosen})

    def compression(self) -> StudyResult:
        """Ask an H-Net for chunks of several lengths."""
        variants = {f"{target:g}": Variant("hnet-tiny", {**_H_NET_SMALL, "targets": [target]}) for target in TARGETS}

        def run(name: str, seed: int, folder: Path) -> Mapping[str, float]:
            return self._measure(variants[name], self.settings.compression_samples, seed, folder)

        sizes = {name: dataclasses.asdict(variant) for name, variant in variants.items()}
        return self.run("compression", run, list(variants), sizes)

    def _data(self, split: str = "train", length: int | None = None) -> TextDataConfig:
        return TextDataConfig(source=self.settings.source, split=split, length=length or self.settings.length)

    def _measure(self, variant: Variant, samples: int, seed: int, folder: Path) -> dict[str, float]:
        settings = self.settings
        is_bytes = variant.vocab_size == 256
        # Rows of words are shorter, and as many that they hold the same bytes.
        vocabulary = None if is_bytes else Vocabulary.of(self.train.texts, variant.vocab_size)
        length = settings.length if is_bytes else settings.length // _IDS_PER_ROW
        if vocabulary is not None:
            share = PieceSet(self.train, vocabulary, length=length).bytes_per_id / _IDS_PER_ROW
            samples = max(round(samples / share / settings.batch_size), 1) * settings.batch_size
        result = self._train(variant, samples, length, seed, folder)
        model: SequenceModel = from_pretrained(str(result.model_dir)).eval()
        if isinstance(model, HNet):
            follow_rule(model, variant.rule)
        noisy = misspelled(self.test, settings.noise)
        clean, wrong = (self._rows(model, texts, length, vocabulary) for texts in (self.test, noisy))
        sizes = None if vocabulary is None else vocabulary.sizes
        found = {
            "bits_per_byte": bits_per_byte(model, clean, sizes=sizes),
            "noisy_bits_per_byte": bits_per_byte(model, wrong, sizes=sizes),
            "operations": count_operations(model, clean) / length / getattr(clean, "bytes_per_id", 1),
            "parameters": float(sum(parameter.numel() for parameter in model.parameters())),
        }
        found["noise_costs"] = found["noisy_bits_per_byte"] - found["bits_per_byte"]
        if isinstance(model, HNet) and model.targets:
            found |= self._chunks(model, clean)
        return found

    def _chunks(self, model: HNet, data: TextSet) -> dict[str, float]:
        """Return the bytes per chunk on held-out text, and how many more chunks begin at words than by chance."""
        marks = [model.find_boundaries(row)[0] for row in _rows(data)]
        shares = share_at_words(model, data)
        return {
            "compression": sum(found.numel() for found in marks) / sum(int(found.sum()) for found in marks),
            "at_words": shares["chunks"],
            "at_words_by_chance": shares["bytes"],
        }

    def _rows(self, model: SequenceModel, texts: Documents, length: int, vocabulary: Vocabulary | None) -> TextSet:
        if vocabulary is not None:
            return PieceSet(texts, vocabulary, length=length, shifts=False)
        return TextSet(texts, length=length, multiple=model.alignment, shifts=False)

    def _train(self, variant: Variant, samples: int, length: int, seed: int, folder: Path) -> FitResult:
        settings = self.settings
        has_rates = bool(cast(SequenceModel, create(variant.preset, **variant.sizes)).rate_multipliers())
        config = TrainConfig(
            task=StudyTextTaskConfig(
                preset=variant.preset,
                overrides=variant.sizes,
                data=self._data(length=length),
                rule=variant.rule,
                vocab_size=variant.vocab_size,
            ),
            out=str(folder / "run"),
            samples=samples,
            batch_size=settings.batch_size,
            seed=seed,
            optim=OptimConfig(
                lr=settings.lr / 2 if has_rates else settings.lr,
                weight_decay=0.1,
                warmup_samples=samples // 10,
                final_lr_ratio=0.05,
            ),
            ema_decay=None,
            log_every=settings.batch_size * 20,
            checkpoint_every=samples,
        )
        return fit(config, title=f"{folder.parent.name}, seed {seed}")


def _rows(data: TextSet) -> list[Tensor]:
    return [data.batch([(index, 0)], seed=0)["ids"] for index in range(min(len(data), 64))]


def run_sequence_study(settings: SequenceStudySettings) -> None:
    """Run a part of the study and write its tables."""
    torch.set_num_threads(1)
    study = SequenceStudy(settings)
    result = study.models() if settings.part == "models" else study.compression()
    columns = {"bits_per_byte": "bits per byte", "noise_costs": "more, misspelled"}
    text = result.table(columns) if settings.part == "models" else result.table({"bits_per_byte": "bits per byte"})
    text += "\n" + result.table({"parameters": "parameters", "operations": "multiply-adds per byte"}, digits=0)
    with_chunks = [name for name, seeds in result.values.items() if all("compression" in row for row in seeds.values())]
    if with_chunks:
        chunks = dataclasses.replace(result, values={name: result.values[name] for name in with_chunks})
        text += "\n" + chunks.table({"compression": "bytes per chunk", "at_words": "chunks at words"}, digits=2)
    write_text(Path(settings.out) / f"{settings.part}.md", text)
    print(text)
