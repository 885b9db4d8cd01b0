"""Token mixers: tokens in, tokens out, of the same shape; each states how far it sees."""
