"""Operations on the service itself: its region, its custodies, and what a call would come to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kmscore.domain.key import Key
from kmscore.domain.specs import SPECS, Family, KeyUsage, ProtectionLevel
from kmscore.engine.arguments import page_bounds, required
from kmscore.engine.engine import Engine
from kmscore.errors import KmsError
from kmscore.results import Instance, InstanceItem, Page

# What a use needs of a key: its usage, and whether it is one of the AES family (None: whichever).
_NEEDS: dict[str, tuple[KeyUsage, bool]] = {
    **dict.fromkeys(
        "Encrypt Decrypt GenerateDataKey GenerateDataKeyWithoutPlaintext ExportDataKey GenerateAndExportDataKey".split(),
        (KeyUsage.ENCRYPT_DECRYPT, True),
    ),
    **dict.fromkeys(("AsymmetricEncrypt", "AsymmetricDecrypt"), (KeyUsage.ENCRYPT_DECRYPT, False)),
    **dict.fromkeys(("AsymmetricSign", "AsymmetricVerify"), (KeyUsage.SIGN_VERIFY, False)),
    **dict.fromkeys(("GenerateMac", "VerifyMac"), (KeyUsage.GENERATE_VERIFY_MAC, False)),
}


class ServiceOperations(Engine):
    def describe_regions(self) -> tuple[str, ...]:
        return (self._s.settings.region,)

    def describe_account_kms_status(self) -> str:
        return "Enabled"

    def open_kms_service(self) -> None:
        raise KmsError("Forbidden.Opened", "Your kms service has been opened.")

    # --- custodies -----------------------------------------------------------------------------------------------------------------

    def list_kms_instances(self, *, page_number: int = 1, page_size: int = 20) -> Page[InstanceItem]:
        limit, offset = page_bounds(page_number, page_size)
        items = self._s.instances.items()
        return Page(tuple(items[offset : offset + limit]), page_number, page_size, len(items))

    def get_kms_instance(self, kms_instance_id: str) -> Instance:
        return self._s.instances.describe(required(kms_instance_id, "KmsInstanceId"))

    def get_default_kms_instance(self) -> str:
        """The custody that create_key uses when neither an instance nor a protection level is named."""
        return self._s.instances.id_of(ProtectionLevel.SOFTWARE)

    # --- rehearsal -----------------------------------------------------------------------------------------------------------------

    def rehearse(self, operation: str, arguments: Mapping[str, Any]) -> None:
        """Raises what a use of keys would be refused with for their sake: not there, another state, another usage, no such version.

        Nothing is used: whether a ciphertext opens is not found out.
        """
        names = [arguments[name] for name in ("key_id", "destination_key_id", "source_key_id") if arguments.get(name)]
        if ("ciphertext_blob" in arguments and not names) or (operation == "ReEncrypt" and "source_key_id" not in arguments):
            names.append(self._s.ring.key_of_blob(arguments["ciphertext_blob"]))
        for name in names:
            key = self._s.ring.view(name, operation)
            _check_usage(operation, key)
            if arguments.get("key_version_id"):
                key.get_version(arguments["key_version_id"])


def _check_usage(operation: str, key: Key) -> None:
    usage, symmetric = _NEEDS.get(operation, (key.usage, SPECS[key.spec].family is Family.AES))
    if key.usage is not usage or (SPECS[key.spec].family is Family.AES) is not symmetric:
        raise KmsError("Rejected.UnsupportedOperation", "Keys of this kind do not serve this operation.")
