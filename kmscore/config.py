"""Settings: defaults, `$KMS_HOME/kms.toml`, environment; the environment wins. Every default is named here with its unit and reason.

An unknown key in kms.toml is an error; unknown KMS_ variables are left alone.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from kmscore.errors import SetupError

DEFAULT_HOME = "var"
# Where Debian's softhsm2 package, and the usual other systems, put the module.
SOFTHSM_MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)
NO_TOKEN = "none"
TOKEN_LABEL = "kmscore"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set. Durations are seconds unless the name says otherwise."""

    home: Path
    listen: str = "127.0.0.1:8480"
    database_url: str = ""  # empty: SQLite in the home
    redis_url: str = ""
    region: str = "cn-local"
    account_id: str = "1000000000000001"  # digits, as the wire's Creator and ARN want
    root_access_key_id: str = ""  # empty: generated into $KMS_HOME/credentials
    root_access_key_secret: str = ""
    pkcs11_module: str = ""  # empty in kms.toml: SoftHSM where it is found; "none": no token
    pkcs11_token: str = ""  # empty: the home's own SoftHSM token, made at first start
    pkcs11_pin_file: str = ""  # empty: $KMS_HOME/pin
    clock_file: str = ""
    # A lifecycle command that meets another's open intent waits this long before it answers 503.
    intent_wait_seconds: float = 5.0
    # Destruction waits this long for every live process to drop its session keys; then the ticker tries again.
    eviction_wait_seconds: float = 5.0
    # How often due work is looked for by the ticker of an embedded engine or `kms serve`.
    tick_seconds: float = 15.0
    # How often the store itself is asked for changes that no one announced (a writer that died between commit and announcement).
    poll_seconds: float = 1.0
    # A key that nobody used for this long gives up its session keys (DESIGN section 9, hot keys).
    idle_key_seconds: float = 60.0
    # Minimum days between two CreateKeyVersion calls on one key (SEMANTICS section 3); 0 turns it off.
    key_version_min_days: int = 7
    max_key_versions: int = 50  # of CreateKeyVersion only; rotation is not bound by it
    max_keys: int = 0  # quota; 0: none
    max_aliases: int = 0  # quota; 0: none

    @property
    def has_token(self) -> bool:
        return self.pkcs11_module != NO_TOKEN

    @property
    def owns_token(self) -> bool:
        """True when the token is the home's own SoftHSM token, which kmscore makes, guards and sweeps."""
        return self.has_token and not self.pkcs11_token and "softhsm" in Path(self.pkcs11_module).name

    @property
    def token_label(self) -> str:
        return self.pkcs11_token or TOKEN_LABEL

    @property
    def pin_file(self) -> Path:
        return Path(self.pkcs11_pin_file) if self.pkcs11_pin_file else self.home / "pin"

    @property
    def database(self) -> Path:
        return self.home / "kms.db"


# Settings that have an environment variable: KMS_ and the upper-case name.
_ENVIRONMENT = (
    "listen database_url redis_url region account_id root_access_key_id root_access_key_secret"
    " pkcs11_module pkcs11_token pkcs11_pin_file clock_file"
).split()


def load_settings(home: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read the settings of a home. `home` wins over KMS_HOME, keyword overrides win over everything.

    Raises SetupError for an unreadable or unknown setting.
    """
    env = os.environ if environ is None else environ
    path = Path(home or env.get("KMS_HOME") or DEFAULT_HOME).absolute()
    values: dict[str, Any] = _from_toml(path / "kms.toml")
    for name in _ENVIRONMENT:
        if (value := env.get(f"KMS_{name.upper()}")) is not None:
            # Set but empty means "not this one": for the module, no token at all.
            values[name] = (value or NO_TOKEN) if name == "pkcs11_module" else value
    values.update(overrides)
    try:
        settings = Settings(home=path, **values)
    except TypeError as error:
        raise SetupError(f"unknown setting: {error}") from None
    if not settings.account_id.isdigit():
        raise SetupError(f"account_id must be digits, not {settings.account_id!r}")
    return settings if settings.pkcs11_module else replace(settings, pkcs11_module=_find_softhsm())


def _from_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SetupError(f"{path} is not valid TOML: {error}") from None
    known = {field.name: field.type for field in fields(Settings) if field.name != "home"}
    for name, value in values.items():
        if name not in known:
            raise SetupError(f"{path}: unknown setting {name!r}; known are {', '.join(sorted(known))}")
        wanted: tuple[type, ...] = {"str": (str,), "int": (int,), "float": (int, float)}[str(known[name])]
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise SetupError(f"{path}: {name} must be of type {known[name]}")
    return values


def _find_softhsm() -> str:
    for module in SOFTHSM_MODULES:
        if Path(module).exists():
            return module
    raise SetupError(
        "no PKCS#11 module found: install SoftHSM (apt-get install softhsm2), name another module in KMS_PKCS11_MODULE, "
        "or set KMS_PKCS11_MODULE=none to run without level HSM"
    )
