"""Train a small HieraTok on any folder of pictures at 64 x 64 with VA-VAE's objective, on a CPU or one GPU.

    python tokenizers/hieratok_small_64.py --task.data.source PICTURES --task.perceptual.weights WEIGHTS

PICTURES is a folder, or `npz:FILE` (an archive of encoded pictures, as of Caltech-101); WEIGHTS a folder with LPIPS' AlexNet. There is
no foundation model, and the discriminator waits for half of the run.

Data: a folder of pictures, weights of LPIPS. Time: one GPU, or a patient CPU. Extra: images.
"""

from hiergen.data.config import DataConfig
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import TokenizerTaskConfig
from hiergen.training.tasks.term_settings import AdversarialConfig, PerceptualConfig, VAEConfig

ADAM = OptimConfig(lr=3e-4, betas=(0.5, 0.9), weight_decay=0.0, schedule="constant", clip_norm=None)


def recipe() -> TrainConfig:
    return TrainConfig(
        task=TokenizerTaskConfig(
            preset="hieratok-tiny",
            overrides={"image_size": 64, "latent_dim": 16, "scales": [1, 2, 4, 8], "has_preview_heads": False},
            data=DataConfig(source="DATA/pictures", size=64, in_memory=False, crop="random", flip=True),
            perceptual=PerceptualConfig(network="alex", jitter=0, weights="DATA/lpips"),
            adversarial=AdversarialConfig(
                discriminator="patch",
                start_samples=100_000,
                augment=False,
                lecam_weight=0.0,
                options={"dim": 32, "num_layers": 2},
                optim=ADAM,
            ),
            vae=VAEConfig(),
        ),
        out="runs/hieratok_small_64",
        samples=200_000,
        batch_size=32,
        optim=ADAM,
        ema_decay=0.999,
        checkpoint_every=20_000,
        log_every=2_000,
    )


if __name__ == "__main__":
    main(recipe)
