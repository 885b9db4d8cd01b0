"""Train flow-video-s on a folder of clips, 16 frames of 128 x 128 pixels, 4,096 tokens: one GPU.

First: `python tokenizers/hieratok_frames_128.py` and `hiergen encode --tokenizer runs/hieratok_frames_128/model --videos videos
--out runs/hieratok_frames_128/codes`. Attention is pyramid sparse from the first step; without the entry `attention` it is dense.
Untested at this size: neither quality nor speed on a GPU has been measured.

Data: codes of hieratok-frames-128. Time: wants one GPU; not yet run. Extra: none.
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import GeneratorTaskConfig

BATCH = 64


def recipe() -> TrainConfig:
    return TrainConfig(
        task=GeneratorTaskConfig(
            preset="flow-video-s",
            overrides={"attention": {"key_block": 64}},
            codes="runs/hieratok_frames_128/codes",
        ),
        out="runs/video_flow_s",
        samples=400_000 * BATCH,
        batch_size=BATCH,
        precision="bf16",
        num_workers=4,
        optim=OptimConfig(lr=2e-4, warmup_samples=5_000 * BATCH, final_lr_ratio=0.1, clip_norm=1.0),
        ema_decay=0.9999,
        log_every=100 * BATCH,
        checkpoint_every=5_000 * BATCH,
    )


if __name__ == "__main__":
    main(recipe)
