"""Settings: defaults, `$KMS_HOME/kms.toml`, environment; the environment wins. Every default is named here with its unit and reason.

An unknown key in kms.toml is an error; unknown KMS_ variables are left alone.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from kmscore.errors import SetupError

DEFAULT_HOME = "var"
CREDENTIALS = "credentials"  # in a home
# Where Debian's softhsm2 package, and the usual other systems, put the module.
SOFTHSM_MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)
MAX_SECONDS = 86_400
MAX_COUNT = 1 << 31
MAX_WORKERS = 64
NO_TOKEN = "none"
LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
EXPORTERS = ("otlp", "console")  # of OpenTelemetry, by its own names
TOKEN_LABEL = "kmscore"
SHARDS = 16  # parts that due work is swept in, each by a task of its own; what is in the store rests on it


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set. Durations are seconds unless the name says otherwise."""

    home: Path
    listen: str = "127.0.0.1:8480"
    database_url: str = field(default="", repr=False)  # empty: SQLite in the home; postgresql://USER:PASSWORD@HOST/NAME
    redis_url: str = field(default="", repr=False)
    region: str = "cn-local"
    account_id: str = "1000000000000001"  # digits, as the wire's Creator and ARN want
    root_access_key_id: str = ""  # empty: generated into $KMS_HOME/credentials
    root_access_key_secret: str = field(default="", repr=False)
    pkcs11_module: str = ""  # empty in kms.toml: SoftHSM where it is found; "none": no token
    pkcs11_token: str = ""  # empty: the home's own SoftHSM token, made at first start
    pkcs11_pin_file: str = ""  # empty: $KMS_HOME/pin
    pkcs11_init_args: str = ""  # what the module wants at C_Initialize, where it wants something: NSS's "configdir='sql:DIR' …"
    # Where a token cannot unwrap RSAES-OAEP with SHA-256 itself: let imported material pass through this process's locked memory instead.
    allow_host_unwrap: bool = False
    clock_file: str = ""
    # A lifecycle command that meets another's open intent waits this long before it answers 503.
    intent_wait_seconds: float = 5.0
    # Destruction waits this long for every live process to drop its session keys; then the ticker tries again.
    eviction_wait_seconds: float = 5.0
    # How often due work is looked for by the ticker of an embedded engine or `kms serve`.
    tick_seconds: float = 15.0
    # Where redis_url is set, the scheduler does due work, and the ticker only what is overdue by this much: a dead broker delays no more.
    fallback_seconds: float = 30.0
    # There, rotations that are due at one instant are spread over this many seconds after it; deletion and expiry never wait.
    rotation_spread_seconds: int = 300
    # What was handed out to a worker is offered again after this long, if nothing was heard of it. A task is stopped well before.
    claim_seconds: float = 120.0
    # How often the store itself is asked for changes that no one announced (a writer that died between commit and announcement).
    poll_seconds: float = 1.0
    # On a database that nodes share: how long a process may act on what it has read (DESIGN rule 3). It is renewed three times as often;
    # a change waits so long, and a tenth more, for a process that has died.
    lease_seconds: float = 1.0
    # A key that nobody used for this long gives up its session keys (DESIGN section 9, hot keys).
    idle_key_seconds: float = 60.0
    # Every failed import takes a whole multiple of this, so that its time tells nothing of what was wrong with the material.
    import_failure_seconds: float = 0.05
    # Minimum days between two CreateKeyVersion calls on one key (SEMANTICS section 3); 0 turns it off.
    key_version_min_days: int = 7
    max_key_versions: int = 50  # of CreateKeyVersion only; rotation is not bound by it
    max_keys: int = 0  # quota; 0: none
    max_aliases: int = 0  # quota; 0: none
    # --- of a service
    workers: int = 1  # processes that serve on one port
    tls_certificate: str = ""  # a file in PEM, with its chain; empty: no TLS
    tls_key: str = ""  # its private key, in PEM
    requests_per_second: int = 0  # of one access key, over all workers of a service; 0: no limit
    # How long a client may take to send the headers of a request, and then its body, before the service lets go.
    header_seconds: float = 15.0
    body_seconds: float = 20.0
    # --- what a service tells of itself
    log_format: str = "text"  # or "json": an object in a line
    log_level: str = "WARNING"  # INFO adds a line for each change of state
    access_log: bool = False  # a line for each request, whatever the level
    tracing: bool = False  # spans by OTLP; also on where the environment of OpenTelemetry names an exporter

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
    def credentials_file(self) -> Path:
        """The root access key, where the settings name none."""
        return self.home / CREDENTIALS

    @property
    def database(self) -> Path:
        return self.home / "kms.db"


# Settings that have an environment variable: KMS_ and the upper-case name.
_ENVIRONMENT = (
    "listen database_url redis_url region account_id root_access_key_id root_access_key_secret"
    " pkcs11_module pkcs11_token pkcs11_pin_file pkcs11_init_args allow_host_unwrap clock_file"
    " workers tls_certificate tls_key requests_per_second log_format log_level access_log tracing"
).split()


def load_settings(home: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read the settings of a home. `home` wins over KMS_HOME, keyword overrides win over everything.

    Raises SetupError for an unreadable or unknown setting.
    """
    env = os.environ if environ is None else environ
    path = home_directory(home, env)
    values: dict[str, Any] = _from_toml(path / "kms.toml")
    for name in _ENVIRONMENT:
        if (value := env.get(f"KMS_{name.upper()}")) is not None:
            values[name] = _from_environment(name, value)
    values.update(overrides)
    try:
        settings = Settings(home=path, **values)
    except TypeError as error:
        raise SetupError(f"unknown setting: {error}") from None
    _check(settings)
    return settings if settings.pkcs11_module else replace(settings, pkcs11_module=_find_softhsm())


def home_directory(home: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None) -> Path:
    """The home that is meant: `home`, else KMS_HOME, else ./var. Raises SetupError for a name that cannot be printed."""
    env = os.environ if environ is None else environ
    path = Path(home or env.get("KMS_HOME") or DEFAULT_HOME).absolute()
    if not str(path).isprintable():
        raise SetupError(f"the home {str(path)!r} has characters that cannot be printed; name another")
    return path


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """What the environment tells the `kms` command as a client; what is not set is empty."""

    profiles: Path
    """The file of profiles, whether it is there or not."""
    endpoint: str = ""
    profile: str = ""
    ca_file: str = ""
    access_key_id: str = ""
    access_key_secret: str = field(default="", repr=False)
    names_home: bool = False


def client_settings(environ: Mapping[str, str] | None = None) -> ClientSettings:
    env = os.environ if environ is None else environ
    names = ("endpoint", "profile", "ca_file", "access_key_id", "access_key_secret")
    said = {name: env.get(f"KMS_{name.upper()}", "") for name in names}
    return ClientSettings(_profiles_file(env), **said, names_home=bool(env.get("KMS_HOME")))


def traces_exporters(settings: Settings, environ: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Where spans go; nothing: tracing is off. Asked for by the setting, or by the variables that every OpenTelemetry SDK heeds.

    Raises SetupError for an exporter that is not known here.
    """
    env = os.environ if environ is None else environ
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return ()
    endpoint = env.get("OTEL_EXPORTER_OTLP_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    named = env.get("OTEL_TRACES_EXPORTER") or ("otlp" if settings.tracing or endpoint else "none")
    names = tuple(name.strip() for name in named.split(",") if name.strip() != "none")
    for name in names:
        if name not in EXPORTERS:
            raise SetupError(f"OTEL_TRACES_EXPORTER names {name!r}; offered are {', '.join(EXPORTERS)} and none")
    return names


def _profiles_file(env: Mapping[str, str]) -> Path:
    if path := env.get("KMS_PROFILES"):
        return Path(path).absolute()
    folder = Path(env.get("XDG_CONFIG_HOME", ""))
    if not folder.is_absolute():  # as the XDG base directory specification has it
        folder = Path(env.get("HOME") or os.path.expanduser("~"), ".config")
    return folder / "kmscore" / "profiles.toml"


def read_credentials(path: Path) -> tuple[str, str]:
    """(access key id, secret) of a credentials file: lines `access_key_id=` and `access_key_secret=`. Raises SetupError."""
    try:
        lines = [line.partition("=") for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"cannot read {path}: {getattr(error, 'strerror', 'it is not UTF-8 text')}") from None
    found = {name.strip(): value.strip() for name, _, value in lines}
    if not found.get("access_key_id") or not found.get("access_key_secret"):
        raise SetupError(f"{path} has no access_key_id= and access_key_secret=; restore it, or remove it to have new ones made")
    return found["access_key_id"], found["access_key_secret"]


def _from_environment(name: str, value: str) -> str | bool | int:
    if name == "pkcs11_module":
        return value or NO_TOKEN  # set but empty means "not this one": no token at all
    if _types()[name] == "bool":
        if value.lower() not in ("", "0", "1", "false", "true"):
            raise SetupError(f"KMS_{name.upper()} must be 1 or 0, not {value!r}")
        return value.lower() in ("1", "true")
    if _types()[name] == "int":
        if not re.fullmatch(r"[0-9]{1,10}", value, re.ASCII):
            raise SetupError(f"KMS_{name.upper()} must be a whole number, not {value!r}")
        return int(value)
    return value


def _from_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SetupError(f"{path} is not UTF-8 text") from None
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SetupError(f"{path} is not valid TOML: {error}") from None
    known = _types()
    for name in values:
        if name not in known:
            raise SetupError(f"{path}: unknown setting {name!r}; known are {', '.join(sorted(known))}")
    return values


def _types() -> dict[str, str]:
    return {field.name: str(field.type) for field in fields(Settings) if field.name != "home"}


def _check(settings: Settings) -> None:
    """Types and ranges, wherever a setting came from."""
    for name, kind in _types().items():
        value: Any = getattr(settings, name)
        wanted: tuple[type, ...] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}[kind]
        if not isinstance(value, wanted) or isinstance(value, bool) != (kind == "bool"):
            shown = "" if "secret" in name else f", not {value!r}"
            raise SetupError(f"the setting {name} must be of type {kind}{shown}")
        if kind == "float" and not 0 < cast(float, value) <= MAX_SECONDS:
            raise SetupError(f"the setting {name} must be more than 0 and at most {MAX_SECONDS} seconds, not {value!r}")
        if kind == "int" and not 0 <= cast(int, value) <= MAX_COUNT:
            raise SetupError(f"the setting {name} must be from 0 to {MAX_COUNT}, not {value!r}")
    if not re.fullmatch(r"[0-9]+", settings.account_id):
        raise SetupError(f"account_id must be digits, not {settings.account_id!r}")
    if not re.fullmatch(r"[A-Za-z0-9-]+", settings.region):
        raise SetupError(f"region must be letters, digits and '-', not {settings.region!r}")
    if not 1 <= settings.workers <= MAX_WORKERS:
        raise SetupError(f"workers must be from 1 to {MAX_WORKERS}, not {settings.workers}")
    for name, offered in (("log_format", LOG_FORMATS), ("log_level", LOG_LEVELS)):
        if getattr(settings, name) not in offered:
            raise SetupError(f"{name} is one of {', '.join(offered)}, not {getattr(settings, name)!r}")
    if settings.rotation_spread_seconds > MAX_SECONDS:
        raise SetupError(f"rotation_spread_seconds must be at most {MAX_SECONDS}, not {settings.rotation_spread_seconds}")
    if bool(settings.root_access_key_id) != bool(settings.root_access_key_secret):
        raise SetupError("root_access_key_id and root_access_key_secret go together; one of them is not set")
    if bool(settings.tls_certificate) != bool(settings.tls_key):
        raise SetupError("tls_certificate and tls_key go together; one of them is not set")
    if settings.database_url and not settings.database_url.startswith(("postgresql://", "postgres://")):
        raise SetupError("database_url must be postgresql://USER:PASSWORD@HOST:PORT/NAME, or unset for the SQLite database of the home")


def _find_softhsm() -> str:
    for module in SOFTHSM_MODULES:
        if Path(module).exists():
            return module
    raise SetupError(
        "no PKCS#11 module found: install SoftHSM (apt-get install softhsm2), name another module in KMS_PKCS11_MODULE, "
        "or set KMS_PKCS11_MODULE=none to run without level HSM"
    )
