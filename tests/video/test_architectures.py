"""Every architecture against its untouched model: what is replaced, what it must equal, and what each model asks for."""

from __future__ import annotations

import dataclasses
import importlib
import re

import diffusers
import pytest
import torch

from hiergen.kernels.pyramid_attention import pyramid_sparse_attention, token_order
from hiergen.video import apply_pyramid_attention
from hiergen.video.architectures import ARCHITECTURES

# Mochi asks for an autocast to float32, which a CPU has not.
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")

#: Wan and what was made from it.
WANS = ["wan", "wan_vace", "wan_animate", "skyreels_v2"]


def run(model, inputs):
    with torch.no_grad():
        return model(**inputs).sample


def processors(model):
    """Return the attention processors of a model by module; Mochi has no `attn_processors`."""
    return {name: module.processor for name, module in model.named_modules() if hasattr(module, "processor")}


@pytest.mark.parametrize("order", ["gilbert", "tiles", "raster"])
def test_a_full_plan_equals_the_untouched_model(case, full, order):
    """Equal to 2e-6 in float32, as the same sums in another order; on ragged and whole grids, one after the other."""
    model = case.model()
    one = (2, 1, 19) if case.fixed_frames else (1, 1, 19)
    for grid in [(3, 5, 4), (2, 4, 4), one, (3, 5, 4)]:
        inputs = case.inputs(grid, batch=2)
        expected = run(model, inputs)
        with apply_pyramid_attention(model, dataclasses.replace(full, order=order)):
            torch.testing.assert_close(run(model, inputs), expected, rtol=0, atol=2e-6)


def test_sparse_attention_equals_the_operation_put_into_every_call(case, sparse, monkeypatch):
    """Moving queries, keys and values in every layer, as the official program does, must agree with moving tokens once."""
    grid = (3, 5, 4)
    model, inputs = case.model(), case.inputs(grid, batch=2)
    dense = run(model, inputs)
    with apply_pyramid_attention(model, sparse):
        once = run(model, inputs)

    path, layout = case.dispatch
    owner, name = path.rsplit(".", 1)
    dispatch = getattr(importlib.import_module(owner), name)
    frames, rows, columns = grid
    before, axis, num_videos = case.fixed_frames * rows * columns, layout.index("s"), 0

    def attention(q, k, v, attn_mask=None, **options):
        nonlocal num_videos
        num_tokens = q.shape[axis]
        if num_tokens < 60 or k.shape[axis] != num_tokens:
            return dispatch(q, k, v, attn_mask=attn_mask, **options)
        num_videos += q.shape[0]
        text = (
            {"text_before": before + case.text_tokens} if case.text_at == "start" else {"text_after": case.text_tokens}
        )
        order = token_order("gilbert", (frames - case.fixed_frames, rows, columns), **text)
        # Mochi leaves padding out, which moves the borders of blocks.
        padding = q.new_zeros(*q.shape[:axis], len(order.index) - num_tokens, *q.shape[axis + 1 :])
        q, k, v = (order.apply(torch.cat([x, padding], dim=axis), dim=axis) for x in (q, k, v))
        key_mask = torch.arange(len(order.index))[None].expand(q.shape[0], -1) < num_tokens
        if attn_mask is not None:
            key_mask = order.apply(attn_mask[:, 0, 0])
        config = dataclasses.replace(sparse, text_tokens=case.text_tokens, text_at=case.text_at)
        out = pyramid_sparse_attention(q, k, v, config=config, layout=layout, key_mask=key_mask)
        return order.undo(out, dim=axis).narrow(axis, 0, num_tokens)

    monkeypatch.setattr(path, attention)
    torch.testing.assert_close(run(model, inputs), once, rtol=0, atol=2e-6)
    # Mochi calls once per video. An attention over video that was not replaced would be counted, too.
    assert num_videos == 2 * case.num_replaced
    assert once.isfinite().all()
    assert not torch.allclose(once, dense, atol=1e-3)


def test_self_attention_over_video_is_replaced_and_nothing_else(case, sparse):
    model = case.model()
    before = processors(model)
    with apply_pyramid_attention(model, sparse):
        replaced = {name for name, processor in processors(model).items() if processor is not before[name]}
    assert replaced == {name for name in before if re.fullmatch(case.replaced, name)}
    assert len(replaced) == case.num_replaced
    assert len(before) > len(replaced) or case.dispatch[1] == "bhsd"  # the models without cross-attention


def test_guidance_in_one_batch_equals_guidance_in_two_passes(case, sparse):
    """Videos of a batch have plans of their own, and their texts paddings of their own."""
    model, inputs = case.model(), case.inputs(batch=2)
    with apply_pyramid_attention(model, sparse):
        both = run(model, inputs)
        for i in range(2):
            one = {name: x[i : i + 1] if torch.is_tensor(x) and x.shape[0] == 2 else x for name, x in inputs.items()}
            torch.testing.assert_close(run(model, one), both[i : i + 1], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["hunyuan", "hunyuan1.5", "ltx2", "ltx2.3", "mochi"])
def test_padding_of_the_text_is_not_read(cases, full, sparse, name):
    """Whatever stands there; nor does a text have to have a word, as the empty one of guidance has none in Mochi."""
    model, inputs = cases[name].model(), cases[name].inputs(batch=2)
    texts = ["encoder_hidden_states", "encoder_hidden_states_2", "audio_encoder_hidden_states"]
    changed = {
        text: torch.where(inputs[text.replace("hidden_states", "attention_mask")][..., None] > 0, inputs[text], 9.0)
        for text in texts if text in inputs
    }  # fmt: skip
    with apply_pyramid_attention(model, sparse):
        torch.testing.assert_close(run(model, inputs | changed), run(model, inputs), rtol=0, atol=2e-6)
    if name == "mochi":
        inputs["encoder_attention_mask"][1] = False
        expected = run(model, inputs)
        with apply_pyramid_attention(model, full):
            torch.testing.assert_close(run(model, inputs), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["wan", "ltx", "ltx2", "ltx2.3"])
@pytest.mark.parametrize("order", ["gilbert", "raster"])
def test_every_token_may_have_its_own_timestep(cases, full, name, order):
    """Wan 2.2 5B and image-to-video with LTX and LTX-2 give such timesteps: the modulation of each token has to move with it."""
    case = cases[name]
    model, inputs = case.model(), case.inputs(by_token=True, batch=2)
    expected = run(model, inputs)
    with apply_pyramid_attention(model, dataclasses.replace(full, order=order)):
        torch.testing.assert_close(run(model, inputs), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["token_replace", "latent_concat"])
def test_both_ways_of_hunyuan_image_to_video_are_followed(cases, full, kind):
    """Token replacement treats the tokens of the first frame by their position: they have to stay there."""
    case = cases["hunyuan"]
    channels = 4 if kind == "token_replace" else 9
    model = case.model(image_condition_type=kind, num_layers=2, in_channels=channels)
    for grid in ((3, 5, 4), (1, 5, 4)):
        inputs = case.inputs(grid)
        inputs["hidden_states"] = torch.randn(1, channels, *inputs["hidden_states"].shape[2:])
        expected = run(model, inputs)
        with apply_pyramid_attention(model, full):
            torch.testing.assert_close(run(model, inputs), expected, rtol=0, atol=2e-6)


def test_fused_projections_of_cogvideox_are_used(cases, full):
    case = cases["cogvideox1.5"]
    model, inputs = case.model(), case.inputs()
    expected = run(model, inputs)
    model.fuse_qkv_projections()
    with apply_pyramid_attention(model, full):
        torch.testing.assert_close(run(model, inputs), expected, rtol=0, atol=2e-6)
    assert "FusedCogVideoX" in str(model.attn_processors)


@pytest.mark.parametrize("name", ["ltx", "ltx2"])
def test_ltx_without_one_grid_runs_in_raster_order_alone(cases, full, name):
    case = cases[name]
    model, inputs = case.model(), case.inputs()
    for size in ("num_frames", "height", "width"):
        del inputs[size]
    inputs["video_coords"] = torch.rand(1, 3, 60) * 20
    expected = run(model, inputs)
    with apply_pyramid_attention(model, dataclasses.replace(full, order="raster")):
        torch.testing.assert_close(run(model, inputs), expected, rtol=0, atol=2e-6)
    with apply_pyramid_attention(model, full):
        with pytest.raises(ValueError, match=r"60 video tokens and num_frames=None.*order='raster'"):
            run(model, inputs)
        with pytest.raises(ValueError, match="60 video tokens and num_frames=3, height=5, width=5"):
            run(model, inputs | {"num_frames": 3, "height": 5, "width": 5})


@pytest.mark.parametrize("name", WANS)
def test_the_image_branch_of_image_to_video_stays_dense(cases, full, name):
    wan = cases[name]
    model = wan.model(added_kv_proj_dim=24, image_dim=6)
    image = torch.randn(1, 5, 6)
    text = torch.randn(1, 512, 8)
    inputs = wan.inputs() | {"encoder_hidden_states": text, "encoder_hidden_states_image": image}
    expected = run(model, inputs)
    cross = [block.attn2.processor for block in model.blocks]
    with apply_pyramid_attention(model, full):
        torch.testing.assert_close(run(model, inputs), expected, rtol=0, atol=2e-6)
        assert [block.attn2.processor for block in model.blocks] == cross


@pytest.mark.parametrize("name", WANS)
def test_fused_projections_are_used(cases, full, name):
    model, inputs = cases[name].model(), cases[name].inputs()
    expected = run(model, inputs)
    model.fuse_qkv_projections()
    for name in ("to_q", "to_k", "to_v"):
        setattr(model.blocks[0].attn1, name, None)
    with apply_pyramid_attention(model, full):
        torch.testing.assert_close(run(model, inputs), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["cogvideox1.5", "hunyuan", "hunyuan1.5", "mochi"])
def test_text_reads_everything_in_full(cases, sparse, name):
    """With every block of video skipped, what text queries get must still be dense attention."""
    model, inputs = cases[name].model(), cases[name].inputs()
    block, outputs = model.transformer_blocks[0], []
    attention = block.attn1 if hasattr(block, "attn1") else block.attn
    attention.register_forward_hook(lambda module, args, output: outputs.append(output))
    run(model, inputs)
    with apply_pyramid_attention(model, dataclasses.replace(sparse, bounds=((1, 0.0),), order="raster")):
        run(model, inputs)
    (video, text), (sparse_video, sparse_text) = outputs
    torch.testing.assert_close(sparse_text, text, rtol=0, atol=2e-6)
    # The video's block at the text's border is read in full.
    assert not torch.allclose(sparse_video[:, 20:40], video[:, 20:40], atol=1e-3)


@pytest.mark.parametrize("frames", [3, 2])
def test_the_control_video_of_vace_moves_with_the_video(cases, full, frames):
    """The model fills up a control video that has fewer frames, behind its end, and refuses one that has more."""
    model, inputs = cases["wan_vace"].model(), cases["wan_vace"].inputs(batch=2)
    control = inputs["control_hidden_states"]
    inputs |= {"control_hidden_states": control[:, :, :frames], "control_hidden_states_scale": torch.tensor([3.0])}
    expected = run(model, inputs)
    with apply_pyramid_attention(model, full):
        torch.testing.assert_close(run(model, inputs), expected, rtol=0, atol=2e-6)
        with pytest.raises(RuntimeError, match="negative dimension -20"):
            run(model, inputs | {"control_hidden_states": torch.cat([control, control[:, :, :1]], dim=2)})


@pytest.mark.parametrize("order", ["gilbert", "tiles", "raster"])
def test_diffusion_forcing_of_skyreels_keeps_tokens_in_their_frames(cases, full, sparse, order):
    """The model repeats the modulation of a frame over the frame's tokens, behind everything that a hook sees."""
    model, inputs = cases["skyreels_v2"].model(), cases["skyreels_v2"].inputs(batch=2)
    inputs |= {"timestep": torch.tensor([[0.0, 400.0, 900.0]] * 2), "enable_diffusion_forcing": True}
    expected = run(model, inputs)
    with apply_pyramid_attention(model, dataclasses.replace(full, order=order)):
        torch.testing.assert_close(run(model, inputs), expected, rtol=0, atol=2e-6)
    with apply_pyramid_attention(model, dataclasses.replace(sparse, order=order)):
        out = run(model, inputs)
    assert out.isfinite().all()
    assert not torch.allclose(out, expected, atol=1e-3)


def test_causal_blocks_of_skyreels_are_refused_by_sparse_layers_and_followed_by_dense_ones(cases, sparse):
    model, inputs = cases["skyreels_v2"].model(), cases["skyreels_v2"].inputs((4, 3, 4))
    model._set_ar_attention(2)
    expected = run(model, inputs)
    with (
        apply_pyramid_attention(model, sparse, dense_layers=[0]),
        pytest.raises(ValueError, match=r"attention mask of shape \(1, 1, 48, 48\) and torch.bool"),
    ):
        run(model, inputs)
    with apply_pyramid_attention(model, sparse, dense_layers=[0, 1]):
        assert torch.equal(run(model, inputs), expected)


def test_hunyuan15_reads_a_picture_beside_the_text(cases, full, sparse):
    model, inputs = cases["hunyuan1.5"].model(), cases["hunyuan1.5"].inputs(batch=2)
    without = run(model, inputs)
    inputs["image_embeds"] = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(7))
    expected = run(model, inputs)
    assert not torch.allclose(expected, without, atol=1e-3)
    with apply_pyramid_attention(model, full):
        torch.testing.assert_close(run(model, inputs), expected, rtol=0, atol=2e-6)
    with apply_pyramid_attention(model, sparse):
        assert run(model, inputs).isfinite().all()


@pytest.mark.parametrize("name", ["ltx2", "ltx2.3"])
def test_sound_of_ltx2_is_touched_through_the_video_alone(cases, full, sparse, name):
    model, inputs = cases[name].model(), cases[name].inputs(batch=2)

    def sound(**options):
        with torch.no_grad():
            return model(**inputs, **options).audio_sample

    expected, apart = sound(), sound(isolate_modalities=True)
    with apply_pyramid_attention(model, full):
        torch.testing.assert_close(sound(), expected, rtol=0, atol=2e-6)
    with apply_pyramid_attention(model, sparse):
        assert not torch.equal(sound(), expected)
        assert torch.equal(sound(isolate_modalities=True), apart)


@pytest.mark.parametrize("keep", [None, [0.0, 0.0], [0.0, 1.0]])
def test_perturbed_layers_of_ltx2_are_followed(cases, full, sparse, keep):
    """Spatio-temporal guidance takes values in the place of attention: for all videos of a batch, or for some."""
    model, inputs = cases["ltx2.3"].model(), cases["ltx2.3"].inputs(batch=2)
    plain = run(model, inputs)
    inputs["spatio_temporal_guidance_blocks"] = [0]
    inputs["perturbation_mask"] = None if keep is None else torch.tensor(keep)
    expected = run(model, inputs)
    assert not torch.allclose(expected[0], plain[0], atol=1e-3)
    with apply_pyramid_attention(model, full):
        torch.testing.assert_close(run(model, inputs), expected, rtol=0, atol=2e-6)
    with apply_pyramid_attention(model, sparse, collect_statistics=True) as handle:
        assert run(model, inputs).isfinite().all()
        assert [call.density < 1 for call in handle.statistics] == [keep == [0.0, 1.0], True]
    with apply_pyramid_attention(model, sparse, warmup_steps=1):
        assert torch.equal(run(model, inputs), expected)


def test_a_perturbed_layer_may_be_told_by_its_mask_alone(cases, sparse):
    model = cases["ltx2.3"].model()
    attention, tokens = model.transformer_blocks[0].attn1, torch.randn(2, 60, 16)
    given = {"perturbation_mask": torch.zeros(2, 1, 1)}
    expected = attention(tokens, **given)
    with apply_pyramid_attention(model, sparse):
        assert torch.equal(attention(tokens, **given), expected)


def test_modulation_of_ltx2_by_the_other_stream_and_marks_of_keyframes_are_followed(cases, full):
    case = cases["ltx2.3"]
    model = case.model(use_keyframes_abs_pos_embedding=True)
    torch.nn.init.normal_(model.keyframes_abs_pos_embedding)
    inputs = case.inputs(batch=2, by_token=True) | {"use_cross_timestep": True}
    plain = run(model, inputs)
    inputs["video_keyframes_mask"] = (torch.arange(60) < 20).float()[None, :, None].expand(2, -1, -1)
    expected = run(model, inputs)
    assert not torch.allclose(expected, plain, atol=1e-3)
    with apply_pyramid_attention(model, full):
        torch.testing.assert_close(run(model, inputs), expected, rtol=0, atol=2e-6)


def test_a_mask_over_the_video_of_ltx2_is_refused(cases, sparse):
    model, inputs = cases["ltx2"].model(), cases["ltx2"].inputs()
    inputs["video_self_attention_mask"] = torch.ones(1, 60, 60)
    with (
        apply_pyramid_attention(model, sparse),
        pytest.raises(ValueError, match=r"attention mask of shape \(1, 60, 60\) and torch.float32"),
    ):
        run(model, inputs)


def test_words_of_mochi_may_stand_behind_padding(cases, full):
    """The model's own processor moves them to the front; so must ours."""
    model, inputs = cases["mochi"].model(), cases["mochi"].inputs(batch=2)
    inputs["encoder_attention_mask"] = torch.tensor([[0, 0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1, 1]]).bool()
    expected = run(model, inputs)
    with apply_pyramid_attention(model, full):
        torch.testing.assert_close(run(model, inputs), expected, rtol=0, atol=2e-6)


def test_an_unknown_transformer_is_refused_with_the_names_of_all_known_ones(sparse):
    unknown = diffusers.AllegroTransformer3DModel(
        num_attention_heads=1, attention_head_dim=6, in_channels=4, out_channels=4, num_layers=1, cross_attention_dim=6,
        caption_channels=8, sample_height=2, sample_width=2, sample_frames=2,
    )  # fmt: skip
    with pytest.raises(
        TypeError, match=f"knows no AllegroTransformer3DModel, expected one of {', '.join(ARCHITECTURES)}"
    ):
        apply_pyramid_attention(unknown, sparse)
    for name in ARCHITECTURES:
        assert hasattr(diffusers, name)
