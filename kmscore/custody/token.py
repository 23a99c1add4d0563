"""From settings to a keeper of level HSM: find or make the token, guard it, log in once. bootstrap calls open_hsm under the home lock."""

from __future__ import annotations

import time
from pathlib import Path

from kmscore.config import Settings
from kmscore.custody import _p11, module, softhsm
from kmscore.custody.guard import Guard
from kmscore.custody.hsm import HsmKeeper
from kmscore.custody.objects import OpenToken, OwnToken
from kmscore.custody.tokenerrors import PIN_REFUSED, TRANSIENT, patiently
from kmscore.disk import require_private, require_space
from kmscore.errors import SetupError, TokenError

# A foreign tool that logs in takes no lock of ours and empties token.object for an instant: each attempt looks again from the start.
_ATTEMPTS = 5
_PAUSE_SECONDS = 0.05


def open_hsm(settings: Settings, instance_id: str, *, material_known: bool) -> HsmKeeper:
    """The keeper of the token that `settings` name: the home's own SoftHSM token, made at first start, or a token that exists.

    Call it while holding locks.home_lock(settings.home): it logs in, and may make the token. `instance_id` (in every CKA_LABEL) tells
    this kmscore's objects from others'. `material_known`: the store knows material of level HSM; no token is made then.
    The keeper's `token_serial` is for the store to remember and compare.

    Raises SetupError with what to do: module or token missing, wrong PIN, files that others can reach, disk nearly full, a token
    lost that the store knows, another home open in this process, or a process forked from one that has the token open.
    """
    opened = _open(settings, material_known=material_known)
    try:
        return patiently(lambda: HsmKeeper(opened, instance_id, allow_host_unwrap=settings.allow_host_unwrap))
    except BaseException:
        module.release(opened.library)
        raise


def _open(settings: Settings, *, material_known: bool) -> OpenToken:
    if not settings.has_token:
        raise SetupError("no token is configured (KMS_PKCS11_MODULE=none)")
    module.refuse_spy(settings.pkcs11_module)
    if not settings.owns_token:
        return _open_external(settings)
    place = softhsm.TokenHome.of(settings)
    for attempt in range(1, _ATTEMPTS + 1):
        directory = softhsm.prepare(place, material_known=material_known)
        try:
            return _open_own(place, directory)
        except TokenError as error:
            if error.rv not in TRANSIENT or attempt == _ATTEMPTS:
                raise SetupError(f"cannot open the token in {directory}: {error.message}") from error
        time.sleep(_PAUSE_SECONDS)
    raise AssertionError("unreachable")


def _open_own(place: softhsm.TokenHome, directory: Path) -> OpenToken:
    library = module.acquire(place.module, place.conf)
    try:
        slot = _slot(library, place.label, directory.name.replace("-", "")[-16:])
        token = library.logged_in(slot, lambda token: _log_in(token, place.pin, place.guard, directory))
        return OpenToken(library, slot, token, OwnToken(place.home, directory))
    except BaseException:
        module.release(library)
        raise


def _open_external(settings: Settings) -> OpenToken:
    pin = settings.pin_file
    if not pin.exists():
        raise SetupError(f"the PIN file {pin} is missing; name it in KMS_PKCS11_PIN_FILE")
    require_private(pin)
    library = module.acquire(settings.pkcs11_module, init_args=settings.pkcs11_init_args)
    try:
        slot = patiently(lambda: _slot(library, settings.token_label, None))
        token = library.logged_in(slot, lambda token: _log_in(token, pin, None, None))
        return OpenToken(library, slot, token, None)
    except TokenError as error:
        module.release(library)
        raise SetupError(f"cannot open the token {settings.token_label!r}: {error.message}") from error
    except BaseException:
        module.release(library)
        raise


def _slot(library: module.Library, label: str, serial: str | None) -> int:
    """The one slot whose token has this label, and this serial number if given.

    Raises SetupError when several have; TokenError CKR_TOKEN_NOT_RECOGNIZED when none has, which may pass (see tokenerrors.TRANSIENT).
    """
    infos = [(slot, library.core.token_info(slot)) for slot in library.core.slots()]
    found = [slot for slot, info in infos if info["label"] == label and serial in (None, info["serial"])]
    if len(found) > 1:
        raise SetupError(f"{len(found)} tokens are labelled {label!r} in {library.path}: kmscore cannot tell which one is meant")
    if not found:
        seen = ", ".join(repr(info["label"]) for _, info in infos if info["label"]) or "none"
        raise TokenError(0xE1, "C_GetSlotList", f"no token is labelled {label!r} (there: {seen})")
    return found[0]


def _log_in(token: _p11.Token, pin_file: Path, guard: Guard | None, directory: Path | None) -> None:
    """C_Login, once, never repeated on a refused PIN (a real token would lock); then whatever it did to token.object is looked at."""
    if directory is not None:
        require_space(directory)
    pin = _p11.Secret.from_file(str(pin_file))
    try:
        token.login(pin)
    except TokenError as error:
        if error.rv in PIN_REFUSED:
            raise SetupError(f"the token does not take the PIN in {pin_file} ({error.name}); put the right PIN there") from error
        raise
    finally:
        pin.close()
        if guard is not None and directory is not None:
            guard.settle(directory)
