"""The return address is kept sealed: it comes back exactly with its key, and not without."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest

from app.dicom.return_address import InstanceReference, ReturnAddress, SealBroken, key_of, open_sealed, seal

KEY, OTHER = bytes(range(32)), bytes(32)
ADDRESS = ReturnAddress(
    patient_id="4711",
    patient_name="Müller^Änne=山田^太郎",
    birth_date="19400229",
    sex="F",
    study_instance_uid="1.2.3",
    accession_number="ACC 1",
    frame_of_reference="1.2.9",
    instances=tuple(InstanceReference(f"1.2.{n % 2}", "1.2.840.10008.5.1.4.1.1.2", f"1.3.{n}") for n in range(5)),
)


def test_an_address_comes_back_exactly_with_its_key() -> None:
    opened = open_sealed(seal(ADDRESS, KEY), KEY)
    assert opened.patient_name == ADDRESS.patient_name
    assert sorted(opened.instances, key=lambda each: each.sop_instance_uid) == list(ADDRESS.instances)


def test_sealed_bytes_show_nothing_and_differ_each_time() -> None:
    first, second = seal(ADDRESS, KEY), seal(ADDRESS, KEY)
    assert first != second
    assert b"4711" not in first
    assert "Müller".encode() not in first


@pytest.mark.parametrize(
    "change", [lambda s: s[:-1], lambda s: s[:20] + b"\0" + s[21:], lambda s: b"", lambda s: s[:12]]
)
def test_damaged_bytes_are_refused(change) -> None:
    with pytest.raises(SealBroken):
        open_sealed(change(seal(ADDRESS, KEY)), KEY)


def test_another_key_opens_nothing() -> None:
    with pytest.raises(SealBroken) as caught:
        open_sealed(seal(ADDRESS, KEY), OTHER)
    assert "4711" not in str(caught.value)


def test_the_address_of_two_archives_names_the_instances_of_both() -> None:
    other = replace(ADDRESS, instances=(InstanceReference("1.2.7", "1.2.840.10008.5.1.4.1.1.2", "1.3.7"),))
    both = ADDRESS.with_archive(other)
    assert both.instances == (*ADDRESS.instances, *other.instances)
    assert both.frame_of_reference == ADDRESS.frame_of_reference
    assert ADDRESS.with_archive(ADDRESS) == ADDRESS


def test_the_address_of_two_archives_has_no_frame_that_only_one_has() -> None:
    for frame in ("1.2.10", ""):
        assert ADDRESS.with_archive(replace(ADDRESS, frame_of_reference=frame)).frame_of_reference == ""


def test_instances_of_another_study_are_not_named() -> None:
    other = InstanceReference("1.9", "1.2.840.10008.5.1.4.1.1.2", "1.3.9")
    both = ADDRESS.with_archive(replace(ADDRESS, study_instance_uid="1.2.4", instances=(other,)))
    assert (both.study_instance_uid, both.instances) == ("1.2.3", ADDRESS.instances)


def test_an_address_is_not_shown_by_a_log_line() -> None:
    assert "4711" not in f"{ADDRESS!r} {ADDRESS}"


@pytest.mark.parametrize("text", ["short", base64.b64encode(bytes(31)).decode(), "ä", "A" * 44 + "!"])
def test_a_setting_that_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="RLVO_DICOM_RETURN_KEY"):
        key_of(text)


def test_the_setting_is_a_key_of_32_bytes_or_empty() -> None:
    assert key_of("") is None
    assert key_of(base64.b64encode(KEY).decode()) == KEY
