"""Pyramid attention in one transformer: its processors and the hooks that reorder its tokens."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from hiergen.video.architectures import Architecture, Inputs
from hiergen.video.processors import AttentionSettings, Processor
from hiergen.video.reordering import Entrance, order_tokens, reorder_flat_tables

#: Attribute of a transformer that holds its adapter.
ATTRIBUTE = "_hiergen_pyramid_attention"


class TransformerAdapter:
    """Attaches to a transformer and detaches from it.

    Tokens, rotary tables and per-token modulation are put in the order of the settings where they are made, and the tokens
    are put back before the last norm: nothing is moved inside the layers. Dense steps move nothing at all. Hooks are PyTorch's
    own, which stand outside of the forward passes that offloading and caching libraries wrap.
    """

    def __init__(
        self, model: nn.Module, architecture: Architecture, settings: AttentionSettings, dense_layers: Collection[int]
    ) -> None:
        self.architecture = architecture
        self.settings = settings
        self.entrance: Entrance | None = None
        self._names = list(inspect.signature(type(model).forward).parameters)[1:]
        self._replaced: list[tuple[Any, Processor]] = []
        for layer, attention in enumerate(architecture.attentions(model)):
            if layer not in dense_layers:
                self._replaced.append((attention, attention.processor))
                attention.set_processor(architecture.processor(attention.processor, layer, settings))
        self._handles = self._hook(model)
        setattr(model, ATTRIBUTE, self)

    def detach(self, model: nn.Module) -> None:
        """Restore the processors that were replaced, except where other code has set another processor since."""
        for handle in self._handles:
            handle.remove()
        for attention, original in self._replaced:
            if isinstance(attention.processor, self.architecture.processor):
                attention.set_processor(original)
        delattr(model, ATTRIBUTE)

    def _hook(self, model: nn.Module) -> list[RemovableHandle]:
        handles = [model.register_forward_pre_hook(self._before_model, with_kwargs=True)]
        for name, reorder in self.architecture.enters.items():
            handles.append(model.get_submodule(name).register_forward_hook(functools.partial(self._enter, reorder)))
        handles.append(model.get_submodule(self.architecture.leaves_at).register_forward_pre_hook(self._leave))
        return handles

    def _before_model(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Decide whether this pass is dense, and in which order its tokens are processed."""
        inputs = {**dict(zip(self._names, args, strict=False)), **kwargs}
        counter, config = self.settings.counter, self.settings.config
        self.entrance = None
        if counter.reads_timesteps:
            counter.observe(inputs["timestep"])
        if counter.is_dense or config.order == "raster":
            return None
        sample = inputs["hidden_states"]
        grid, fixed = self.architecture.grid(model, inputs), self.architecture.fixed_frames(model)
        order = order_tokens(config.order, grid, sample, fixed_frames=fixed)
        self.entrance = Entrance(order, sample.shape[0])
        return self._with_rotary_tables(inputs)

    def _with_rotary_tables(self, inputs: Inputs) -> Any:
        name = self.architecture.rotary_argument
        if name is None or inputs.get(name) is None or self.entrance is None:
            return None
        return (), {**inputs, name: reorder_flat_tables(self.entrance, inputs[name])}

    def _enter(self, reorder: Any, module: nn.Module, args: Any, output: Any) -> Any:
        return output if self.entrance is None else reorder(self.entrance, output)

    def _leave(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        if self.entrance is None:
            return None
        order, self.entrance = self.entrance.order, None
        return order.undo(args[0]), *args[1:]
