"""Pyramid attention through transformers' registry, on tiny language models with random weights."""

from __future__ import annotations

import builtins
import dataclasses
import logging

import pytest
import torch
from transformers import DynamicCache, MistralConfig, MistralForCausalLM

from hiergen.kernels.pyramid_attention import pyramid_sparse_attention
from hiergen.video import language_models, register_pyramid_attention


@pytest.fixture(autouse=True)
def _registered(full, sparse):
    register_pyramid_attention(full, name="psa_full")
    register_pyramid_attention(dataclasses.replace(sparse, importance="antidiagonal"), name="psa_sparse")


def ids(length: int, batch: int = 2) -> torch.Tensor:
    return torch.randint(3, 60, (batch, length), generator=torch.Generator().manual_seed(1))


def logits(model, name, **inputs):
    model.set_attn_implementation(name)
    with torch.no_grad():
        return model(**inputs).logits


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("length", [2, 16, 61])
def test_a_full_plan_equals_dense_attention(make, length):
    model, tokens = make(), ids(length)
    close(logits(model, "psa_full", input_ids=tokens), logits(model, "sdpa", input_ids=tokens))


def test_a_sparse_plan_equals_the_operation_put_into_dense_attention(make, sparse, monkeypatch):
    model, tokens = make(), ids(61)
    found = logits(model, "psa_sparse", input_ids=tokens)
    dense = logits(model, "sdpa", input_ids=tokens)
    config = dataclasses.replace(sparse, importance="antidiagonal")

    def attention(q, k, v, *, attn_mask=None, dropout_p=0.0, scale=None, is_causal=False, enable_gqa=False):
        assert is_causal
        return pyramid_sparse_attention(q, k, v, config=config, is_causal=True, scale=scale)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    close(logits(model, "sdpa", input_ids=tokens), found)
    assert not torch.allclose(found, dense, atol=1e-4)


def test_prefill_in_chunks_equals_one_prefill(make):
    """Chunks of 30 and 31 tokens: blocks of 16 end inside them, and the second reads a cached prefix."""
    model, tokens = make(), ids(61)
    whole = logits(model, "psa_full", input_ids=tokens)
    cache = DynamicCache(config=model.config.get_text_config())
    parts = [
        logits(model, "psa_full", input_ids=part, past_key_values=cache, use_cache=True)
        for part in (tokens[:, :30], tokens[:, 30:])
    ]
    close(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_change_the_tokens(make, side):
    model, tokens = make(), ids(40, batch=1)
    alone = logits(model, "sdpa", input_ids=tokens)
    other = ids(57, batch=1)
    padding = torch.zeros(1, 17, dtype=torch.long)
    joined = torch.cat([padding, tokens] if side == "left" else [tokens, padding], dim=1)
    real = slice(17, 57) if side == "left" else slice(0, 40)
    mask = torch.ones(2, 57, dtype=torch.long)
    mask[0] = 0
    mask[0, real] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    batch = {"input_ids": torch.cat([joined, other]), "attention_mask": mask, "position_ids": positions}
    found = logits(model, "psa_full", **batch)
    close(found[:1, real], alone)
    close(found[1:], logits(model, "sdpa", input_ids=other))


def test_right_padding_does_not_change_a_sparse_plan(llama):
    model, tokens = llama(), ids(40, batch=1)
    alone = logits(model, "psa_sparse", input_ids=tokens)
    padded = torch.cat([tokens, torch.zeros(1, 9, dtype=torch.long)], dim=1)
    mask = torch.cat([torch.ones(1, 40), torch.zeros(1, 9)], dim=1).long()
    close(logits(model, "psa_sparse", input_ids=padded, attention_mask=mask)[:, :40], alone)


def test_generation_equals_dense_attention(make):
    """Prompts of two lengths in a batch, padded on the left; prefill by pyramid attention, decoding dense."""
    model, tokens = make(), ids(37)
    mask = torch.ones_like(tokens)
    mask[0, :9] = 0
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    outputs = []
    for name in ("sdpa", "psa_full", "psa_sparse"):
        model.set_attn_implementation(name)
        outputs.append(model.generate(tokens, **options))
    assert torch.equal(outputs[0], outputs[1])
    assert outputs[2].shape == outputs[0].shape


def test_generation_in_chunks_and_with_a_static_cache(llama):
    """A static cache also holds places for later tokens; it runs dense, so even sparse settings give the dense tokens."""
    model, tokens = llama(), ids(37)
    outputs = []
    for name, options in (
        ("sdpa", {}),
        ("psa_full", {"prefill_chunk_size": 10}),
        ("psa_sparse", {"cache_implementation": "static"}),
    ):
        model.set_attn_implementation(name)
        outputs.append(model.generate(tokens, max_new_tokens=5, do_sample=False, disable_compile=True, **options))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_a_video_and_a_question_go_through_both_parts_of_the_model(qwen):
    """The vision tower's attention is not causal, so it stays dense under this name too."""
    model = qwen()
    tokens = torch.cat([ids(8, 1), torch.tensor([[62] + [61] * 8 + [63]]), ids(20, 1)], dim=1)
    video = {
        "pixel_values_videos": torch.randn(32, 3 * 2 * 4 * 4),
        "video_grid_thw": torch.tensor([[2, 4, 4]]),
        "second_per_grid_ts": torch.tensor([1.0]),
        "mm_token_type_ids": torch.where(tokens == 61, 2, 0),
    }
    outputs = [logits(model, name, input_ids=tokens, **video) for name in ("sdpa", "psa_full", "psa_sparse")]
    close(outputs[1], outputs[0])
    assert not torch.allclose(outputs[2], outputs[0], atol=1e-4)


def test_sliding_windows_run_dense_and_say_so(language_sizes, caplog):
    torch.manual_seed(0)
    model, tokens = MistralForCausalLM(MistralConfig(**language_sizes, sliding_window=20)).eval(), ids(61)
    expected = logits(model, "sdpa", input_ids=tokens)
    language_models._log_dense.cache_clear()
    with caplog.at_level(logging.INFO, logger="hiergen.video.language_models"):
        assert torch.equal(logits(model, "psa_sparse", input_ids=tokens), expected)
    assert caplog.messages == [
        "dense attention instead of pyramid attention where a model asks for a mask beyond padding"
    ]
    # A window wider than the sequence is no window.
    close(logits(model, "psa_full", input_ids=tokens[:, :15]), logits(model, "sdpa", input_ids=tokens[:, :15]))


def test_training_passes_gradients_and_dropout_is_refused(llama):
    model, tokens = llama().train(), ids(40)
    model.set_attn_implementation("psa_sparse")
    model(input_ids=tokens, labels=tokens).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.model.layers[0].self_attn.attention_dropout = 0.1
    with pytest.raises(
        ValueError,
        match=r"LlamaAttention asks for dropout=0.1, which pyramid attention cannot do; use attn_implementation='sdpa'",
    ):
        model(input_ids=tokens)


def test_bfloat16_runs(llama):
    model = llama().to(torch.bfloat16)
    assert logits(model, "psa_sparse", input_ids=ids(40)).isfinite().all()


def test_what_cannot_work_is_refused_by_name(full):
    module, q = torch.nn.Module(), torch.randn(1, 2, 20, 8)
    with pytest.raises(ValueError, match="Module asks for softcap, which pyramid attention cannot do"):
        language_models.attention_forward(module, q, q, q, None, config=full, softcap=30.0)
    with pytest.raises(ValueError, match="there is no PSA preset 'qwen9'"):
        register_pyramid_attention("qwen9")
    with pytest.raises(ValueError, match="backend is 'fast', expected one of 'auto'"):
        register_pyramid_attention(full, backend="fast")
    for name in ("sdpa", "eager", "paged|x"):
        with pytest.raises(ValueError, match="which transformers gives to its own attention; choose another"):
            register_pyramid_attention(full, name=name)


def test_a_missing_transformers_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "transformers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'needs transformers: pip install "hiergen\[video\]"'):
        register_pyramid_attention()
