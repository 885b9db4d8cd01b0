"""The one door to networks that are not trained here.

- `teachers`: vision transformers of timm that losses read (DINO, DINOv2, DINOv3, CLIP, SigLIP 2, MAE).
- `perceptual`: distances of images by frozen networks (LPIPS, ConvNeXt).
- `image_encoder`: CLIP and DINOv2 as the condition of a generator.
- `official`: where official weights are, by name; `hub`: how they are downloaded and converted.
- `packaged`: the small trained models that come with the package.
- `weights`: how files of others are found and read, and `Frozen`, which keeps a network out of checkpoints and optimizers.
"""
