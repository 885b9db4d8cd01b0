"""Train hieratok-frame-128 on the frames of a folder of video files, for clips of 128 x 128 pixels: one GPU.

The folder is `--task.data.source clips:FOLDER`; here `videos`. Untested at this size.

Data: a folder of clips. Time: wants one GPU; not yet run. Extra: video.
"""

from hiergen.data.config import DataConfig
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import TokenizerTaskConfig


def recipe() -> TrainConfig:
    return TrainConfig(
        task=TokenizerTaskConfig(
            preset="hieratok-frame-128", data=DataConfig(source="clips:videos", size=128), pixel_loss="l1"
        ),
        out="runs/hieratok_frames_128",
        samples=12_800_000,
        batch_size=128,
        precision="bf16",
        num_workers=4,
        optim=OptimConfig(lr=3e-4, warmup_samples=128_000, final_lr_ratio=0.05, clip_norm=1.0),
        ema_decay=0.999,
        log_every=12_800,
        checkpoint_every=640_000,
    )


if __name__ == "__main__":
    main(recipe)
