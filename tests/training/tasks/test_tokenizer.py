from __future__ import annotations

import dataclasses

import pytest
import torch

from hiergen.losses.adaptive_weight import adaptive_weight
from hiergen.losses.alignment import cosine_hinge_loss
from hiergen.pipelines.loading import from_pretrained
from hiergen.registry import create
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.loop import fit
from hiergen.training.tasks.perceptual_term import PerceptualTerm
from hiergen.training.tasks.settings import TokenizerTaskConfig
from hiergen.training.tasks.teacher_alignment import Alignment, _match_grid
from hiergen.training.tasks.term_settings import (
    AdversarialConfig,
    AlignmentConfig,
    CodebookConfig,
    DecoderConfig,
    PerceptualConfig,
)
from hiergen.training.tasks.tokenizer import TokenizerPlayer, TokenizerTask

SMALL = {
    "cnn_channels": 8,
    "cnn_multipliers": [1, 1, 1, 1],
    "cnn_groups": 2,
    "z_channels": 8,
    "encoder_dim": 16,
    "encoder_depth": 2,
    "encoder_heads": 2,
    "decoder_dim": 16,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "vocab_size": 32,
}
PATCH = {"dim": 4, "num_layers": 1}
TEACHER = {"image_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2}
BARE = TokenizerTaskConfig(overrides=SMALL)
FULL = TokenizerTaskConfig(
    overrides={**SMALL, "decoder_features": True},
    adversarial=AdversarialConfig(
        discriminator="patch", options=PATCH, start_samples=16, optim=OptimConfig(lr=3e-4, warmup_samples=8)
    ),
    alignment=AlignmentConfig(teacher="mae", weights="random", options=TEACHER),
    codebook=CodebookConfig(revive_after=16),
)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def run(task: TokenizerTaskConfig, out: str, **changes: object) -> TrainConfig:
    values = {
        "task": task,
        "out": out,
        "samples": 32,
        "batch_size": 8,
        "log_every": 8,
        "checkpoint_every": 16,
        "optim": OptimConfig(lr=1e-3, warmup_samples=8),
        "ema_decay": 0.5,
    }
    return TrainConfig(**{**values, **changes})  # type: ignore[arg-type]


def test_the_bare_task_is_the_tokenizer_and_its_pixels() -> None:
    torch.manual_seed(0)
    task = BARE.build()
    assert list(task.players) == ["tokenizer"]
    assert task.players["tokenizer"] is task.model
    batch = task.dataset.batch([(0, 0), (1, 0)], seed=0)
    terms = task.losses("tokenizer", batch, rng())
    output = task.model(batch["image"], rng=rng())
    pixel = ((output.reconstruction - batch["image"]) / 2).square().mean()
    torch.testing.assert_close(terms["loss"], pixel + sum(output.losses.values()))
    assert set(terms) == {"loss", "pixel", *output.losses}
    assert task.summary(lambda x: x) == {}


def test_the_loss_is_the_weighted_sum_of_its_terms(monkeypatch) -> None:
    """Each term again from the parts of the task, with gradients of the last layer and of the projections."""
    torch.manual_seed(0)
    config = dataclasses.replace(
        FULL,
        perceptual=PerceptualConfig(weight=0.7, network="alex", jitter=2, weights="random"),
        adversarial=AdversarialConfig(
            discriminator="patch", options=PATCH, augment=False, weight=0.3, is_adaptive=True
        ),
        alignment=dataclasses.replace(FULL.alignment, encoder_weight=0.4, decoder_weight=0.9),
        codebook=None,
        pixel_loss="l1",
        pixel_weight=2.0,
    )
    task = config.build()
    task.begin_step(0)
    task.players["discriminator"].eval()
    batch = task.dataset.batch([(0, 0), (1, 0)], seed=0)
    image, draws = batch["image"], rng()
    terms = task.losses("tokenizer", batch, rng())
    player = task.players["tokenizer"]
    output = task.model(image, rng=draws)
    reference = 2.0 * ((output.reconstruction - image) / 2).abs().mean()
    reference = reference + 0.7 * task._perceptual(output.reconstruction, image, draws).mean()
    fake = -task.players["discriminator"].discriminator(output.reconstruction).mean()
    last = task.model.pixel_decoder.conv_out.weight
    scale = adaptive_weight(reference, fake, last)
    summary, patches = player.alignment._teacher.on(image.device)(image)
    pooled = player.alignment.projections["encoder"](output.features["encoder"].mean(1))
    mapped = player.alignment.projections["decoder"](output.features["decoder"])
    side = int(mapped.shape[1] ** 0.5)
    grid = torch.nn.functional.interpolate(
        patches.transpose(1, 2).reshape(2, 24, 2, 2), size=(side, side), mode="bilinear"
    )
    expected = (
        reference
        + 0.3 * scale * fake
        + sum(output.losses.values())
        + 0.4 * cosine_hinge_loss(pooled, summary, margin=0.25)
        + 0.9 * cosine_hinge_loss(mapped, grid.flatten(2).transpose(1, 2), margin=0.25)
    )
    torch.testing.assert_close(terms["loss"], expected)
    parameters = [last, player.alignment.projections["decoder"].weight, task.model.quantizer.codebook]
    ours, plain = torch.autograd.grad(terms["loss"], parameters), torch.autograd.grad(expected, parameters)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
        assert float(a.abs().sum()) > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_under_autocast_stays_near_float32(dtype: torch.dtype, assert_near_float32) -> None:
    torch.manual_seed(0)
    perceptual = PerceptualConfig(network="squeeze", jitter=2, weights="random")
    task = dataclasses.replace(FULL, perceptual=perceptual, codebook=None).build()
    task.players["discriminator"].eval()
    task.begin_step(16)
    assert_near_float32(task, dtype)


def test_the_discriminator_waits_and_only_the_tokenizer_is_averaged(tmp_path) -> None:
    result = fit(run(FULL, str(tmp_path / "run")), cpu=True)
    first, last = result.log[0], result.log[-1]
    assert "discriminator/hinge" not in first
    assert "tokenizer/adversarial" not in first
    assert last["discriminator/hinge"] > 0
    assert {"tokenizer/align_encoder", "tokenizer/align_decoder", "usage_0", "perplexity_4", "dead_4"} <= set(last)
    assert last["dead_0"] == pytest.approx(32 * (1 - last["usage_0"]))
    # Revival is checked at 16 samples; the tiny codebook is mostly unused by then.
    assert result.log[2]["tokenizer/revived"] > 0
    files = sorted(path.name for path in result.model_dir.iterdir())
    assert files == ["README.md", "config.json", "diffusion_pytorch_model.safetensors"]
    checkpoint = max((tmp_path / "run" / "checkpoints").iterdir())
    from hiergen.training.checkpoints.checkpoint import load_checkpoint

    tensors, _ = load_checkpoint(checkpoint)
    assert not any("projections" in name for name in tensors["ema"])
    assert any("projections" in name for name in tensors["tokenizer"])
    assert not any("model.blocks" in name for part in tensors.values() for name in part)
    resumed = run(FULL, str(tmp_path / "again"))
    fit(dataclasses.replace(resumed, samples=32), cpu=True)
    other, _ = load_checkpoint(max((tmp_path / "again" / "checkpoints").iterdir()))
    assert all(torch.equal(tensors[part][name], other[part][name]) for part in tensors for name in tensors[part])


def test_a_discriminator_that_waited_counts_its_schedule_from_its_start() -> None:
    from hiergen.training.optim import learning_rate

    optim = OptimConfig(lr=1.0, warmup_samples=100, final_lr_ratio=0.1)
    for seen in (0, 50, 100, 500, 999):
        late = learning_rate(optim, 16 + seen, batch_size=8, samples=1016, start=16)
        assert late == learning_rate(optim, seen, batch_size=8, samples=1000)
    task = TokenizerTask(FULL)
    assert task.start("discriminator") == 16
    assert task.start("tokenizer") == 0
    assert task.optim("discriminator") == FULL.adversarial.optim
    assert task.optim("tokenizer") is None
    assert isinstance(task.players["tokenizer"], TokenizerPlayer)


def test_parameters_are_counted_without_weights_or_data() -> None:
    """DINO and DINOv3 are not here, and the folder does not exist: a dry run needs neither."""
    config = dataclasses.replace(
        FULL,
        adversarial=AdversarialConfig(),
        alignment=AlignmentConfig(),
        data=dataclasses.replace(FULL.data, source="nowhere"),
    )
    counts = config.count_parameters()
    assert counts["discriminator"] == 7_386_245
    bare = dataclasses.replace(config, alignment=None, codebook=None).count_parameters()
    assert counts["tokenizer"] == bare["tokenizer"] + 2 * 16 * 1024


def test_random_weights_are_asked_for_by_name_and_missing_ones_are_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(
        FileNotFoundError,
        match=r"the weights of the vgg backbone are missing.*--task\.perceptual None trains without the term",
    ):
        PerceptualTerm(PerceptualConfig())
    term = PerceptualTerm(PerceptualConfig(network="squeeze", jitter=0, weights="random"))
    images = torch.rand(2, 2, 3, 32, 32)
    assert (term(images[0], images[1], rng()) > 0).tolist() == [True, True]
    assert term(images[0], images[0], rng()).tolist() == [0, 0]
    with pytest.raises(ValueError, match="the tokenizer has no decoder features"):
        Alignment(AlignmentConfig(weights="random", options=TEACHER), BARE.build().model)


def test_a_map_of_the_same_size_is_left_alone() -> None:
    patches = torch.randn(1, 4, 3)
    assert _match_grid(patches, 4) is patches
    assert _match_grid(patches, 16).shape == (1, 16, 3)


def test_codes_of_several_levels_are_revived_from_what_is_left_at_any_of_them(tmp_path) -> None:
    sizes = {"widths": [32, 32, 32], "num_blocks": 1, "vocab_size": 24, "sides": [1, 2, 8]}
    task = TokenizerTaskConfig("multiscale-vq-tiny", sizes, codebook=CodebookConfig(revive_after=8)).build()
    task.begin_step(8)
    batch = task.dataset.batch([(index, 0) for index in range(4)], seed=0)
    quantizer = task.tokenizer.quantizer
    with torch.no_grad():
        left = quantizer.searched(task.tokenizer.encode_latents(batch["image"])).flatten(0, 1)
    losses = task.losses("tokenizer", batch, rng())
    assert losses["revived"] == 24
    distance = torch.cdist(quantizer.codebook.detach(), left, compute_mode="donot_use_mm_for_euclid_dist")
    assert distance.amin(dim=1).max() < 1e-6
    nearest = distance.argmin(dim=1)
    assert len(nearest.unique()) > 12


def test_codes_of_a_tokenizer_without_codebook_cannot_be_revived() -> None:
    config = TokenizerTaskConfig("hieratok-tiny", codebook=CodebookConfig(revive_after=8))
    with pytest.raises(ValueError, match="revive_after is 8, but 'hieratok-tiny' has no codebook: leave it out"):
        config.build()


MAP = TokenizerTaskConfig(
    preset="hieratok-tiny",
    overrides={"encoder_depth": 1, "decoder_depth": 1, "has_preview_heads": False},
    decoder=DecoderConfig(noise=0.5),
)


def test_the_decoder_alone_is_trained_and_codes_stay(tmp_path) -> None:
    images = torch.rand(2, 3, 32, 32, generator=rng()) * 2 - 1
    start = create("hieratok-tiny", **MAP.overrides).eval()
    start.save_pretrained(tmp_path / "start")
    model = from_pretrained(fit(run(MAP, str(tmp_path / "run"), init=str(tmp_path / "start"))).model_dir)
    codes = start.encode(images)
    assert all(torch.equal(a, b) for a, b in zip(codes.levels, model.encode(images).levels, strict=True))
    assert not torch.equal(start.decode(codes), model.decode(codes))


def test_the_decoder_is_trained_on_noisy_codes() -> None:
    batch = {"image": torch.rand(4, 3, 32, 32, generator=rng()) * 2 - 1}
    tasks = [TokenizerTask(dataclasses.replace(MAP, decoder=DecoderConfig(noise=noise))) for noise in (0.0, 0.5, 0.5)]
    for task in tasks[1:]:
        task.tokenizer.load_state_dict(tasks[0].tokenizer.state_dict())
    clean, noisy, again = (task.losses("tokenizer", batch, rng())["loss"].item() for task in tasks)
    assert noisy == again != clean
    image = batch["image"]
    whole = tasks[0].tokenizer.eval()(image).reconstruction
    assert clean == pytest.approx(((whole - image) / 2).square().mean().item(), rel=1e-4)


def test_a_decoder_alone_is_refused_where_more_would_have_to_be_trained(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"task\.decoder is set, but init is None: give --init"):
        fit(run(MAP, str(tmp_path / "run")))
    with pytest.raises(ValueError, match="'hieratok-tiny' also decodes its first levels, which it would not train"):
        TokenizerTask(dataclasses.replace(MAP, overrides={}))
    with pytest.raises(ValueError, match="codebook is set beside decoder, which trains no encoder"):
        dataclasses.replace(MAP, codebook=CodebookConfig())
    with pytest.raises(ValueError, match="the tokens of 'restok-tiny' are discrete, expected continuous ones"):
        TokenizerTask(dataclasses.replace(BARE, decoder=DecoderConfig()))
