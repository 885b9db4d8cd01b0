"""Train the coarse stage of mar3d (256 tokens) at the size of MAR-3D, on CLIP ViT-L/14 and DINOv2 features of rendered views.

First: `python tokenizers/pyramid_vae_shapes.py`, the image encoder, in Python,
`ImageEncoder.from_transformers(clip="openai/clip-vit-large-patch14", dinov2="facebook/dinov2-base").save_pretrained("runs/encoders")`, and
`hiergen encode --tokenizer runs/pyramid_vae_shapes/model --image_encoder runs/encoders --variants 56 --shapes shapes --out runs/pyramid_vae_shapes/codes`
on shapes prepared with views.

Learning rate, betas and condition drop are the release's; batch and length, which it does not state, are ours. Not yet run at this size.

Data: codes of pyramid-vae-shapes with features of views. Time: wants several GPUs; not yet run. Extra: none.
"""

from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.run import main
from hiergen.training.tasks.settings import ShapeGeneratorTaskConfig


def recipe() -> TrainConfig:
    task = ShapeGeneratorTaskConfig(
        preset="mar3d", condition="image", codes="runs/pyramid_vae_shapes/codes", stages="low"
    )
    return TrainConfig(
        task=task,
        out="runs/mar3d_lr",
        samples=52_000_000,
        batch_size=512,
        precision="bf16",
        num_workers=4,
        optim=OptimConfig(
            lr=1e-4, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.01, warmup_samples=2_560_000, schedule="constant"
        ),
        ema_decay=0.9999,
        log_every=100_000,
    )


if __name__ == "__main__":
    main(recipe)
