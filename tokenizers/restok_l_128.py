"""Train ResTok-L-128 on ImageNet at 256x256 as published: 256 samples per step, 8 GPUs, about 200 epochs.

The checkpoint that the paper evaluates is the one of step 750,000, at 192 million samples. Give the images with
`--task.data.source`: a folder of class folders, `wds:PATTERN`, or `hf:FOLDER`. The weights of VGG16 (LPIPS), DINO ViT-S/16 and
DINOv3-L are taken from the usual caches, or from `--task.perceptual.weights` and the like.

Data: ImageNet, weights of VGG16, LPIPS and DINO. Time: wants 8 GPUs; not measured. Extra: images, eval.
"""

from hiergen.data.config import DataConfig
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import TokenizerTaskConfig
from hiergen.training.tasks.term_settings import AdversarialConfig, AlignmentConfig, CodebookConfig, PerceptualConfig

BATCH = 256


def recipe() -> TrainConfig:
    return TrainConfig(
        task=TokenizerTaskConfig(
            preset="restok-l-128",
            overrides={"decoder_features": True},
            data=DataConfig(source="imagenet/train", size=256, in_memory=False, crop="random", flip=True),
            perceptual=PerceptualConfig(),
            # The discriminator has the run's optimizer; its schedule counts from its start.
            adversarial=AdversarialConfig(weight=0.5, start_samples=20_000 * BATCH),
            alignment=AlignmentConfig(teacher="dinov3"),
            codebook=CodebookConfig(),
        ),
        out="runs/restok_l_128",
        samples=1_000_000 * BATCH,
        batch_size=BATCH,
        seed=10086,
        precision="fp16",
        num_workers=8,
        optim=OptimConfig(lr=1e-4, weight_decay=1e-4, warmup_samples=5_000 * BATCH, final_lr_ratio=0.1, clip_norm=10.0),
        ema_decay=0.9999,
        log_every=100 * BATCH,
        checkpoint_every=5_000 * BATCH,
    )


if __name__ == "__main__":
    main(recipe)
