"""Train hieratok-tiny on the frames of a folder of video files, for clips of 32 x 32 pixels: minutes on two CPU cores.

The folder is `--task.data.source clips:FOLDER`; here `clips`. Every frame of every file is a picture to train on.

Data: a folder of clips. Time: about a minute on two cores. Extra: video.
"""

from hiergen.data.config import DataConfig
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import TokenizerTaskConfig


def recipe() -> TrainConfig:
    return TrainConfig(
        task=TokenizerTaskConfig(
            preset="hieratok-tiny", data=DataConfig(source="clips:clips", size=32), pixel_weight=10.0
        ),
        out="runs/hieratok_clips_tiny",
        samples=24_000,
        batch_size=32,
        optim=OptimConfig(lr=1e-3, warmup_samples=1_000, final_lr_ratio=0.05),
        ema_decay=0.99,
        log_every=1_000,
        checkpoint_every=10_000,
    )


if __name__ == "__main__":
    main(recipe)
