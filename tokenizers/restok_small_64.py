"""Train a small ResTok on any folder of pictures at 64 x 64, on one GPU or a patient CPU.

    python tokenizers/restok_small_64.py --task.data.source PICTURES --task.perceptual.weights WEIGHTS

PICTURES is a folder of class folders, `npz:FILE` (an archive of encoded pictures, as of Caltech-101) or `idx:FOLDER` (Fashion-MNIST:
add `--task.data.size 32` and `image_size` 32 in the overrides below). WEIGHTS is a folder with LPIPS' AlexNet. The corrected projection,
merge and shortcut of `restok-tiny`; the discriminator waits for half of the run.

Data: a folder of pictures, weights of LPIPS. Time: one GPU, or a patient CPU. Extra: images.
"""

from hiergen.data.config import DataConfig
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import TokenizerTaskConfig
from hiergen.training.tasks.term_settings import AdversarialConfig, CodebookConfig, PerceptualConfig


def recipe() -> TrainConfig:
    return TrainConfig(
        task=TokenizerTaskConfig(
            preset="restok-tiny",
            overrides={
                "image_size": 64,
                "cnn_channels": 32,
                "encoder_dim": 256,
                "encoder_depth": 6,
                "decoder_dim": 256,
                "decoder_depth": 6,
                "num_latent_tokens": 64,
                "vocab_size": 1024,
                "num_image_levels": 3,
            },
            data=DataConfig(source="DATA/pictures", size=64, in_memory=False, crop="random", flip=True),
            pixel_weight=10.0,
            perceptual=PerceptualConfig(network="alex", jitter=4, weights="DATA/lpips"),
            adversarial=AdversarialConfig(
                weight=0.1,
                discriminator="blur",
                start_samples=500_000,
                is_adaptive=True,
                options={"dim": 64, "num_stages": 2, "map_size": 8},
            ),
            codebook=CodebookConfig(revive_after=50_000),
        ),
        out="runs/restok_small_64",
        samples=1_000_000,
        batch_size=64,
        num_workers=2,
        optim=OptimConfig(lr=5e-4, warmup_samples=20_000, final_lr_ratio=0.05),
        ema_decay=0.999,
        checkpoint_every=50_000,
        log_every=5_000,
    )


if __name__ == "__main__":
    main(recipe)
