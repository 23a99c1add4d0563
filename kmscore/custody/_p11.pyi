"""Typed face of the C core (ext/_p11.pyx). Every name here exists there; a test compares the two."""

from collections.abc import Sequence

from kmscore.errors import KmsError, TokenError

Buffer = bytes | bytearray | memoryview

class Secret:
    """Key material in memory that the core owns: its own pages, locked, not dumped, wiped on fork and on close.

    Has no buffer protocol, repr, pickle or copy. Usable until `close()`.
    """

    @staticmethod
    def random(size: int) -> Secret: ...  # size 1..8192 bytes, from getrandom
    @staticmethod
    def from_file(path: str) -> Secret: ...  # 1..4096 bytes, one trailing newline dropped; read straight into locked pages
    @staticmethod
    def copy_of(data: Buffer) -> Secret: ...  # 1..8192 bytes; for import and tests
    def reveal(self) -> bytes: ...  # the guarded way out (data-key plaintext); grep for it in review
    def close(self) -> None: ...  # idempotent; waits for nobody: a call that is using it finishes first, then it is wiped
    @property
    def size(self) -> int: ...
    @property
    def locked(self) -> bool: ...  # False where mlock was refused (RLIMIT_MEMLOCK)

class AeadKey:
    """One key version, ready to encrypt: the hot path. Thread-safe. Made by Token.xaes_key / Token.gcm_key / soft_key, never directly.

    A blob is `header || nonce || ciphertext || tag(16)` (docs/FORMAT.md); nonce is 24 bytes for suite 1, 12 for suite 2. `aad` is complete:
    the caller has put the header in front of the context already. A plaintext may be a Secret; it has at most 8,192 bytes.

    Raises KmsError: InvalidParameter (CiphertextBlob) for every blob that does not decrypt, InvalidParameter (Plaintext) for one that is
    too long, Rejected.Unavailable once retired or gone from the token, ServiceUnavailableTemporary once the Token is closed; TokenError
    where the token fails; SetupError in a forked child. In a batch, these stand in the place of the item they belong to.
    """

    @property
    def suite(self) -> int: ...
    @property
    def live(self) -> int:
        """Derived session keys of this key that exist in the token now (0 for suite 2 and for software keys)."""
    def encrypt(self, header: bytes, aad: bytes, plaintext: Buffer | Secret) -> bytes: ...
    def encrypt_batch(self, header: bytes, aad: bytes, plaintexts: Sequence[Buffer | Secret]) -> list[bytes | KmsError]: ...
    def decrypt(self, header_size: int, aad: bytes, blob: Buffer) -> bytes: ...
    def decrypt_secret(self, header_size: int, aad: bytes, blob: Buffer) -> Secret: ...
    def decrypt_batch(self, header_size: int, aad: bytes, blobs: Sequence[Buffer]) -> list[bytes | KmsError]: ...
    def retire(self) -> bool:
        """Drop every cached session key and refuse further use. True when none is left in the token (calls in flight still hold theirs).

        Idempotent: call it again to learn whether the last one has gone. Software keys wipe their Secret.
        """
    def derive_subkey_for_test(self, nonce: bytes) -> int: ...  # handle of Kx for a 24-byte nonce (vectors, benchmarks)

def soft_key(secret: Secret, suite: int) -> AeadKey:
    """An AeadKey in this process's memory on OpenSSL's EVP. Suite 1 needs 32 bytes, suite 2 16, 24 or 32.

    Takes the bytes over: `secret` is closed afterwards. Raises ValueError.
    """

class SoftPrivateKey:
    """An RSA or EC private key in this process's memory, on OpenSSL. Thread-safe; the GIL is released. Made by soft_private_key.

    OpenSSL holds it in memory of its own: wiped when the key is freed, not locked. Raises KmsError Rejected.Unavailable once retired and
    SetupError in a forked child.
    """

    @property
    def kind(self) -> str: ...  # RSA_2048 RSA_3072 RSA_4096 EC_P256 EC_P256K EC_P384 EC_P521
    @property
    def public_key(self) -> bytes: ...  # SubjectPublicKeyInfo in DER: named curve, uncompressed point
    def sign(self, scheme: str, digest: bytes) -> bytes:
        """Sign a digest of 32, 48 or 64 bytes (SHA-256, SHA-384, SHA-512) by "PKCS1", "PSS" (RSA: as long as the modulus) or "ECDSA" (DER).

        PSS: MGF1 of the same hash, a salt as long as it. Raises ValueError for another size or a scheme that does not fit the key.
        """
    def decrypt(self, hash: str, ciphertext: Buffer) -> Secret:
        """RSAES-OAEP, empty label, `hash` for OAEP and MGF1. The message may be empty.

        Raises KmsError InvalidParameter (CiphertextBlob) for every ciphertext that does not decrypt; ValueError for another hash than
        "SHA-1", "SHA-256", "SHA-384", "SHA-512" and for an EC key.
        """
    def decrypt_pkcs1(self, ciphertext: Buffer, size: int) -> Secret:
        """RSAES-PKCS1-v1_5 of a message known to have exactly `size` bytes, in constant time. Errors as `decrypt`.

        Whoever may ask without limit learns one bit each time: callers limit the attempts (RELIABILITY O2).
        """
    def retire(self) -> bool:
        """Refuse further use; the key is freed when the last call in flight ends. True when none is in flight. Idempotent."""

def soft_generate_pair(kind: str) -> tuple[Secret, bytes]:
    """A new key pair: (PKCS#8 PrivateKeyInfo DER, SubjectPublicKeyInfo DER); `kind` as SoftPrivateKey.kind, RSA with e = 65537.

    RSA takes up to some seconds, without the GIL. Raises ValueError.
    """

def soft_private_key(pkcs8: Secret, *, known_good: bool = False) -> SoftPrivateKey:
    """The private key in a PKCS#8 PrivateKeyInfo, strict DER with nothing behind it. Takes the bytes over: `pkcs8` is closed afterwards.

    RSA of exactly 2048, 3072 or 4096 bits, two primes, e odd, >= 65537 and of at most 256 bits, or EC on a named curve; OpenSSL checks
    that it is consistent (RSA: 40 to 300 ms without the GIL). `known_good`: it passed before, so RSA only has to open what its public half
    seals. Raises ValueError, with `pkcs8` still open and no detail about its bytes.
    """

class SoftMacKey:
    """An HMAC key in this process's memory, on OpenSSL. Thread-safe. Made by soft_mac_key.

    Raises KmsError Rejected.Unavailable once retired and SetupError in a forked child.
    """

    def mac(self, message: Buffer) -> bytes: ...  # 32, 48 or 64 bytes
    def retire(self) -> bool: ...  # refuse further use and wipe the key; True when no call is in flight

def soft_mac_key(secret: Secret, hash: str) -> SoftMacKey:
    """HMAC with "SHA-256", "SHA-384" or "SHA-512". Takes the bytes over: `secret` is closed afterwards. Raises ValueError."""

def kwp_unwrap(kek: Secret, wrapped: Buffer) -> Secret:
    """What AES-KWP (RFC 5649) wrapped under a key of 16, 24 or 32 bytes: 1 to 8,192 bytes.

    Raises KmsError InvalidParameter (CiphertextBlob) for whatever does not unwrap; ValueError for a `kek` of another size.
    """

def oaep_encrypt(public_key: bytes, hash: str, data: Buffer | Secret) -> bytes:
    """RSAES-OAEP, empty label, `hash` for OAEP and MGF1, under the SPKI DER of an RSA key of 2048 to 4096 bits (strict, nothing behind it).

    Raises ValueError for a key that is none and for data longer than the modulus less two digests and 2 bytes.
    """

def oaep_decode(encoded: bytes, hash: str) -> bytes | None:
    """The constant-time OAEP decoder on an encoded message of modulus length; None for bad padding. For vectors and benchmarks."""

class Token:
    """A logged-in token: a pool of sessions and what our hot path does with it. Made by Module.open."""

    @property
    def slot(self) -> int: ...
    def login(self, pin: Secret) -> None: ...  # opens the session that keeps the login alive; CKR_USER_ALREADY_LOGGED_IN is success
    def close(self) -> None:
        """Close all sessions of this Token, which logs out unless others hold sessions of the slot; every AeadKey of it is dead afterwards.

        Waits up to 30 s for calls in flight; raises ServiceUnavailableTemporary when they last longer (close it again then).
        """
    def object_ids(self) -> list[tuple[int, bytes, str, int]]:
        """Every token object that this login sees, from a new session: (handle, CKA_ID, CKA_LABEL, CKA_CLASS).

        What a fragment does not tell is b"", "" and -1.
        """
    def find(self, object_id: bytes, object_class: int = 4) -> list[int]:
        """Handles of the token objects with this CKA_ID and class (CKO_SECRET_KEY = 4), from a new session."""
    def destroy(self, handle: int) -> None: ...
    def xaes_key(self, handle: int, epoch_messages: int = 1 << 24) -> AeadKey:
        """Suite 1 on a resident 256-bit derive-only AES key."""
    def gcm_key(self, handle: int) -> AeadKey:
        """Suite 2 on a resident AES key with ENCRYPT and DECRYPT."""
    def sign(self, handle: int, mechanism: int, data: Buffer, size: int, pss_hash: str = "") -> bytes:
        """C_SignInit and C_Sign (HMAC mechanisms too): exactly `size` bytes, 1..1024; another length is a TokenError.

        `pss_hash` ("SHA-256", "SHA-384", "SHA-512") is for CKM_RSA_PKCS_PSS only: MGF1 of that hash, salt as long as it. Raises ValueError,
        TokenError (Rejected.Unavailable when the handle is gone), KmsError ServiceUnavailableTemporary once the Token is closed.
        """
    def rsa_decrypt(self, handle: int, ciphertext: Buffer, hash: str, raw: bool) -> Secret:
        """RSAES-OAEP, empty label, `hash` ("SHA-1", "SHA-256") for OAEP and MGF1. The message may be empty.

        raw: CKM_RSA_X_509 in the token, the padding taken off here in constant time; otherwise CKM_RSA_PKCS_OAEP in the token. Raises
        KmsError InvalidParameter (CiphertextBlob) for whatever a ciphertext can cause; ValueError, TokenError.
        """
    def check_value(self, handle: int) -> bytes: ...  # AES(K, 0^128), 16 bytes, of a key that derives by CKM_AES_ECB_ENCRYPT_DATA
    def random(self, size: int) -> bytes: ...  # C_GenerateRandom, 1..65536 bytes
    derived_limit: int
    """How many derived session keys of this token may be kept at once over all keys (LRU); default 4096. Calls in flight may hold more."""
    @property
    def derivations(self) -> int:
        """Derivations since open, the one that loads a suite 1 key included: SoftHSM leaks 240 bytes for each."""
    @property
    def live_derived(self) -> int: ...  # derived session keys over all keys, those of calls in flight included
    @property
    def live_sessions(self) -> int: ...
    @property
    def private_hot_keys(self) -> bool: ...
    @property
    def message_api(self) -> bool: ...  # AES-GCM goes through the message functions of PKCS#11 3.0: module and token offer them

class Module:
    """A PKCS#11 module, loaded by dlopen; one per path and process."""

    def __init__(self, path: str) -> None: ...  # SetupError when it is no PKCS#11 module
    @property
    def path(self) -> str: ...
    def initialize(self, library_parameters: str = "") -> None:
        """C_Initialize with CKF_OS_LOCKING_OK; CKR_CRYPTOKI_ALREADY_INITIALIZED is an error. `library_parameters` is for NSS softoken."""
    def finalize(self) -> None: ...  # whoever initialised; not initialised is success. Waits up to 30 s for calls in flight
    def slots(self, token_present: bool = True) -> list[int]: ...
    def token_info(self, slot: int) -> dict[str, str | int]: ...  # label, manufacturer, model, serial (stripped), flags, firmware, hardware
    def info(self) -> dict[str, str]: ...  # manufacturer, description, library_version, cryptoki_version
    def mechanisms(self, slot: int) -> dict[int, tuple[int, int, int]]: ...  # mechanism -> (min key size, max key size, flags)
    def init_token(self, slot: int, so_pin: Secret, label: str) -> None: ...  # C_InitToken
    def init_user_pin(self, slot: int, so_pin: Secret, pin: Secret) -> None: ...  # SO login, C_InitPIN, logout
    def open(self, slot: int, *, private_hot_keys: bool = False) -> Token: ...  # private: CKA_PRIVATE derived keys, 1.8 times slower
    @property
    def function_list(self) -> int: ...  # address of CK_FUNCTION_LIST, for the C loop of the benchmarks

def token_error(rv: int, function: str) -> TokenError:
    """The TokenError for a CK_RV that the PKCS#11 function named ("C_Xxx") answered: name and code as the core decides them."""

def live_secrets() -> int:
    """How many Secrets of this process hold bytes now: for tests that look for leaks."""

def syncfs(path: str) -> None:
    """Flush the file system that holds `path` (syncfs(2)): the durability barrier after a token wrote its files. Raises OSError."""

def protect_process() -> dict[str, bool]:
    """RLIMIT_CORE = 0 and PR_SET_DUMPABLE = 0 for this process; says which took effect (`no_core_file`, `not_dumpable`)."""
