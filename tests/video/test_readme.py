"""What the README of the package shows runs, on tiny models saved where it loads large ones from."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from hiergen.kernels.pyramid_attention import PSA_PRESETS
from hiergen.video.architectures import ARCHITECTURES
from tokenizers import Tokenizer, models, pre_tokenizers

README = (Path(__file__).parents[2] / "hiergen" / "video" / "README.md").read_text()
WAN, QWEN = re.findall(r"```python\n(.*?)```", README, re.S)


def text_parts():
    """Return a tokenizer of five words and a text encoder of one layer."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "a": 2, "cat": 3, "<unk>": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    config = UMT5Config(vocab_size=5, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    return tokenizer, UMT5EncoderModel(config).eval()


def test_the_diffusers_example_runs_from_prompt_to_pixels(wan, tmp_path, capsys):
    tokenizer, text_encoder = text_parts()
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    pipe = WanPipeline(
        tokenizer=tokenizer, text_encoder=text_encoder, vae=vae, transformer=wan.model(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip
    pipe.save_pretrained(tmp_path / "wan")
    small = WAN.replace("Wan-AI/Wan2.1-T2V-14B-Diffusers", str(tmp_path / "wan")).replace("=50", "=4")
    small = small.replace('grass", ', 'grass", height=32, width=48, num_frames=5, ')
    assert small.count(str(tmp_path)) == small.count("height=32") == 1
    names = {}
    exec(compile(small, "README.md", "exec"), names)
    assert names["video"].shape == (5, 32, 48, 3)
    assert 0 < float(capsys.readouterr().out) <= 1
    calls = names["psa"].statistics
    assert [call.step for call in calls] == [step for step in range(4) for _ in range(4)]


def test_the_transformers_example_runs(qwen, tmp_path):
    qwen().save_pretrained(tmp_path / "qwen")
    small = QWEN.replace("Qwen/Qwen2.5-VL-7B-Instruct", str(tmp_path / "qwen"))
    names = {}
    exec(compile(small, "README.md", "exec"), names)
    model, tokens = names["model"], torch.randint(3, 60, (1, 150))
    assert model.model.language_model.config._attn_implementation == "hiergen_psa"
    assert model.generate(tokens, max_new_tokens=3, do_sample=False).shape == (1, 153)


def test_the_table_lists_every_class_and_presets_that_exist():
    rows = [line for line in README.splitlines() if line.startswith("| `")]
    assert [re.match(r"\| `(\w+)`", row)[1] for row in rows] == list(ARCHITECTURES)
    for pattern in re.findall(r"`((?:wan|cog)[a-z0-9.-]*)\*`", README):
        assert any(name.startswith(pattern) for name in PSA_PRESETS)
