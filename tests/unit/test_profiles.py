"""The file of profiles, the commands that keep it, and how the place to work at is decided from options, environment and profile."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from kmscore.cli.engine import home_path, takes_home, takes_service
from kmscore.cli.profiles import Profile, find_profile, profile, read_profiles, write_profiles
from kmscore.cli.service import Place, chosen_place
from kmscore.config import client_settings
from kmscore.errors import SetupError

PROD = Profile("https://kms.example:8480", "LTAIprod", "its secret", "eu-1", "/etc/ca.pem")


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config" / "profiles.toml"
    monkeypatch.setenv("KMS_PROFILES", str(path))
    monkeypatch.setenv("KMS_HOME", str(tmp_path / "home"))
    return path


def kms_profile(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(profile, arguments, input=stdin)


# --- the file ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HOME": "/home/a"}, "/home/a/.config/kmscore/profiles.toml"),
        ({"HOME": "/home/a", "XDG_CONFIG_HOME": "/cfg"}, "/cfg/kmscore/profiles.toml"),
        ({"HOME": "/home/a", "XDG_CONFIG_HOME": "relative"}, "/home/a/.config/kmscore/profiles.toml"),
        ({"HOME": "/home/a", "XDG_CONFIG_HOME": "/cfg", "KMS_PROFILES": "/p.toml"}, "/p.toml"),
    ],
)
def test_where_it_is(environ: Mapping[str, str], expected: str) -> None:
    assert client_settings(environ).profiles == Path(expected)


def test_what_is_written_is_read_again(path: Path) -> None:
    profiles = {"prod": PROD, "a-b_C9": Profile("http://127.0.0.1:1"), "odd": Profile("https://x", "id", 'quote " back \\ é € \U0001f600')}
    write_profiles(path, profiles)
    assert read_profiles(path) == profiles
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == [path.name]


def test_a_link_is_followed(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to(tmp_path / "real.toml")
    write_profiles(path, {"prod": PROD})
    assert path.is_symlink()
    assert read_profiles(tmp_path / "real.toml") == {"prod": PROD}


def test_a_secret_that_others_can_read_is_refused_with_the_command_that_mends_it(path: Path) -> None:
    write_profiles(path, {"prod": PROD})
    path.chmod(0o640)
    with pytest.raises(SetupError, match=f"has mode 0640: .* Run: chmod go-rwx '{path}'"):
        read_profiles(path)
    write_profiles(path, {"open": Profile("https://x")})
    path.chmod(0o644)
    assert list(read_profiles(path)) == ["open"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[p]\nendpoint x\n", "is not valid TOML: .*line 2"),
        ('endpoint = "https://x"', "'endpoint' is not the table of a profile"),
        ('["a b"]\nendpoint = "https://x"', "'a b' is not the table of a profile"),
        ('[p]\nendpoint = "https://x"\nsecret = "s3cr3t"', "unknown setting 'secret' of profile p; known are endpoint, access_key_id"),
        ("[p]\nendpoint = 7", "endpoint of profile p is not a string on one line"),
        ('[p]\nendpoint = "https://x\\ny"', "endpoint of profile p is not a string on one line"),
        ("[p]", "profile p has no endpoint"),
        ('[p]\nendpoint = "https://x"\naccess_key_id = "a"', "go together"),
        ('[p]\nendpoint = "https://x"\naccess_key_secret = "s3cr3t"', "go together"),
    ],
)
def test_what_it_does_not_understand_is_an_error(path: Path, text: str, told: str) -> None:
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(SetupError, match=told) as caught:
        read_profiles(path)
    assert str(path) in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


def test_bytes_that_are_no_text(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"\xff")
    with pytest.raises(SetupError, match="it is not UTF-8 text"):
        read_profiles(path)


def test_a_profile_that_is_not_there(path: Path) -> None:
    with pytest.raises(SetupError, match="has no profile 'prod'; kms profile set makes one"):
        find_profile(path, "prod")
    write_profiles(path, {"prod": PROD})
    assert find_profile(path, "prod") == PROD
    with pytest.raises(SetupError, match="has no profile 'x'; there are prod"):
        find_profile(path, "x")
    assert "its secret" not in repr(PROD)


# --- the commands ------------------------------------------------------------------------------------------------------------------


def test_set_list_delete(path: Path, tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.touch()
    done = kms_profile(
        *f"set prod --endpoint https://kms.example --access-key-id LTAI --region eu-1 --ca-file {authority}".split(), stdin="s3cr3t\nmore\n"
    )
    assert (done.exit_code, done.output) == (0, "")
    assert kms_profile("set", "local", "--endpoint", "http://127.0.0.1:8480").exit_code == 0
    expected = {"prod": Profile("https://kms.example", "LTAI", "s3cr3t", "eu-1", str(authority)), "local": Profile("http://127.0.0.1:8480")}
    assert read_profiles(path) == expected
    assert kms_profile("list").output.splitlines() == [
        "local  http://127.0.0.1:8480",
        f"prod   https://kms.example  access_key_id=LTAI  region=eu-1  ca_file={authority}",
    ]
    assert kms_profile("set", "prod", "--endpoint", "https://new.example").exit_code == 0
    assert read_profiles(path)["prod"] == Profile("https://new.example")
    assert kms_profile("delete", "prod").exit_code == 0
    assert list(read_profiles(path)) == ["local"]
    assert isinstance(kms_profile("delete", "prod").exception, SetupError)


@pytest.mark.parametrize(
    "arguments",
    [
        "set p --endpoint kms.example",
        "set p --endpoint https://x --ca-file /nowhere/ca.pem",
        "set a.b --endpoint https://x",
        "set p",
        "set p --endpoint https://x --access-key-id a",
        "set p --endpoint https://x --region \x1b",
    ],
)
def test_what_cannot_be_a_profile_is_not_written(path: Path, arguments: str) -> None:
    done = kms_profile(*arguments.split(" "), stdin="\n")
    assert done.exit_code != 0
    assert isinstance(done.exception, SetupError) or "Error: " in done.output
    assert not path.exists()


# --- where to work -----------------------------------------------------------------------------------------------------------------


def decided(*arguments: str) -> tuple[Place | None, str]:
    """The place that a command with these options, half of them before it, works at; and what click prints."""
    found: list[Place | None] = []

    @click.group()
    @takes_service
    def kms() -> None:
        pass

    @kms.command()
    @takes_service
    def work() -> None:
        found.append(chosen_place())

    @kms.command()
    @takes_home
    def tick() -> None:
        home_path()

    done = CliRunner().invoke(kms, arguments)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return (found[0] if found else None), done.output


@pytest.fixture
def settled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KMS_ACCESS_KEY_ID", "of-environment")
    monkeypatch.setenv("KMS_ACCESS_KEY_SECRET", "secret")
    write_profiles(path, {"prod": PROD, "test": Profile("https://test.example")})


def test_without_any_endpoint_it_is_an_engine() -> None:
    assert decided("work") == (None, "")
    assert decided("--home", "/x", "work") == (None, "")


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    ("environ", "arguments", "endpoint", "ca_file", "shell"),
    [
        ({}, "--endpoint http://a work", "http://a", "", "kms --endpoint http://a"),
        ({}, "work --endpoint http://a", "http://a", "", "kms --endpoint http://a"),
        ({}, "--endpoint http://a work --endpoint http://b", "http://b", "", "kms --endpoint http://b"),
        ({"KMS_ENDPOINT": "http://e"}, "work", "http://e", "", "kms --endpoint http://e"),
        ({"KMS_ENDPOINT": "http://e"}, "work --endpoint http://a", "http://a", "", "kms --endpoint http://a"),
        ({}, "work --profile test", "https://test.example", "", "kms --profile test"),
        ({"KMS_PROFILE": "prod"}, "work", "https://kms.example:8480", "/etc/ca.pem", "kms --profile prod"),
        ({"KMS_PROFILE": "prod"}, "work --profile test", "https://test.example", "", "kms --profile test"),
        ({"KMS_ENDPOINT": "http://e"}, "work --profile test", "https://test.example", "", "kms --profile test"),
        ({"KMS_ENDPOINT": "http://e", "KMS_PROFILE": "test"}, "work", "http://e", "", "kms --profile test --endpoint http://e"),
        ({"KMS_CA_FILE": "/e"}, "work --endpoint https://a", "https://a", "/e", "kms --endpoint https://a --ca-file /e"),
        ({"KMS_CA_FILE": "/e"}, "work --profile prod", "https://kms.example:8480", "/etc/ca.pem", "kms --profile prod"),
        ({"KMS_CA_FILE": "/e"}, "--profile prod work --ca-file /c", "https://kms.example:8480", "/c", "kms --profile prod --ca-file /c"),
    ],
)
def test_the_command_line_wins_then_the_environment(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], arguments: str, endpoint: str, ca_file: str, shell: str
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    place, _ = decided(*arguments.split())
    assert place is not None
    assert (place.endpoint, place.ca_file, place.shell) == (endpoint, ca_file, shell)
    whose = ("LTAIprod", "its secret") if "--profile prod" in arguments else ("of-environment", "secret")
    assert (place.access_key_id, place.access_key_secret) == whose


def test_whose_access_key_it_is(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_profiles(path, {"prod": PROD, "bare": Profile("https://x", region="eu-2")})
    with pytest.raises(SetupError, match=r"no access key: set KMS_ACCESS_KEY_ID .*; there is no .*/home/credentials"):
        decided("work", "--profile", "bare")
    for home in ("home", "other"):
        (tmp_path / home).mkdir()
        (tmp_path / home / "credentials").touch(mode=0o600)
        (tmp_path / home / "credentials").write_text(f"access_key_id=of-{home}\naccess_key_secret=s\n")
    bare, _ = decided("work", "--profile", "bare")
    other, _ = decided("--home", str(tmp_path / "other"), "work", "--profile", "bare")
    prod, _ = decided("work", "--profile", "prod")
    assert bare is not None and other is not None and prod is not None
    assert (bare.access_key_id, bare.region) == ("of-home", "eu-2")
    assert (other.access_key_id, other.shell) == ("of-other", f"kms --home {tmp_path / 'other'} --profile bare")
    assert (prod.access_key_id, prod.access_key_secret, prod.region) == ("LTAIprod", "its secret", "eu-1")
    assert "its secret" not in repr(prod)
    monkeypatch.setenv("KMS_ACCESS_KEY_ID", "of-environment")
    with pytest.raises(SetupError, match="KMS_ACCESS_KEY_ID and KMS_ACCESS_KEY_SECRET go together"):
        decided("work", "--profile", "bare")
    monkeypatch.setenv("KMS_ACCESS_KEY_SECRET", "secret")
    found, _ = decided("work", "--profile", "bare")
    assert found is not None and found.access_key_id == "of-environment"
    # The key of a profile that the command line names is the one that was asked for; of one that the environment names it is not.
    assert decided("work", "--profile", "prod")[0] == prod
    monkeypatch.setenv("KMS_PROFILE", "prod")
    found, _ = decided("work")
    assert found is not None and found.access_key_id == "of-environment"


def test_the_home_of_the_user_may_be_named_in_a_profile(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/a")
    write_profiles(path, {"p": replace(PROD, ca_file="~/ca.pem")})
    place, _ = decided("work", "--profile", "p")
    assert place is not None
    assert (place.ca_file, place.shell) == ("/home/a/ca.pem", "kms --profile p")


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("work --ca-file /c", "--ca-file goes with --endpoint or --profile."),
        ("work --ca-file /c --endpoint http://a", "--ca-file goes with an https endpoint."),
        ("tick --endpoint http://a", "tick works on a home, not through a service: leave out --endpoint."),
        ("--profile prod tick --ca-file /c", "tick works on a home, not through a service: leave out --profile and --ca-file."),
    ],
)
def test_what_does_not_go_together(arguments: str, told: str) -> None:
    place, printed = decided(*arguments.split())
    assert place is None
    assert told in printed


def test_the_environment_does_not_hinder_what_works_on_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KMS_ENDPOINT", "http://e")
    monkeypatch.setenv("KMS_PROFILE", "nope")
    assert decided("tick") == (None, "")
