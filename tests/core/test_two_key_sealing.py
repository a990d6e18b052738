"""Two holders open what the service seals; one holder, the service, a damaged byte or another context do not."""

from __future__ import annotations

import json
import stat
from itertools import combinations
from pathlib import Path

import pytest

from app.core import two_key_sealing
from app.core.two_key_sealing import BLOCK, PrivateKey, UnsealFailed
from app.sdk.errors import InvalidRequest

DOCUMENT = b'{"probability": 0.3141592653}'


@pytest.fixture(params=[2, 3, 4])
def keys(request: pytest.FixtureRequest) -> list[PrivateKey]:
    return [PrivateKey.generate() for _ in range(request.param)]


def holders(keys: list[PrivateKey]) -> list[str]:
    return [two_key_sealing.public_text(key) for key in keys]


def test_any_two_holders_open_a_document(keys: list[PrivateKey]) -> None:
    sealed = two_key_sealing.seal(DOCUMENT, holders(keys), "trial:prediction")
    for pair in combinations(keys, 2):
        for order in (pair, pair[::-1]):
            assert two_key_sealing.open_sealed(sealed, holders(keys), order, "trial:prediction") == DOCUMENT


def test_one_holder_or_a_stranger_opens_nothing(keys: list[PrivateKey]) -> None:
    sealed, stranger = two_key_sealing.seal(DOCUMENT, holders(keys), "c"), PrivateKey.generate()
    for wrong in ([], keys[:1], [keys[0], keys[0]], [keys[0], stranger], [stranger, PrivateKey.generate()]):
        with pytest.raises(UnsealFailed, match="different holders"):
            two_key_sealing.open_sealed(sealed, holders(keys), wrong, "c")


def test_a_share_of_another_holder_is_of_no_use(keys: list[PrivateKey]) -> None:
    """A holder who claims the place of another one has no key to the share there."""
    sealed = two_key_sealing.seal(DOCUMENT, holders(keys), "c")
    stranger = PrivateKey.generate()
    claimed = [holders(keys)[0], two_key_sealing.public_text(stranger), *holders(keys)[2:]]
    with pytest.raises(UnsealFailed, match="damaged"):
        two_key_sealing.open_sealed(sealed, claimed, [keys[0], stranger], "c")


def test_another_context_or_a_changed_byte_is_refused(keys: list[PrivateKey]) -> None:
    sealed = two_key_sealing.seal(DOCUMENT, holders(keys), "trial:one")
    with pytest.raises(UnsealFailed):
        two_key_sealing.open_sealed(sealed, holders(keys), keys[:2], "trial:other")
    document = json.loads(sealed)
    for name in ("nonce", "content"):
        changed = document | {name: ("B" if document[name][0] != "B" else "C") + document[name][1:]}
        with pytest.raises(UnsealFailed):
            two_key_sealing.open_sealed(json.dumps(changed).encode(), holders(keys), keys[:2], "trial:one")
    for damaged in (b"", b"{}", sealed[: len(sealed) // 2]):
        with pytest.raises(UnsealFailed):
            two_key_sealing.open_sealed(damaged, holders(keys), keys[:2], "trial:one")


def test_length_and_bytes_say_nothing_of_the_content(keys: list[PrivateKey]) -> None:
    texts = [b"x" * 10, b"y" * 3000, b'"' * BLOCK]
    sealed = [two_key_sealing.seal(text, holders(keys), "c") for text in (*texts, texts[0])]
    assert len({len(one) for one in sealed}) == 1
    assert len(set(sealed)) == len(sealed)  # the same document twice gives other bytes, so digests cannot be compared
    assert DOCUMENT not in two_key_sealing.seal(DOCUMENT, holders(keys), "c")


def test_private_key_is_the_owners_and_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    public = two_key_sealing.generate(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert two_key_sealing.public_text(two_key_sealing.read_private(path)) == public
    with pytest.raises(FileExistsError):
        two_key_sealing.generate(path)
    for content in (b"no key\n", bytes(range(256)), b"AAAA\n"):
        (tmp_path / "wrong").write_bytes(content)
        with pytest.raises(InvalidRequest, match="trial key"):
            two_key_sealing.read_private(tmp_path / "wrong")
