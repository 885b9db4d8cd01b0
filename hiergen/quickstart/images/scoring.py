"""What the image quickstart measures: reconstruction, tokens, samples, and how alike samples and training images are."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from hiergen.config import to_json
from hiergen.data.codes import CodeSet
from hiergen.data.images.in_memory import ImageSet
from hiergen.data.images.pixels import to_uint8
from hiergen.metrics.classifiers import LabelClassifier, train_feature_network
from hiergen.metrics.codebook import codebook_use, codebook_use_by_level
from hiergen.metrics.fidelity import FeatureExtractor, compare_image_sets, paired_kernel_distance
from hiergen.metrics.frechet import Moments, frechet_distance
from hiergen.metrics.latents import channel_statistics
from hiergen.metrics.neighbors import nearest_by_pixels
from hiergen.metrics.pixel import psnr
from hiergen.pipelines.prefixes import rebuild_prefixes
from hiergen.quickstart.images.trainings import generator_config, tokenizer_config
from hiergen.quickstart.report import versions
from hiergen.quickstart.settings import PICTURES, QuickstartSettings, sampling
from hiergen.tokenizers.base import Tokenizer


def score(
    settings: QuickstartSettings,
    tokenizer: Tokenizer,
    generated: ImageSet,
    train: ImageSet,
    test: ImageSet,
    codes: CodeSet,
) -> dict[str, Any]:
    """Return the measurements of a run, as JSON values.

    Args:
        settings: Settings of the run.
        tokenizer: The tokenizer, in eval mode.
        generated: The samples; any first part of them is balanced.
        train: Real images that were trained on.
        test: Real images that were not.
        codes: Tokens of the train images.
    """
    real, held_out, made = (to_uint8(images.images) for images in (train, test, generated))
    prefixes = rebuild_prefixes(tokenizer, test.images)
    rebuilt = to_uint8(prefixes.images[-1])
    network = train_feature_network(real, train.labels, seed=settings.seed)
    extractor = FeatureExtractor(
        f"{settings.data}-cnn-32",
        "32 features of a 3-convolution classifier trained on the real train split with the same seed (not Inception: "
        "these distances compare only with each other)",
        network,
    )
    pictures = PICTURES[settings.data]
    judge = LabelClassifier(real, train.labels, in_color=pictures.judge == "color")
    network_accuracy = float((network.scores(held_out).argmax(1) == test.labels).double().mean())
    return {
        "what": f"quickstart on {pictures.what}, 32x32, trained from random weights",
        "settings": to_json(settings),
        "samples_seen": {
            "tokenizer": tokenizer_config(settings).samples,
            "generator": generator_config(settings).samples,
        },
        "sampling": sampling(settings),
        "versions": versions(),
        "extractor": {"name": extractor.name, "description": extractor.description, "test_accuracy": network_accuracy},
        "reconstruction": {
            "images": f"{len(test)} held-out test images",
            f"psnr_by_{prefixes.unit}": [
                {prefixes.unit: count, "tokens": tokens, "psnr_db": float(psnr(images, test.images).mean())}
                for count, tokens, images in zip(prefixes.counts, prefixes.tokens, prefixes.images, strict=True)
            ],
            "rfid": {
                **_distances(rebuilt, held_out, extractor, "reconstructions", "the test images themselves"),
                # Of pairs: the estimate for independent sets is below zero between images and what they became.
                "kernel_distance": paired_kernel_distance(extractor(rebuilt)["pool"], extractor(held_out)["pool"]),
            },
        },
        **_tokens(codes),
        "generation": {
            "images": f"{len(generated)} generated, {len(generated) // pictures.num_classes} a class",
            "gfid": _distances(made, real, extractor, "generated images", f"{len(train)} real train images"),
            "real_test_against_train": _distances(held_out, real, extractor, "real test images", "real train images"),
        },
        "classifier": {
            "what": f"support vector machine on 8x8 {pictures.judge} pixels, trained on the real train split",
            "real_test_accuracy": judge.accuracy(held_out, test.labels),
            "reconstruction_accuracy": judge.accuracy(rebuilt, test.labels),
            "generated_agreement": judge.accuracy(made, generated.labels),
        },
        "nearest_train_image": {
            "what": "root mean square pixel distance in [0, 1] to the nearest real train image",
            "generated": _spread(nearest_by_pixels(made, real).distances),
            "real_test": _spread(nearest_by_pixels(held_out, real).distances),
        },
    }


def _distances(a: Tensor, b: Tensor, extractor: FeatureExtractor, name: str, reference: str) -> dict[str, Any]:
    """Return the distances of two sets; without torch-fidelity the Fréchet distance alone, and why the others are left out."""
    named: dict[str, Any] = {"of": name, "against": reference}
    try:
        return {**named, **compare_image_sets(a, b, extractor)}
    except ImportError as error:
        pools = (torch.cat([extractor(part)["pool"] for part in images.split(64)]) for images in (a, b))
        found = frechet_distance(*map(Moments.of, pools))
        left_out = f"Kernel distance of independent sets, precision and recall are left out: {error}"
        return {**named, "frechet_distance": found, "left_out": left_out}


def _tokens(codes: CodeSet) -> dict[str, Any]:
    """Return the use of the codebook of discrete tokens, or the moments of continuous ones."""
    pyramid = codes.pyramid({f"level_{k}": level[:, 0] for k, level in enumerate(codes.levels)})
    vocab_size = codes.specs[0].vocab_size
    if vocab_size is None:
        count = sum(spec.num_tokens for spec in codes.specs)
        return {
            "codebook": {"what": "continuous tokens: no codebook"},
            "latents": {
                "what": f"{count} tokens of each of the {len(codes)} train images, by channel",
                "by_channel": [dataclasses.asdict(channel) for channel in channel_statistics(pyramid)],
            },
        }
    use = {
        "what": f"ids of the {len(codes)} train images, vocabulary of {vocab_size}",
        "all_levels": dataclasses.asdict(codebook_use(pyramid.concat(), vocab_size)),
        "by_level": [dataclasses.asdict(use) for use in codebook_use_by_level(pyramid)],
    }
    return {"codebook": use}


def _spread(values: Tensor) -> dict[str, float]:
    quantiles = torch.quantile(values.double(), torch.tensor([0.0, 0.05, 0.5], dtype=torch.float64)).tolist()
    return dict(zip(("min", "p5", "median"), quantiles, strict=True))
