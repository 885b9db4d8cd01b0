"""The converted model against a transcription of the official program: float64, loops, official names, nothing of hiergen."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hiergen.convert.restok import from_official


@dataclasses.dataclass
class Case:
    """An official configuration at a small size; the names of the switches are those of the official YAML."""

    image_size: int = 8
    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2)
    z: int = 6
    encoder: tuple[int, int, int] = (16, 6, 2)
    decoder: tuple[int, int, int] = (24, 2, 2)
    tokens: int = 8
    code: int = 4
    vocab: int = 24
    stages: int = 3
    theta: float = 10000.0
    flags: dict[str, bool] = dataclasses.field(default_factory=dict)

    def on(self, flag: str) -> bool:
        return self.flags.get(flag, True)

    @property
    def sizes(self) -> list[int]:
        return [1] + [2**k for k in range(int(math.log2(self.tokens)))]

    @property
    def grid(self) -> int:
        return self.image_size // 2 ** (len(self.multipliers) - 1)

    @property
    def levels(self) -> int:
        return self.stages if self.on("merge_tokens") else 1

    def yaml(self) -> dict[str, Any]:
        training = {"decoder_feature_supervision": True, "drop_latent_tokens": False}
        section = {"num_min_tokens": 2, "hierarchy_stages": self.stages, "rope_base_len": self.theta, **self.flags}
        model = {**training, "vq_model": {**section, "codebook_size": self.vocab, "token_size": self.code}}
        return {"dataset": {"preprocessing": {"crop_size": self.image_size}}, "model": model}


OFF = dict.fromkeys(("residual_image_tokens", "residual_latent_tokens", "learnable_dec_image_tokens"), False)
ONE = dict.fromkeys(("multi_quant", "latent_hierarchy", "merge_tokens", "vae_encoder"), False)
CASES = {
    "published": Case(image_size=16, multipliers=(1, 1, 2)),
    "plain": Case(theta=100.0, flags=OFF),
    "shared": Case(flags=ONE),
    "residual-sum": Case(tokens=64, encoder=(8, 4, 1), stages=2, flags={"learnable_dec_image_tokens": False}),
}


class RandomState(dict[str, Tensor]):
    """Random weights under the official names and shapes."""

    def __init__(self, case: Case) -> None:
        self.rng = torch.Generator().manual_seed(7)
        self.convnets(case)
        self.transformers(case)
        width, patch = case.encoder[0], case.image_size // case.grid
        if case.on("vae_encoder"):
            self.layer("encoder.patch_embed", width, case.z, 1, 1)
        else:
            self.layer("encoder.patch_embed.proj", width, 3, patch, patch)
        for index in range(case.levels):
            self.add(f"encoder.level_embedding.{index}", 1, width)
        for index in [f".{i}" for i in range(len(case.sizes))] if case.on("multi_quant") else [""]:
            self.layer(f"encoder.conv_out{index}", case.code, width, 1, 1)
            self.layer(f"decoder.decoder_embed{index}", case.decoder[0], case.code)
        self.add("decoder.latent_mask_token", 1, 1, case.code)
        if case.on("learnable_dec_image_tokens"):
            self.add("decoder.mask_token", 1, 1, case.decoder[0])
        self.add("decoder.feat_mask_token", 1, 1, case.decoder[0])
        self.layer("decoder.ffn", case.z, case.decoder[0], 1, 1)
        self.add("quantize.embedding.weight", case.vocab, case.code)

    def add(self, name: str, *shape: int, around: float = 0.0) -> None:
        scale = 1.2 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 and "embedding" not in name else 0.3
        self[name] = around + scale * torch.randn(shape, generator=self.rng)

    def layer(self, name: str, *shape: int, around: float = 0.0) -> None:
        self.add(f"{name}.weight", *shape, around=around)
        self.add(f"{name}.bias", shape[0])

    def norms(self, size: int, *names: str) -> None:
        for name in names:
            self.layer(name, size, around=1.0)

    def residual(self, name: str, before: int, after: int) -> None:
        self.norms(before, f"{name}.norm1")
        self.add(f"{name}.conv1.weight", after, before, 3, 3)
        self.norms(after, f"{name}.norm2")
        self.add(f"{name}.conv2.weight", after, after, 3, 3)
        if before != after:
            self.add(f"{name}.nin_shortcut.weight", after, after, 1, 1)

    def convnets(self, case: Case) -> None:
        widths = [case.channels * m for m in case.multipliers]
        has_encoder, last = case.on("vae_encoder"), widths[-1]
        for index, width in enumerate(widths):
            before = {
                "pixel_encoder.down": ([case.channels, *widths])[index],
                "pixel_decoder.up": ([*widths, last])[index + 1],
            }
            for name, count in before.items() if has_encoder else list(before.items())[1:]:
                self.residual(f"{name}.{index}.block.0", count, width)
                self.residual(f"{name}.{index}.block.1", width, width)
            if index:
                self.layer(f"pixel_decoder.up.{index}.upsample_conv", width, width, 3, 3)
        for side in ("pixel_encoder", "pixel_decoder") if has_encoder else ("pixel_decoder",):
            self.residual(f"{side}.mid.0", last, last)
            self.residual(f"{side}.mid.1", last, last)
        if has_encoder:
            self.add("pixel_encoder.conv_in.weight", case.channels, 3, 3, 3)
            self.norms(last, "pixel_encoder.norm_out")
            self.layer("pixel_encoder.conv_out", case.z, last, 1, 1)
        self.layer("pixel_decoder.conv_in", last, case.z, 3, 3)
        self.norms(widths[0], "pixel_decoder.norm_out")
        self.layer("pixel_decoder.conv_out", 3, widths[0], 3, 3)

    def transformers(self, case: Case) -> None:
        for side, (dim, depth, heads) in (("encoder", case.encoder), ("decoder", case.decoder)):
            self.norms(dim, f"{side}.ln_pre", f"{side}.ln_post")
            for index in range(len(case.sizes)):
                self.add(f"{side}.latent_token_level_embedding.{index}", 1, dim)
            for block in [f"{side}.blocks.{index}" for index in range(depth)]:
                self.norms(dim, f"{block}.norm1", f"{block}.norm2")
                self.norms(dim // heads, f"{block}.attn.q_norm", f"{block}.attn.k_norm")
                self.add(f"{block}.gamma_1", dim, around=0.7)
                self.add(f"{block}.gamma_2", dim, around=0.7)
                self.add(f"{block}.attn.qkv.weight", 3 * dim, dim)
                self.add(f"{block}.attn.q_bias", dim)
                self.add(f"{block}.attn.v_bias", dim)
                self.layer(f"{block}.attn.proj", dim, dim)
                self.layer(f"{block}.mlp.fc1", 4 * dim, dim)
                self.layer(f"{block}.mlp.fc2", dim, 4 * dim)


class Transcription:
    """One image at a time, as the specification says, in float64."""

    def __init__(self, case: Case, state: RandomState) -> None:
        self.case = case
        self.w = {name: tensor.double() for name, tensor in state.items()}

    def layer_norm(self, x: Tensor, name: str) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        return (
            centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.w[f"{name}.weight"]
            + self.w[f"{name}.bias"]
        )

    def group_silu(self, x: Tensor, name: str) -> Tensor:
        groups = x.reshape(32, -1)
        centered = groups - groups.mean(1, keepdim=True)
        x = (centered / (centered.square().mean(1, keepdim=True) + 1e-6).sqrt()).reshape(x.shape)
        x = x * self.w[f"{name}.weight"][:, None, None] + self.w[f"{name}.bias"][:, None, None]
        return x / (1 + (-x).exp())

    def conv(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = self.w[f"{name}.weight"]
        padding = 1 if weight.shape[-1] == 3 else 0
        return F.conv2d(x[None], weight, self.w.get(f"{name}.bias"), stride=stride, padding=padding)[0]

    def residual(self, x: Tensor, name: str) -> Tensor:
        h = self.conv(self.group_silu(x, f"{name}.norm1"), f"{name}.conv1")
        h = self.conv(self.group_silu(h, f"{name}.norm2"), f"{name}.conv2")
        shortcut = f"{name}.nin_shortcut"
        return h + (self.conv(h, shortcut) if f"{shortcut}.weight" in self.w else x)

    def pixel_encoder(self, x: Tensor) -> Tensor:
        x = self.conv(x, "pixel_encoder.conv_in")
        count = len(self.case.multipliers)
        for level in range(count):
            for block in range(2):
                x = self.residual(x, f"pixel_encoder.down.{level}.block.{block}")
            if level < count - 1:
                x = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
        for block in range(2):
            x = self.residual(x, f"pixel_encoder.mid.{block}")
        return self.conv(self.group_silu(x, "pixel_encoder.norm_out"), "pixel_encoder.conv_out")

    def pixel_decoder(self, x: Tensor) -> Tensor:
        x = self.conv(x, "pixel_decoder.conv_in")
        for block in range(2):
            x = self.residual(x, f"pixel_decoder.mid.{block}")
        for level in reversed(range(len(self.case.multipliers))):
            for block in range(2):
                x = self.residual(x, f"pixel_decoder.up.{level}.block.{block}")
            if level:
                x = self.conv(
                    x.repeat_interleave(2, 1).repeat_interleave(2, 2), f"pixel_decoder.up.{level}.upsample_conv"
                )
        return self.conv(self.group_silu(x, "pixel_decoder.norm_out"), "pixel_decoder.conv_out")

    def rotate(self, vector: Tensor, row: float, column: float) -> Tensor:
        size = len(vector)
        result = vector.clone()
        for m in range(size // 2):
            j, position = (m, row) if m < size // 4 else (m - size // 4, column)
            angle = position * self.case.theta ** (-2 * j / (size // 2))
            a, b = vector[2 * m], vector[2 * m + 1]
            result[2 * m] = a * math.cos(angle) - b * math.sin(angle)
            result[2 * m + 1] = a * math.sin(angle) + b * math.cos(angle)
        return result

    def attention(
        self, x: Tensor, name: str, heads: int, positions: list[tuple[int, int]], groups: list[int]
    ) -> Tensor:
        x = self.layer_norm(x, f"{name}.norm1")
        dim = x.shape[1]
        q, k, v = (x @ self.w[f"{name}.attn.qkv.weight"].T).split(dim, dim=1)
        q, v = q + self.w[f"{name}.attn.q_bias"], v + self.w[f"{name}.attn.v_bias"]
        allowed = torch.tensor([[query >= key for key in groups] for query in groups])
        outputs = []
        for part in torch.arange(dim).split(dim // heads):
            qh, kh = (self.layer_norm(t[:, part], f"{name}.attn.{n}_norm") for t, n in ((q, "q"), (k, "k")))
            qh, kh = (torch.stack([self.rotate(t, *p) for t, p in zip(h, positions, strict=True)]) for h in (qh, kh))
            scores = (qh @ kh.T / math.sqrt(len(part))).masked_fill(~allowed, -math.inf)
            outputs.append(scores.softmax(-1) @ v[:, part])
        joined = torch.cat(outputs, 1) @ self.w[f"{name}.attn.proj.weight"].T + self.w[f"{name}.attn.proj.bias"]
        return self.w[f"{name}.gamma_1"] * joined

    def mlp(self, x: Tensor, name: str) -> Tensor:
        x = self.layer_norm(x, f"{name}.norm2")
        h = x @ self.w[f"{name}.mlp.fc1.weight"].T + self.w[f"{name}.mlp.fc1.bias"]
        h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
        return self.w[f"{name}.gamma_2"] * (h @ self.w[f"{name}.mlp.fc2.weight"].T + self.w[f"{name}.mlp.fc2.bias"])

    def cells(self, count: int) -> tuple[int, int]:
        k = int(math.log2(count))
        return 2 ** (k // 2), 2 ** (k - k // 2)

    def initial_latents(self, f: Tensor) -> Tensor:
        def pool(x: Tensor, out: int, axis: int) -> Tensor:
            size = x.shape[axis]
            bounds = [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]
            return torch.stack([x.narrow(axis, a, z - a).mean(axis) for a, z in bounds], axis)

        if not self.case.on("latent_hierarchy"):
            return pool(f.flatten(1), self.case.tokens, 1).T
        side, rest, tokens = f.shape[1], f, []
        for count in self.case.sizes:
            h, w = self.cells(count)
            pooled = pool(pool(rest, h, 1), w, 2)
            tokens.append(pooled.flatten(1).T)
            if self.case.on("residual_latent_tokens"):
                rest = rest - self.upsample(pooled, side)
        return torch.cat(tokens)

    def upsample(self, x: Tensor, side: int) -> Tensor:
        rows = [i * x.shape[1] // side for i in range(side)]
        columns = [i * x.shape[2] // side for i in range(side)]
        return x[:, rows][:, :, columns]

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return code-space latents and the coarsest image tokens of an image in [0, 1]."""
        case = self.case
        dim, depth, heads = case.encoder
        mean, std = torch.tensor([0.485, 0.456, 0.406]).double(), torch.tensor([0.229, 0.224, 0.225]).double()
        x = (image - mean[:, None, None]) / std[:, None, None]
        if case.on("vae_encoder"):
            f = self.conv(self.pixel_encoder(x), "encoder.patch_embed")
        else:
            f = self.conv(x, "encoder.patch_embed.proj", case.image_size // case.grid)
        latents = self.initial_latents(f)
        level_of = [i for i, count in enumerate(case.sizes) for _ in range(count)]
        latents = latents + torch.cat([self.w[f"encoder.latent_token_level_embedding.{i}"] for i in level_of])
        image_tokens = f.flatten(1).T + self.w["encoder.level_embedding.0"]
        x = self.layer_norm(torch.cat([image_tokens, latents]), "encoder.ln_pre")
        widths = [case.grid]
        merges = [int(k / case.levels * depth) - 1 for k in range(1, case.levels)]
        for index in range(depth):
            positions, groups, offset = [], [], 0
            for group, width in enumerate(widths):
                positions += [(r + offset, c + offset) for r in range(case.grid) for c in range(width)]
                groups += [group] * (case.grid * width)
                offset += case.grid * width
            positions += [(t + offset, t + offset) for t in range(case.tokens)]
            groups += [len(widths) + level for level in level_of]
            x = x + self.attention(x, f"encoder.blocks.{index}", heads, positions, groups)
            if index in merges:
                count = case.grid * widths[0]
                finer = list(x[:count])
                coarse = [finer[i] for i in range(0, count, 2)]
                if case.on("residual_image_tokens"):
                    finer = [t - finer[i - i % 2] for i, t in enumerate(finer)]
                x = torch.cat([torch.stack(coarse + finer), x[count:]])
                widths.insert(0, widths[0] // 2)
            x = x + self.mlp(x, f"encoder.blocks.{index}")
            if index in merges:
                count = case.grid * widths[0]
                x = torch.cat([x[:count] + self.w[f"encoder.level_embedding.{merges.index(index) + 1}"], x[count:]])
        flat = self.layer_norm(x[-case.tokens :], "encoder.ln_post").flatten()
        codes = []
        for position, level in enumerate(level_of):
            column = torch.stack([flat[c * case.tokens + position] for c in range(dim)])
            name = f"encoder.conv_out.{level}" if case.on("multi_quant") else "encoder.conv_out"
            codes.append(self.w[f"{name}.weight"].flatten(1) @ column + self.w[f"{name}.bias"])
        return torch.stack(codes), x[: case.grid * widths[0]]

    def quantize(self, latents: Tensor) -> tuple[list[int], Tensor, Tensor]:
        """Return ids, unit codes, and the loss's mean squared distance."""
        unit = latents / latents.norm(dim=1, keepdim=True)
        book = self.w["quantize.embedding.weight"]
        book = book / book.norm(dim=1, keepdim=True)
        ids = [int(((book - point) ** 2).sum(1).argmin()) for point in unit]
        return ids, book[ids], (book[ids] - unit).square().mean()

    def decode(self, codes: Tensor, keep: int, mask_token: str = "mask_token") -> tuple[Tensor, Tensor]:
        """Return the image in [0, 1] and the unnormalized output tokens."""
        case = self.case
        _, depth, heads = case.decoder
        level_of = [i for i, count in enumerate(case.sizes) for _ in range(count)]
        tokens = []
        for position, level in enumerate(level_of):
            code = codes[position] if position < keep else self.w["decoder.latent_mask_token"].flatten()
            name = f"decoder.decoder_embed.{level}" if case.on("multi_quant") else "decoder.decoder_embed"
            tokens.append(self.w[f"{name}.weight"] @ code + self.w[f"{name}.bias"])
        latents, cells = torch.stack(tokens), case.grid**2
        if case.on("learnable_dec_image_tokens") or mask_token == "feat_mask_token":
            image = self.w[f"decoder.{mask_token}"][0].expand(cells, -1)
        else:
            maps = [
                self.upsample(part.T.reshape(-1, *self.cells(len(part))), case.grid)
                for part in latents.split(case.sizes)
            ]
            image = torch.stack(maps).sum(0).flatten(1).T
            if not case.on("residual_latent_tokens"):
                image = image / len(case.sizes)
        latents = latents + torch.cat([self.w[f"decoder.latent_token_level_embedding.{i}"] for i in level_of])
        x = self.layer_norm(torch.cat([latents, image]), "decoder.ln_pre")
        positions = [(t, t) for t in range(case.tokens)]
        positions += [(r + case.tokens, c + case.tokens) for r in range(case.grid) for c in range(case.grid)]
        for index in range(depth):
            x = x + self.attention(x, f"decoder.blocks.{index}", heads, positions, [0] * len(x))
            x = x + self.mlp(x, f"decoder.blocks.{index}")
        out = self.layer_norm(x[-cells:], "decoder.ln_post").T.reshape(-1, case.grid, case.grid)
        return self.pixel_decoder(self.conv(out, "decoder.ffn")), x[-cells:]


def assert_near(result: Tensor, wanted: Tensor) -> None:
    assert result.shape == wanted.shape
    assert (result - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_converted_model_computes_what_the_official_program_does(case: Case) -> None:
    state = RandomState(case)
    model, plain = from_official(state, case.yaml()), Transcription(case, state)
    images = torch.rand(2, 3, case.image_size, case.image_size)
    pyramid = model.encode(2 * images - 1)
    latents, image_tokens = model.encode_latents(2 * images - 1)
    ids, keep = pyramid.concat(), case.tokens // 2
    full, prefix = model.decode(pyramid), model.decode(pyramid.prefix(len(pyramid) - 1))
    errors, features = [], []
    for sample, image in enumerate(images.double()):
        wanted_latents, wanted_image_tokens = plain.encode(image)
        wanted_ids, codes, error = plain.quantize(wanted_latents)
        errors.append(error)
        features.append(plain.decode(codes, case.tokens, "feat_mask_token")[1])
        assert_near(latents[sample].double(), wanted_latents)
        assert_near(image_tokens[sample].double(), wanted_image_tokens)
        assert ids[sample].tolist() == wanted_ids
        for result, kept in ((full, case.tokens), (prefix, keep)):
            wanted = 2 * plain.decode(codes, kept)[0] - 1
            assert_near(result[sample].double(), wanted)
    output = model.train()(2 * images - 1)
    assert_near(output.losses["quantizer"].double(), 1.25 * torch.stack(errors).mean())
    for sample, kept in enumerate(features):
        assert_near(output.features["decoder"][sample].double(), kept)
    assert len(set(ids.flatten().tolist())) > 4
