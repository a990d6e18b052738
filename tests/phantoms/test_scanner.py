from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from app.inference.defaults import CHANNELS
from app.phantoms import acquisition, biology, cohort, scene
from app.phantoms.acquisition import GridFrame
from app.phantoms.nuisance import STRENGTHS, Nuisance, NuisanceKind
from app.phantoms.scanner import USUAL, Scanner, draw_scanner
from app.phantoms.scene import Appearance
from app.sdk.types import Channel

AXIS = np.arange(-30.0, 31.0, 2.0, dtype=np.float32)
FRAME = GridFrame((AXIS, AXIS, AXIS), (2.0, 2.0, 2.0), (0.85, 0.85, 0.85))


def point() -> np.ndarray:
    image = np.zeros((len(AXIS),) * 3, np.float32)
    image[15, 15, 15] = 1000
    return image


def variances_mm2(image: np.ndarray) -> list[float]:
    """Variance of a point image along each axis."""
    sums = [image.sum(tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    return [float((profile * AXIS**2).sum() / profile.sum()) for profile in sums]


def test_usual_scanner_changes_nothing() -> None:
    image = point()
    assert acquisition.on_grid(image, Channel.NCCT, USUAL, FRAME) is image
    assert acquisition.artefacts(USUAL, (AXIS, AXIS, AXIS)) is None


@pytest.mark.parametrize(
    ("scanner", "expected"),
    [
        (Scanner(kernel_mm2=1.2), [1.2, 1.2, 0.0]),
        (Scanner(kernel_mm2=-0.3), [-0.3, -0.3, 0.0]),
        (Scanner(motion_mm=(2.0, 0.0, 1.0)), [1.0, 0.0, 0.25]),
        # A slice of 5 mm is a box (25 / 12); interpolation adds 25 / 6, of which the renderer has 0.85 squared.
        (Scanner(ncct_slice_mm=5.0), [0.0, 0.0, 25 / 12 + 25 / 6 - 0.85**2]),
        (Scanner(cta_slice_mm=5.0), [0.0, 0.0, 0.0]),
    ],
)
def test_blur_on_the_grid_has_the_variance_of_the_scanner(scanner: Scanner, expected: list[float]) -> None:
    assert variances_mm2(acquisition.on_grid(point(), Channel.NCCT, scanner, FRAME)) == pytest.approx(
        expected, abs=1e-3
    )


def test_scale_and_offset_apply_to_the_density() -> None:
    shown = acquisition.on_grid(point(), Channel.CTA, Scanner(scale=1.02, offset_hu=-4.0), FRAME)
    assert shown.max() == pytest.approx(1016)
    assert shown.min() == pytest.approx(-4)


def test_scanners_differ_between_patients_and_repeat() -> None:
    appearance = Appearance(scanners=True)
    first, again, other = (scene.draw_variation(5, index, appearance).scanner for index in (0, 0, 1))
    assert first == again != other
    assert scene.draw_variation(5, 0).scanner == USUAL


def test_scanner_and_variant_leave_the_other_draws_unchanged() -> None:
    plain, varied = (scene.draw_variation(5, 3, one) for one in (scene.PLAIN, Appearance(48, scanners=True)))
    assert plain.bolus == varied.bolus
    assert plain.noise_seed == varied.noise_seed
    assert np.array_equal(plain.waves, varied.waves)


def test_drawn_scanners_span_the_usual_range() -> None:
    drawn = [draw_scanner(np.random.default_rng(seed)) for seed in range(600)]
    contrast = [one.contrast_hu or 0 for one in drawn]
    assert min(contrast) < 170
    assert max(contrast) > 420
    assert {one.ncct_slice_mm for one in drawn} == {0.0, 2.5, 3.0, 5.0}
    heights = {round(one.slab_mm[1] - one.slab_mm[0]) for one in drawn if one.slab_mm}
    assert heights == {40, 80, 100, 160}
    assert {len(one.missing) for one in drawn} == {0, 1, 2}
    assert not any({Channel.NCCT, Channel.CTA} <= set(one.missing) for one in drawn)
    for field in fields(Scanner):
        assert len({getattr(one, field.name) for one in drawn}) > 1, field.name


def test_missing_series_have_no_presence() -> None:
    variation = replace(scene.draw_variation(5, 0), scanner=Scanner(missing=(Channel.TMAX, Channel.RCBF)))
    drawn = scene.build(biology.draw(1, 5)[0], variation)
    assert cohort.presence(drawn, CHANNELS).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("kind", NuisanceKind)
def test_nuisance_changes_one_thing_only(kind: NuisanceKind) -> None:
    plain = scene.draw_variation(5, 0)
    for strength in STRENGTHS[kind]:
        changed = Nuisance(kind, strength).apply(plain)
        assert changed == Nuisance(kind, strength).apply(plain)
        assert (changed.variant != plain.variant) != (changed.scanner != plain.scanner)
        assert replace(changed, variant=plain.variant, scanner=plain.scanner) == plain
