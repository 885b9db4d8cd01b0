"""Train VAR's tokenizer on ImageNet at 256x256: 768 samples per step, several GPUs.

How the published tokenizer was trained is not published: its program holds the network and the loss of the quantizer only. The weights of
the other terms here are those that its authors' single-level trainer has by default: squared error in [-1, 1] and LPIPS by 1 (its L1 term
of 0.2 is left out), an adversarial term by 0.4 that adapts and begins after 22 % of the run. Codes that nothing chooses are revived, since users report that coarse levels collapse. The
weights of VGG16 (LPIPS) and DINO ViT-S/16 are taken from the usual caches, or from `--task.perceptual.weights` and the like.

Data: ImageNet, weights of VGG16, LPIPS and DINO. Time: wants several GPUs; not measured. Extra: images, eval.
"""

from hiergen.data.config import DataConfig
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import TokenizerTaskConfig
from hiergen.training.tasks.term_settings import AdversarialConfig, CodebookConfig, PerceptualConfig

BATCH = 768
SAMPLES = 100_000 * BATCH


def recipe() -> TrainConfig:
    return TrainConfig(
        task=TokenizerTaskConfig(
            preset="multiscale-vq-680",
            data=DataConfig(source="imagenet/train", size=256, in_memory=False, crop="random", flip=True),
            perceptual=PerceptualConfig(),
            adversarial=AdversarialConfig(
                weight=0.4,
                start_samples=22 * SAMPLES // 100,
                is_adaptive=True,
                adaptive_at="decoder.conv_out.weight",
                optim=OptimConfig(lr=3e-4, betas=(0.5, 0.9), weight_decay=5e-4, final_lr_ratio=0.3, clip_norm=10.0),
            ),
            # Pixels are compared in [0, 1].
            pixel_weight=4.0,
            codebook=CodebookConfig(revive_after=500 * BATCH),
        ),
        out="runs/multiscale_vq_256",
        samples=SAMPLES,
        batch_size=BATCH,
        precision="bf16",
        num_workers=8,
        optim=OptimConfig(
            lr=3e-4,
            betas=(0.5, 0.9),
            weight_decay=0.005,
            warmup_samples=1_000 * BATCH,
            final_lr_ratio=0.3,
            clip_norm=10.0,
        ),
        ema_decay=0.9999,
        log_every=100 * BATCH,
        checkpoint_every=5_000 * BATCH,
    )


if __name__ == "__main__":
    main(recipe)
