from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hiergen.data.codes import CodeSet
from hiergen.data.shapes.config import ShapeBatchConfig, ShapeDataConfig
from hiergen.data.shapes.dataset import open_shapes
from hiergen.data.shapes.views import ViewSettings
from hiergen.generators.masked.cascade import MaskedCascade
from hiergen.geometry.field_grid import ExtractionSettings
from hiergen.geometry.surface_sampling import SamplingSettings
from hiergen.pipelines.shape_encoding import encode_shapes
from hiergen.pretrained.image_encoder import ImageEncoder
from hiergen.registry import create
from hiergen.seeding import make_rng
from hiergen.tokenizers.pyramid_vae.model import PyramidVAE
from hiergen.training.checkpoints.checkpoint import find_checkpoint, load_checkpoint
from hiergen.training.config import OptimConfig, TrainConfig
from hiergen.training.loop import fit
from hiergen.training.tasks import shape_pictures
from hiergen.training.tasks import shapes as shape_task
from hiergen.training.tasks.settings import ShapeGeneratorTaskConfig, ShapeTokenizerTaskConfig
from hiergen.training.tasks.shapes import num_ordered_points

TINY_VAE = {
    "num_tokens": [3, 5],
    "token_dim": 4,
    "width": 16,
    "num_heads": 2,
    "encoder_depth": 1,
    "decoder_depth": 1,
    "point_counts": [32, 16, 8],
}
TINY_CASCADE = {"num_buffer": 2, "dim": 16, "depth": 1, "num_heads": 2, "head_dim": 16, "head_depth": 1}
SMALL = SamplingSettings(num_surface=64, num_volume=200, num_near=100, num_farthest=0)
DATA = ShapeDataConfig(
    count=8, sampling=SMALL, batch=ShapeBatchConfig(num_points=32, num_ordered=16, num_queries=40, near_fraction=0.25)
)
TOKENIZER = ShapeTokenizerTaskConfig(overrides=TINY_VAE, data=DATA, near_weight=0.5)


@pytest.fixture(scope="module")
def tokenizer() -> PyramidVAE:
    torch.manual_seed(0)
    return create("pyramid-vae-tiny", **TINY_VAE).eval()


@pytest.fixture(scope="module")
def codes(tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("codes")
    encode_shapes(tokenizer, open_shapes(DATA), folder, num_variants=2, batch_size=3)
    return folder


def test_the_tokenizer_loss_is_cross_entropy_of_both_levels_and_kl() -> None:
    """Against plain formulas in float64 on what the model says at each query."""
    task = TOKENIZER.build()
    task.tokenizer.eval()
    batch = task.dataset.batch([(k, 0) for k in range(4)], seed=0)
    terms = task.losses("tokenizer", batch, make_rng(0))
    total = 0.0
    inside = batch["occupancy"].double()
    for level in (0, 1):
        pyramid = task.tokenizer.encode(batch["points"], levels=[level])
        probability = torch.sigmoid(task.tokenizer.decode(pyramid).query(batch["queries"]).double())
        entropy = -(inside * probability.log() + (1 - inside) * (1 - probability).log())
        total += (entropy[:, :30].mean() + 0.5 * entropy[:, 30:].mean()) / 2
        posterior = task.tokenizer.posterior(batch["points"], level)
        mean, log_variance = posterior.mean.double(), posterior.log_variance.double()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        total += task.tokenizer.config["kl_weight"] * kl / 2
    assert torch.allclose(terms["loss"].double(), total, rtol=1e-5)
    assert {"bce_volume", "bce_near", "kl", "iou_logits_0", "iou_logits_1"} <= set(terms)


@pytest.mark.usefixtures("unchecked")
def test_levels_in_turn_train_each_sample_at_one_level(monkeypatch) -> None:
    task = dataclasses.replace(TOKENIZER, levels="in_turn").build()
    task.tokenizer.eval()
    batch = task.dataset.batch([(k, 0) for k in range(5)], seed=0)
    both = TOKENIZER.build()
    both.tokenizer = task.tokenizer
    parts = [{name: value[level::2] for name, value in batch.items()} for level in (0, 1)]
    alone = [both.losses("tokenizer", part, make_rng(0)) for part in parts]
    terms = task.losses("tokenizer", batch, make_rng(0))
    for level in (0, 1):
        torch.testing.assert_close(terms[f"iou_logits_{level}"], alone[level][f"iou_logits_{level}"])
    seen: list[tuple[int, int]] = []
    original = type(task.tokenizer)._posterior
    monkeypatch.setattr(
        type(task.tokenizer),
        "_posterior",
        lambda self, memory, level, count: seen.append((level, count)) or original(self, memory, level, count),
    )
    task.losses("tokenizer", batch, make_rng(0))["loss"].backward()
    assert seen == [(0, 3), (1, 2)]
    assert all(bank.grad.abs().sum() > 0 for bank in task.tokenizer.query_banks)
    one = {name: value[:1] for name, value in batch.items()}
    assert "iou_logits_1" not in task.losses("tokenizer", one, make_rng(0))
    with pytest.raises(ValueError, match="levels is 'one', expected 'all' or 'in_turn'"):
        dataclasses.replace(TOKENIZER, levels="one")
    seen.clear()
    shared = dataclasses.replace(TOKENIZER, levels="in_turn", level_shares=(1, 3)).build()
    shared.losses("tokenizer", batch, make_rng(0))
    assert seen == [(0, 2), (1, 3)]
    with pytest.raises(
        ValueError, match=r"level_shares is \[2\], expected 2 numbers, one per level of pyramid-vae-tiny"
    ):
        dataclasses.replace(TOKENIZER, levels="in_turn", level_shares=(2,)).build()
    with pytest.raises(ValueError, match=r"level_shares is \[1, 3\], which expects levels 'in_turn'"):
        dataclasses.replace(TOKENIZER, level_shares=(1, 3))


def test_clouds_ordered_while_loading_give_the_same_loss() -> None:
    task = TOKENIZER.build()
    task.tokenizer.eval()
    batch = task.dataset.batch([(0, 0), (1, 0)], seed=0)
    assert task._is_ordered
    ordered = task.losses("tokenizer", batch, make_rng(0))["loss"]
    task._is_ordered = False
    assert torch.allclose(task.losses("tokenizer", batch, make_rng(0))["loss"], ordered, atol=1e-6)
    unordered = dataclasses.replace(DATA, batch=dataclasses.replace(DATA.batch, num_ordered=8))
    assert not dataclasses.replace(TOKENIZER, data=unordered).build()._is_ordered


def test_how_many_points_must_be_ordered(tokenizer) -> None:
    assert num_ordered_points(tokenizer, 32) == 16
    assert num_ordered_points(tokenizer, 33) == 32
    assert num_ordered_points(create("pyramid-vae-tiny", **{**TINY_VAE, "queries": "farthest"}), 8) == 5
    assert num_ordered_points(create("pyramid-vae-tiny", **{**TINY_VAE, "point_counts": None}), 8) == 0


def test_both_levels_learn_one_batch(tmp_path) -> None:
    config = TrainConfig(
        task=dataclasses.replace(TOKENIZER, data=dataclasses.replace(DATA, count=2)),
        out=str(tmp_path),
        samples=160,
        batch_size=2,
        optim=OptimConfig(lr=5e-3, schedule="constant"),
        ema_decay=None,
        log_every=16,
    )
    log = fit(config, cpu=True).log
    assert log[-1]["bce_volume"] < 0.7 * log[0]["bce_volume"]


@pytest.fixture
def _coarse(monkeypatch) -> None:
    """Untrained fields have a surface everywhere: on a fine grid it takes a second to draw."""
    monkeypatch.setattr(shape_pictures, "EXTRACTION", ExtractionSettings(depth=4))


@pytest.mark.usefixtures("_coarse")
def test_shapes_are_shown_beside_what_each_level_rebuilds() -> None:
    task = TOKENIZER.build()
    model = task.tokenizer.eval()
    train = task.images()["shapes"]
    task.validation = open_shapes(dataclasses.replace(DATA, count=3, split="test"))
    pictures = task.images()
    assert {name: tuple(value.shape) for name, value in pictures.items()} == {
        "shapes": (3, 3, 96, 96),
        "rebuilt_from_3_tokens": (3, 3, 96, 96),
        "rebuilt_from_5_tokens": (3, 3, 96, 96),
    }
    again = task.images()
    assert all(torch.equal(value, again[name]) for name, value in pictures.items())
    assert -1 <= float(pictures["shapes"].min()) < float(pictures["shapes"].max()) <= 1
    # Those of the training, where none are held out, are others.
    assert train.shape == (4, 3, 96, 96)
    assert not torch.equal(train[:3], pictures["shapes"])
    # A level that says "inside" in the middle alone is a ball there; one that says nothing is white.
    points = task.validation.batch([(0, 0)], seed=0)["points"]
    pyramid = model.encode(points)
    field = SimpleNamespace(batch_size=1, device=points.device, shape=lambda k: lambda x: 0.25 - x.square().sum(-1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "decode", lambda self, pyramid: field)
        ball = shape_pictures.token_pictures(model, pyramid)[0]
        patch.setattr(field, "shape", lambda k: lambda x: -torch.ones(len(x)))
        nothing = shape_pictures.token_pictures(model, pyramid)[0]
    assert bool((nothing == 1).all())
    shown = (ball < 1).any(0)
    assert 0.1 < float(shown.float().mean()) < 0.3
    assert bool(shown[48, 48])


@pytest.mark.usefixtures("_coarse")
def test_pictures_do_not_change_a_run_and_reach_its_tracker(codes, tokenizer, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tokenizer.save_pretrained(tmp_path / "tokenizer")
    cascade = ShapeGeneratorTaskConfig(overrides=TINY_CASCADE, codes=str(codes), tokenizer=str(tmp_path / "tokenizer"))
    expected = {"vae": {"shapes", "rebuilt_from_3_tokens", "rebuilt_from_5_tokens"}, "cascade": {"samples"}}
    for name, task in (("vae", TOKENIZER), ("cascade", cascade)):
        for trackers in ((), ("tensorboard",)):
            out = tmp_path / f"{name} {len(trackers)}"
            run = TrainConfig(task, str(out), samples=8, batch_size=4, checkpoint_every=4, trackers=trackers)
            fit(run, cpu=True)
        plain, drawn = (load_checkpoint(find_checkpoint(tmp_path / f"{name} {k}" / "checkpoints"))[0] for k in range(2))
        for stem, group in plain.items():
            assert all(torch.equal(value, drawn[stem][key]) for key, value in group.items()), stem
        events = EventAccumulator(str(tmp_path / f"{name} 1" / f"{name} 1")).Reload()
        assert set(events.Tags()["images"]) == expected[name]
        assert [event.step for event in events.Images(min(expected[name]))] == [4, 8]


def test_samples_of_a_cascade_are_shown(codes, tokenizer, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    config = ShapeGeneratorTaskConfig(overrides=TINY_CASCADE, codes=str(codes))
    assert config.build().images() == {}
    shown, white = {}, torch.ones(4, 3, 8, 8)
    for stages in ("both", "low"):
        torch.manual_seed(0)
        task = dataclasses.replace(config, tokenizer=str(tmp_path / "tokenizer"), stages=stages).build()
        seen = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shape_task, "token_pictures", lambda model, pyramid, seen=seen: seen.append(pyramid) or white)
            for _ in range(2):
                task.images()
        shown[stages] = seen
        assert all(torch.equal(a, b) for a, b in zip(*(pyramid.levels for pyramid in seen), strict=True))
    assert [len(shown[stages][0]) for stages in ("both", "low")] == [2, 1]
    assert len(shown["both"][0].levels[0]) == 4
    create("restok-tiny").save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="other' is a ResTok, expected a PyramidVAE"):
        dataclasses.replace(config, tokenizer=str(tmp_path / "other")).build()


def test_statistics_of_each_level_come_from_the_cache(codes) -> None:
    task = ShapeGeneratorTaskConfig(overrides=TINY_CASCADE, codes=str(codes)).build()
    cached = task.dataset
    assert cached.levels[0].shape == (8, 2, 3, 4)
    for k, (level, statistics) in enumerate(zip(cached.levels, cached.level_statistics(), strict=True)):
        rows = level.reshape(-1, 4).double()
        assert torch.allclose(torch.tensor(statistics.mean, dtype=torch.float64), rows.mean(0))
        assert torch.allclose(torch.tensor(statistics.std, dtype=torch.float64), rows.std(0))
        stage = (task.generator.low, task.generator.high)[k]
        standard = stage.standardize(level.flatten(0, 1)).flatten(0, 1)
        assert torch.allclose(standard.mean(0), torch.zeros(4), atol=1e-4)
        assert torch.allclose(standard.std(0), torch.ones(4), atol=1e-4)
    assert task.generator.config["num_classes"] == 8
    raw = ShapeGeneratorTaskConfig(overrides=TINY_CASCADE, codes=str(codes), standardize=False).build()
    assert raw.generator.config["latent_mean"] is None


def test_no_gradient_reaches_the_tokenizer(codes, tokenizer) -> None:
    """The tokens were made by a tokenizer whose weights want gradients: they carry none."""
    assert all(p.requires_grad for p in tokenizer.parameters())
    task = ShapeGeneratorTaskConfig(overrides=TINY_CASCADE, codes=str(codes)).build()
    owned = {id(p) for player in task.players.values() for p in player.parameters()}
    assert not owned & {id(p) for p in tokenizer.parameters()}
    assert not any(isinstance(module, PyramidVAE) for module in task.generator.modules())
    batch = task.dataset.batch([(0, 0), (1, 1)], seed=0)
    assert not any(value.requires_grad for value in batch.values())
    task.losses("generator", batch, make_rng(0))["loss"].backward()
    assert all(p.grad is None for p in tokenizer.parameters())
    assert sum(p.grad is not None for p in task.generator.parameters()) > 10


def test_one_stage_is_trained_and_the_next_starts_from_it(codes, tmp_path) -> None:
    """Decay included: what is not trained keeps its bits."""
    low = ShapeGeneratorTaskConfig(overrides=TINY_CASCADE, codes=str(codes), stages="low")
    optim = OptimConfig(lr=1e-2, weight_decay=0.5, schedule="constant")
    run = {"samples": 16, "batch_size": 4, "optim": optim, "ema_decay": None, "log_every": 16}
    done = fit(TrainConfig(task=low, out=str(tmp_path / "low"), **run), cpu=True)
    trained = MaskedCascade.from_pretrained(done.model_dir)
    torch.manual_seed(0)
    high = dataclasses.replace(low, stages="high", start=str(done.model_dir))
    task = high.build()
    start = task.generator.high.state_dict()
    assert torch.equal(start["head.output.weight"], trained.low.state_dict()["head.output.weight"])
    done = fit(TrainConfig(task=high, out=str(tmp_path / "high"), **run), cpu=True)
    both = MaskedCascade.from_pretrained(done.model_dir)
    for name, value in trained.low.state_dict().items():
        assert torch.equal(both.low.state_dict()[name], value), name
    changed = [name for name, value in start.items() if not torch.equal(both.high.state_dict()[name], value)]
    assert len(changed) > 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "mar-tiny", "overrides": {}, "standardize": False}, "preset 'mar-tiny' is a MaskedAR"),
        ({"start": "nowhere"}, "start is 'nowhere', which holds no model; train the coarse stage first"),
        ({"codes": "nowhere"}, "'nowhere' holds no finished cache"),
    ],
)
def test_what_does_not_fit_is_refused(codes, changes, message) -> None:
    config = ShapeGeneratorTaskConfig(overrides=TINY_CASCADE, codes=str(codes))
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **changes).build()


def test_another_coarse_stage_is_refused(codes, tmp_path) -> None:
    config = ShapeGeneratorTaskConfig(overrides=TINY_CASCADE, codes=str(codes))
    config.build().generator.save_pretrained(tmp_path)
    other = dataclasses.replace(config, overrides={**TINY_CASCADE, "dim": 32}, start=str(tmp_path))
    with pytest.raises(ValueError, match="start has dim 16, this cascade 32"):
        other.build()


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="preset 'restok-tiny' is a ResTok, expected a PyramidVAE"):
        ShapeTokenizerTaskConfig(preset="restok-tiny").build()


def test_parameters_are_counted_without_building(codes) -> None:
    built = ShapeGeneratorTaskConfig(overrides=TINY_CASCADE, codes=str(codes)).build().generator
    for stages, model in (("both", built), ("low", built.low), ("high", built.high)):
        config = ShapeGeneratorTaskConfig(overrides=TINY_CASCADE, codes=str(codes), stages=stages)
        assert config.count_parameters() == {"generator": sum(p.numel() for p in model.parameters())}
    absent = ShapeGeneratorTaskConfig(preset="mar3d", overrides={"feature_shapes": None}, codes="nowhere", stages="low")
    assert 3e8 < absent.count_parameters()["generator"] < 5e8
    assert TOKENIZER.count_parameters()["tokenizer"] == sum(p.numel() for p in TOKENIZER.build().tokenizer.parameters())


@pytest.fixture(scope="module")
def views() -> ShapeDataConfig:
    batch = dataclasses.replace(DATA.batch, image=True)
    return dataclasses.replace(DATA, views=ViewSettings(num_views=2, size=16), batch=batch)


@pytest.fixture(scope="module")
def image_encoder() -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(encoders=[{"kind": "conv", "config": {"image_size": 16, "dim": 8}}])


def test_features_go_with_the_view_of_their_variant(tokenizer, views, image_encoder, tmp_path) -> None:
    """Against the encoder on the sample that each variant is; a second run reads the features from disk."""
    shapes = open_shapes(views)
    options = {"num_variants": 2, "batch_size": 3, "image_encoder": image_encoder}
    codes = encode_shapes(tokenizer, shapes, tmp_path / "codes", **options)
    for index, variant in ((0, 0), (5, 1), (7, 0)):
        sample = shapes.sample(index, epoch=variant, seed=0)
        features = image_encoder(sample["image"][None])[0][0]
        assert torch.allclose(codes.features[0][index, variant], features, atol=1e-5)
        tokens = tokenizer.encode(sample["points"][None]).levels[0][0]
        assert torch.allclose(codes.levels[0][index, variant], tokens, atol=1e-5)
    cached = encode_shapes(tokenizer, shapes, tmp_path / "again", feature_cache=tmp_path / "kept", **options)
    assert torch.allclose(cached.features[0], codes.features[0], atol=1e-5)
    assert 0 < len(list((tmp_path / "kept").glob("*/*.safetensors"))) <= 16
    assert torch.equal(CodeSet.open(tmp_path / "codes").features[0], codes.features[0])
    with pytest.raises(ValueError, match="image_encoder needs views"):
        encode_shapes(tokenizer, open_shapes(DATA), tmp_path / "none", image_encoder=image_encoder)


@pytest.mark.usefixtures("_coarse")
def test_a_cascade_is_trained_by_image(tokenizer, views, image_encoder, codes, tmp_path) -> None:
    encode_shapes(tokenizer, open_shapes(views), tmp_path, image_encoder=image_encoder)
    task = ShapeGeneratorTaskConfig(overrides=TINY_CASCADE, codes=str(tmp_path), condition="image").build()
    assert task.generator.config["feature_shapes"] == [[16, 8]]
    batch = task.dataset.batch([(k, 0) for k in range(4)], seed=0)
    batch["feature_0"].requires_grad_()
    for parameter in task.generator.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    task.losses("generator", batch, make_rng(0))["loss"].backward()
    assert batch["feature_0"].grad.abs().sum() > 0
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    shown = ShapeGeneratorTaskConfig(
        overrides=TINY_CASCADE, codes=str(tmp_path), condition="image", tokenizer=str(tmp_path / "tokenizer")
    )
    assert shown.build().images()["samples"].shape == (4, 3, 96, 96)
    with pytest.raises(ValueError, match="holds no features of images"):
        ShapeGeneratorTaskConfig(overrides=TINY_CASCADE, codes=str(codes), condition="image").build()
