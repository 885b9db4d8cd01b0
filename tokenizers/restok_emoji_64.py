"""Train ResTok on emoji at 64 x 64: 64 tokens of 12 bits in levels, on two CPU cores.

    python tokenizers/restok_emoji_64.py --task.data.source npz:FILE --task.validation.source npz:FILE

FILE as for `hieratok_emoji_64.py`. The convolutions start at a quarter of the image's resolution, and codes are kept in use by drawing the
dead ones anew instead of by the entropy of all of them: these two were where most of the time went.

Data: an archive of emoji. Time: a few hours on a CPU. Extra: none.
"""

from hiergen.data.config import DataConfig
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import TokenizerTaskConfig
from hiergen.training.tasks.term_settings import CodebookConfig


def recipe() -> TrainConfig:
    pictures = {"source": "npz:DATA/emoji_64.npz", "size": 64, "hold_out": 10, "hold_out_by": "name"}
    return TrainConfig(
        task=TokenizerTaskConfig(
            preset="restok-tiny",
            overrides={
                "image_size": 64,
                "cnn_stem": 4,
                "cnn_channels": 64,
                "cnn_multipliers": [1, 2],
                "num_latent_tokens": 64,
                "vocab_size": 4096,
                "entropy_weight": 0.0,
            },
            data=DataConfig(**pictures, in_memory=False, flip=True),
            validation=DataConfig(**pictures, split="test"),
            pixel_weight=10.0,
            codebook=CodebookConfig(revive_after=4_000),
        ),
        out="runs/restok_emoji_64",
        samples=300_000,
        batch_size=32,
        precision="auto",
        optim=OptimConfig(lr=1e-3, betas=(0.9, 0.99), warmup_samples=2_000, final_lr_ratio=0.02),
        ema_decay=0.999,
        log_every=1_000,
        checkpoint_every=10_000,
        keep_best="val/psnr",
        best_is="highest",
    )


if __name__ == "__main__":
    main(recipe)
