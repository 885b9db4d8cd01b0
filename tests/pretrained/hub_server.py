"""A tiny hub on loopback: files of a repository under the paths, and with the headers, that huggingface_hub reads."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiergen.convert.level_ar import to_official
from hiergen.generators.level_ar.model import LevelAR
from hiergen.registry import get_preset
from hiergen.tokenizers.vq_autoencoder.model import VQAutoencoder

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class TinyHub:
    """What is served, and how it misbehaves.

    Attributes:
        url: The endpoint.
        files: Contents by (repository, file).
        asked: Every request so far, as "METHOD path".
        gated: Repositories that want a login.
        cut: Files of which only the first half is sent.
        damaged: Files of which other bytes are sent than their digest says.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[tuple[str, str], bytes] = {}
        self.asked: list[str] = []
        self.gated: set[str] = set()
        self.cut: set[str] = set()
        self.damaged: set[str] = set()

    def add(self, repository: str, file: str, content: Any) -> bytes:
        """Serve what torch saves of a value, and return it."""
        stream = io.BytesIO()
        torch.save(content, stream)
        self.files[repository, file] = stream.getvalue()
        return stream.getvalue()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: TinyHub

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:  # the standard library's name
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        repository, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        known = {owner for owner, _ in self.hub.files}
        if repository in self.hub.gated:
            self._refuse(401, "GatedRepo")
        elif repository not in known:
            self._refuse(404, "RepoNotFound")
        elif revision not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        elif (repository, file) not in self.hub.files:
            self._refuse(404, "EntryNotFound")
        else:
            self._send(self.hub.files[repository, file], file, with_body=with_body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: bytes, file: str, *, with_body: bool) -> None:
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        for name, value in (
            ("X-Repo-Commit", COMMIT),
            ("ETag", f'"{hashlib.sha256(content).hexdigest()}"'),
            ("X-Linked-Size", str(len(content))),
            ("Accept-Ranges", "bytes"),
            ("Content-Length", str(len(content) - start)),
            *([("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")] if start else []),
        ):
            self.send_header(name, value)
        self.end_headers()
        if not with_body:
            return
        if file in self.hub.damaged:
            content = bytes(len(content))
        if file in self.hub.cut:
            self.wfile.write(content[start : len(content) // 2])
            self.close_connection = True
            return
        self.wfile.write(content[start:])


@contextlib.contextmanager
def serving() -> Iterator[TinyHub]:
    """Serve a hub without files from a thread."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = TinyHub(f"http://127.0.0.1:{server.server_address[1]}")
    server.RequestHandlerClass = type("Handler", (_Handler,), {"hub": hub})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def add_llamagen(hub: TinyHub) -> tuple[VQAutoencoder, LevelAR]:
    """Serve LlamaGen's files for GPT-B at 256 pixels, of the published layout but tiny, and return the models that they hold."""
    torch.manual_seed(3)
    tokenizer = VQAutoencoder(widths=[32] * 5, num_blocks=1, latent_channels=8, vocab_size=48).eval()
    specs = get_preset("llamagen-b-256").config["level_specs"]
    generator = LevelAR(
        level_specs=[{**spec, "vocab_size": 48} for spec in specs],
        dim=64,
        depth=1,
        num_heads=1,
        ffn_dim=32,
        layout="token",
        rotary="grid",
    ).eval()
    torch.nn.init.normal_(generator.head.weight)
    repository = "FoundationVision/LlamaGen"
    hub.add(repository, "vq_ds16_c2i.pt", {"model": official_tokenizer(tokenizer)})
    hub.add(repository, "c2i_B_256.pt", {"model": to_official(generator), "args": None})
    return tokenizer, generator


def add_llamagen_by_text(hub: TinyHub) -> LevelAR:
    """Serve LlamaGen's files for texts at 256 pixels, tiny, for features of `write_t5`, and return the generator that they hold."""
    torch.manual_seed(4)
    tokenizer = VQAutoencoder(widths=[32] * 5, num_blocks=1, latent_channels=8, vocab_size=48).eval()
    specs = get_preset("llamagen-xl-text-256").config["level_specs"]
    generator = LevelAR(
        level_specs=[{**spec, "vocab_size": 48} for spec in specs],
        num_classes=None,
        text_shape=[12, 16],
        dim=64,
        depth=1,
        num_heads=1,
        ffn_dim=32,
        layout="token",
        rotary="grid",
    ).eval()
    torch.nn.init.normal_(generator.head.weight)
    hub.add("peizesun/llamagen_t2i", "vq_ds16_t2i.pt", {"model": official_tokenizer(tokenizer)})
    hub.add("peizesun/llamagen_t2i", "t2i_XL_stage1_256.pt", {"model": to_official(generator)})
    return generator


#: All words that the tokenizer of `write_t5` knows, by their ids.
WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "cat")


def write_t5(folder: Path) -> None:
    """Write a T5 of random weights, with 16 channels, and a tokenizer of a few words."""
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    sizes = {"vocab_size": len(WORDS), "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    T5EncoderModel(T5Config(**sizes, dropout_rate=0.5)).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def official_tokenizer(tokenizer: VQAutoencoder) -> dict[str, Tensor]:
    """Return the weights of a tokenizer under LlamaGen's names, projections of attention as convolutions."""
    names = (
        ("quantizer.codebook", "quantize.embedding.weight"),
        ("from_code.", "post_quant_conv."),
        ("to_code.", "quant_conv."),
        ("conv_norm_out", "norm_out"),
        ("mid_block.resnets.0.", "mid.0."),
        ("mid_block.attentions.0.", "mid.1."),
        ("mid_block.resnets.1.", "mid.2."),
        ("down_blocks.", "conv_blocks."),
        ("up_blocks.", "conv_blocks."),
        (".downsamplers.0.", ".downsample."),
        (".upsamplers.0.", ".upsample."),
        (".resnets.", ".res."),
        (".attentions.", ".attn."),
        (".conv_shortcut.", ".nin_shortcut."),
        (".group_norm.", ".norm."),
        (".to_q.", ".q."),
        (".to_k.", ".k."),
        (".to_v.", ".v."),
        (".to_out.0.", ".proj_out."),
    )
    state = {}
    for name, value in tokenizer.state_dict().items():
        is_projection = ".to_" in name and value.ndim == 2
        for ours, theirs in names:
            name = name.replace(ours, theirs)
        state[name] = value[:, :, None, None] if is_projection else value
    return state
