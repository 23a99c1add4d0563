"""`kms import-key`: the whole ceremony of an import, for material in a local file, or the commands that do it by hand.

Goes through the operations of the wire, as any client would.
"""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime, timedelta

import click

from kmscore.cli.byhand import script
from kmscore.cli.engine import takes_service
from kmscore.cli.service import Service, open_service
from kmscore.clock import clock_of
from kmscore.config import Settings
from kmscore.domain.algorithms import WrappingAlgorithm, WrappingKeySpec
from kmscore.domain.specs import Origin, ProtectionLevel
from kmscore.errors import KmsError
from kmscore.operations.render import date
from kmscore.wrapping import Material, read_material, wrap

# The first that the custody of the key offers is used; by name, the one with SHA-1 is the least.
_FOR_BYTES = (WrappingAlgorithm.RSAES_OAEP_SHA_256, WrappingAlgorithm.RSAES_OAEP_SHA_1)
_FOR_PRIVATE_KEYS = (WrappingAlgorithm.RSA_AES_KEY_WRAP_SHA_256, WrappingAlgorithm.RSA_AES_KEY_WRAP_SHA_1)

_UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
_SPAN = re.compile(r"([0-9]{1,9})([dhms])", re.ASCII)


def when(text: str) -> datetime | timedelta:
    """A date in ISO 8601 (UTC where it names no offset), or a span from now such as 90d."""
    try:
        if match := _SPAN.fullmatch(text):
            return timedelta(**{_UNITS[match[2]]: int(match[1])})
        instant = datetime.fromisoformat(text)
        return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).astimezone(UTC).replace(microsecond=0)
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is neither a date such as 2030-01-31T12:00:00Z nor a span such as 90d.") from None


@click.command("import-key")
@click.argument("key")
@click.option("--file", "source", required=True, metavar="FILE", help="32 raw bytes, or a private key in PEM or DER.")
@click.option("--expires", type=when, metavar="WHEN", help="Destroy the material then: 90d, or a date.  [default: never]")
@click.option("--next", "following", is_flag=True, help="Import it as the material of the next version.")
@click.option("--activate", type=when, metavar="WHEN", help="With --next: when it becomes the primary version.  [default: now]")
@click.option(
    "--wrapping-algorithm",
    "algorithm",
    type=click.Choice([each.value for each in WrappingAlgorithm]),
    help="How it travels.  [default: the best that the key's custody offers]",
)
@click.option(
    "--wrapping-key-spec",
    "wrapping_spec",
    type=click.Choice([each.value for each in WrappingKeySpec]),
    default=WrappingKeySpec.RSA_2048.value,
    show_default=True,
    help="The key it travels under.",
)
@click.option("--explain", is_flag=True, help="Print the commands that do it by hand, and do nothing.")
@takes_service
def import_key(
    key: str,
    source: str,
    expires: datetime | timedelta | None,
    following: bool,
    activate: datetime | timedelta | None,
    algorithm: str | None,
    wrapping_spec: str,
    explain: bool,
) -> None:
    """Give KEY (id, ARN or alias/NAME; made with --Origin EXTERNAL) the material in FILE.

    Takes a public key of the service, wraps the material under it, imports it. Again with the same material: a new end for it, or its
    return after it was destroyed.
    """
    if activate is not None and not following:
        raise click.UsageError("--activate goes with --next.")
    material = read_material(source)
    with open_service() as service:
        described = _own_key(service, key, material, source)
        algorithms = (algorithm,) if algorithm else _candidates(material, described, service.settings)
        instants = ((expires, "--expires"), (activate, "--activate"))
        expires_at, primary_at = (_instant(given, name, service.settings) for given, name in instants)
        params = {"KeyId": described["KeyId"]}
        if primary_at:
            params["KeyMaterialActivateUnix"] = str(int(primary_at.timestamp()))
        if expires_at:
            params["KeyMaterialExpireUnix"] = str(int(expires_at.timestamp()))
        operation = "ImportNextKeyMaterial" if following else "ImportKeyMaterial"
        if explain:
            # Asking what the custody offers would make a pair; every token can do SHA-1 in RSAES-OAEP.
            chosen = min(algorithms) if described["ProtectionLevel"] == ProtectionLevel.HSM else algorithms[0]
            click.echo(script(service.shell, operation, params, material.spec, source, WrappingAlgorithm(chosen), wrapping_spec), nl=False)
            return
        used = _import(service, operation, params, material, algorithms, wrapping_spec)
        state = service.call("DescribeKey", {"KeyId": described["KeyId"]})["KeyMetadata"]["KeyState"]
    click.echo(f"imported {described['KeySpec']} material into {described['KeyId']}, wrapped with {used}")
    click.echo(f"key state  {state}")
    if following:
        click.echo(f"primary    from {date(primary_at)}" if primary_at else "primary    from now on")
    click.echo(f"expires    {date(expires_at) or 'never'}")


def _own_key(service: Service, key: str, material: Material, source: str) -> dict[str, str]:
    """The key as it is described. What cannot end well is refused here, where it costs no attempt and can be told in words."""
    described: dict[str, str] = service.call("DescribeKey", {"KeyId": key})["KeyMetadata"]
    if described["Origin"] != Origin.EXTERNAL:
        raise KmsError("Unsupported.Origin", "Only a key made with --Origin EXTERNAL takes material of your own.")
    if described["KeySpec"] != material.spec:
        raise KmsError("InvalidKeyMaterial", f"{source} holds material of {material.spec} keys, and this key is {described['KeySpec']}.")
    return described


def _candidates(material: Material, described: dict[str, str], settings: Settings | None) -> tuple[str, ...]:
    """What to try, in this order. Where the service may unwrap in its own memory what a token cannot, the token's own way goes first.

    A service elsewhere does not say whether it may.
    """
    best = _FOR_PRIVATE_KEYS if material.is_private_key else _FOR_BYTES
    may_unwrap = settings is None or settings.allow_host_unwrap
    return best[::-1] if described["ProtectionLevel"] == ProtectionLevel.HSM and may_unwrap else best


def _import(
    service: Service, operation: str, params: dict[str, str], material: Material, algorithms: tuple[str, ...], wrapping_spec: str
) -> str:
    """Answers the algorithm that was used."""
    for algorithm in algorithms:
        try:
            wanted = {"KeyId": params["KeyId"], "WrappingAlgorithm": algorithm, "WrappingKeySpec": wrapping_spec}
            offer = service.call("GetParametersForImport", wanted)
            break
        except KmsError as error:
            if error.code != "InvalidParameter" or algorithm == algorithms[-1]:
                raise
    wrapped = wrap(material.data, base64.b64decode(offer["PublicKey"]), algorithm)
    service.call(operation, {**params, "EncryptedKeyMaterial": base64.b64encode(wrapped).decode(), "ImportToken": offer["ImportToken"]})
    return algorithm


def _instant(given: datetime | timedelta | None, option: str, settings: Settings | None) -> datetime | None:
    """An instant to come, on the clock that the engine follows; a service elsewhere follows that of its machine, and judges itself."""
    if given is None:
        return None
    now = clock_of(settings.clock_file if settings else "").now().replace(microsecond=0)
    try:
        instant = now + given if isinstance(given, timedelta) else given
    except OverflowError:
        raise click.BadParameter("It is too far away.", param_hint=f"'{option}'") from None
    if instant <= now:
        raise click.BadParameter("It is in the past.", param_hint=f"'{option}'")
    return instant
