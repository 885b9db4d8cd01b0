"""Does a generator of texts draw what it is told? A judge of classes, retrieval by the model's own likelihood, and a sheet to look at.

    python eval/measure_words.py --pipeline runs/words --data.source npz:FILE --lpips WEIGHTS --out runs/words-measured

`--data` names the pictures with their classes "group/subgroup | attribute"; what it holds out is what was held out in training. Three parts:

    drawn       samples of names: how often a judge (logistic regression on AlexNet's features of the real train split) finds group and subgroup
    retrieval   held-out pictures of one attribute and as many names: rank of the right one by the model's likelihood. Of a generator of
                ids that is exact (`score`); of a flow, which has none without solving for it, the squared error of its velocity at fixed noise
                (`velocity_errors`). A text's pictures are ranked by what the text gains over no text, a picture's texts by the error itself.
    sheet       prompts of the settings, not selected
"""

import dataclasses
import textwrap
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from hiergen.config import parse
from hiergen.data.config import DataConfig
from hiergen.data.images.on_disk import PictureSet
from hiergen.data.sources import open_captions, open_images
from hiergen.figures import save_image_grid
from hiergen.files import check_writable, write_json
from hiergen.generators.flow.model import FlowTransformer
from hiergen.metrics.classifiers import FeatureClassifier, stage_features
from hiergen.pipelines.encoding import encode_batches
from hiergen.pipelines.image import TextToImagePipeline
from hiergen.pipelines.loading import from_pretrained
from hiergen.pretrained.perceptual import LPIPS
from hiergen.seeding import SampleRng, make_rng
from hiergen.telling import say


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, on which data.

    Attributes:
        pipeline: Folder of a `TextToImagePipeline`.
        beside: Folder or name of a class-conditional pipeline of the same classes, whose samples of the subgroups are judged too; "" for none.
        out: Folder of the numbers and pictures.
        data: The pictures; `split` is not read.
        lpips: Folder of AlexNet's weights.
        captions: What samples are asked for, by a template of their names and classes.
        names: What pictures are found by, by such a template.
        num_samples: Number of samples that are judged, for names that were trained and for names that were held out.
        num_candidates: Number of pictures, and of names, that the right one is found among.
        times: Times of the path, 0 (noise) to 1, at which a flow's velocity is compared.
        attribute: Pictures of this attribute are candidates, so that it tells nothing.
        seeds: Seeds of the samples.
        sampling: Settings of the generators, for all samples.
        prompts: Texts of the sheet.
        per_prompt: Samples of each.
        negative_prompt: What guidance moves away from in the sheet; "" is no text.
    """

    pipeline: str = "runs/words"
    beside: str = ""
    out: str = "runs/words-measured"
    data: DataConfig = dataclasses.field(
        default_factory=lambda: DataConfig(
            size=64, hold_out=10, hold_out_by="name", label_column="labels+styles", in_memory=False
        )
    )
    lpips: str | None = None
    captions: str = "{name}, {attribute}"
    names: str = "{name}"
    num_samples: int = 256
    num_candidates: int = 100
    times: tuple[float, ...] = (0.3, 0.55, 0.8)
    attribute: str = "noto"
    seeds: tuple[int, ...] = (0, 1, 2)
    sampling: dict[str, Any] = dataclasses.field(default_factory=lambda: {"guidance_scale": 3.0})
    prompts: tuple[str, ...] = ("red heart", "blue heart", "cat face", "blue cat face")
    per_prompt: int = 8
    negative_prompt: str = ""


def main(settings: Settings) -> None:
    """Measure the three parts, each written when it is done."""
    out = check_writable(settings.out)
    pipe = cast(TextToImagePipeline, from_pretrained(settings.pipeline))
    pipe.set_progress_bar_config(disable=True)
    sheet(pipe, settings, out / "sheet.png")
    train, test = (Pictures.of(settings, split) for split in ("train", "test"))
    ranks = {}
    for kind in (test, train):
        ranks[kind.name] = retrieve(pipe, kind, settings)
        write_json(out / "retrieval.json", ranks)
    say(f"measure_words: retrieval {ranks}")
    judge = Judge(train, settings)
    found: dict[str, Any] = {"real test": judge.agreement(test.images(), test.classes)}
    beside = from_pretrained(settings.beside) if settings.beside else None
    for seed in settings.seeds:
        for kind in (train, test):
            chosen = draw(len(kind), settings.num_samples)
            classes = [kind.classes[index] for index in chosen]
            texts = [kind.captions[index] for index in chosen]
            found[f"{kind.name} {seed}"] = judge.agreement(make(pipe, texts, seed, settings), classes)
            if beside is not None:
                beside.set_progress_bar_config(disable=True)
                found[f"beside, {kind.name} {seed}"] = judge.agreement(make(beside, classes, seed, settings), classes)
            say(f"measure_words: {found}")
            write_json(out / "drawn.json", found)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """One side of the data.

    Attributes:
        name: "train" or "test".
        source: The pictures.
        classes: Class of each, "group/subgroup | attribute".
        names: Text of its name.
        captions: What a sample like it is asked for.
    """

    name: str
    source: PictureSet
    classes: list[str]
    names: list[str]
    captions: list[str]

    @classmethod
    def of(cls, settings: Settings, split: Any) -> "Pictures":
        config = dataclasses.replace(settings.data, split=split)
        source = cast(PictureSet, open_images(config, is_strict=True))
        classes = [source.classes[label] for label in source.labels]
        names, captions = (
            [texts[0] for texts in open_captions(dataclasses.replace(config, captions=(template,)))]
            for template in (settings.names, settings.captions)
        )
        return cls(split, source, classes, names, captions)

    def __len__(self) -> int:
        return len(self.classes)

    def images(self, indices: list[int] | None = None) -> Tensor:
        """Return some pictures, or all, in [-1, 1]."""
        wanted = range(len(self)) if indices is None else indices
        return self.source.batch([(index, 0) for index in wanted], seed=0)["image"]


def draw(count: int, wanted: int) -> list[int]:
    """Return some of `count` numbers, always the same ones, in random order."""
    return torch.randperm(count, generator=make_rng("words", count))[:wanted].tolist()


@torch.no_grad()
def make(pipe: Any, told: list[str], seed: int, settings: Settings, **options: Any) -> Tensor:
    """Return a sample of each text, or class; sample k has the draws of seed and k alone."""
    parts = []
    for start in range(0, len(told), 32):
        part = told[start : start + 32]
        rngs = SampleRng([make_rng("words", seed, start + place) for place in range(len(part))])
        parts.append(pipe(part, generator=rngs, output_type="pt", **settings.sampling, **options).images.cpu())
    return torch.cat(parts)


class Judge:
    """Logistic regressions on AlexNet's features of the real train split, of groups and of subgroups."""

    def __init__(self, train: Pictures, settings: Settings) -> None:
        self._network = LPIPS.from_files("alex", folder=settings.lpips)
        features = stage_features(self._network, train.images())
        self._groups, self._subgroups = (FeatureClassifier(features, part) for part in _parts(train.classes))

    def agreement(self, images: Tensor, classes: list[str]) -> dict[str, float]:
        """Return the share of pictures whose group, and whose subgroup, the judge finds; and whose subgroup is among its first five."""
        features = stage_features(self._network, images)
        groups, subgroups = _parts(classes)
        first = self._subgroups.likeliest(features, 5)
        return {
            "group": float((self._groups.likeliest(features)[:, 0] == groups).mean()),
            "subgroup": float((first[:, 0] == subgroups).mean()),
            "subgroup in 5": float((first == subgroups[:, None]).any(axis=1).mean()),
        }


def _parts(classes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    paths = [name.partition(" | ")[0] for name in classes]
    return np.array([path.split("/")[0] for path in paths]), np.array(paths)


@torch.no_grad()
def retrieve(pipe: TextToImagePipeline, kind: Pictures, settings: Settings) -> dict[str, Any]:
    """Return the ranks of the right picture of each text, and of the right text of each picture, among `num_candidates`."""
    fitting = [index for index, name in enumerate(kind.classes) if name.endswith(f"| {settings.attribute}")]
    chosen = [fitting[place] for place in draw(len(fitting), settings.num_candidates)]
    pyramid, names = encode_batches(pipe.tokenizer, kind.images(chosen)), [kind.names[index] for index in chosen]
    is_exact = not isinstance(pipe.generator, FlowTransformer)

    def errors_of(text: str | None) -> Tensor:
        if is_exact:
            return -pipe.score(pyramid, text).total
        return pipe.velocity_errors(pyramid, text, times=settings.times, seed=settings.seeds[0])

    alone, errors = errors_of(None), torch.stack([errors_of(text) for text in names])  # (text, picture)
    return {
        "of": "nats" if is_exact else "squared error of the velocity",
        "candidates": len(names),
        "error with the right text": float(errors.diagonal().mean()),
        "error without a text": float(alone.mean()),
        "picture of a text": _ranks(errors - alone[None]),
        "text of a picture": _ranks(errors.T),
    }


def _ranks(errors: Tensor) -> dict[str, float]:
    """Return how often the right column of each row is first, and among the first five, and its median rank, 1 being the best."""
    ranks = (errors < errors.diagonal()[:, None]).sum(dim=1) + 1
    return {
        "first": float((ranks == 1).float().mean()),
        "in 5": float((ranks <= 5).float().mean()),
        "median rank": float(ranks.float().median()),
    }


def sheet(pipe: TextToImagePipeline, settings: Settings, path: Any) -> None:
    """Write samples of the prompts, a row each."""
    told = [prompt for prompt in settings.prompts for _ in range(settings.per_prompt)]
    against = {"negative_prompt": settings.negative_prompt} if settings.negative_prompt else {}
    rows = make(pipe, told, settings.seeds[0], settings, **against).split(settings.per_prompt)
    save_image_grid(
        path, list(rows), row_labels=[textwrap.fill(text, 18) for text in settings.prompts], title="Not selected"
    )


if __name__ == "__main__":
    main(parse(Settings(), None, prog="measure_words.py", description=__doc__))
