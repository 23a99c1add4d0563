"""The commands of an import by hand, for a POSIX shell with openssl 3: what `kms import-key --explain` prints. Does nothing itself."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from kmscore.domain.algorithms import WrappingAlgorithm
from kmscore.domain.specs import SPECS, Family, KeySpec

_FRAME = """\
# {operation} by hand; `sh` takes it as it is. What comes in between lies in /dev/shm, not on a disk.
(
set -eu
umask 077
work=$(mktemp -d /dev/shm/import.XXXXXX)
trap 'rm -r "$work"' EXIT

# A public key of the service, and the import token that belongs to it: good for 24 hours.
{kms} GetParametersForImport --KeyId {key} \\
  --WrappingAlgorithm {algorithm} --WrappingKeySpec {wrapping_spec} > "$work/parameters"
field() {{ sed -n 's/.*"'"$1"'": "\\(.*\\)".*/\\1/p' "$work/parameters"; }}
field PublicKey | base64 -d > "$work/public.der"

{wrapping}

{kms} {operation} --KeyId {key} {more}\\
  --EncryptedKeyMaterial "$(base64 -w 0 "$work/wrapped")" \\
  --ImportToken "$(field ImportToken)"
)
"""

_ONE_STEP = """\
# The material under that key.
openssl pkeyutl -encrypt -pubin -keyform DER -inkey "$work/public.der" \\
  {padding} \\
  -in {source} -out "$work/wrapped\""""

_TWO_STEPS = """\
# The material{as_pkcs8}.
{material}

# A new AES-256 key under that public key; behind it the material under the AES key, with AES-KWP (RFC 5649).
# Other users of this machine can see the AES key among the processes for a moment.
openssl rand -out "$work/aes" 32
openssl pkeyutl -encrypt -pubin -keyform DER -inkey "$work/public.der" \\
  {padding} \\
  -in "$work/aes" -out "$work/wrapped"
openssl enc -id-aes256-wrap-pad -K "$(od -An -v -tx1 "$work/aes" | tr -d ' \\n')" -iv A65959A6 \\
  -in "$work/material" >> "$work/wrapped\""""

_PLAIN = 'cp {source} "$work/material"'
_PKCS8 = 'openssl pkcs8 -topk8 -nocrypt -in {source} -outform DER -out "$work/material"'
_NAMED = 'openssl pkey -in {source} -ec_param_enc named_curve | openssl pkcs8 -topk8 -nocrypt -outform DER -out "$work/material"'


def script(
    kms: str, operation: str, params: Mapping[str, str], spec: KeySpec, source: str, algorithm: WrappingAlgorithm, wrapping_spec: str
) -> str:
    """`kms` is how a shell calls this program, `params` are those of `operation` but for the material and its token."""
    more = "".join(f"--{name} {shlex.quote(value)} " for name, value in params.items() if name != "KeyId")
    file = shlex.quote(str(Path(source).absolute()))
    if algorithm.two_step:
        how = {Family.RSA: _PKCS8, Family.EC: _NAMED}.get(SPECS[spec].family, _PLAIN)
        wrapping = _TWO_STEPS.format(
            as_pkcs8=" as PKCS#8 in DER" if SPECS[spec].is_asymmetric else "", material=how.format(source=file), padding=_padding(algorithm)
        )
    else:
        wrapping = _ONE_STEP.format(padding=_padding(algorithm), source=file)
    return _FRAME.format(
        kms=kms,
        operation=operation,
        key=shlex.quote(params["KeyId"]),
        algorithm=algorithm.value,
        wrapping_spec=wrapping_spec,
        wrapping=wrapping,
        more=more,
    )


def _padding(algorithm: WrappingAlgorithm) -> str:
    if not algorithm.hash:
        return "-pkeyopt rsa_padding_mode:pkcs1"
    digest = algorithm.hash.replace("-", "").lower()
    return f"-pkeyopt rsa_padding_mode:oaep -pkeyopt rsa_oaep_md:{digest} -pkeyopt rsa_mgf1_md:{digest}"
