"""Train TiTok-BL-64 VAE on ImageNet at 256x256 in one stage: 256 samples per step, 1,000,000 steps.

Its authors published no settings. Batch, steps and kinds of terms are what they answered; the weights are those of TA-TiTok's one-stage
recipe, their successor. The discrete models of one stage take `--task.preset titok-bl-64`.

Data: ImageNet, weights of VGG16 (LPIPS) and ConvNeXt-S. Time: wants many GPUs; not measured. Extra: images, eval.
"""

from hiergen.data.config import DataConfig
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import TokenizerTaskConfig
from hiergen.training.tasks.term_settings import AdversarialConfig, PerceptualConfig

BATCH = 256


def recipe() -> TrainConfig:
    return TrainConfig(
        task=TokenizerTaskConfig(
            preset="titok-bl-64-vae",
            data=DataConfig(source="imagenet/train", size=256, in_memory=False, crop="random", flip=True),
            perceptual=PerceptualConfig(weight=1.1, lpips_part=1.0, convnext_part=0.1, jitter=0),
            adversarial=AdversarialConfig(
                weight=0.1, start_samples=200_000 * BATCH, discriminator="blur", augment=False, lecam_weight=1e-3
            ),
        ),
        out="runs/titok_bl_64_vae",
        samples=1_000_000 * BATCH,
        batch_size=BATCH,
        precision="bf16",
        num_workers=8,
        optim=OptimConfig(
            lr=1e-4,
            betas=(0.9, 0.999),
            weight_decay=1e-4,
            warmup_samples=10_000 * BATCH,
            final_lr_ratio=0.1,
            clip_norm=1.0,
        ),
        ema_decay=0.999,
        log_every=100 * BATCH,
        checkpoint_every=5_000 * BATCH,
    )


if __name__ == "__main__":
    main(recipe)
