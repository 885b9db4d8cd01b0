from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import nn

from hiergen.evaluation.images.prefix_scores import score_adaptive, score_generations, score_reconstructions
from hiergen.metrics.fidelity import FeatureExtractor
from hiergen.pipelines.image import ClassToImagePipeline
from hiergen.pipelines.prefixes import encode_adaptive
from hiergen.registry import create
from hiergen.seeding import SampleRng


class Colors(nn.Module):
    """Two features an image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((2, 3))[:, :2] / 255


EXTRACTOR = FeatureExtractor("colors", "mean red and green", Colors())


@pytest.fixture(scope="module")
def pipeline() -> ClassToImagePipeline:
    torch.manual_seed(0)
    tokenizer = create("restok-tiny", cnn_channels=8, encoder_depth=2, decoder_depth=1, min_tokens=2).eval()
    generator = create("har-tiny", depth=1).eval()
    nn.init.normal_(generator.head.weight)
    return ClassToImagePipeline(tokenizer=tokenizer, generator=generator)


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """The distance in two dimensions, where the trace of a root is known: sqrt(trace + 2 sqrt(determinant))."""
    x, y = (Colors()(images).double().numpy() for images in (a, b))
    first, second = np.cov(x.T), np.cov(y.T)
    product = first @ second
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(max(np.linalg.det(product), 0.0)))
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * root)


def test_reconstructions_by_prefix(pipeline) -> None:
    images = torch.rand(12, 3, 32, 32) * 2 - 1
    scores = score_reconstructions(pipeline.tokenizer, images, EXTRACTOR, batch_size=5)
    assert [(score.levels, score.tokens) for score in scores] == [(2, 2), (3, 4), (4, 8), (5, 16)]
    with torch.no_grad():
        rebuilt = pipeline.tokenizer.decode(pipeline.tokenizer.encode(images).prefix(3)).clamp(-1, 1)
    expected = [
        peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=2) for a, b in zip(images, rebuilt, strict=True)
    ]
    assert scores[1].psnr_db == pytest.approx(np.mean(expected), abs=1e-4)
    to_bytes = [((x + 1) * 127.5).round().to(torch.uint8) for x in (images, rebuilt)]
    assert scores[1].frechet_distance == pytest.approx(frechet(*to_bytes), abs=1e-5)
    assert scores[1].seconds is None


def test_generations_that_stop_early_are_the_beginning_of_longer_ones(pipeline, monkeypatch) -> None:
    reference = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(12) % 10
    kept, steps = [], []
    generate = type(pipeline.generator).generate

    def watched(self, *args, **options):
        count = []
        pyramid = generate(self, *args, **{**options, "callback": lambda step, levels, **_: count.append(step)})
        kept.append(pyramid)
        steps.append(len(count))
        return pyramid

    monkeypatch.setattr(type(pipeline.generator), "generate", watched)
    scores = score_generations(pipeline, labels, reference, EXTRACTOR, seed=3, batch_size=12, guidance_scale=2.0)
    assert [score.tokens for score in scores] == [2, 4, 8, 16]
    # Two and four tokens come one by one, then one level per step.
    assert steps == [2, 4, 5, 6]
    for pyramid in kept[:-1]:
        assert all(torch.equal(a, b) for a, b in zip(pyramid.levels, kept[-1].levels, strict=False))
    rng = SampleRng.of(range(12), 3, "prefix")
    images = pipeline(labels.tolist(), generator=rng, output_type="pt", guidance_scale=2.0, num_levels=4).images
    distance = frechet(((images + 1) * 127.5).round().to(torch.uint8), reference)
    assert scores[2].frechet_distance == pytest.approx(distance, abs=1e-5)
    assert scores[0].seconds > 0
    assert scores[0].psnr_db is None
    with pytest.raises(TypeError, match="LevelAR has no setting 'guidance_scal'; did you mean guidance_scale"):
        score_generations(pipeline, labels, reference, EXTRACTOR, guidance_scal=2.0)


def test_adaptive_codes_are_summed_up(pipeline) -> None:
    images = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    bound = float(encode_adaptive(pipeline.tokenizer, images, min_psnr=-100.0).psnr.median())
    found = encode_adaptive(pipeline.tokenizer, images, min_psnr=bound)
    assert len(set(found.chosen.tolist())) > 1
    (score,) = score_adaptive(pipeline.tokenizer, images, (bound,))
    assert score.size == pytest.approx(float(found.sizes.mean()))
    assert score.psnr_db == pytest.approx(float(found.psnr.mean()))
    assert score.reached == pytest.approx(float((found.psnr >= bound).float().mean()))
    assert found.psnr.min() <= score.lowest_psnr_db <= score.psnr_db
    easy, hard = score_adaptive(pipeline.tokenizer, images, (-100.0, 1000.0))
    assert (easy.tokens, easy.reached, hard.tokens, hard.reached) == (2, 1, 16, 0)
