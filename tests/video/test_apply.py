"""Pyramid attention in whole transformers: where it must change nothing, what it must equal, and that it leaves no trace."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hiergen.video import apply_pyramid_attention, remove_pyramid_attention

# Mochi asks for an autocast to float32, which a CPU has not.
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")


def run(model, inputs):
    with torch.no_grad():
        return model(**inputs).sample


def processors(model):
    """Return the attention processors of a model by module; Mochi has no `attn_processors`."""
    return {name: module.processor for name, module in model.named_modules() if hasattr(module, "processor")}


def at(case, timestep, **options):
    return case.inputs(timestep=timestep, **options)


def test_removing_it_leaves_no_trace(case, sparse):
    model, inputs = case.model(), case.inputs()
    expected, before = run(model, inputs), processors(model)
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    attributes = set(vars(model))
    handle = apply_pyramid_attention(model, sparse)
    assert not torch.equal(run(model, inputs), expected)
    handle.remove()
    assert torch.equal(run(model, inputs), expected)
    assert all(before[name] is processor for name, processor in processors(model).items())
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    assert set(vars(model)) == attributes


def test_it_is_removed_at_the_end_of_a_with_block_that_fails(wan, sparse):
    model, inputs = wan.model(), wan.inputs()
    expected = run(model, inputs)
    with pytest.raises(RuntimeError, match="stop"), apply_pyramid_attention(model, sparse):
        raise RuntimeError("stop")
    assert torch.equal(run(model, inputs), expected)


def test_a_processor_that_somebody_else_put_in_meanwhile_stays(wan, sparse):
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    model = wan.model()
    apply_pyramid_attention(model, sparse)
    other = WanAttnProcessor()
    model.blocks[0].attn1.set_processor(other)
    remove_pyramid_attention(model)
    assert model.blocks[0].attn1.processor is other
    assert type(model.blocks[1].attn1.processor) is WanAttnProcessor


def test_warm_up_steps_are_the_untouched_model_bit_for_bit(case, sparse):
    """Guidance in two passes (every timestep twice), in one batch, and none."""
    model = case.model()
    for passes, batch in ((2, 1), (1, 2), (1, 1)):
        inputs = [at(case, t, batch=batch) for t in (900.0, 600.0, 300.0) for _ in range(passes)]
        expected = [run(model, x) for x in inputs]
        with apply_pyramid_attention(model, sparse, warmup_steps=2):
            for _ in range(2):  # two videos
                same = [torch.equal(run(model, x), y) for x, y in zip(inputs, expected, strict=True)]
                assert same == [True] * 2 * passes + [False] * passes


def test_warm_up_follows_the_number_of_sampling_steps(wan):
    model = wan.model()
    for options, expected in (({}, 15), ({"num_inference_steps": 50}, 15), ({"num_inference_steps": 30}, 9),
                              ({"num_inference_steps": 4}, 1), ({"warmup_steps": 0}, 0)):  # fmt: skip
        with apply_pyramid_attention(model, "wan2.1-14b-balanced", **options) as handle:
            assert handle.warmup_steps == expected
    with apply_pyramid_attention(model, "wan2.2-a14b-balanced", num_inference_steps=20) as handle:
        assert handle.warmup_steps == 6


def test_two_transformers_count_their_steps_together(wan, sparse):
    """In Wan 2.2 A14B the second takes over in mid-video, beyond the dense steps."""
    pair = [wan.model(), wan.model()]
    with apply_pyramid_attention(pair, sparse, warmup_steps=1, collect_statistics=True) as handle:
        for model, timestep in ((0, 900.0), (0, 700.0), (1, 400.0), (1, 200.0)):
            run(pair[model], at(wan, timestep))
        assert [(call.step, call.density == 1) for call in handle.statistics if call.layer == 0] == [
            (0, True), (1, False), (2, False), (3, False)
        ]  # fmt: skip


def test_dense_layers_keep_their_processors(wan, sparse):
    model = wan.model(num_layers=3)
    before = [block.attn1.processor for block in model.blocks]
    with apply_pyramid_attention(model, sparse, dense_layers=[0, -1]):
        assert [block.attn1.processor is p for block, p in zip(model.blocks, before, strict=True)] == [
            True,
            False,
            True,
        ]
    inputs = wan.inputs()
    expected = run(model, inputs)
    with apply_pyramid_attention(model, sparse, dense_layers=range(3)):
        torch.testing.assert_close(run(model, inputs), expected, rtol=0, atol=2e-6)


def test_arguments_may_be_given_by_position(cases, sparse):
    case = cases["cogvideox1.5"]
    model, inputs = case.model(), case.inputs()
    tables = inputs.pop("image_rotary_emb")
    with apply_pyramid_attention(model, sparse), torch.no_grad():
        expected = model(**inputs, image_rotary_emb=tables).sample
        given = (inputs["hidden_states"], inputs["encoder_hidden_states"], inputs["timestep"], None, None, tables)
        assert torch.equal(model(*given).sample, expected)
        assert torch.equal(model(*given, return_dict=False)[0], expected)


def test_bfloat16_runs_and_stays_near_float32(case, sparse):
    model, inputs = case.model(), case.inputs()
    with apply_pyramid_attention(model, sparse):
        expected = run(model, inputs)
    half = case.model().to(torch.bfloat16)
    low = {name: x.bfloat16() if torch.is_tensor(x) and x.is_floating_point() else x for name, x in inputs.items()}
    dense_error = (run(half, low).float() - run(model, inputs)).abs().max()
    with apply_pyramid_attention(half, sparse):
        out = run(half, low)
    assert out.dtype == torch.bfloat16
    # Rounding may move blocks between pools, hence more than the factor of two of a fixed plan.
    assert (out.float() - expected).abs().max() < 4 * dense_error


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # of RMSNorm, in the dense model too
def test_autocast_runs(wan, sparse):
    model, inputs = wan.model(), wan.inputs()
    with apply_pyramid_attention(model, sparse), torch.autocast("cpu", torch.bfloat16):
        assert run(model, inputs).isfinite().all()


def test_gradients_pass_and_checkpointing_does_not_change_them(case, sparse):
    model, inputs = case.model(), case.inputs()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.train().zero_grad()
        with apply_pyramid_attention(model, sparse):
            model(**inputs).sample.square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) > 20
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)


def test_a_copy_of_the_model_carries_its_own_adapter(wan, sparse):
    model, inputs = wan.model(), wan.inputs()
    dense = run(model, inputs)
    apply_pyramid_attention(model, sparse)
    twin = copy.deepcopy(model)
    remove_pyramid_attention(model)
    assert torch.equal(run(model, inputs), dense)
    assert not torch.equal(run(twin, inputs), dense)
    remove_pyramid_attention(twin)
    assert torch.equal(run(twin, inputs), dense)


def test_saved_weights_and_configuration_are_the_untouched_models(wan, sparse, tmp_path):
    model = wan.model()
    with apply_pyramid_attention(model, sparse):
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path)
    assert "WanAttnProcessor" in str(again.attn_processors)
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)


def test_offloading_hooks_of_diffusers_and_accelerate_do_not_disturb(wan, sparse):
    from accelerate import cpu_offload

    model, inputs = wan.model(), wan.inputs()
    with apply_pyramid_attention(model, sparse):
        expected = run(model, inputs)
        model.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
        torch.testing.assert_close(run(model, inputs), expected, rtol=1e-4, atol=1e-5)
    other = wan.model()
    cpu_offload(other, execution_device=torch.device("cpu"))
    with apply_pyramid_attention(other, sparse):
        torch.testing.assert_close(run(other, inputs), expected, rtol=1e-4, atol=1e-5)


#: The run-time check of annotations that tests run under cannot be traced: hence a process of its own.
COMPILE = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from conftest import CASES, SPARSE
from hiergen.kernels.pyramid_attention import backends
from hiergen.video import apply_pyramid_attention, remove_pyramid_attention

torch.set_num_threads(1)
backends.dense.DENSE_FROM = ()
case = CASES["wan"]
model, inputs = case.model(num_layers=1), [case.inputs(timestep=t) for t in (900.0, 500.0)]

def agree(compiled, expected):
    for x, y in zip(inputs, expected, strict=True):
        torch.testing.assert_close(compiled(**x).sample, y, rtol=0, atol=1e-6)

with torch.no_grad():
    dense = [model(**x).sample for x in inputs]
    handle = apply_pyramid_attention(model, SPARSE, warmup_steps=1)
    expected = [model(**x).sample for x in inputs]
    assert torch.equal(dense[0], expected[0]) and not torch.allclose(dense[1], expected[1], atol=1e-3)

    # The regional way of diffusers: every block one graph, the step decided outside of them.
    model.compile_repeated_blocks(fullgraph=True, backend="eager")
    agree(model, expected)

    # The whole model in one graph, the step given by hand.
    for block in model.blocks:
        block._compiled_call_impl = None
    whole = torch.compile(model, fullgraph=True, backend="eager")
    handle.set_step(1)
    torch.testing.assert_close(whole(**inputs[1]).sample, expected[1], rtol=0, atol=1e-6)
    remove_pyramid_attention(whole)
    agree(whole, dense)

    # The regional way in every class for which diffusers has it.
    names = []
    for name, case in CASES.items():
        torch.compiler.reset()
        model, inputs = case.model(), [case.inputs(batch=2)]
        if getattr(model, "_repeated_blocks", None):
            names.append(name)
            apply_pyramid_attention(model, SPARSE)
            expected = [model(**inputs[0]).sample]
            model.compile_repeated_blocks(fullgraph=True, backend="eager")
            agree(model, expected)
    assert set(CASES) - set(names) == {"cogvideox", "cogvideox1.5", "mochi"}, names
"""


def test_torch_compile_sees_one_graph():
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(Path(__file__).parent)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_statistics_are_kept_only_on_request(wan, sparse):
    model, inputs = wan.model(), wan.inputs()
    with apply_pyramid_attention(model, sparse, collect_statistics=True) as handle:
        run(model, inputs)
        calls = handle.statistics
        assert [(call.step, call.layer) for call in calls] == [(0, 0), (0, 1)]
        assert all(0.1 < call.density < 0.5 and call.seconds > 0 for call in calls)
        recorded = run(model, inputs)
        assert len(handle.statistics) == 4
    with apply_pyramid_attention(model, sparse) as handle:
        assert torch.equal(run(model, inputs), recorded)
        with pytest.raises(ValueError, match="call apply_pyramid_attention with collect_statistics=True"):
            _ = handle.statistics


def test_what_cannot_work_is_refused_by_name(wan, sparse):
    model = wan.model()
    cases = [
        (TypeError, "knows no Linear, expected one of WanTransformer3DModel", lambda: apply_pyramid_attention(torch.nn.Linear(2, 2), sparse)),
        (TypeError, "model is a str, expected a transformer of diffusers", lambda: apply_pyramid_attention("wan", sparse)),
        (TypeError, "model is a list", lambda: apply_pyramid_attention([], sparse)),
        (ValueError, "there is no PSA preset 'wan3'", lambda: apply_pyramid_attention(model, "wan3")),
        (ValueError, "no pyramid attention to remove", lambda: remove_pyramid_attention(model)),
        (ValueError, "dense_layers holds 2, expected numbers of 2 layers", lambda: apply_pyramid_attention(model, sparse, dense_layers=[2])),
        (ValueError, "warmup_steps is -1", lambda: apply_pyramid_attention(model, sparse, warmup_steps=-1)),
        (ValueError, "num_inference_steps is 0", lambda: apply_pyramid_attention(model, sparse, num_inference_steps=0)),
        (ValueError, "expected one of them", lambda: apply_pyramid_attention(model, sparse, warmup_steps=1, num_inference_steps=9)),
        (ValueError, "backend is 'cuda', expected one of 'auto', 'triton'", lambda: apply_pyramid_attention(model, sparse, backend="cuda")),
    ]  # fmt: skip
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
    with apply_pyramid_attention(model, sparse), pytest.raises(ValueError, match="has pyramid attention already"):
        apply_pyramid_attention(model, sparse)


def test_a_refused_call_changes_nothing(wan, sparse):
    model = wan.model()
    with pytest.raises(TypeError, match="knows no Linear"):
        apply_pyramid_attention([model, torch.nn.Linear(2, 2)], sparse)
    with pytest.raises(ValueError, match="no pyramid attention to remove"):
        remove_pyramid_attention(model)


def test_masks_and_context_parallelism_are_refused(wan, sparse):
    model = wan.model()
    attention = model.blocks[0].attn1
    with apply_pyramid_attention(model, sparse):
        with pytest.raises(ValueError, match=r"attention mask of shape \(1, 60\) and torch.float32"):
            attention(torch.randn(1, 60, 24), None, torch.ones(1, 60))
        attention.processor._parallel_config = None
        with pytest.raises(ValueError, match="call remove_pyramid_attention before enable_parallelism"):
            attention.processor._parallel_config = object()
    attention.processor._parallel_config = object()
    with pytest.raises(ValueError, match="runs under context parallelism"):
        apply_pyramid_attention(model, sparse)


def test_the_dense_backend_of_diffusers_reaches_the_dense_steps(wan, sparse):
    model = wan.model()
    originals = [block.attn1.processor for block in model.blocks]
    with apply_pyramid_attention(model, sparse):
        model.set_attention_backend("_native_math")
        assert {processor._attention_backend.value for processor in originals} == {"_native_math"}
        model.reset_attention_backend()
