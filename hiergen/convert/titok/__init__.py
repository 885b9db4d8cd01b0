"""Official checkpoints of TiTok's repository: its tokenizers, MaskGIT-VQGAN, and the MaskGIT generators."""
