"""Arrays that are kept on the disk: the same ones as computed, and made again whenever the file cannot be trusted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.imaging import derived_arrays
from app.imaging.registration import brain_mask, template
from app.imaging.registration.gauss_newton import Points


class Maker:
    """Makes two arrays, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.eye(4)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"1")
    derived_arrays._digest.cache_clear()  # as in a new process
    return path


def check(found: derived_arrays.Arrays) -> None:
    for name, expected in Maker()().items():
        np.testing.assert_array_equal(found[name], expected)
        assert found[name].dtype == expected.dtype


def test_arrays_are_made_once(folder: Path, source: Path) -> None:
    make = Maker()
    for _ in range(3):
        check(derived_arrays.kept("x", [source], make))
    assert make.calls == 1
    (path,) = folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o644
    derived_arrays.kept("y", [source], make)
    assert make.calls == 2


def test_another_source_has_other_arrays(folder: Path, source: Path) -> None:
    make = Maker()
    derived_arrays.kept("x", [source], make)
    source.write_bytes(b"2")
    derived_arrays._digest.cache_clear()
    derived_arrays.kept("x", [source], make)
    assert make.calls == 2
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:100],
        lambda content: content[:-1],
        lambda content: b"x" * 1000,
        lambda content: (at := content.index(b"PK\x01\x02") + 8) and content[:at] + b"\x01" + content[at + 1 :],
    ],
    ids=["empty", "its start", "without its end", "other bytes", "marked as encrypted"],
)
def test_a_damaged_file_is_made_again(folder: Path, source: Path, damage: Callable[[bytes], bytes]) -> None:
    make = Maker()
    derived_arrays.kept("x", [source], make)
    (path,) = folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    check(derived_arrays.kept("x", [source], make))
    check(derived_arrays.kept("x", [source], make))
    assert make.calls == 2


def test_a_changed_value_is_found(folder: Path, source: Path) -> None:
    make = Maker()
    derived_arrays.kept("x", [source], make)
    (path,) = folder.iterdir()
    content = bytearray(path.read_bytes())
    content[content.index(np.float32(5).tobytes())] ^= 1
    path.write_bytes(content)
    check(derived_arrays.kept("x", [source], make))
    assert make.calls == 2


def test_arrays_are_made_where_no_folder_can_be_written(folder: Path, source: Path) -> None:
    folder.write_bytes(b"a file")
    make = Maker()
    check(derived_arrays.kept("x", [source], make))
    check(derived_arrays.kept("x", [source], make))
    assert make.calls == 2


def test_an_interrupted_write_leaves_nothing(folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    check(derived_arrays.kept("x", [source], Maker()))
    assert not list(folder.iterdir())


@pytest.mark.parametrize("make", [template._make_head_points, template._make_intracranial_points])
def test_points_from_the_disk_are_those_of_the_template(folder: Path, make: Callable[..., Points]) -> None:
    made = vars(make(16, 12.0))
    for _ in range(2):
        for name, value in vars(template._kept(make, 16, 12.0)).items():
            np.testing.assert_array_equal(value, made[name])
            assert (value.dtype, value.flags.c_contiguous) == (made[name].dtype, made[name].flags.c_contiguous)
    assert folder.is_dir()


def test_the_distance_from_the_disk_is_that_of_the_template(folder: Path) -> None:
    made = brain_mask._make_signed_distance()
    for _ in range(2):
        field, affine = brain_mask._signed_distance.__wrapped__()
        np.testing.assert_array_equal(field, made["field"])
        np.testing.assert_array_equal(affine, made["affine"])
        assert field.flags.f_contiguous
        assert field.dtype == np.float32
    assert folder.is_dir()
