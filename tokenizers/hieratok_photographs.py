r"""Train HieraTok on windows of 64 x 64 pixels cut from photographs: four levels, from one token per window to one per 8 x 8 pixels.

    python tokenizers/hieratok_photographs.py --task.data.source npz:FILE --task.validation.source npz:FILE

FILE is an archive of encoded pictures, such as windows cut at random from photographs. Pictures of any size are then taken apart in
overlapping windows (`hiergen.tokenizers.windows`).

Data: windows of photographs. Time: half an hour on two CPU cores. Extra: images.
"""

from hiergen.data.config import DataConfig
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import TokenizerTaskConfig


def recipe() -> TrainConfig:
    pictures = {"source": "npz:DATA/windows.npz", "size": 64, "hold_out": 64}
    return TrainConfig(
        task=TokenizerTaskConfig(
            preset="hieratok-photographs",
            data=DataConfig(**pictures, in_memory=False, flip=True),
            validation=DataConfig(**pictures, split="test"),
            perceptual=None,
        ),
        out="runs/hieratok_photographs",
        samples=300_000,
        batch_size=24,
        precision="auto",
        optim=OptimConfig(lr=2e-3, betas=(0.9, 0.99), warmup_samples=2_000, final_lr_ratio=0.02),
        ema_decay=0.999,
        log_every=2_000,
        checkpoint_every=20_000,
        keep_best="val/psnr",
        best_is="highest",
    )


if __name__ == "__main__":
    main(recipe)
