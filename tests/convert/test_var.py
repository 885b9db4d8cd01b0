"""VAR's tokenizer and generators with official weights against a transcription of the specification that reads official tensors only."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hiergen.convert.var import (
    from_official,
    generator_from_official,
    generator_to_official,
    tokenizer_from_official,
    tokenizer_to_official,
)
from hiergen.generators.next_scale.model import NextScaleAR
from hiergen.generators.next_scale.settings import NextScaleSettings
from hiergen.tokenizers.multiscale_vq.model import MultiScaleVQ

#: The transcription of the same network with separate projections of attention; it has these widths.
LDM = runpy.run_path(str(Path(__file__).parent / "test_ldm_vae.py"))
CODE, VOCAB, CLASSES, DIM, HEADS, DEPTH = 6, 31, 5, 24, 3, 2
SIDES = (1, 2, 3, 4)
#: Which of four filters each of four scales takes.
FILTER_OF = {"list": (0, 1, 2, 3), "one": (0, 0, 0, 0), "each": (0, 1, 2, 3), "none": ()}
IMAGES = {"image_size": 16, "sides": list(SIDES)}


def official_tokenizer(
    filters: str = "list",
    *,
    widths: tuple[int, ...] = LDM["WIDTHS"],
    code: int = CODE,
    vocab: int = VOCAB,
    kernel: int = 3,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Return random tensors by the names and shapes that the specification lists."""
    rng = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        if device == "meta":
            return torch.empty(shape, device=device)
        fan_in = max(1, torch.Size(shape[1:]).numel())
        return torch.randn(shape, generator=rng, dtype=torch.float64) / fan_in**0.5

    state = LDM["official_state"](has_decoder_attention=True, widths=widths, latent=code, device=device)
    state["encoder.conv_out.weight"], state["encoder.conv_out.bias"] = draw(code, widths[-1], 3, 3), draw(code)
    for name in ("quant_conv", "post_quant_conv"):
        state[f"{name}.weight"], state[f"{name}.bias"] = draw(code, code, kernel, kernel), draw(code)
    for name in [name for name in state if ".q." in name]:
        parts = [state.pop(name.replace(".q.", f".{part}.")) for part in "qkv"]
        state[name.replace(".q.", ".qkv.")] = torch.cat(parts)
    state["quantize.embedding.weight"] = draw(vocab, code) * code**0.5
    names = {
        "list": [f"qresi_ls.{k}" for k in range(4)],
        "one": ["qresi"],
        "each": [str(k) for k in range(4)],
        "none": [],
    }
    for name in names[filters]:
        state[f"quantize.quant_resi.{name}.weight"] = draw(code, code, 3, 3)
        state[f"quantize.quant_resi.{name}.bias"] = draw(code)
    state["quantize.ema_vocab_hit_SV"] = torch.ones(10, vocab, device=device)
    return state


def official_generator(
    *,
    shared: bool = False,
    l2: bool = True,
    sides: tuple[int, ...] = SIDES,
    dim: int = DIM,
    heads: int = HEADS,
    depth: int = DEPTH,
) -> dict[str, Tensor]:
    """Return random tensors by the names and shapes that the specification lists, exaggerated so that every term matters."""
    rng = torch.Generator().manual_seed(7)
    sizes = [side**2 for side in sides]
    shapes: dict[str, tuple[int, ...]] = {
        "word_embed.weight": (dim, CODE),
        "word_embed.bias": (dim,),
        "class_emb.weight": (CLASSES + 1, dim),
        "pos_start": (1, sizes[0], dim),
        "pos_1LC": (1, sum(sizes), dim),
        "lvl_embed.weight": (len(sizes), dim),
        "head_nm.ada_lin.1.weight": (2 * dim, dim),
        "head_nm.ada_lin.1.bias": (2 * dim,),
        "head.weight": (VOCAB, dim),
        "head.bias": (VOCAB,),
    }
    if shared:
        shapes |= {"shared_ada_lin.1.weight": (6 * dim, dim), "shared_ada_lin.1.bias": (6 * dim,)}
    for index in range(depth):
        block: dict[str, tuple[int, ...]] = {
            "attn.mat_qkv.weight": (3 * dim, dim),
            "attn.q_bias": (dim,),
            "attn.v_bias": (dim,),
            "attn.proj.weight": (dim, dim),
            "attn.proj.bias": (dim,),
            "ffn.fc1.weight": (4 * dim, dim),
            "ffn.fc1.bias": (4 * dim,),
            "ffn.fc2.weight": (dim, 4 * dim),
            "ffn.fc2.bias": (dim,),
        }
        if l2:
            block["attn.scale_mul_1H11"] = (1, heads, 1, 1)
        block |= (
            {"ada_gss": (1, 1, 6, dim)}
            if shared
            else {"ada_lin.1.weight": (6 * dim, dim), "ada_lin.1.bias": (6 * dim,)}
        )
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    state = {}
    for name, shape in shapes.items():
        is_matrix = len(shape) == 2 and not name.endswith(("emb.weight", "embed.weight"))
        drawn = torch.randn(shape, generator=rng, dtype=torch.float64)
        state[name] = drawn * shape[1] ** -0.5 if is_matrix else 0.7 * drawn
    for index in range(depth):
        state[f"blocks.{index}.attn.zero_k_bias"] = torch.zeros(dim, dtype=torch.float64)
        if l2:
            # One head beyond the largest factor.
            state[f"blocks.{index}.attn.scale_mul_1H11"] += math.log(4)
            state[f"blocks.{index}.attn.scale_mul_1H11"][0, 0] = 6.0
    levels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    state["lvl_1L"] = levels[None]
    state["attn_bias_for_masking"] = torch.where(levels[:, None] >= levels, 0.0, -torch.inf)[None, None]
    return state


class PlainTokenizer:
    """The tokenizer as functions of the official tensors."""

    def __init__(
        self,
        state: dict[str, Tensor],
        filters: str = "list",
        *,
        ratio: float = 0.5,
        cosine: bool = False,
        sides: tuple[int, ...] = SIDES,
    ) -> None:
        separate = {}
        for name, value in state.items():
            if ".qkv." in name:
                third = len(value) // 3
                for place, part in enumerate("qkv"):
                    separate[name.replace(".qkv.", f".{part}.")] = value[place * third : (place + 1) * third]
            else:
                separate[name] = value
        self.net, self.state, self.filters, self.ratio, self.cosine, self.sides = (
            LDM["Transcription"](separate),
            state,
            filters,
            ratio,
            cosine,
            sides,
        )
        self.rows = state["quantize.embedding.weight"]

    def grow(self, codes: Tensor, scale: int) -> Tensor:
        """What the codes `(b, c, p, p)` of a scale add to the sum."""
        if scale < len(self.sides) - 1:
            codes = F.interpolate(codes, size=(self.sides[-1],) * 2, mode="bicubic")
        if self.filters == "none":
            return codes
        name = {"list": "qresi_ls.{}.", "one": "qresi.", "each": "{}."}[self.filters].format(
            FILTER_OF[self.filters][scale]
        )
        name = f"quantize.quant_resi.{name}"
        return (1 - self.ratio) * codes + self.ratio * F.conv2d(
            codes, self.state[f"{name}weight"], self.state[f"{name}bias"], padding=1
        )

    def pool(self, maps: Tensor, scale: int) -> Tensor:
        return F.adaptive_avg_pool2d(maps, self.sides[scale])

    def look_up(self, ids: Tensor, scale: int) -> Tensor:
        return self.rows[ids].transpose(1, 2).unflatten(2, (self.sides[scale],) * 2)

    def encode(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the ids of every scale, and the sum after it."""
        residual = self.net.moments(images)
        total, ids, totals = torch.zeros_like(residual), [], []
        for scale in range(len(self.sides)):
            cells = self.pool(residual, scale).flatten(2).transpose(1, 2)
            if self.cosine:
                found = (F.normalize(cells, dim=-1) @ F.normalize(self.rows, dim=-1).T).argmax(-1)
            else:
                found = (cells[:, :, None] - self.rows).square().sum(-1).argmin(-1)
            grown = self.grow(self.look_up(found, scale), scale)
            total, residual = total + grown, residual - grown
            ids.append(found)
            totals.append(total)
        return ids, totals


class PlainGenerator:
    """The transformer, its inputs and its sampler as functions of the official tensors of both files."""

    def __init__(self, state: dict[str, Tensor], tokenizer: PlainTokenizer) -> None:
        self.w, self.tokenizer = state, tokenizer
        self.sizes = [side**2 for side in tokenizer.sides]
        self.depth = sum(name.endswith("ffn.fc1.weight") for name in state)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    def inputs(self, label: Tensor, pooled: list[Tensor]) -> Tensor:
        """Return the inputs of the first scales; `pooled` are the averaged sums of all but the first."""
        start = self.w["class_emb.weight"][label][:, None] + self.w["pos_start"]
        x = torch.cat([start, *(self.linear(part, "word_embed") for part in pooled)], dim=1)
        level = torch.cat([torch.full((size,), k) for k, size in enumerate(self.sizes)])[: x.shape[1]]
        return x + self.w["lvl_embed.weight"][level] + self.w["pos_1LC"][:, : x.shape[1]]

    def logits(self, label: Tensor, pooled: list[Tensor]) -> Tensor:
        condition, x = self.w["class_emb.weight"][label], self.inputs(label, pooled)
        silu = condition * torch.sigmoid(condition)
        level = torch.cat([torch.full((size,), k) for k, size in enumerate(self.sizes)])[: x.shape[1]]
        for index in range(self.depth):
            name = f"blocks.{index}."
            if f"{name}ada_gss" in self.w:
                six = self.w[f"{name}ada_gss"] + self.linear(silu, "shared_ada_lin.1").view(-1, 1, 6, DIM)
            else:
                six = self.linear(silu, f"{name}ada_lin.1").view(-1, 1, 6, DIM)
            gate1, gate2, scale1, scale2, shift1, shift2 = six.unbind(2)
            x = x + gate1 * self.attention((1 + scale1) * self.norm(x) + shift1, f"{name}attn.", level)
            hidden = self.linear((1 + scale2) * self.norm(x) + shift2, f"{name}ffn.fc1")
            hidden = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
            x = x + gate2 * self.linear(hidden, f"{name}ffn.fc2")
        scale, shift = self.linear(silu, "head_nm.ada_lin.1")[:, None].chunk(2, dim=-1)
        return self.linear((1 + scale) * self.norm(x) + shift, "head")

    def attention(self, x: Tensor, name: str, level: Tensor) -> Tensor:
        bias = torch.cat((self.w[f"{name}q_bias"], torch.zeros(DIM, dtype=x.dtype), self.w[f"{name}v_bias"]))
        query, key, value = (x @ self.w[f"{name}mat_qkv.weight"].T + bias).chunk(3, dim=-1)
        heads = []
        for head in range(HEADS):
            rows = slice(head * DIM // HEADS, (head + 1) * DIM // HEADS)
            q, k, v = query[..., rows], key[..., rows], value[..., rows]
            if f"{name}scale_mul_1H11" in self.w:
                factor = math.exp(min(float(self.w[f"{name}scale_mul_1H11"][0, head]), math.log(100)))
                scores = (
                    factor * (q / q.norm(dim=-1, keepdim=True)) @ (k / k.norm(dim=-1, keepdim=True)).transpose(1, 2)
                )
            else:
                scores = 0.25 / math.sqrt(DIM / HEADS) * q @ k.transpose(1, 2)
            heads.append(scores.masked_fill(level[:, None] < level, -math.inf).softmax(-1) @ v)
        return self.linear(torch.cat(heads, dim=-1), f"{name}proj")

    def pooled(self, ids: list[Tensor]) -> list[Tensor]:
        """Return the averaged sums that teacher forcing reads."""
        total, found = torch.zeros(()), []
        for scale, part in enumerate(ids[:-1]):
            total = total + self.tokenizer.grow(self.tokenizer.look_up(part, scale), scale)
            found.append(self.tokenizer.pool(total, scale + 1).flatten(2).transpose(1, 2))
        return found

    def sample(
        self,
        labels: Tensor,
        rng: torch.Generator,
        *,
        cfg: float,
        top_k: int = 0,
        top_p: float = 0.0,
        smooth: bool = False,
    ) -> tuple[list[Tensor], Tensor]:
        """Return the ids of every scale, and the sum that the image is decoded from; every step from the beginning."""
        both, batch = torch.cat((labels, torch.full_like(labels, CLASSES))), len(labels)
        total, pooled, ids = torch.zeros(()), [], []
        for scale, side in enumerate(self.tokenizer.sides):
            if scale:
                part = self.tokenizer.pool(total, scale).flatten(2).transpose(1, 2)
                pooled.append(torch.cat((part, part)))
            logits = self.logits(both, pooled)[:, -(side**2) :]
            done = scale / (len(self.sizes) - 1)
            logits = ((1 + cfg * done) * logits[:batch] - cfg * done * logits[batch:]).float()
            if top_k:
                logits[logits < logits.topk(top_k).values[..., -1:]] = -math.inf
            if top_p:
                order = logits.argsort(dim=-1)
                dropped = logits.gather(-1, order).softmax(-1).cumsum(-1) <= 1 - top_p
                dropped[..., -1] = False
                logits[dropped.scatter(-1, order, dropped)] = -math.inf
            drawn = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1, generator=rng).view(batch, -1)
            ids.append(drawn)
            codes = self.tokenizer.look_up(drawn, scale)
            if smooth:
                noise = -torch.empty(logits.shape).exponential_(generator=rng).log()
                weights = (((1 + done) * logits + noise) / max(0.27 * (1 - 0.95 * done), 0.005)).softmax(-1)
                codes = (weights.double() @ self.tokenizer.rows).transpose(1, 2).unflatten(2, (side, side))
            total = total + self.tokenizer.grow(codes, scale)
        return ids, total


TOKENIZERS: list[tuple[str, dict[str, Any]]] = [
    ("list", {}),
    ("one", {"filter_ratio": 0.3}),
    ("each", {}),
    ("none", {}),
    ("list", {"search_cosine": True}),
]


@pytest.mark.parametrize(("filters", "options"), TOKENIZERS)
@torch.no_grad()
def test_the_tokenizer_computes_what_the_official_program_does(filters: str, options: dict[str, Any]) -> None:
    state = official_tokenizer(filters)
    model = tokenizer_from_official({"state": state}, {**IMAGES, **options})
    assert not model.training
    plain = PlainTokenizer(state, filters, ratio=options.get("filter_ratio", 0.5), cosine="search_cosine" in options)
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    ids, totals = plain.encode(images)
    pyramid = model.encode(images)
    assert all(torch.equal(level, found) for level, found in zip(pyramid.levels, ids, strict=True))
    assert len(pyramid.concat().unique()) > 8
    for count in range(1, len(SIDES) + 1):
        expected = plain.net.decode(totals[count - 1])
        torch.testing.assert_close(model.decode(pyramid.prefix(count)), expected, rtol=1e-10, atol=1e-10)
    output, latents = model(images), plain.net.moments(images)
    torch.testing.assert_close(output.reconstruction, plain.net.decode(totals[-1]), rtol=1e-10, atol=1e-10)
    errors = torch.stack([(total - latents).square().mean() for total in totals])
    torch.testing.assert_close(output.losses["quantizer"], 1.25 * errors.mean(), rtol=1e-10, atol=0)
    single = tokenizer_from_official({name: value.float() for name, value in state.items()}, {**IMAGES, **options})
    assert torch.equal(single.encode(images.float()).concat(), pyramid.concat())
    assert (single.decode(pyramid) - output.reconstruction).abs().max() <= 1e-5 * output.reconstruction.abs().max()


def both(
    shared: bool, l2: bool, sides: tuple[int, ...], filters: str = "list"
) -> tuple[NextScaleAR, PlainGenerator, dict[str, Any]]:
    tokenizer, generator = official_tokenizer(filters), official_generator(shared=shared, l2=l2, sides=sides)
    checkpoint = {"generator": generator, "tokenizer": tokenizer}
    config = None if l2 else {"num_heads": HEADS}
    return (
        generator_from_official(checkpoint, config),
        PlainGenerator(generator, PlainTokenizer(tokenizer, filters, sides=sides)),
        checkpoint,
    )


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("l2", [True, False], ids=["l2", "dot"])
@pytest.mark.parametrize("sides", [SIDES, (2, 3, 4, 5)], ids=str)
@torch.no_grad()
def test_logits_are_those_of_the_official_program(shared: bool, l2: bool, sides: tuple[int, ...]) -> None:
    model, plain, checkpoint = both(shared, l2, sides)
    assert not model.training
    labels = torch.tensor([3, CLASSES])
    ids = torch.randint(VOCAB, (2, sum(plain.sizes)))
    expected = plain.logits(labels, plain.pooled(list(ids.split(plain.sizes, dim=1))))
    assert expected.std() > 0.5
    torch.testing.assert_close(model(ids, labels), expected, rtol=0, atol=1e-10)
    single = {
        part: {name: x.float() if x.is_floating_point() else x for name, x in state.items()}
        for part, state in checkpoint.items()
    }
    found = generator_from_official(single, None if l2 else {"num_heads": HEADS})(ids, labels)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)


RUNS: list[dict[str, Any]] = [
    {"cfg": 0.0},
    {"cfg": 1.5, "top_k": 12, "top_p": 0.9},
    {"cfg": 4.0, "top_k": 1},
    {"cfg": 2.0, "top_p": 0.8},
    {"cfg": 3.0, "top_k": 12, "top_p": 0.95, "smooth": True},
]


@pytest.mark.parametrize("run", RUNS, ids=str)
@torch.no_grad()
def test_samples_are_those_of_the_official_program(run: dict[str, Any]) -> None:
    model, plain, checkpoint = both(shared=False, l2=True, sides=SIDES)
    tokenizer = tokenizer_from_official(checkpoint, IMAGES)
    labels = torch.tensor([1, 4, 4])
    ids, total = plain.sample(labels, torch.Generator().manual_seed(9), **run)
    values = {"guidance_scale": 1 + run["cfg"], "top_k": run.get("top_k", 0), "top_p": run.get("top_p", 1.0)}
    settings = NextScaleSettings(**values, smooth="smooth" in run)
    pyramid = model.generate(labels, settings, rng=torch.Generator().manual_seed(9))
    image = plain.tokenizer.net.decode(total)
    # Mixtures are made of logits in float32, and sharpened.
    tolerance = 1e-4 if settings.smooth else 1e-10
    torch.testing.assert_close(tokenizer.decode(pyramid), image, rtol=0, atol=tolerance * float(image.abs().max()))
    if settings.smooth:
        assert [tuple(level.shape) for level in pyramid.levels] == [(3, side**2, CODE) for side in SIDES]
    else:
        assert all(torch.equal(level, found) for level, found in zip(pyramid.levels, ids, strict=True))
    if run.get("top_k") == 1:
        greedy = NextScaleSettings(guidance_scale=5.0, greedy=True)
        assert torch.equal(model.generate(labels, greedy).concat(), torch.cat(ids, dim=1))


@pytest.mark.parametrize("filters", ["list", "one", "each", "none"])
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_round_trip(filters: str, shared: bool) -> None:
    model, _, checkpoint = both(shared, True, SIDES, filters)
    again = generator_to_official(model)
    assert again.keys() == checkpoint["generator"].keys()
    assert all(torch.equal(again[name].double(), value.double()) for name, value in checkpoint["generator"].items())
    # A training checkpoint holds both, and its tokenizer is found in it.
    tokenizer = tokenizer_from_official(
        {"trainer": {"var_wo_ddp": again, "vae_local": checkpoint["tokenizer"]}, "epoch": 3}, IMAGES
    )
    back = tokenizer_to_official(tokenizer)
    assert back.keys() == checkpoint["tokenizer"].keys()
    for name, value in checkpoint["tokenizer"].items():
        assert name == "quantize.ema_vocab_hit_SV" or torch.equal(back[name], value), name
    # The quantizers are copies.
    assert torch.equal(model.quantizer.codebook, tokenizer.quantizer.codebook)
    checkpoint["tokenizer"]["quantize.embedding.weight"].zero_()
    assert model.quantizer.codebook.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in model.quantizer.parameters())
    assert model.head.weight.requires_grad


def test_what_a_file_holds_decides() -> None:
    tokenizer, generator = official_tokenizer(), official_generator()
    assert isinstance(from_official(tokenizer, IMAGES), MultiScaleVQ)
    assert isinstance(from_official({"var_d16.pth": generator, "vae_ch160v4096z32.pth": tokenizer}), NextScaleAR)
    usage = tokenizer_from_official(tokenizer, {**IMAGES, "track_usage": True})
    usage.train()(torch.zeros(1, 3, 16, 16, dtype=torch.float64))
    assert tokenizer_to_official(usage)["quantize.ema_vocab_hit_SV"].shape == (4, VOCAB)


def test_published_sizes() -> None:
    state = official_tokenizer(widths=(160, 160, 320, 320, 640), code=32, vocab=4096, device="meta")
    model = tokenizer_from_official(state)
    assert len(state) == len(tokenizer_to_official(model)) == 324
    assert sum(parameter.numel() for parameter in model.parameters()) == 108_948_355
    assert sum(spec.num_tokens for spec in model.specs) == 680
    for filters, total in (("one", 108_920_611), ("none", 108_911_363)):
        state = official_tokenizer(filters, widths=(160, 160, 320, 320, 640), code=32, vocab=4096, device="meta")
        assert sum(x.numel() for x in tokenizer_from_official(state).parameters()) == total


def test_refusals() -> None:
    tokenizer, generator = official_tokenizer(), official_generator()

    def tokenizer_with(**changes: Any) -> dict[str, Any]:
        return {name: value for name, value in {**tokenizer, **changes}.items() if value is not None}

    def generator_with(**changes: Any) -> dict[str, Any]:
        changed = {name: value for name, value in {**generator, **changes}.items() if value is not None}
        return {"generator": changed, "tokenizer": tokenizer}

    for broken, message in (
        ({"a": torch.zeros(1)}, r"lacks tensor 'quantize\.embedding\.weight'"),
        (tokenizer_with(**{"encoder.mid.attn_1.qkv.bias": None}), r"missing 'encoder\.mid\.attn_1\.qkv\.bias'"),
        (tokenizer_with(**{"decoder.extra": torch.zeros(1)}), r"unexpected 'decoder\.extra'"),
        (
            tokenizer_with(**{"quantize.quant_resi.qresi_ls.1.bias": None}),
            r"missing 'quantize\.quant_resi\.qresi_ls\.1\.bias'",
        ),
        (generator, r"lacks its tokenizer's 'quantize\.embedding\.weight'.*pass both"),
        (generator_with(lvl_1L=None), "lacks tensor 'lvl_1L'"),
        (generator_with(lvl_1L=torch.tensor([[0, 1, 1]])), r"counts \[1, 2\] tokens per level, expected squares"),
        (generator_with(**{"blocks.1.attn.zero_k_bias": torch.ones(DIM)}), "expected keys without a bias"),
        (generator_with(**{"blocks.1.ffn.fc2.bias": None}), r"missing 'blocks\.1\.ffn\.fc2\.bias'"),
        (generator_with(**{"blocks.1.more": torch.zeros(1)}), r"unexpected 'blocks\.1\.more'"),
        (generator_with(pos_start=torch.zeros(1, 2, DIM)), r"'pos_start' has shape \(1, 2, 24\)"),
    ):
        with pytest.raises(ValueError, match=message):
            from_official(broken, IMAGES if "generator" not in broken and "pos_1LC" not in broken else None)
    for state, kind in ((tokenizer, "MultiScaleVQ"), (generator_with(), "NextScaleAR")):
        with pytest.raises(ValueError, match=f"config entry 'image_sise' is no setting of {kind}"):
            from_official(state, {"image_sise": 1})
