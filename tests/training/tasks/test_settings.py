"""Settings of tasks: the same classes under the names that they had before, and each builds its own task."""

from __future__ import annotations

import importlib

import pytest

from hiergen.training.tasks import settings, term_settings

TASKS = {
    "base": ["TaskConfig"],
    "generator": ["GeneratorTaskConfig"],
    "text": ["TextTaskConfig"],
    "tokenizer": ["TokenizerTaskConfig"],
    "shapes": ["ShapeTokenizerTaskConfig", "ShapeGeneratorTaskConfig"],
}
TERMS = {
    "codebook_health": ["CodebookConfig"],
    "discriminator": ["AdversarialConfig"],
    "perceptual_term": ["PerceptualConfig"],
    "proxy_codes": ["ProxyConfig"],
    "teacher_alignment": ["AlignmentConfig"],
    "vae_terms": ["FoundationConfig", "VAEConfig"],
}


@pytest.mark.parametrize(("home", "table"), [(settings, TASKS), (term_settings, TERMS)])
def test_settings_are_found_where_they_were(home, table) -> None:
    for module, names in table.items():
        for name in names:
            assert getattr(importlib.import_module(f"hiergen.training.tasks.{module}"), name) is getattr(home, name)


def test_settings_of_adapters_optimizers_and_shapes_are_found_where_they_were() -> None:
    from hiergen.data.shapes import config as shapes
    from hiergen.data.shapes import dataset
    from hiergen.training import config, optim
    from hiergen.training.finetune import lora

    assert lora.LoraConfig is config.LoraConfig
    assert optim.OptimConfig is config.OptimConfig
    assert dataset.ShapeDataConfig is shapes.ShapeDataConfig
    assert dataset.ShapeBatchConfig is shapes.ShapeBatchConfig


def test_a_task_is_built_with_the_players_of_its_sketch() -> None:
    config = settings.TokenizerTaskConfig(preset="restok-tiny", codebook=term_settings.CodebookConfig(64))
    built, sketched = config.build(), config.sketch()
    assert type(built).__name__ == "TokenizerTask"
    assert list(built.players) == list(sketched) == ["tokenizer"]
    assert {p.device.type for p in sketched["tokenizer"].parameters()} == {"meta"}
    counted = sum(p.numel() for p in built.players["tokenizer"].parameters() if p.requires_grad)
    assert config.count_parameters() == {"tokenizer": counted}
