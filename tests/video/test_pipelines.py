"""Whole pipelines of diffusers, from noise to latents: guidance in two passes, in one batch, and none."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    LTXPipeline,
    WanPipeline,
)

from hiergen.video import apply_pyramid_attention


def text(seed=3):
    """Return embeddings of a prompt and of a negative one."""
    return torch.randn(2, 1, 7, 8, generator=torch.Generator().manual_seed(seed))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, **options):
    prompt, negative = text()
    rng = torch.Generator().manual_seed(0)
    return pipe(
        prompt_embeds=prompt, negative_prompt_embeds=negative, num_inference_steps=4, output_type="latent", generator=rng, **options
    ).frames  # fmt: skip


def wan_pipeline(case, **parts):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return quiet(WanPipeline(None, None, None, scheduler, transformer=case.model(), **parts))


def sample_wan(pipe, guidance):
    return sample(pipe, guidance_scale=guidance, height=64, width=48, num_frames=9)


def cogvideox_pipeline(case):
    # Tables are made for the heads' width: a multiple of 16.
    model = case.model(attention_head_dim=32)
    return quiet(CogVideoXPipeline(None, None, None, model, CogVideoXDDIMScheduler()))


def sample_cogvideox(pipe, guidance):
    return sample(pipe, guidance_scale=guidance, height=80, width=64, num_frames=9, max_sequence_length=7)


def hunyuan_pipeline(case):
    scheduler = FlowMatchEulerDiscreteScheduler()
    return quiet(HunyuanVideoPipeline(None, None, case.model(), None, scheduler, None, None))


def sample_hunyuan(pipe, guidance):
    pooled, mask = text(4)[:, :, 0], torch.ones(1, 7)
    return sample(
        pipe, true_cfg_scale=guidance, height=80, width=64, num_frames=9, pooled_prompt_embeds=pooled[0],
        negative_pooled_prompt_embeds=pooled[1], prompt_attention_mask=mask, negative_prompt_attention_mask=mask,
    )  # fmt: skip


def ltx_pipeline(case):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return quiet(LTXPipeline(scheduler, None, None, None, case.model()))


def sample_ltx(pipe, guidance):
    mask = torch.ones(1, 7)
    return sample(
        pipe, guidance_scale=guidance, height=160, width=128, num_frames=17, prompt_attention_mask=mask,
        negative_prompt_attention_mask=mask,
    )  # fmt: skip


#: By pipeline: how to make it, how to sample from it, and its forward passes per step with guidance.
PIPELINES = {
    "wan": (wan_pipeline, sample_wan, 2),
    "cogvideox1.5": (cogvideox_pipeline, sample_cogvideox, 1),
    "hunyuan": (hunyuan_pipeline, sample_hunyuan, 2),
    "ltx": (ltx_pipeline, sample_ltx, 1),
}


@pytest.mark.parametrize("guidance", [3.0, 1.0])
@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_samples_with_guidance_and_without(cases, full, sparse, name, guidance):
    make, run, passes = PIPELINES[name]
    passes = passes if guidance > 1 else 1
    pipe = make(cases[name])
    dense = run(pipe, guidance)
    with apply_pyramid_attention(pipe, full):
        # Rounding of one step passes through the others.
        torch.testing.assert_close(run(pipe, guidance), dense, rtol=0, atol=2e-5)
    with apply_pyramid_attention(pipe, sparse, warmup_steps=1, collect_statistics=True) as handle:
        out, calls = run(pipe, guidance), handle.statistics
    assert [call.step for call in calls] == [step for step in range(4) for _ in range(2 * passes)]
    assert {call.density == 1 for call in calls if call.step == 0} == {True}
    assert {call.density < 0.9 for call in calls if call.step > 0} == {True}
    assert not torch.allclose(out, dense, atol=1e-3)
    assert torch.equal(run(pipe, guidance), dense)


def test_a_pipeline_of_two_transformers_hands_over_in_mid_video(cases, sparse):
    wan = cases["wan"]
    pipe = wan_pipeline(wan, transformer_2=wan.model(), boundary_ratio=0.8)
    with apply_pyramid_attention(pipe, sparse, warmup_steps=1, collect_statistics=True) as handle:
        sample_wan(pipe, 1.0)
        assert [call.step for call in handle.statistics if call.layer == 0] == [0, 1, 2, 3]
    assert "PyramidProcessor" not in str(pipe.transformer_2.attn_processors)


def test_steps_can_be_given_from_the_callback(cases, sparse):
    """The README says to do so for a model that is one graph."""
    pipe = wan_pipeline(cases["wan"])

    def tell(pipe, step, timestep, kwargs):
        handle.set_step(step + 1)
        return kwargs

    with apply_pyramid_attention(pipe, sparse, warmup_steps=2) as handle:
        counted = sample_wan(pipe, 3.0)
        handle.set_step(0)
        rng = torch.Generator().manual_seed(0)
        prompt, negative = text()
        told = pipe(
            prompt_embeds=prompt, negative_prompt_embeds=negative, num_inference_steps=4, output_type="latent", generator=rng,
            guidance_scale=3.0, height=64, width=48, num_frames=9, callback_on_step_end=tell,
        ).frames  # fmt: skip
    assert torch.equal(told, counted)
