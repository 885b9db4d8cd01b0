"""The velocity that `FlowTransformer.generate` follows: with the condition, and where guidance is on moved away from what is without it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hiergen.generators.conditioning import with_unguided_labels
from hiergen.generators.finite import FiniteSteps
from hiergen.generators.flow.sampling import FlowSettings
from hiergen.generators.guidance import guide
from hiergen.nn.straight_path import VelocityFn

if TYPE_CHECKING:
    from hiergen.generators.flow.model import FlowTransformer


def guided_velocity(
    model: FlowTransformer, condition: Any, settings: FlowSettings, finite: FiniteSteps, *, dense_until: float
) -> VelocityFn:
    """Return the velocity of a state `(b, n, c)` at a time.

    Args:
        model: The generator.
        condition: Labels or texts, checked.
        settings: When guidance is on, and how strong.
        finite: Notes velocities that are not finite.
        dense_until: Time before which attention is dense whatever the model's settings.
    """
    both = with_unguided_labels(condition, model.null_label, settings.guidance_against, model.label_embed)
    compute = model._compiled or model.velocity

    def velocity(state: Tensor, time: float) -> Tensor:
        is_guided = settings.is_guided_at(time)
        labels = both if is_guided else condition
        batch = torch.cat((state, state)) if is_guided else state
        moments = torch.full((len(labels),), time, device=state.device, dtype=state.dtype)
        # Where CUDA graphs are in use, the next call writes over this one's result.
        torch.compiler.cudagraph_mark_step_begin()
        slope = compute(batch, moments, labels, is_dense=time < dense_until)
        slope = slope.to(state.dtype, copy=model._compiled is not None)
        finite.note(slope, f"time {time:.3f} of 0 to 1")
        if not is_guided:
            return slope
        conditional, null = slope.chunk(2)
        return guide(conditional, null, settings.scale_at(time), num_channels=settings.cfg_channels)

    return velocity
