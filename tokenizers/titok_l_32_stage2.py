"""Train the second stage of TiTok-L-32 on ImageNet at 256x256 as published: the decoder on pixels, 500,000 steps of 256 samples.

First: `python tokenizers/titok_l_32_stage1.py`. The encoder and the codebook stay as they are. Decoder, pixel decoder and proxy codebook
learn from pixels, from the logits of a ConvNeXt-S, and from step 20,000 on from a discriminator.

Data: ImageNet, weights of the first stage and of ConvNeXt-S. Time: wants many GPUs; not measured. Extra: images.
"""

from hiergen.data.config import DataConfig
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import TokenizerTaskConfig
from hiergen.training.tasks.term_settings import AdversarialConfig, PerceptualConfig

BATCH = 256


def recipe() -> TrainConfig:
    return TrainConfig(
        task=TokenizerTaskConfig(
            preset="titok-l-32",
            overrides={"output": "proxy_decoded", "freeze_encoder": True},
            data=DataConfig(source="imagenet/train", size=256, in_memory=False, crop="random", flip=True),
            perceptual=PerceptualConfig(weight=0.1, lpips_part=0.0, convnext_part=1.0, jitter=0),
            adversarial=AdversarialConfig(
                weight=0.01, start_samples=20_000 * BATCH, discriminator="blur", augment=False, lecam_weight=1e-3
            ),
        ),
        init="runs/titok_l_32_stage1",
        out="runs/titok_l_32_stage2",
        samples=500_000 * BATCH,
        batch_size=BATCH,
        precision="fp16",
        num_workers=8,
        optim=OptimConfig(
            lr=1e-4,
            betas=(0.9, 0.999),
            weight_decay=1e-4,
            warmup_samples=5_000 * BATCH,
            final_lr_ratio=0.1,
            clip_norm=1.0,
        ),
        ema_decay=0.999,
        log_every=100 * BATCH,
        checkpoint_every=5_000 * BATCH,
    )


if __name__ == "__main__":
    main(recipe)
