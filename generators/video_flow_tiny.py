"""Train flow-video-tiny on the moving digits for longer than the quickstart does.

First: `hiergen quickstart video`, which leaves the tokenizer and its codes.

Data: codes that the video quickstart leaves. Time: for a CPU. Extra: none.
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import GeneratorTaskConfig


def recipe() -> TrainConfig:
    return TrainConfig(
        task=GeneratorTaskConfig(preset="flow-video-tiny", codes="quickstart-video/codes"),
        out="runs/video_flow_tiny",
        samples=120_000,
        batch_size=4,
        optim=OptimConfig(lr=2e-3, weight_decay=1e-4, warmup_samples=800, final_lr_ratio=0.05),
        ema_decay=0.995,
        log_every=400,
        checkpoint_every=4_000,
    )


if __name__ == "__main__":
    main(recipe)
