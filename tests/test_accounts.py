"""Accounts, sessions and the brake on guessing. Time is a number that the tests turn."""

import pytest
from pydantic import SecretStr

from webui import accounts
from webui.accounts import SESSION_SECONDS, Accounts, Brake, Sessions, ask_for_line, hash_password, matches
from webui.errors import SettingsError


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_hash_matches_its_password_alone_and_is_salted():
    hashed = hash_password("pässword")
    assert matches("pässword", hashed)
    assert not matches("password", hashed)
    assert hashed != hash_password("pässword")
    assert "pässword" not in hashed


@pytest.fixture
def people(tmp_path):
    file = tmp_path / "people"
    file.write_text(f"# us\n\nann:{hash_password('a')}\n  bob : {hash_password('b:c')}\n")
    return file


def test_only_a_users_own_password_is_right(people):
    everybody = Accounts.of([SecretStr("eve:p:q")], people)
    assert everybody.check("ann", "a")
    assert everybody.check("bob", "b:c")
    assert everybody.check("eve", "p:q")
    for user, password in (("ann", "b:c"), ("ann", ""), ("", ""), ("dan", "a"), ("ann ", "a")):
        assert not everybody.check(user, password)


def test_an_unknown_user_costs_a_hash_too(people, monkeypatch):
    everybody = Accounts.of([], people)
    hashed = []
    scrypt = accounts._scrypt
    monkeypatch.setattr(accounts, "_scrypt", lambda *given: hashed.append(given) or scrypt(*given))
    everybody.check("nobody", "x")
    assert len(hashed) == 1


def test_no_accounts_are_none():
    assert Accounts.of([], None) is None


@pytest.mark.parametrize(
    "line",
    [
        "ann:opensesame",
        "ann",
        ":scrypt$16384$8$5$AAAA$AAAA",
        "ann:scrypt$16384$8$5$!$AAAA",
        "ann:bcrypt$16384$8$5$AAAA$AAAA",
        "ann:scrypt$1073741824$8$5$AAAA$AAAA",
        "ann:scrypt$many$8$5$AAAA$AAAA",
    ],
)
def test_a_line_that_is_no_hash_is_refused_by_its_number_and_not_quoted(line, tmp_path):
    file = tmp_path / "people"
    file.write_text(f"# us\n{line}\n")
    with pytest.raises(SettingsError, match=r"line 2.*--hash-password") as caught:
        Accounts.of([], file)
    assert "opensesame" not in str(caught.value)


def test_an_accounts_file_that_cannot_be_read_is_a_plain_message(tmp_path):
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    for file in (tmp_path / "missing", tmp_path, binary):
        with pytest.raises(SettingsError, match="--auth-file: the file cannot be read"):
            Accounts.of([], file)


def test_a_user_who_is_there_twice_is_refused(people):
    with pytest.raises(SettingsError, match="twice"):
        Accounts.of([SecretStr("ann:other")], people)


def test_the_line_asked_for_lets_its_user_in(monkeypatch, tmp_path):
    monkeypatch.setattr("builtins.input", lambda _: "ann")
    monkeypatch.setattr("getpass.getpass", lambda _: "pw")
    file = tmp_path / "people"
    file.write_text(ask_for_line())
    assert Accounts.of([], file).check("ann", "pw")


def test_two_different_passwords_are_noticed(monkeypatch):
    typed = iter(["pw", "wp"])
    monkeypatch.setattr("builtins.input", lambda _: "ann")
    monkeypatch.setattr("getpass.getpass", lambda _: next(typed))
    with pytest.raises(SettingsError, match="differ"):
        ask_for_line()


def test_a_session_ends_when_closed_and_when_its_time_is_over():
    clock = Clock()
    sessions = Sessions(clock)
    ann, bob = sessions.open("ann"), sessions.open("bob")
    assert (sessions.user(ann), sessions.user(bob), sessions.user("made up")) == ("ann", "bob", None)
    assert len(ann) >= 43  # 256 bits
    sessions.close(ann)
    assert sessions.user(ann) is None
    clock.now += SESSION_SECONDS
    assert sessions.user(bob) is None


def test_tokens_are_not_kept():
    sessions = Sessions()
    token = sessions.open("ann")
    assert token not in repr(vars(sessions))
    assert token.encode() not in b"".join(sessions._users)


def test_the_oldest_session_goes_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(accounts, "MAX_SESSIONS", 2)
    sessions = Sessions()
    first, second, third = (sessions.open(name) for name in "abc")
    assert (sessions.user(first), sessions.user(second), sessions.user(third)) == (None, "b", "c")


def test_the_brake_doubles_the_wait_after_the_free_tries():
    clock = Clock()
    brake = Brake(free=2, longest=5.0, clock=clock)
    waits = []
    for _ in range(6):
        brake.count("ann")
        waits.append(brake.wait("ann"))
        clock.now += waits[-1]
        assert brake.wait("ann") == 0
    assert waits == [0, 1, 2, 4, 5, 5]
    assert brake.wait("bob") == 0


def test_a_right_try_forgives_the_wrong_ones():
    brake = Brake(free=1)
    brake.count("ann")
    assert brake.wait("ann") > 0
    brake.forgive("ann")
    assert brake.wait("ann") == 0


def test_the_brake_remembers_a_bounded_number_of_keys():
    brake = Brake(free=1, keys=3)
    for key in "abcd":
        brake.count(key)
    assert [brake.wait(key) > 0 for key in "abcd"] == [False, True, True, True]
