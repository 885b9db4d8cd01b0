"""Mamba-2: a recurrence over tokens with a matrix as its state, in three forms that give the same numbers.

    S_t = exp(a_t) S_(t-1) + x_t B_t^T        y_t = S_t C_t

The recurrent form is that, token by token: the reference. The chunked form computes the tokens of a chunk from each other by a masked
matrix product and passes the state from chunk to chunk, s_t being the sum of a up to t inside the chunk and S the state that enters it:

    y_t = sum over u <= t of exp(s_t - s_u) (C_t . B_u) x_u  +  exp(s_t) S C_t

A step is either of the two on the next tokens, with the state that the earlier ones left.

Letters: `b` batch, `n` tokens, `d` channels, `h` heads, `k` channels of a head, `m` state channels, `c` chunks, `q` tokens of a chunk.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hiergen.nn.blocks.layers import RMSNorm
from hiergen.nn.running.precision import widen, without_autocast

_FORMS = ("auto", "recurrent", "chunked")
#: Up to as many tokens "auto" takes the recurrent form: the step of a generation.
_FEW = 4


def scan(
    x: Float[Tensor, "b n h k"],
    log_decay: Float[Tensor, "b n h"],
    into: Float[Tensor, "b n m"],
    out: Float[Tensor, "b n m"],
    *,
    state: Float[Tensor, "b h k m"] | None = None,
    starts: Bool[Tensor, "b n"] | None = None,
    chunk_size: int = 64,
    form: str = "auto",
) -> tuple[Float[Tensor, "b n h k"], Float[Tensor, "b h k m"]]:
    """Return y of the recurrence S_t = exp(a_t) S_(t-1) + x_t B_t^T, y_t = S_t C_t, and the state after the last token.

    A token with x = 0 and a = 0 leaves the state as it is. The result does not depend on the form or the chunk size but for rounding.

    Args:
        x: Inputs, one vector per head.
        log_decay: a, at most 0, one number per head.
        into: B, shared by the heads.
        out: C, shared by the heads.
        state: State before the first token; None is 0.
        starts: True at the first token of every sequence that is packed into a row: there the state is forgotten.
        chunk_size: Tokens of a chunk.
        form: "recurrent" and "chunked" as above; "auto" is the recurrence for up to 4 tokens.

    Raises:
        ValueError: If the form is unknown.

    Source:
        Mamba-2, arXiv:2405.21060.
    """
    if form not in _FORMS:
        raise ValueError(f"form is {form!r}, expected one of {_FORMS}")
    batch, num_tokens, heads, size = x.shape
    if state is None:
        state = x.new_zeros(batch, heads, size, into.shape[-1])
    if form == "recurrent" or (form == "auto" and num_tokens <= _FEW):
        return _recurrent(x, log_decay, into, out, state, starts)
    return _chunked(x, log_decay, into, out, state, starts, min(chunk_size, num_tokens))


def _recurrent(
    x: Tensor, log_decay: Tensor, into: Tensor, out: Tensor, state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    decay, found = log_decay.exp(), []
    if starts is not None:
        decay = decay.masked_fill(starts[..., None], 0.0)
    for t in range(x.shape[1]):
        state = decay[:, t, :, None, None] * state + x[:, t, :, :, None] * into[:, t, None, None, :]
        found.append(torch.einsum("bhkm,bm->bhk", state, out[:, t]))
    return torch.stack(found, dim=1), state


def _chunked(
    x: Tensor, log_decay: Tensor, into: Tensor, out: Tensor, state: Tensor, starts: Tensor | None, size: int
) -> tuple[Tensor, Tensor]:
    num_tokens = x.shape[1]
    padding = -num_tokens % size

    def cut(values: Tensor) -> Tensor:
        """Return `(b, n, ...)` as `(b, c, q, ...)`; zeros behind the end leave the state as it is."""
        return F.pad(values, (0, 0) * (values.ndim - 2) + (0, padding)).unflatten(1, (-1, size))

    x, into, out = cut(x), cut(into), cut(out)
    sums = cut(log_decay).cumsum(dim=2).transpose(2, 3)  # (b, c, h, q)
    # A difference, not a quotient of exponentials: the sums fall without bound.
    between = sums[..., :, None] - sums[..., None, :]  # (b, c, h, q, q)
    visible = torch.ones(size, size, dtype=torch.bool, device=x.device).tril()
    enters, leaves = sums.exp(), (sums[..., -1:] - sums).exp()  # (b, c, h, q)
    passes = enters[..., -1]  # (b, c, h)
    if starts is not None:
        segment = cut(starts[..., None].long())[..., 0].cumsum(dim=2)[:, :, None]  # (b, c, 1, q)
        visible = visible & (segment[..., :, None] == segment[..., None, :])
        enters = enters.masked_fill(segment > 0, 0.0)
        leaves = leaves.masked_fill(segment < segment[..., -1:], 0.0)
        passes = passes.masked_fill(segment[..., -1] > 0, 0.0)
    weights = between.masked_fill(~visible, -math.inf).exp()
    scores = torch.einsum("bcqm,bcum->bcqu", out, into)[:, :, None] * weights
    y = torch.einsum("bchqu,bcuhk->bcqhk", scores, x)
    added = torch.einsum("bcuhk,bcum->bchkm", leaves.transpose(2, 3)[..., None] * x, into)
    before = []
    for chunk in range(x.shape[1]):
        before.append(state)
        state = passes[:, chunk, :, None, None] * state + added[:, chunk]
    entered = torch.einsum("bchkm,bcqm->bcqhk", torch.stack(before, dim=1), out)
    y = y + enters.transpose(2, 3)[..., None] * entered
    return y.flatten(1, 2)[:, :num_tokens], state


class MambaState:
    """What a Mamba-2 layer keeps of the tokens so far, whatever their number: the last inputs of its convolution, and the matrix S.

    Attributes:
        inputs: Inputs of the convolution, oldest first, `(b, width - 1, channels)`; None before the first tokens.
        matrix: S, `(b, h, k, m)`, at least float32; None before the first tokens.
    """

    def __init__(self) -> None:
        self.inputs: Tensor | None = None
        self.matrix: Tensor | None = None

    def keep_first(self, batch: int) -> None:
        """Forget all samples but the first `batch` of them (no copy)."""
        if self.inputs is not None and self.matrix is not None:
            self.inputs, self.matrix = self.inputs[:batch], self.matrix[:batch]


class Mamba2(nn.Module):
    """out(RMSNorm(y * SiLU(z))), where y is the recurrence over convolved inputs. Causal; without positions.

        [z | x | B | C | delta] = in_proj(u);    [x | B | C] = SiLU(causal depthwise convolution of them)
        delta = softplus(delta + dt_bias);    S_t = exp(-delta e^A_log) S_(t-1) + delta x_t B_t^T;    y_t = S_t C_t + D x_t

    B and C are shared by all heads. The step sizes, the decays, the state and all that is computed with them are at least float32.

    Args:
        dim: Channels of a token.
        state_dim: Channels of B and C.
        conv_width: Tokens that the convolution reads, the current one last.
        expand: Channels of x over `dim`.
        head_dim: Channels of a head; must divide `expand * dim`.
        chunk_size: Tokens of a chunk of the chunked form (`scan`); it decides the speed, not the numbers.

    Raises:
        ValueError: If a size is out of range or two do not fit together.

    Source:
        Mamba-2, arXiv:2405.21060, in the form of H-Net, arXiv:2507.07955: one group, no limits on delta.
    """

    def __init__(
        self,
        dim: int,
        *,
        state_dim: int = 128,
        conv_width: int = 4,
        expand: int = 2,
        head_dim: int = 64,
        chunk_size: int = 64,
    ) -> None:
        super().__init__()
        sizes = {"dim": dim, "state_dim": state_dim, "conv_width": conv_width, "expand": expand}
        for name, value in {**sizes, "head_dim": head_dim, "chunk_size": chunk_size}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        inner = expand * dim
        if inner % head_dim:
            raise ValueError(f"head_dim is {head_dim}, expected a divisor of expand * dim = {inner}")
        self.inner_dim, self.state_dim, self.num_heads = inner, state_dim, inner // head_dim
        self.chunk_size = chunk_size
        channels = inner + 2 * state_dim
        self.in_proj = nn.Linear(dim, inner + channels + self.num_heads, bias=False)
        self.conv = nn.Conv1d(channels, channels, conv_width, groups=channels)
        self.dt_bias = nn.Parameter(torch.empty(self.num_heads))
        self.A_log = nn.Parameter(torch.empty(self.num_heads))
        self.D = nn.Parameter(torch.empty(self.num_heads))
        self.norm = RMSNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw step sizes log-uniformly between 0.001 and 0.1, decays uniformly between 1 and 16, and set D to 1.

        The linear layers and the convolution keep PyTorch's own start.
        """
        span = math.log(1e-3), math.log(0.1)
        with torch.no_grad():
            step = self.dt_bias.uniform_(*span).exp().clamp_min(1e-4)
            # The inverse of softplus.
            self.dt_bias.copy_(step + (-torch.expm1(-step)).log())
            self.A_log.uniform_(1, 16).log_()
            self.D.fill_(1.0)

    def forward(
        self,
        u: Float[Tensor, "b n d"],
        *,
        state: MambaState | None = None,
        lengths: Int[Tensor, " b"] | None = None,
        starts: Bool[Tensor, "b n"] | None = None,
        form: str = "auto",
    ) -> Float[Tensor, "b n d"]:
        """Return the mixed tokens.

        Args:
            u: Tokens; with a state, those that follow the ones which it was made of.
            state: What is kept of the earlier tokens; it is advanced in place. None begins a sequence.
            lengths: How many tokens of each row are tokens, from the first on, 0 to n; the others leave the state as it is. None is all.
            starts: True at the first token of every sequence that is packed into a row: it sees nothing of what is before it.
            form: How the recurrence is computed (`scan`).
        """
        z, xbc, delta = self.in_proj(u).split([self.inner_dim, self.conv.in_channels, self.num_heads], dim=-1)
        xbc = F.silu(self._convolve(xbc, state, lengths, starts))
        with without_autocast(u.device):
            x, into, out = widen(xbc).split([self.inner_dim, self.state_dim, self.state_dim], dim=-1)
            x = x.unflatten(-1, (self.num_heads, -1))
            delta = F.softplus(widen(delta) + widen(self.dt_bias))
            if lengths is not None:
                # A step of size zero neither decays the state nor adds to it.
                places = torch.arange(u.shape[1], device=u.device)
                delta = delta * (places < lengths[:, None])[..., None]
            y, matrix = scan(
                delta[..., None] * x,
                -delta * widen(self.A_log).exp(),
                into,
                out,
                state=None if state is None else state.matrix,
                starts=starts,
                chunk_size=self.chunk_size,
                form=form,
            )
            y = (y + widen(self.D)[:, None] * x).flatten(2)
        if state is not None:
            state.matrix = matrix
        return self.out_proj(self.norm((y * F.silu(widen(z))).to(u.dtype)))

    def _convolve(
        self, x: Float[Tensor, "b n c"], state: MambaState | None, lengths: Tensor | None, starts: Tensor | None
    ) -> Float[Tensor, "b n c"]:
        """Return the causal convolution, and keep its last inputs in the state."""
        reach, num_tokens = self.conv.kernel_size[0] - 1, x.shape[1]
        if state is None or state.inputs is None:
            window = F.pad(x, (0, 0, reach, 0))
        else:
            window = torch.cat((state.inputs.to(x.dtype), x), dim=1)
        if state is not None:
            last = torch.arange(reach, device=x.device)[None]
            # The inputs before place `length` of the row, which is place `length + reach` of the window.
            last = last + (num_tokens if lengths is None else lengths[:, None])
            state.inputs = window.gather(1, last.expand(len(x), -1)[..., None].expand(-1, -1, x.shape[2]))
        taps = self.conv.weight[:, 0]
        y = x * taps[:, reach] if self.conv.bias is None else self.conv.bias + x * taps[:, reach]
        segment = None if starts is None else F.pad(starts.long().cumsum(dim=1), (reach, 0))
        for lag in range(1, reach + 1):
            earlier = window[:, reach - lag : reach - lag + num_tokens]
            if segment is not None:
                same = segment[:, reach - lag : reach - lag + num_tokens] == segment[:, reach:]
                earlier = earlier * same[..., None]
            y = y + earlier * taps[:, reach - lag]
        return y
