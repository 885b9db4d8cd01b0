"""Official weights by name: where they are, and how they come into the cache, converted.

`OFFICIAL` is the one table. A name is that of a preset and, behind a dot, of the training: "llamagen-b-256.in1k". `fetch` downloads the
files through huggingface_hub (its cache, its offline mode, its mirrors), converts them once, and keeps the converted model beside them.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import importlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hiergen.config import read_values
from hiergen.files import atomic_directory, file_digest
from hiergen.telling import say

#: Raised when a converter changes what it makes of the same file, so that no older conversion is read.
FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Official:
    """Official weights of one model.

    Attributes:
        license: License of the weights, as their authors state it.
        is_restricted: Whether the license restricts the use, or none is stated; it is then printed when the weights are downloaded.
        repository: Repository on the Hub, `owner/name`; None where the weights are on none.
        files: Names in the repository. A name may list alternatives, "a|b": the first that is there is taken. A `.json` file holds the
            official configuration.
        converter: "module:function" of what makes a model of the files: called with the content of the only file, or with a dictionary
            of contents by name where there are several, and with `config`.
        config: What the converter gets as its second argument, beside the entries of the official configuration, which it replaces.
        revision: Commit, tag or branch of the repository; None is the main branch.
        sha256: Digests of files by name, where they are known. Others are checked against what the Hub says.
        download: Size of the download in words, where it is known.
        tokenizer: Name of the official tokenizer that a generator is paired with, in a pipeline.
        tokenizer_config: Entries of the tokenizer's config that this generator needs otherwise, e.g. its image size.
        pipeline: Class of that pipeline.
        by_hand: What to do for weights that cannot be downloaded from here; a sentence.
    """

    license: str
    is_restricted: bool = False
    repository: str | None = None
    files: tuple[str, ...] = ()
    converter: str = ""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    revision: str | None = None
    sha256: Mapping[str, str] = dataclasses.field(default_factory=dict)
    download: str | None = None
    tokenizer: str | None = None
    tokenizer_config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pipeline: str = "ClassToImagePipeline"
    by_hand: str | None = None


_UNSTATED: dict[str, Any] = {"license": "not stated by the authors", "is_restricted": True}
_MAR = "get checkpoint-last.pth of this size from the list at https://github.com/LTH14/mar, then `hiergen convert mar FILE FOLDER`"
_LLAMAGEN: dict[str, Any] = {
    "license": "MIT",
    "repository": "FoundationVision/LlamaGen",
    "converter": "hiergen.convert.llamagen:from_official",
}


_VAR: dict[str, Any] = {
    "license": "MIT",
    "repository": "FoundationVision/var",
    "converter": "hiergen.convert.var:from_official",
}
_VAR_TOKENIZER = "vae_ch160v4096z32.pth"


def _var(file: str, **tokenizer_config: Any) -> Official:
    """Return the row of a generator, which is converted with its tokenizer: it holds a copy of its codebook."""
    pair: dict[str, Any] = {"tokenizer": "multiscale-vq-680.openimages", "tokenizer_config": tokenizer_config}
    return Official(**_VAR, **pair, files=(file, _VAR_TOKENIZER))


def _llamagen(file: str, *, image_size: int, download: str | None = None) -> Official:
    """Return the row of a generator, which works on VQ-16 at this image size."""
    size = {"image_size": image_size}
    pair: dict[str, Any] = {"tokenizer": "vq-16.in1k", "tokenizer_config": size}
    return Official(**_LLAMAGEN, **pair, files=(file,), config=size, download=download)


_TITOK: dict[str, Any] = {"license": "Apache-2.0", "repository": "fun-research/TiTok"}
_TITOK_CONVERTER = "hiergen.convert.one_dimensional.titok:from_official"


def _titok_pair(size: str) -> dict[str, Official]:
    """Return the rows of a tokenizer in two stages and of its generator."""
    short, tokenizer = size.replace("-", ""), f"titok-{size}.in1k"
    maskgit: dict[str, Any] = {"converter": "hiergen.convert.one_dimensional.maskgit:from_official"}
    return {
        tokenizer: Official(**_TITOK, files=(f"tokenizer_titok_{short}.bin",), converter=_TITOK_CONVERTER),
        f"maskgit-{size}.in1k": Official(
            **_TITOK, **maskgit, files=(f"generator_titok_{short}.bin",), tokenizer=tokenizer
        ),
    }


def _titok_in_one_stage(name: str) -> Official:
    """Return the row of a tokenizer that has a repository of its own, in the form that the Hub's client gives a model."""
    repository = f"yucornetto/tokenizer_titok_{name}_imagenet"
    return Official(
        license="Apache-2.0", repository=repository, files=("model.safetensors",), converter=_TITOK_CONVERTER
    )


def _rar(size: str) -> Official:
    return Official(
        license="Apache-2.0",
        repository="yucornetto/RAR",
        files=(f"rar_{size}.bin",),
        converter="hiergen.convert.one_dimensional.rar:from_official",
        tokenizer="maskgit-vq.in1k",
    )


def _flextok(name: str) -> Official:
    """Return the row of a tokenizer whose configuration stands beside its weights, and tells what no tensor does."""
    return Official(
        license="Apple Machine Learning Research Model: research only, no commercial use",
        is_restricted=True,
        repository=f"EPFL-VILAB/flextok_{name}",
        files=("model.safetensors", "config.json"),
        converter="hiergen.convert.one_dimensional.flextok:from_official",
    )


def _hnet(name: str) -> Official:
    """Return the row of a model of text, whose file holds a pickled configuration beside the tensors."""
    return Official(
        **_UNSTATED,
        repository=f"cartesia-ai/{name}",
        by_hand=f"get its .pt file from https://huggingface.co/cartesia-ai/{name}, save the tensors in it alone, without the configuration "
        "that may be pickled beside them, as .safetensors, then `hiergen convert hnet FILE FOLDER`",
    )


OFFICIAL: dict[str, Official] = {
    "restok-l-128.in1k": Official(
        **_UNSTATED,
        repository="xushu-me/restok_l_128.r256_in1k",
        files=("model.safetensors|pytorch_model.bin",),
        converter="hiergen.convert.restok:from_official",
    ),
    "har-l.in1k": Official(
        **_UNSTATED,
        repository="xushu-me/llamagen_l_c2i_restok_l_128.r256_in1k",
        files=("model.safetensors|pytorch_model.bin",),
        converter="hiergen.convert.level_ar:from_official",
        tokenizer="restok-l-128.in1k",
    ),
    "vq-16.in1k": Official(**_LLAMAGEN, files=("vq_ds16_c2i.pt",)),
    "vq-8.in1k": Official(**_LLAMAGEN, files=("vq_ds8_c2i.pt",)),
    "llamagen-b-256.in1k": _llamagen("c2i_B_256.pt", image_size=256, download="444 MB"),
    "llamagen-b-576.in1k": _llamagen("c2i_B_384.pt", image_size=384, download="444 MB"),
    "llamagen-l-256.in1k": _llamagen("c2i_L_256.pt", image_size=256, download="1.37 GB"),
    "llamagen-l-576.in1k": _llamagen("c2i_L_384.pt", image_size=384, download="1.37 GB"),
    "llamagen-xl-576.in1k": _llamagen("c2i_XL_384.pt", image_size=384),
    "llamagen-xxl-576.in1k": _llamagen("c2i_XXL_384.pt", image_size=384),
    "llamagen-3b-576.in1k": _llamagen("c2i_3B_384.pt", image_size=384, download="12.4 GB"),
    "multiscale-vq-680.openimages": Official(**_VAR, files=(_VAR_TOKENIZER,)),
    **{f"var-d{depth}.in1k": _var(f"var_d{depth}.pth") for depth in (16, 20, 24, 30)},
    "var-d36-512.in1k": _var("var_d36.pth", image_size=512, sides=[1, 2, 3, 4, 6, 9, 13, 18, 24, 32]),
    **{name: row for size in ("l-32", "b-64", "s-128") for name, row in _titok_pair(size).items()},
    **{
        f"titok-{name}.in1k": _titok_in_one_stage(official)
        for name, official in (
            ("bl-64", "bl64_vq8k"),
            ("bl-128", "bl128_vq8k"),
            ("sl-256", "sl256_vq8k"),
            ("ll-32-vae", "ll32_vae_c16"),
            ("bl-64-vae", "bl64_vae_c16"),
            ("bl-128-vae", "bl128_vae_c16"),
        )
    },
    "maskgit-vq.in1k": Official(
        **_TITOK,
        files=("maskgit-vqgan-imagenet-f16-256.bin",),
        converter="hiergen.convert.one_dimensional.maskgit_vq:from_official",
    ),
    **{f"rar-{size}.in1k": _rar(size) for size in ("b", "l", "xl", "xxl")},
    "flextok-d12-d12.in1k": _flextok("d12_d12_in1k"),
    "flextok-d18-d18.in1k": _flextok("d18_d18_in1k"),
    "flextok-d18-d28.in1k": _flextok("d18_d28_in1k"),
    "flextok-d18-d28.dfn": _flextok("d18_d28_dfn"),
    **{
        f"hnet-{stages}stage-{size.lower()}.fineweb-edu": _hnet(f"hnet_{stages}stage_{size}")
        for stages in (1, 2)
        for size in ("L", "XL")
    },
    "hnet-2stage-xl-chinese.fineweb-edu-chinese": _hnet("hnet_2stage_XL_chinese"),
    "hnet-2stage-xl-code.pile-github": _hnet("hnet_2stage_XL_code"),
    "va-vae-f16d32.in1k": Official(
        license="MIT",
        repository="hustvl/vavae-imagenet256-f16d32-dinov2",
        files=("vavae-imagenet256-f16d32-dinov2.pt",),
        converter="hiergen.convert.ldm_vae:from_official",
        download="2.15 GB",
    ),
    "lightningdit-xl.in1k": Official(
        license="MIT",
        repository="hustvl/lightningdit-xl-imagenet256-800ep",
        by_hand="get its checkpoint from https://huggingface.co/hustvl/lightningdit-xl-imagenet256-800ep, then `hiergen convert flow "
        "FILE FOLDER --config` with latent_mean and latent_std of latents_stats.pt, which stands beside VA-VAE's weights",
    ),
    **{f"mar-{size}.in1k": Official(license="MIT", by_hand=_MAR) for size in ("b", "l", "h")},
    **{
        f"block-{size}.pile": Official(
            license="MIT",
            by_hand="get model.safetensors of this size by the links of https://github.com/itsnamgyu/block-transformer, then "
            "`hiergen convert block FILE FOLDER`",
        )
        for size in ("5m", "19m", "85m", "302m", "805m", "1200m")
    },
    "kl-16.in1k": Official(
        license="MIT",
        by_hand="get kl16.ckpt by the download program of https://github.com/LTH14/mar, then `hiergen convert ldm-vae FILE FOLDER`",
    ),
}


def of_preset(preset: str) -> list[str]:
    """Return the names of the official weights of a preset: the preset's own name with a training behind it."""
    return [name for name in OFFICIAL if name.partition(".")[0] == preset]


def fetch(name: str) -> Path:
    """Return the folder that holds official weights in hiergen's layout; the first call downloads and converts them.

    The folder stands in the Hub's cache beside the files that it was made of. Where it is there already, nothing else is looked at and no
    network is needed. Several processes at once make it once.

    Args:
        name: A key of `OFFICIAL`.

    Raises:
        ValueError: If the weights cannot be downloaded, are gated, missing or not what they should be; the sentence says what to do.
        OSError: If the cache cannot be written to, or the disk is full.
    """
    row = OFFICIAL[name]
    if row.by_hand is not None or row.repository is None:
        raise ValueError(f"{name!r} cannot be downloaded by name: {row.by_hand}")
    target = _target(name, row)
    if (target / "config.json").is_file():
        return target
    from huggingface_hub.utils import WeakFileLock

    with _explaining_disk(name):
        target.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(target.parent / f".{target.name}.lock"):
            # Another process may have made it meanwhile.
            if not (target / "config.json").is_file():
                if row.is_restricted:
                    say(
                        f"{name}: the license of these weights is: {row.license}; https://huggingface.co/{row.repository}"
                    )
                model = convert(name, row, [_download(name, row, file) for file in row.files])
                with atomic_directory(target) as temporary:
                    model.save_pretrained(temporary)
    return target


def convert(name: str, row: Official, files: list[Path]) -> Any:
    """Return the model that official files hold.

    Raises:
        ValueError: If a file is no table of tensors, or not of this model.
    """
    module, _, function = row.converter.partition(":")
    # The table is read where nothing is loaded yet.
    from hiergen.pretrained.weights import read_checkpoint

    contents = {file.name: read_checkpoint(file) for file in files if file.suffix != ".json"}
    state: Any = contents if len(files) > 1 else next(iter(contents.values()))
    try:
        config = {**_read_configs(files), **row.config}
        return getattr(importlib.import_module(module), function)(state, config)
    except ValueError as error:
        raise ValueError(f"{name!r}: {', '.join(contents)} of {row.repository} does not fit: {error}") from error


def _read_configs(files: list[Path]) -> dict[str, Any]:
    """Return the entries of those files that hold an official configuration.

    Raises:
        ValueError: If one holds anything else.
    """
    entries: dict[str, Any] = {}
    for file in files:
        if file.suffix == ".json":
            found = read_values(str(file))
            if not isinstance(found, dict):
                raise ValueError(f"{file.name} holds a {type(found).__name__}, expected an object")
            entries |= found
    return entries


def _target(name: str, row: Official) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    # Whatever decides what is made of the files is in the folder's name: after a change nothing stale is read.
    made_from = repr((FORMAT, row.files, row.converter, sorted(row.config.items()), row.revision))
    key = hashlib.sha256(made_from.encode()).hexdigest()[:8]
    folder = repo_folder_name(repo_id=str(row.repository), repo_type="model")
    return Path(constants.HF_HUB_CACHE) / folder / "hiergen" / f"{name}-{key}"


def _download(name: str, row: Official, file: str) -> Path:
    """Return the file in the Hub's cache, checked, downloaded unless it is there."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    missing: list[Exception] = []
    for alternative in file.split("|"):
        try:
            path = Path(_ask(name, row, alternative))
        except EntryNotFoundError as error:
            missing.append(error)
            continue
        _check_digest(name, path, row.sha256.get(alternative))
        return path
    if any(isinstance(error, LocalEntryNotFoundError) for error in missing):
        from huggingface_hub import constants

        why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else "the Hub cannot be reached"
        raise ValueError(
            f"{name!r} is not in the cache {constants.HF_HUB_CACHE!r} yet, and {why}: call it once with a network"
        ) from missing[-1]
    at = "" if row.revision is None else f" at revision {row.revision!r}"
    raise ValueError(
        f"{name!r}: the repository {row.repository} holds no file {file.replace('|', ' or ')}{at}: it was renamed, or removed"
    ) from missing[-1]


def _ask(name: str, row: Official, file: str) -> str:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        # The client reads its endpoint once, when it is imported; a notebook may set it later.
        endpoint = os.environ.get("HF_ENDPOINT")
        return hf_hub_download(str(row.repository), file, revision=row.revision, endpoint=endpoint)
    except EntryNotFoundError:
        raise
    except GatedRepoError as error:
        raise ValueError(
            f"{name!r} is gated: accept its license at https://huggingface.co/{row.repository}, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{name!r}: the repository {row.repository} is not there, or is private; if you may read it, log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{name!r}: the repository {row.repository} has no revision {row.revision!r}") from error
    except Exception as error:
        # A cache that cannot be written to is explained by the caller. Otherwise the client's HTTP library raises errors of its own.
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, HfHubHTTPError):
            raise
        raise ValueError(
            f"{name!r}: the download of {file} from {row.repository} broke off ({error}); call it again to go on"
        ) from error


def _check_digest(name: str, path: Path, known: str | None) -> None:
    """Raise a ValueError, and forget the file, unless its digest is the one that is known, or that the Hub gave."""
    blob = path.resolve()
    # The cache names large files by the digest that the Hub says they have.
    expected = known or (blob.name if re.fullmatch("[0-9a-f]{64}", blob.name) else None)
    if expected is None:
        return
    found = file_digest(path)
    if found == expected:
        return
    for wrong in {path, blob}:
        wrong.unlink(missing_ok=True)
    raise ValueError(
        f"{name!r}: {path.name} has the SHA-256 {found}, expected {expected}: it was damaged on its way or replaced, and is deleted; "
        "call it again to download it anew"
    )


@contextmanager
def _explaining_disk(name: str) -> Iterator[None]:
    """Say of an operating system's refusal what was being written, and what to do."""
    from huggingface_hub import constants

    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, FileNotFoundError):
            raise
        todo = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable"
        raise OSError(
            error.errno,
            f"{name!r} cannot be written to the cache {constants.HF_HUB_CACHE!r} ({os.strerror(error.errno)}): {todo}, "
            "or set HF_HOME to another folder",
        ) from error
