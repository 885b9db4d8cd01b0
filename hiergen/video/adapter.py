"""Pyramid attention in one transformer: its processors and the hooks that reorder its tokens."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Collection
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hiergen.video.architectures import Architecture
from hiergen.video.processors import AttentionSettings, Processor
from hiergen.video.reordering import Entrance, order_tokens

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
                _set_processor(attention, architecture.processor(attention.processor, layer, settings))
        self._handles = self._hook(model)
        setattr(model, ATTRIBUTE, self)

    def detach(self, model: nn.Module) -> None:
        """Restore the processors that were replaced, except where other code has set another processor since."""
        for handle in self._handles:
            handle.remove()
        for attention, original in self._replaced:
            if isinstance(attention.processor, self.architecture.processor):
                _set_processor(attention, original)
        delattr(model, ATTRIBUTE)

    def _hook(self, model: nn.Module) -> list[RemovableHandle]:
        handles = [model.register_forward_pre_hook(self._before_model, with_kwargs=True)]
        for name, reorder in self.architecture.enters.items():
            handles.append(model.get_submodule(name).register_forward_hook(functools.partial(self._enter, reorder)))
        for module in self.architecture.raster_modules(model):
            handles.append(module.register_forward_pre_hook(self._to_raster))
            handles.append(module.register_forward_hook(self._from_raster))
        handles.append(model.get_submodule(self.architecture.leaves_at).register_forward_pre_hook(self._leave))
        return handles

    def _before_model(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Decide whether this pass is dense, and in which order its tokens are processed."""
        inputs = {**dict(zip(self._names, args, strict=False)), **kwargs}
        counter, config = self.settings.counter, self.settings.config
        self.entrance = None
        if counter.reads_timesteps:
            counter.observe(inputs["timestep"])
        # Where no layer is sparse, a mask over the video is followed, not refused; it asks for raster order.
        if counter.is_dense or config.order == "raster" or not self._replaced:
            return None
        architecture, sample = self.architecture, inputs["hidden_states"]
        order = order_tokens(
            config.order,
            architecture.grid(model, inputs),
            sample,
            fixed_frames=architecture.fixed_frames(model),
            by_frame=architecture.by_frame(inputs),
        )
        self.entrance = Entrance(order, sample.shape[0])
        given = {name: reorder for name, reorder in architecture.arguments.items() if inputs.get(name) is not None}
        if not given:
            return None
        return (), {**inputs, **{name: reorder(self.entrance, inputs[name]) for name, reorder in given.items()}}

    def _enter(self, reorder: Any, module: nn.Module, args: Any, output: Any) -> Any:
        return output if self.entrance is None else reorder(self.entrance, output)

    def _to_raster(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        return None if self.entrance is None else (self.entrance.order.undo(args[0]), *args[1:])

    def _from_raster(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output if self.entrance is None else self.entrance.order.apply(output)

    def _leave(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        args = self._to_raster(module, args)
        self.entrance = None
        return args


def _set_processor(attention: Any, processor: Processor) -> None:
    # Mochi's attention has no method for it.
    getattr(attention, "set_processor", functools.partial(setattr, attention, "processor"))(processor)
