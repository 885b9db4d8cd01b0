"""Train hieratok-b on ImageNet at 256 x 256 with VA-VAE's objective, as its 50-epoch configuration has it.

Needs ImageNet as WebDataset shards, the weights of VGG16 and of LPIPS' heads in torchvision's cache, and DINOv2-L in timm's.
Without alignment (the paper's plain comparison): `--task.vae.foundation.weight 0`. The single-scale baseline: `--task.overrides` with
`"scales": [16]`. Differences from VA-VAE: the model, and an average of the weights, which costs nothing to keep.

Data: ImageNet as WebDataset shards, weights of VGG16, LPIPS and DINOv2. Time: wants several GPUs; not measured. Extra: images, eval.
"""

from hiergen.data.config import DataConfig
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import TokenizerTaskConfig
from hiergen.training.tasks.term_settings import AdversarialConfig, FoundationConfig, PerceptualConfig, VAEConfig

IMAGENET = 1_281_167
BATCH = 256
#: Adam without decay, schedule or clipping, for both players.
ADAM = OptimConfig(lr=1e-4, betas=(0.5, 0.9), weight_decay=0.0, schedule="constant", clip_norm=None)


def recipe() -> TrainConfig:
    return TrainConfig(
        task=TokenizerTaskConfig(
            preset="hieratok-b",
            overrides={"alignment_dim": 1024},
            data=DataConfig(
                source="wds:DATA/imagenet/train-*.tar", size=256, in_memory=False, crop="random", flip=True
            ),
            perceptual=PerceptualConfig(jitter=0),
            # The published start, 5001, counts the steps of both optimizers: 2,500 batches.
            adversarial=AdversarialConfig(
                discriminator="patch", start_samples=2_500 * BATCH, augment=False, lecam_weight=0.0, optim=ADAM
            ),
            vae=VAEConfig(foundation=FoundationConfig()),
        ),
        out="runs/hieratok_b_256",
        samples=50 * IMAGENET,
        batch_size=BATCH,
        num_workers=8,
        optim=ADAM,
        ema_decay=0.999,
        checkpoint_every=IMAGENET,
        log_every=100_000,
    )


if __name__ == "__main__":
    main(recipe)
