"""Official checkpoints of one-dimensional tokenizers and what goes with them: TiTok, MaskGIT-VQGAN, the MaskGIT and RAR generators, FlexTok."""
