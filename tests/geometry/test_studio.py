from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from hiergen.geometry.renders import STUDIO, RenderSettings, render_mesh, render_turntable, save_turntable
from hiergen.geometry.studio import Sky, _directions

WHITE = RenderSettings(shading="studio", color=(1.0, 1.0, 1.0))
#: A board that hangs above a floor, open at its sides.
FLOOR = trimesh.creation.box(extents=(4, 0.1, 4))
ROOFED = trimesh.util.concatenate(
    [
        FLOOR,
        trimesh.creation.box(extents=(2, 0.1, 2), transform=trimesh.transformations.translation_matrix((0, 0.5, 0))),
    ]
)


def light_at(mesh: trimesh.Trimesh, place: tuple[float, float, float], camera: np.ndarray | None = None) -> float:
    sky = Sky.over(np.asarray(mesh.triangles))
    camera = np.eye(3) if camera is None else camera
    return float(sky.light(np.array([place]), np.array([[0.0, 1.0, 0.0]]), camera, np.zeros(1, np.int64))[0])


def test_what_lies_below_something_is_darker_and_the_more_so_the_farther_in() -> None:
    place = (0.0, 0.05, 0.0)
    open_light, roofed = light_at(FLOOR, place), light_at(ROOFED, place)
    edge = light_at(ROOFED, (0.95, 0.05, 0.0))
    # The lamp and the sky, with nothing in between: what the weights sum to.
    assert open_light == pytest.approx(0.62 + 0.55, abs=0.02)
    assert roofed < 0.4 * open_light
    assert roofed < edge < 0.9 * open_light
    assert light_at(ROOFED, (1.9, 0.05, 0.0)) > edge


def test_a_surface_in_the_open_does_not_shade_itself() -> None:
    ball = trimesh.creation.icosphere(subdivisions=4)
    normals = np.asarray(ball.vertices)
    sky, which = Sky.over(np.asarray(ball.triangles)), np.arange(len(normals))
    found = sky.light(normals, normals, np.eye(3), which)
    nothing = Sky.over(np.asarray(ball.triangles) * 1e-3)
    wanted = nothing.light(normals, normals, np.eye(3), which)
    upper = normals[:, 1] > -0.3
    assert np.abs(found - wanted)[upper].max() < 0.08


def test_lights_are_spread_evenly_over_the_upper_half() -> None:
    directions = _directions(72)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    assert directions[:, 1].min() > 0
    np.testing.assert_allclose(directions.mean(axis=0), [0, 0.5, 0], atol=0.02)


def test_the_lamp_goes_with_the_viewer() -> None:
    half = math.pi
    turned = np.array([[math.cos(half), 0, -math.sin(half)], [0, 1, 0], [math.sin(half), 0, math.cos(half)]])
    sky = Sky.over(np.asarray(FLOOR.triangles))
    left = np.array([[-1.0, 0.0, 0.0]])
    place, which = np.array([[-2.0, 0.0, 0.0]]), np.zeros(1, np.int64)
    assert sky.light(place, left, np.eye(3), which) > 1.3 * sky.light(place, left, turned, which)


def test_an_object_throws_a_soft_shadow_on_the_ground_that_ends_inside_the_picture() -> None:
    box = trimesh.creation.box(extents=(1, 1, 1))
    image = render_mesh(box, 64, settings=WHITE).astype(int)
    clay = render_mesh(box, 64)
    np.testing.assert_array_equal(image, render_mesh(box, 64, settings=WHITE))
    ground = (clay == 255).all(axis=2)
    shadow = 255 - image[..., 0][ground]
    assert 40 < shadow.max() < 170
    assert len(np.unique(shadow)) > 20
    for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
        assert edge.min() >= 250
    # From below there is no ground to be seen.
    below = render_mesh(box, 32, elevation=math.radians(-20), settings=WHITE)
    assert (below[0] == 255).all()


def test_colors_by_normal_tell_the_sides_of_a_box_apart() -> None:
    image = render_mesh(trimesh.creation.box(), 48, math.pi / 4, settings=RenderSettings(shading="studio_normals"))
    top, left, right = (image[row, column].astype(int) for row, column in ((12, 24), (30, 12), (30, 38)))
    for one, other in ((top, left), (top, right), (left, right)):
        assert np.abs(one / one.max() - other / other.max()).max() > 0.08


def test_a_turntable_turns_at_one_scale_and_comes_as_a_file(tmp_path: Path) -> None:
    mesh = trimesh.creation.box(extents=(1.6, 0.6, 0.4))
    mesh.apply_translation((5, 2, -3))
    turn = render_turntable(mesh, 24, frames=4, settings=WHITE)
    assert turn.shape == (4, 24, 24, 3)
    # A quarter turn shows another side, half a turn of a box the same again.
    assert np.abs(turn[0].astype(int) - turn[1]).max() > 60
    assert np.abs(turn[0].astype(int) - turn[2]).mean() < 4
    fixed = render_turntable(mesh, 24, frames=2, settings=RenderSettings(shading="normals"))
    assert ((fixed != 255).any(axis=3).sum(axis=(1, 2)) > 20).all()
    for name, kind in (("turn.gif", "GIF"), ("turn.webp", "WEBP")):
        save_turntable(mesh, tmp_path / name, 16, 5)
        with Image.open(tmp_path / name) as picture:
            assert (picture.format, picture.n_frames, picture.size) == (kind, 5, (16, 16))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["turn.gif", "turn.webp"]
    with pytest.raises(ValueError, match=r"turn.mp4' ends in '.mp4', expected .gif or .webp"):
        save_turntable(mesh, tmp_path / "turn.mp4")
    with pytest.raises(ValueError, match="frames is 0, expected at least 1"):
        render_turntable(mesh, 8, 0)
    with pytest.raises(ValueError, match="the mesh has no faces to render"):
        render_turntable(trimesh.Trimesh())


def test_pictures_for_people_have_a_ground_that_is_not_white() -> None:
    assert STUDIO.shading == "studio"
    assert tuple(render_mesh(trimesh.creation.box(), 16, settings=STUDIO)[0, 0]) == (242, 244, 247)
