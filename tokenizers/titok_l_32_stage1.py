"""Train the first stage of TiTok-L-32 on ImageNet at 256x256 as published: proxy codes, 256 samples per step, 1,000,000 steps.

First: `hiergen convert maskgit-vq maskgit-vqgan-imagenet-f16-256.bin runs/maskgit_vq/model`. The other sizes take
`--task.preset titok-b-64` or `--task.preset titok-s-128`. The second stage is `titok_l_32_stage2`.

Data: ImageNet, weights of MaskGIT-VQGAN. Time: wants many GPUs; not measured. Extra: images.
"""

from hiergen.data.config import DataConfig
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import TokenizerTaskConfig
from hiergen.training.tasks.term_settings import CodebookConfig, ProxyConfig

BATCH = 256


def recipe() -> TrainConfig:
    return TrainConfig(
        task=TokenizerTaskConfig(
            preset="titok-l-32",
            overrides={"output": "proxy"},
            data=DataConfig(source="imagenet/train", size=256, in_memory=False, crop="random", flip=True),
            # The pixels are those of the frozen decoder: they are logged, not trained.
            pixel_weight=0.0,
            proxy=ProxyConfig(tokenizer="runs/maskgit_vq/model"),
            codebook=CodebookConfig(),
        ),
        out="runs/titok_l_32_stage1",
        samples=1_000_000 * BATCH,
        batch_size=BATCH,
        precision="fp16",
        num_workers=8,
        optim=OptimConfig(
            lr=1e-4,
            betas=(0.9, 0.99),
            weight_decay=1e-4,
            warmup_samples=10_000 * BATCH,
            final_lr_ratio=0.1,
            clip_norm=1.0,
        ),
        ema_decay=0.999,
        log_every=100 * BATCH,
        checkpoint_every=5_000 * BATCH,
    )


if __name__ == "__main__":
    main(recipe)
