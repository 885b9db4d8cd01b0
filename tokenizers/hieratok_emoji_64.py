r"""Train a convolutional HieraTok on emoji at 64 x 64: 1,024 numbers per picture, on two CPU cores.

    python tokenizers/hieratok_emoji_64.py --task.data.source npz:FILE --task.validation.source npz:FILE \
        --task.perceptual.weights WEIGHTS

FILE is an archive of encoded pictures with a name of each, `style/emoji` (`NpzPictures`). One emoji of ten is held out in all of its
styles. WEIGHTS is a folder with LPIPS' SqueezeNet.

Data: an archive of emoji, weights of LPIPS. Time: an hour or two on a CPU. Extra: images.
"""

from hiergen.data.config import DataConfig
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import TokenizerTaskConfig
from hiergen.training.tasks.term_settings import PerceptualConfig


def recipe() -> TrainConfig:
    pictures = {"source": "npz:DATA/emoji_64.npz", "size": 64, "hold_out": 10, "hold_out_by": "name"}
    return TrainConfig(
        task=TokenizerTaskConfig(
            preset="hieratok-conv-64",
            data=DataConfig(**pictures, in_memory=False, flip=True),
            validation=DataConfig(**pictures, split="test"),
            perceptual=PerceptualConfig(weight=0.003, network="squeeze", jitter=0, weights="DATA/lpips"),
        ),
        out="runs/hieratok_emoji_64",
        samples=800_000,
        batch_size=24,
        precision="auto",
        optim=OptimConfig(lr=2e-3, betas=(0.9, 0.99), warmup_samples=2_000, final_lr_ratio=0.02),
        ema_decay=0.999,
        log_every=1_000,
        checkpoint_every=10_000,
        keep_best="val/psnr",
        best_is="highest",
    )


if __name__ == "__main__":
    main(recipe)
