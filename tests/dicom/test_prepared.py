"""Files that are read before their study is complete: the same volumes, nothing stale, and bounds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from app.dicom import assemble
from app.dicom.convert import convert
from app.dicom.pixels import decode
from app.dicom.prepared import Prepared
from app.sdk.errors import RlvoError
from tests.dicom.studies import TILTED, contents, plan


def written(folder: Path, sent: list[bytes]) -> Path:
    folder.mkdir()
    for number, content in enumerate(sent):
        (folder / f"{number:05d}").write_bytes(content)
    return folder


def read(folder: Path, prepared: Prepared | None = None) -> Prepared:
    prepared = prepared or Prepared()
    prepared.add(sorted(folder.iterdir()))
    while prepared.has_work:
        prepared.work()
    return prepared


def result(source: Path, target: Path, prepared: Prepared | None) -> object:
    """All that a conversion says and writes, or its error."""
    target.mkdir()
    try:
        made = convert(source, target, addressed=True, prepared=prepared)
    except RlvoError as error:
        return error.code, error.detail
    return made.to_json() | {"volumes": {name: path.read_bytes() for name, path in made.volumes.items()}}


@pytest.fixture
def sent() -> list[bytes]:
    return contents(plan(TILTED))


def check(tmp_path: Path, source: Path, prepared: Prepared) -> object:
    expected = result(source, tmp_path / "without", None)
    assert result(source, tmp_path / "with", prepared) == expected
    return expected


def test_the_result_is_that_without_preparation_and_no_pixel_is_decoded_again(
    tmp_path: Path, sent: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(tmp_path / "study", sent)
    prepared = read(source)
    expected = result(source, tmp_path / "without", None)

    def again(*_: object) -> object:
        raise AssertionError("a file is decoded again")

    monkeypatch.setattr(assemble, "decode", again)
    assert result(source, tmp_path / "with", prepared) == expected
    assert isinstance(expected, dict)
    assert not prepared._pixels


@pytest.mark.parametrize("change", ["replaced", "erased", "added", "damaged", "renumbered"])
def test_what_has_changed_since_is_read_again(tmp_path: Path, sent: list[bytes], change: str) -> None:
    source = written(tmp_path / "study", sent)
    prepared = read(source)
    other = contents(plan(TILTED, description="CTA head", contrast="Iomeprol"))
    if change == "replaced":
        shutil.rmtree(source)
        written(source, other)
    elif change == "erased":
        (source / "00003").unlink()
    elif change == "added":
        (source / "99999").write_bytes(contents(plan(TILTED, number=9))[0])
    elif change == "damaged":
        (source / "00003").write_bytes(sent[3][: len(sent[3]) // 2])
    else:
        for number, path in enumerate(sorted(source.iterdir(), reverse=True)):
            path.rename(source / f"z{number:05d}")
    check(tmp_path, source, prepared)


def test_a_part_of_the_files_is_enough(tmp_path: Path, sent: list[bytes]) -> None:
    source = written(tmp_path / "study", sent)
    prepared = Prepared()
    prepared.add(sorted(source.iterdir()))
    for _ in range(len(sent) // 2):
        prepared.work()
    prepared.stop()
    assert not prepared.has_work
    assert isinstance(check(tmp_path, source, prepared), dict)


@pytest.mark.parametrize("damage", [b"", b"no DICOM file", "cut", "missing"])
def test_a_file_that_cannot_be_read_is_left_to_the_conversion(
    tmp_path: Path, sent: list[bytes], damage: bytes | str
) -> None:
    source = written(tmp_path / "study", sent)
    hostile = tmp_path / "hostile"
    if isinstance(damage, bytes):
        hostile.write_bytes(damage)
    elif damage == "cut":
        hostile.write_bytes(sent[0][:-100])
    prepared = Prepared()
    prepared.add([hostile])
    read(source, prepared)
    if hostile.exists():
        shutil.copy(hostile, source / "a")
    assert len(prepared._facts) == len(sent)
    check(tmp_path, source, prepared)


def test_pixels_are_kept_up_to_a_bound(tmp_path: Path, sent: list[bytes]) -> None:
    source = written(tmp_path / "study", sent)
    size = next(iter(decode(sent[0]))).nbytes
    prepared = read(source, Prepared(pixel_bytes=12 * size))
    kept = sum(frame.nbytes for frames in prepared._pixels.values() for frame in frames)
    assert 0 < kept <= 12 * size
    assert len(prepared._pixels) < len(sent)
    check(tmp_path, source, prepared)
