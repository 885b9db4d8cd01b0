"""Train pyramid-convnext-320 on ImageNet at 256x256: two levels of ids on a ConvNeXt that starts from its published weights.

The backbone is trained on at the same rate as the rest. Its weights come from timm's cache or download; a file is named by
`--task.overrides '{"backbone_weights": "FILE"}'`. The weights of the losses are those of `multiscale_vq_256.py`.

Data: ImageNet, weights of ConvNeXt, VGG16, LPIPS and DINO. Time: wants several GPUs; not measured. Extra: images, eval.
"""

from hiergen.data.config import DataConfig
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import TokenizerTaskConfig
from hiergen.training.tasks.term_settings import AdversarialConfig, CodebookConfig, PerceptualConfig

BATCH = 256
SAMPLES = 200_000 * BATCH


def recipe() -> TrainConfig:
    return TrainConfig(
        task=TokenizerTaskConfig(
            preset="pyramid-convnext-320",
            overrides={"backbone_weights": None},
            data=DataConfig(source="imagenet/train", size=256, in_memory=False, crop="random", flip=True),
            perceptual=PerceptualConfig(),
            adversarial=AdversarialConfig(
                weight=0.4,
                start_samples=22 * SAMPLES // 100,
                is_adaptive=True,
                adaptive_at="decoder.conv_out.weight",
                optim=OptimConfig(lr=1e-4, betas=(0.5, 0.9), weight_decay=5e-4, final_lr_ratio=0.3, clip_norm=10.0),
            ),
            # Pixels are compared in [0, 1].
            pixel_weight=4.0,
            codebook=CodebookConfig(revive_after=500 * BATCH),
        ),
        out="runs/pyramid_convnext_256",
        samples=SAMPLES,
        batch_size=BATCH,
        precision="bf16",
        num_workers=8,
        optim=OptimConfig(
            lr=1e-4,
            betas=(0.9, 0.95),
            weight_decay=0.005,
            warmup_samples=1_000 * BATCH,
            final_lr_ratio=0.1,
            clip_norm=10.0,
        ),
        ema_decay=0.9999,
        log_every=100 * BATCH,
        checkpoint_every=5_000 * BATCH,
    )


if __name__ == "__main__":
    main(recipe)
