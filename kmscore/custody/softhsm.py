"""The home's own SoftHSM token: its configuration, its first start, and the checks before every later one.

Contract (DESIGN section 3): ordinary PKCS#11 tools see the token with SOFTHSM2_CONF=$KMS_HOME/softhsm2.conf, label `kmscore`, PIN in
$KMS_HOME/pin. Everything here runs under the home lock. Nothing is repaired by guessing: a token that the store knows is never made anew.

First start, safe to kill at any step, because the last one, a rename, is what makes it count:
  1. PIN and SO PIN into their files, each by temp + fsync + rename.
  2. A token in `tokens.new`, under a configuration of its own: C_InitToken, then C_InitPIN by the core.
  3. Everything in it synced, and the guard's copy of its token.object saved.
  4. `tokens.new` renamed to `tokens`.
A start that finds no `tokens` removes what is left of `tokens.new` and begins again at 1.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from kmscore.config import Settings
from kmscore.custody import _p11, module
from kmscore.custody.fragments import TOKEN_OBJECT
from kmscore.custody.guard import Guard
from kmscore.custody.objectfile import read_token
from kmscore.disk import make_directory, remove_tree, require_private, require_space, sync_directory, sync_tree, write_file
from kmscore.errors import SetupError, TokenError

# `slots.mechanisms`: only what is used, since SoftHSM copies the whole list at each operation (HSM section 1): 15 rows instead of the
# first three cost a suite 1 encryption 7 % at 32 bytes and 10 % at 1 KiB, all 70 would cost 40 %. Names as SoftHSM spells them. Add a row
# with the feature that needs it; a home's softhsm2.conf follows at its next start.
MECHANISMS: tuple[str, ...] = (
    "CKM_AES_KEY_GEN",  # every AES key
    "CKM_AES_GCM",  # suite 2, and the derived keys of suite 1
    "CKM_AES_ECB_ENCRYPT_DATA",  # derivation of suite 1; check value of imported AES material
    "CKM_RSA_PKCS_KEY_PAIR_GEN",  # every RSA pair
    "CKM_RSA_PKCS",  # RSA_PKCS1_SHA_256; imports with RSAES_PKCS1_V1_5
    "CKM_RSA_PKCS_PSS",  # RSA_PSS_SHA_256
    "CKM_RSA_X_509",  # RSA keys that decrypt: SoftHSM has no RSAES-OAEP with SHA-256
    "CKM_RSA_PKCS_OAEP",  # imports
    "CKM_AES_KEY_WRAP_PAD",  # imports in two steps: AES-KWP
    "CKM_EC_KEY_PAIR_GEN",  # every EC pair
    "CKM_ECDSA",  # all ECDSA algorithms
    "CKM_GENERIC_SECRET_KEY_GEN",  # every MAC key
    "CKM_SHA256_HMAC",  # HMAC_256; proves the length of imported AES material
    "CKM_SHA384_HMAC",  # HMAC_384
    "CKM_SHA512_HMAC",  # HMAC_512
)

PIN_BYTES = 16  # random bytes; in hexadecimal, SoftHSM takes 4 to 255 characters


@dataclass(frozen=True, slots=True)
class TokenHome:
    """Where the parts of the own token lie in a home."""

    home: Path
    pin: Path
    label: str
    module: str

    @classmethod
    def of(cls, settings: Settings) -> TokenHome:
        return cls(settings.home, settings.pin_file, settings.token_label, settings.pkcs11_module)

    @property
    def conf(self) -> Path:
        return self.home / "softhsm2.conf"

    @property
    def so_pin(self) -> Path:
        return self.home / "so-pin"

    @property
    def tokens(self) -> Path:
        return self.home / "tokens"

    @property
    def unfinished(self) -> Path:
        return self.home / "tokens.new"

    @property
    def guard(self) -> Guard:
        return Guard(self.tokens, self.home / "guard" / TOKEN_OBJECT)

    def directory(self) -> Path:
        """The directory of the token's files. Raises SetupError when there is none."""
        directory = self.guard.token_directory()
        if directory is None:
            raise SetupError(f"there is no token under {self.tokens}")
        return directory


def prepare(place: TokenHome, *, material_known: bool) -> Path:
    """Have a whole token, ready for C_Initialize with the configuration at `place.conf`; make one in an empty home.

    `material_known`: whether the store knows material in a token. Answers the token's directory. Raises SetupError, having made no token,
    when the token is missing although it is known, when it is damaged beyond the saved copy, when others can reach its files, or
    when the disk is nearly full.
    """
    make_directory(place.home)
    require_space(place.home)
    if place.guard.token_directory() is None:
        if material_known:
            raise SetupError(
                f"the token of this home is missing: there is none under {place.tokens}, but the store knows keys in it. "
                f"Restore {place.tokens}, {place.guard.saved} and {place.pin} from backup; a new token would not hold those keys"
            )
        _first_start(place)
    directory = place.directory()
    if not place.pin.exists():
        raise SetupError(f"the PIN of the token is missing: restore {place.pin} from backup")
    for path in (place.pin, place.so_pin, place.tokens, directory):
        if path.exists():
            require_private(path)
    # Absolute paths: a home that was moved gets a new configuration.
    _write_conf(place.conf, place.tokens)
    place.guard.restore_if_broken(directory)
    return directory


def conf_text(tokens: Path) -> str:
    """The content of softhsm2.conf for the token directory `tokens` (an absolute path)."""
    return "\n".join(
        (
            "# Written by kmscore at each start; changes are lost.",
            f"directories.tokendir = {tokens}",
            "objectstore.backend = file",
            "log.level = ERROR",
            "slots.removable = false",
            # A forked child must initialise anew instead of sharing sessions and locks unawares (RELIABILITY H3).
            "library.reset_on_fork = true",
            f"slots.mechanisms = {','.join(MECHANISMS)}",
            "",
        )
    )


def _write_conf(conf: Path, tokens: Path) -> None:
    # SoftHSM's reader ends a value at any of these (SimpleConfigLoader.cpp).
    if any(character in str(tokens) for character in "\n\r#="):
        raise SetupError(f"SoftHSM cannot be configured with the path {tokens}; move the home to a plainer one")
    text = conf_text(tokens).encode()
    if not conf.exists() or conf.read_bytes() != text:
        write_file(conf, text)


def _first_start(place: TokenHome) -> None:
    remove_tree(place.unfinished)
    _ensure_pin(place.pin)
    _ensure_pin(place.so_pin)
    make_directory(place.unfinished)
    _make_token(place)
    made = [path for path in place.unfinished.iterdir() if read_token(path / TOKEN_OBJECT) is not None]
    if len(made) != 1:
        raise SetupError(f"SoftHSM made {len(made)} whole tokens in {place.unfinished} instead of one")
    sync_tree(place.unfinished)
    place.guard.save((made[0] / TOKEN_OBJECT).read_bytes())
    # An empty `tokens` may be there; rename(2) replaces it. Anything in it would not be ours to replace.
    os.rename(place.unfinished, place.tokens)
    sync_directory(place.home)


def _make_token(place: TokenHome) -> None:
    run = place.home / "run"
    make_directory(run)
    conf = run / "softhsm2.new.conf"
    _write_conf(conf, place.unfinished)
    library = module.acquire(place.module, conf)
    pin, so_pin = _p11.Secret.from_file(str(place.pin)), _p11.Secret.from_file(str(place.so_pin))
    try:
        slots = library.core.slots()
        if len(slots) != 1:
            raise SetupError(f"SoftHSM shows {len(slots)} slots in an empty directory instead of one")
        library.core.init_token(slots[0], so_pin, place.label)
        library.core.init_user_pin(slots[0], so_pin, pin)
    except TokenError as error:
        raise SetupError(f"SoftHSM cannot make a token in {place.unfinished}: {error.message}") from error
    finally:
        pin.close()
        so_pin.close()
        module.release(library)
        conf.unlink(missing_ok=True)


def _ensure_pin(path: Path) -> None:
    """A random PIN, unless an interrupted first start, or the operator, has put one there."""
    if path.exists():
        require_private(path)
        return
    write_file(path, secrets.token_hex(PIN_BYTES).encode() + b"\n")
