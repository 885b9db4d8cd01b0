"""What is trained: players, data and losses of each kind of run.

- `settings.py` settings of every task, `term_settings.py` of a tokenizer's terms: both import without PyTorch
- `base.py` the contract with the loop · `generator.py` generators on cached tokens · `shapes.py` tokenizer and cascade of shapes
- `tokenizer.py` tokenizers of images, from terms with a file each: `perceptual_term.py`, `discriminator.py` (what trains it),
  `teacher_alignment.py`, `proxy_codes.py`, `vae_terms.py`, `codebook_health.py`

Nested dropout is no term: it is inside the tokenizers (`hiergen.nn.nested_dropout`).
"""
