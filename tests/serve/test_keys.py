"""Keys are shown once, open what they are for, and close when revoked or expired."""

from pathlib import Path

import pytest

from serve import keys as keys_module
from serve.keys import FILE, LIVE, Keys, Scope
from store.errors import BadInput, UnknownId

READ, BOTH = frozenset({Scope.READ}), frozenset(Scope)


def test_a_key_opens_what_it_is_for(tmp_path: Path):
    keys = Keys(tmp_path)
    reader, writer = keys.add(READ), keys.add(BOTH)
    assert keys.scopes_of(reader) == READ
    assert keys.scopes_of(writer) == BOTH
    assert Keys(tmp_path).scopes_of(reader) == READ


@pytest.mark.parametrize("wrong", ["", "tandem", "tandem_", "tandem__", "tandem_00000000_x", "\x00", "ü" * 300])
def test_a_wrong_key_opens_nothing(tmp_path: Path, wrong: str):
    keys = Keys(tmp_path)
    keys.add(BOTH)
    assert keys.scopes_of(wrong) == frozenset()


def test_a_key_with_one_letter_changed_opens_nothing(tmp_path: Path):
    keys = Keys(tmp_path)
    whole = keys.add(BOTH)
    assert keys.scopes_of(whole[:-1] + ("A" if whole[-1] != "A" else "B")) == frozenset()


def test_a_revoked_key_opens_nothing_and_stays_in_the_list(tmp_path: Path):
    keys = Keys(tmp_path)
    whole = keys.add(BOTH, note="shop")
    keys.revoke(keys.all()[0].name)
    assert keys.scopes_of(whole) == frozenset()
    assert keys.all()[0].note == "shop"
    assert keys.all()[0].revoked is not None
    with pytest.raises(UnknownId, match=f"'nobody'.*{keys.all()[0].name}"):
        keys.revoke("nobody")


def test_another_process_revokes_within_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    keys = Keys(tmp_path)
    whole = keys.add(BOTH)
    assert keys.scopes_of(whole) == BOTH
    Keys(tmp_path).revoke(keys.all()[0].name)
    monkeypatch.setattr(keys_module, "FRESH_S", 0.0)
    assert keys.scopes_of(whole) == frozenset()


def test_an_expired_key_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    keys = Keys(tmp_path)
    whole = keys.add(BOTH, days=2)
    now = keys_module.time.time()
    monkeypatch.setattr(keys_module.time, "time", lambda: now + 86_400)
    assert keys.scopes_of(whole) == BOTH
    monkeypatch.setattr(keys_module.time, "time", lambda: now + 3 * 86_400)
    assert keys.scopes_of(whole) == frozenset()


def test_keys_are_kept_as_hashes(tmp_path: Path):
    keys = Keys(tmp_path)
    secret = keys.add(BOTH).split("_", 2)[2]
    keys.close()
    assert all(secret.encode() not in path.read_bytes() for path in (tmp_path / LIVE).glob(f"{FILE}*"))


def test_a_key_without_scope_or_time_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="needs a scope"):
        Keys(tmp_path).add(frozenset())
    with pytest.raises(BadInput, match="-1 days"):
        Keys(tmp_path).add(READ, days=-1)
