"""The program that records a generator's attention: what it writes is what attention was given."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from hiergen.generators.flow.model import FlowTransformer
from hiergen.kernels.pyramid_attention import token_order
from hiergen.pipelines.video import ClassToVideoPipeline
from hiergen.pyramid import specs_to_json
from hiergen.tokenizers.videos.patch_components import PatchComponents

PROGRAM = Path(__file__).resolve().parents[2] / "eval" / "record_attention.py"


def test_the_chosen_step_of_every_layer_is_recorded_in_order(tmp_path, monkeypatch) -> None:
    spec = importlib.util.spec_from_file_location("record_attention", PROGRAM)
    program = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "record_attention", program)
    spec.loader.exec_module(program)
    tokenizer = PatchComponents(video_size=(4, 16, 16), patch_size=(2, 4, 4), dim=5).eval()
    tokenizer.fit(torch.rand(4, 3, 4, 16, 16) * 2 - 1)
    generator = FlowTransformer(
        level_specs=specs_to_json(tokenizer.specs), num_classes=3, dim=32, depth=2, num_heads=2
    ).eval()
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ClassToVideoPipeline(tokenizer=tokenizer, generator=generator).save_pretrained(tmp_path)
    given = []
    attention = F.scaled_dot_product_attention

    def watched(query, *args, **kwargs):
        given.append(query)
        return attention(query, *args, **kwargs)

    settings = program.Settings(pipeline=str(tmp_path), label=1, num_steps=3, step=1)
    recorded = program.record(settings)
    assert {name: tuple(x.shape) for name, x in recorded.items()} == dict.fromkeys("qkv", (1, 4, 32, 16))
    # The same run, watched from outside: calls 2 and 3 are step 1 of the two layers (Euler: one call a layer and step).
    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    pipe = ClassToVideoPipeline.from_pretrained(tmp_path)
    pipe(1, num_steps=3, guidance_scale=1.0, generator=torch.Generator().manual_seed(0), output_type="pt")
    assert len(given) == 6
    order = token_order("gilbert", tokenizer.specs[-1].grid)
    assert torch.equal(recorded["q"], order.apply(torch.cat(given[2:4], dim=1), dim=2))
