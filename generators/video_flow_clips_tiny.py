"""Train a small flow transformer on clips of 16 frames of 32 x 32 pixels, 256 tokens: minutes on two CPU cores.

First: `hiergen train hieratok-clips-tiny` and `hiergen encode --tokenizer runs/hieratok_clips_tiny/model --videos clips
--out runs/hieratok_clips_tiny/codes`.

Data: codes of hieratok-clips-tiny. Time: about four minutes on two cores. Extra: none.
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import GeneratorTaskConfig


def recipe() -> TrainConfig:
    return TrainConfig(
        task=GeneratorTaskConfig(
            preset="flow-tiny",
            # The more numbers a clip has, the more noise it takes to hide what it shows.
            overrides={"use_qk_norm": True, "time_shift": 0.4, "cosine_weight": 0.0},
            codes="runs/hieratok_clips_tiny/codes",
        ),
        out="runs/video_flow_clips_tiny",
        samples=16_000,
        batch_size=8,
        optim=OptimConfig(lr=1e-3, warmup_samples=800, final_lr_ratio=0.05),
        ema_decay=0.995,
        log_every=400,
        checkpoint_every=4_000,
    )


if __name__ == "__main__":
    main(recipe)
