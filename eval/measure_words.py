"""Does a generator of texts draw what it is told, and new pictures like the real ones? Judges, distances, and sheets to look at.

    python eval/measure_words.py --pipeline runs/words --data.source npz:FILE --lpips WEIGHTS --out runs/words-measured
    python eval/measure_words.py --pipeline runs/words --data.source npz:FILE --lpips WEIGHTS --out runs/words-measured --parts blind likeness \
        --extractor.weights FILE --num-samples 2941

`--data` names the pictures with their classes "group/subgroup | attribute"; what it holds out is what was held out in training. The parts:

    drawn       samples of names: how often a judge (logistic regression on AlexNet's features of the real train split) finds group and subgroup
    retrieval   held-out pictures of one attribute and as many names: rank of the right one by the model's likelihood. Of a generator of
                ids that is exact (`score`); of a flow, which has none without solving for it, the squared error of its velocity at fixed noise
                (`velocity_errors`). A text's pictures are ranked by what the text gains over no text, a picture's texts by the error itself.
    sheet       prompts of the settings, not selected
    likeness    samples of trained captions beside real held-out pictures: three judges of the group, the Fréchet distance to half of the train
                split beside that of its other half, by equal numbers, and how near the nearest training picture or its mirror image is
    blind       samples of all captions, not selected and without their names, for people to name; what was asked for is in `blind.json`.
                Real held-out pictures in the same form are beside them.
"""

import dataclasses
import textwrap
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from hiergen.config import fingerprint, parse
from hiergen.data.config import DataConfig
from hiergen.data.images.on_disk import PictureSet
from hiergen.data.images.pixels import to_uint8
from hiergen.data.sources import open_captions, open_images
from hiergen.evaluation.features.extractors import build_extractor
from hiergen.evaluation.features.references import open_reference
from hiergen.evaluation.images.samples import open_samples, write_adm_npz
from hiergen.evaluation.settings import ExtractorConfig, PassConfig
from hiergen.figures import as_rows, save_image_grid
from hiergen.files import check_writable, write_json
from hiergen.generators.flow.model import FlowTransformer
from hiergen.metrics.classifiers import FeatureClassifier, LabelClassifier, stage_features
from hiergen.metrics.frechet import frechet_beside_halves
from hiergen.metrics.neighbors import nearest_by_lpips, nearest_by_pixels, nearness
from hiergen.pipelines.encoding import decode_batches, encode_batches, tokenizer_fingerprint
from hiergen.pipelines.image import TextToImagePipeline
from hiergen.pipelines.loading import from_pretrained
from hiergen.pretrained.perceptual import LPIPS
from hiergen.seeding import SampleRng, make_rng
from hiergen.telling import say

Part = Literal["sheet", "retrieval", "drawn", "likeness", "blind"]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, on which data.

    Attributes:
        pipeline: Folder of a `TextToImagePipeline`.
        beside: Folder or name of a class-conditional pipeline of the same classes, whose samples of the subgroups are judged too; "" for none.
        out: Folder of the numbers and pictures.
        parts: What is measured, in this order.
        data: The pictures; `split` is not read.
        lpips: Folder of AlexNet's weights.
        captions: What samples are asked for, by a template of their names and classes.
        names: What pictures are found by, by such a template.
        num_samples: Number of samples that are judged, in "drawn" for names that were trained and for names that were held out.
        num_candidates: Number of pictures, and of names, that the right one is found among.
        times: Times of the path, 0 (noise) to 1, at which a flow's velocity is compared.
        attribute: Pictures of this attribute are candidates, so that it tells nothing.
        seeds: Seeds of the samples.
        sampling: Settings of the generators, for all samples.
        prompts: Texts of the sheet.
        per_prompt: Samples of each.
        negative_prompt: What guidance moves away from in the sheet; "" is no text.
        extractor: Features of the Fréchet distance and of the judge by neighbors.
        cache: Folder of these features of real pictures.
        same: Root mean square difference of pixels in [0, 1] up to which a held-out picture is the same as a training one ("likeness").
        num_blind: Number of pictures that people are to name.
    """

    pipeline: str = "runs/words"
    beside: str = ""
    out: str = "runs/words-measured"
    parts: tuple[Part, ...] = ("sheet", "retrieval", "drawn")
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
    extractor: ExtractorConfig = dataclasses.field(default_factory=lambda: ExtractorConfig(name="inception-768"))
    cache: str = "~/.cache/hiergen/references"
    same: float = 0.01
    num_blind: int = 200


def main(settings: Settings) -> None:
    """Measure the three parts, each written when it is done."""
    out = check_writable(settings.out)
    pipe = cast(TextToImagePipeline, from_pretrained(settings.pipeline))
    pipe.set_progress_bar_config(disable=True)
    train, test = (Pictures.of(settings, split) for split in ("train", "test"))
    for part in settings.parts:
        PARTS[part](pipe, train, test, settings, out)


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


def judge_drawn(pipe: TextToImagePipeline, train: Pictures, test: Pictures, settings: Settings, out: Path) -> None:
    """Write how often the judge finds the class of samples of names, trained and held out, seed by seed."""
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


def find_pictures(pipe: TextToImagePipeline, train: Pictures, test: Pictures, settings: Settings, out: Path) -> None:
    """Write the ranks of the right pictures and texts, of held-out and of trained ones."""
    ranks = {}
    for kind in (test, train):
        ranks[kind.name] = retrieve(pipe, kind, settings)
        write_json(out / "retrieval.json", ranks)
    say(f"measure_words: retrieval {ranks}")


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


def sheet(pipe: TextToImagePipeline, train: Pictures, test: Pictures, settings: Settings, out: Path) -> None:
    """Write samples of the prompts, a row each."""
    told = [prompt for prompt in settings.prompts for _ in range(settings.per_prompt)]
    against = {"negative_prompt": settings.negative_prompt} if settings.negative_prompt else {}
    rows = make(pipe, told, settings.seeds[0], settings, **against).split(settings.per_prompt)
    labels = [textwrap.fill(text, 18) for text in settings.prompts]
    save_image_grid(out / "sheet.png", list(rows), row_labels=labels, title="Not selected")


def blind(pipe: TextToImagePipeline, train: Pictures, test: Pictures, settings: Settings, out: Path) -> None:
    """Write sheets of 50 pictures without names, samples and real held-out ones, and what they are."""
    everything = [(kind, index) for kind in (train, test) for index in range(len(kind))]
    asked = [everything[place] for place in draw(len(everything), settings.num_blind)]
    shown = [(test, index) for index in draw(len(test), settings.num_blind)]
    samples = make(pipe, [kind.captions[index] for kind, index in asked], settings.seeds[0], settings)
    for name, images, what in (("blind", samples, asked), ("blind-real", test.images([i for _, i in shown]), shown)):
        for number, part in enumerate(images.split(50)):
            rows = as_rows(part, 10)
            labels = [f"{50 * number + 10 * row + 1} to {50 * number + 10 * (row + 1)}" for row in range(len(rows))]
            save_image_grid(out / f"{name}-{number + 1}.png", rows, row_labels=labels, scale=0.9)
        answers = [
            {"number": k, "split": kind.name, "caption": kind.captions[index], "class": kind.classes[index]}
            for k, (kind, index) in enumerate(what, 1)
        ]
        write_json(out / f"{name}.json", answers)


def likeness(pipe: TextToImagePipeline, train: Pictures, test: Pictures, settings: Settings, out: Path) -> None:
    """Write how samples of trained captions compare with real held-out pictures."""
    chosen = draw(len(train), settings.num_samples)
    samples = _kept_samples(pipe, [train.captions[index] for index in chosen], settings, out)
    classes = [train.classes[index] for index in chosen]
    groups = {
        kind: _groups(of, train)
        for kind, of in (("train", train.classes), ("made", classes), ("held out", test.classes))
    }
    judge, found = Judge(train, settings), dict[str, Any](count=len(samples), sampling=settings.sampling)
    found["judge"] = {
        "made": judge.agreement(samples, classes),
        "held out": judge.agreement(test.images(), test.classes),
    }
    real, images = to_uint8(train.images()), {"made": to_uint8(samples), "held out": to_uint8(test.images())}
    machine = LabelClassifier(real, groups["train"], in_color=True)
    found["support vector machine on 8x8 pixels"] = {k: machine.accuracy(x, groups[k]) for k, x in images.items()}
    found["nearness"] = _nearness(images["made"], real, images["held out"], settings)
    write_json(out / "likeness.json", found)
    rebuilt = decode_batches(pipe.tokenizer, encode_batches(pipe.tokenizer, test.images()))
    found |= _by_features({"made": images["made"], "rebuilt": to_uint8(rebuilt)}, groups, settings)
    write_json(out / "likeness.json", found)
    say(f"measure_words: {found}")


def _by_features(images: dict[str, Tensor], groups: dict[str, Tensor], settings: Settings) -> dict[str, Any]:
    """Return the Fréchet distances of images and of real held-out ones, and what the judge by neighbors says of both."""
    extractor = build_extractor(settings.extractor)
    sets = {kind: torch.cat([extractor(part)["pool"] for part in of.split(64)]) for kind, of in images.items()}
    for name, split in (("train", "train"), ("held out", "test")):
        reference = open_reference(
            dataclasses.replace(settings.data, split=cast(Any, split)),
            extractor,
            rounding="nearest",
            passes=PassConfig(),
            cache=settings.cache,
            device=torch.device("cpu"),
        )
        sets[name] = cast(Tensor, reference.features)
    train = sets.pop("train")
    # By as many as there are samples, or half of the data; and by as many as are held out, where these are fewer.
    most = min(len(sets["made"]), len(train) // 2)
    distances = {}
    for count in sorted({min(most, len(sets["held out"])), most}):
        large = {name: rows for name, rows in sets.items() if len(rows) >= count}
        distances[count] = frechet_beside_halves(large, train, count=count, seed=settings.seeds[0])
    agreement = {}
    for name in ("made", "held out"):
        nearest = torch.cdist(sets[name], train).topk(5, largest=False).indices
        said = groups["train"][nearest].mode(dim=1).values
        agreement[name] = float((said == groups[name]).double().mean())
    return {extractor.distance: distances, f"5 nearest neighbors, {extractor.name}": agreement}


def _kept_samples(pipe: TextToImagePipeline, texts: list[str], settings: Settings, out: Path) -> Tensor:
    """Return the samples of texts as they are when written as bytes; made only where no file has them."""
    models = [tokenizer_fingerprint(part) for part in (pipe.tokenizer, pipe.generator)]
    digits = fingerprint({"models": models, "texts": texts, "sampling": settings.sampling, "seed": settings.seeds[0]})
    path = out / f"samples-{digits}.npz"
    if not path.is_file():
        write_adm_npz(path, len(texts), [to_uint8(make(pipe, texts, settings.seeds[0], settings))])
    return open_samples(str(path), 0).read(range(len(texts))).float() / 127.5 - 1


def _nearness(made: Tensor, real: Tensor, held_out: Tensor, settings: Settings) -> dict[str, dict[str, float]]:
    """Return how near samples and held-out pictures are to the training pictures and their mirror images."""
    both, asked, split = torch.cat([real, real.flip(-1)]), torch.cat([made, held_out]), len(made)
    network = LPIPS.from_files("alex", folder=settings.lpips)
    by_pixels = nearest_by_pixels(asked, both).distances
    by_lpips = nearest_by_lpips(asked.float() / 127.5 - 1, both.float() / 127.5 - 1, network).distances
    is_copy = by_pixels[split:] <= settings.same
    return {
        "root mean square": nearness(by_pixels[:split], by_pixels[split:], is_copy),
        "LPIPS (AlexNet)": nearness(by_lpips[:split], by_lpips[split:], is_copy),
    }


def _groups(classes: list[str], known: Pictures) -> Tensor:
    """Return the number of each class's group."""
    return torch.from_numpy(np.searchsorted(np.unique(_parts(known.classes)[0]), _parts(classes)[0]))


PARTS = {"sheet": sheet, "retrieval": find_pictures, "drawn": judge_drawn, "likeness": likeness, "blind": blind}

if __name__ == "__main__":
    main(parse(Settings(), None, prog="measure_words.py", description=__doc__))
