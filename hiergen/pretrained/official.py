"""The table of official weights by name: where they are, what makes a model of them, and their license.

A name is that of a preset and, behind a dot, of the training: "llamagen-b-256.in1k". `hiergen.pretrained.hub` downloads and converts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


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
        confirmed_by: Documents of the authors that name the repository and the files, or their license, and were read for this table.
            No file of weights was downloaded.
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
    confirmed_by: str


_RESTOK: dict[str, Any] = {
    "license": "not stated by the authors",
    "is_restricted": True,
    # It links the repositories; the names of the files in them are those that the Hub's client writes.
    "confirmed_by": "README of ResTok, read in a copy",
}
_MAR_DOCUMENTS = "README, LICENSE and util/download.py of github.com/LTH14/mar"
_MAR = "get checkpoint-last.pth of this size from the list at https://github.com/LTH14/mar, then `hiergen convert mar FILE FOLDER`"
_LLAMAGEN: dict[str, Any] = {
    "license": "MIT",
    "repository": "FoundationVision/LlamaGen",
    "converter": "hiergen.convert.llamagen:from_official",
    "confirmed_by": "README of github.com/FoundationVision/LlamaGen, model card",
}
_LLAMAGEN_BY_TEXT: dict[str, Any] = {**_LLAMAGEN, "repository": "peizesun/llamagen_t2i"}


_VAR: dict[str, Any] = {
    "license": "MIT",
    "repository": "FoundationVision/var",
    "converter": "hiergen.convert.var:from_official",
    "confirmed_by": "README of github.com/FoundationVision/VAR, model card",
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


#: The model cards say Apache-2.0, and the READMEs add the rest.
_ONE_DIMENSIONAL: dict[str, Any] = {"license": "Apache-2.0, only for research purposes", "is_restricted": True}
_TITOK: dict[str, Any] = {
    **_ONE_DIMENSIONAL,
    "repository": "fun-research/TiTok",
    "confirmed_by": "README_TiTok of github.com/bytedance/1d-tokenizer, model card",
}
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
    row = {**_TITOK, "repository": f"yucornetto/tokenizer_titok_{name}_imagenet"}
    return Official(**row, files=("model.safetensors",), converter=_TITOK_CONVERTER)


def _rar(size: str, download: str, sha256: str) -> Official:
    return Official(
        **_ONE_DIMENSIONAL,
        repository="yucornetto/RAR",
        files=(f"rar_{size}.bin",),
        converter="hiergen.convert.one_dimensional.rar:from_official",
        tokenizer="maskgit-vq.in1k",
        download=download,
        sha256={f"rar_{size}.bin": sha256},
        confirmed_by="README_RAR of github.com/bytedance/1d-tokenizer, model card and commits of the repository",
    )


def _flextok(name: str) -> Official:
    """Return the row of a tokenizer whose configuration stands beside its weights, and tells what no tensor does."""
    return Official(
        license="Apple Machine Learning Research Model: research only, no commercial use",
        is_restricted=True,
        repository=f"EPFL-VILAB/flextok_{name}",
        files=("model.safetensors", "config.json"),
        converter="hiergen.convert.one_dimensional.flextok:from_official",
        confirmed_by="model cards and collection of huggingface.co/EPFL-VILAB",
    )


_LIGHTNING = "model cards of huggingface.co/hustvl, and the README of LightningDiT, read in a copy"


def _hnet(name: str) -> Official:
    """Return the row of a model of text, whose file may hold a pickled configuration beside the tensors."""
    return Official(
        license="not stated by the authors",
        is_restricted=True,
        repository=f"cartesia-ai/{name}",
        by_hand=f"get its .pt file from https://huggingface.co/cartesia-ai/{name}, save the tensors in it alone, without the configuration "
        "that may be pickled beside them, as .safetensors, then `hiergen convert hnet FILE FOLDER`",
        confirmed_by="README of github.com/goombalab/hnet",
    )


OFFICIAL: dict[str, Official] = {
    "restok-l-128.in1k": Official(
        **_RESTOK,
        repository="xushu-me/restok_l_128.r256_in1k",
        files=("model.safetensors|pytorch_model.bin",),
        converter="hiergen.convert.restok:from_official",
    ),
    "har-l.in1k": Official(
        **_RESTOK,
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
    "vq-16.text": Official(**_LLAMAGEN_BY_TEXT, files=("vq_ds16_t2i.pt",)),
    "llamagen-xl-text-256.laion": Official(
        **_LLAMAGEN_BY_TEXT, files=("t2i_XL_stage1_256.pt",), config={"image_size": 256}
    ),
    "llamagen-xl-text-1024.internal": Official(
        **_LLAMAGEN_BY_TEXT, files=("t2i_XL_stage2_512.pt",), config={"image_size": 512}
    ),
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
    "rar-b.in1k": _rar("b", "1.04 GB", "cbbf4b27dc36afae77fdb2fe0d6b9b5b7446eae45f1a9f91d442ab0b315b9ebf"),
    "rar-l.in1k": _rar("l", "1.85 GB", "edad8e9905e20a5df14eeee0d5d04c1be48b16a7751b4b3f4954a6dec8ad87d5"),
    "rar-xl.in1k": _rar("xl", "3.82 GB", "7b4cec5c76f18dc7a3ea055a6b0cc4c5748c533768eed71564a88d897c762bc8"),
    "rar-xxl.in1k": _rar("xxl", "5.99 GB", "85aba44fef7aecfd879829077e541f09da4c29da3b1fd374837601d7322bf6ff"),
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
    **{
        f"block-{size}.pile": Official(
            license="MIT",
            by_hand="get model.safetensors of this size by the links of https://github.com/itsnamgyu/block-transformer, then "
            "`hiergen convert block FILE FOLDER`",
            confirmed_by="nothing: the README of the repository, as it was read, links no weights",
        )
        for size in ("5m", "19m", "85m", "302m", "805m", "1200m")
    },
    "va-vae-f16d32.in1k": Official(
        license="MIT",
        repository="hustvl/vavae-imagenet256-f16d32-dinov2",
        files=("vavae-imagenet256-f16d32-dinov2.pt",),
        converter="hiergen.convert.ldm_vae:from_official",
        download="2.15 GB",
        confirmed_by=_LIGHTNING,
    ),
    "lightningdit-xl.in1k": Official(
        license="MIT",
        repository="hustvl/lightningdit-xl-imagenet256-800ep",
        by_hand="get lightningdit-xl-imagenet256-800ep.pt from https://huggingface.co/hustvl/lightningdit-xl-imagenet256-800ep, then "
        "`hiergen convert flow FILE FOLDER --config` with latent_mean and latent_std of latents_stats.pt, which stands beside VA-VAE's weights",
        confirmed_by=_LIGHTNING,
    ),
    **{
        f"mar-{size}.in1k": Official(license="MIT", by_hand=_MAR, confirmed_by=_MAR_DOCUMENTS)
        for size in ("b", "l", "h")
    },
    "kl-16.in1k": Official(
        license="MIT",
        by_hand="get kl16.ckpt by the download program of https://github.com/LTH14/mar, then `hiergen convert ldm-vae FILE FOLDER`",
        confirmed_by=_MAR_DOCUMENTS,
    ),
}


def of_preset(preset: str) -> list[str]:
    """Return the names of the official weights of a preset: the preset's own name with a training behind it."""
    return [name for name in OFFICIAL if name.partition(".")[0] == preset]


def by_repository(name: str) -> str:
    """Return the name of the weights whose Hub repository this is, if they are the only ones there; any other name as it is."""
    found = [ours for ours, row in OFFICIAL.items() if row.repository == name]
    return found[0] if len(found) == 1 else name
