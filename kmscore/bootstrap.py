"""Opens a home: the only place that knows every concrete class.

A whole start is serialised by the home lock, so any number of processes may start on an empty home at once, and each step survives a
kill at any point: the next start finds what is whole and makes what is missing.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from typing import Any, cast
from uuid import UUID

from kmscore import __version__
from kmscore.clock import Clock, SystemClock, clock_of
from kmscore.config import Settings, load_settings, read_credentials
from kmscore.custody._p11 import Secret
from kmscore.custody.hsm import HsmKeeper
from kmscore.custody.locks import home_lock
from kmscore.custody.port import AeadKey, Keeper, MacKey, MaterialRef
from kmscore.custody.probe import probe
from kmscore.custody.public import PublicKeyOperations
from kmscore.custody.software import FILE_ROOT_VERSION, SoftwareKeeper, load_or_create_root_file
from kmscore.custody.token import open_hsm
from kmscore.disk import make_directory, require_private, write_file
from kmscore.domain.key import Key
from kmscore.domain.names import Place
from kmscore.domain.specs import KeySpec, KeyUsage, Origin, ProtectionLevel
from kmscore.domain.versions import NewKey
from kmscore.engine.access import Access, new_credentials
from kmscore.engine.asymmetric import Asymmetric
from kmscore.engine.authority import Authority
from kmscore.engine.background import Ticker, Watcher
from kmscore.engine.crypto import Crypto
from kmscore.engine.due import DueWork, Pace
from kmscore.engine.effects import Effects
from kmscore.engine.exporting import Exporting
from kmscore.engine.gauges import Gauges
from kmscore.engine.importing import Importing
from kmscore.engine.instances import Instances
from kmscore.engine.keyring import KeyRing
from kmscore.engine.kms import Kms
from kmscore.engine.lifecycle import Lifecycle
from kmscore.engine.reconcile import Reconciler
from kmscore.engine.scheduling import Scheduling
from kmscore.engine.seals import Digests, SecretSeal, TokenSeal
from kmscore.engine.services import Services
from kmscore.engine.tagging import Tagging
from kmscore.errors import KmsError, SetupError
from kmscore.ids import RandomIds
from kmscore.results import Finding, Moved
from kmscore.store.attempts import Attempts
from kmscore.store.datastore import Datastore
from kmscore.store.freshness import Freshness
from kmscore.store.gate import SharedGate, live_processes
from kmscore.store.gauges import StoreGauges
from kmscore.store.keystore import KeyStore
from kmscore.store.material import AccessUses, Facts, Remains, SoftwareMaterial, Uses
from kmscore.store.moving import require_nothing_left_behind, require_unmoved, to_postgres, to_sqlite
from kmscore.store.queries import Queries
from kmscore.store.recorder import ChainedRecorder
from kmscore.store.sqlite import SqliteStore
from kmscore.store.transfer import Progress
from kmscore.store.watched import WatchedKeyStore
from kmscore.store.workers import Workers

log = logging.getLogger("kmscore")

ROOT_KEY = "system/root"  # the stream of the service's own key, which wraps software material and seals import tokens
DIGEST_KEY = "system/import-digest"  # of the one that digests the check values of imported material
SYSTEM = "kmscore"  # the actor of what the service does by itself


def open_kms(
    home: str | os.PathLike[str] | None = None,
    *,
    clock: Clock | None = None,
    ticker: bool = True,
    hsm: Keeper | None = None,
    **settings: Any,
) -> Kms:
    """Open an engine on a home, and make what a first start needs.

    `home` wins over KMS_HOME (default `./var`); further settings override kms.toml and the environment. With an injected clock, or
    `ticker` False, no due work is done by itself: call `run_due`. `hsm` replaces the keeper of level HSM (tests).
    Raises SetupError when the home, the token or a setting is not as it must be; the message says what to do.
    """
    chosen = load_settings(home, **settings)
    if clock is None:
        clock = clock_of(chosen.clock_file)
    try:
        return _open(chosen, clock, ticker, hsm)
    except OSError as error:
        raise SetupError(f"cannot use the home {chosen.home}: {error.strerror}: {error.filename or ''}") from error


def _open(chosen: Settings, clock: Clock, ticker: bool, hsm: Keeper | None) -> Kms:
    _make_directories(chosen)
    with ExitStack() as stack:
        with home_lock(chosen.home), open_store(chosen, stack) as datastore:
            services = _assemble(chosen, datastore, clock, hsm, stack)
        services.reconciler.recover()
        if ticker and not clock.injected:
            thread = Ticker(_ticks(services), chosen.tick_seconds)
            thread.start()
            stack.callback(thread.stop)
        return Kms(services, stack.pop_all().close)
    raise AssertionError


def doctor(home: str | os.PathLike[str] | None = None, **settings: Any) -> list[Finding]:
    """Examine a home: files, process, token, store, interrupted work. Also one that does not open; then the reason is a finding.

    Opening it does what every start does. Raises SetupError for settings that cannot be read.
    """
    chosen = load_settings(home, **settings)
    try:
        with open_kms(home, ticker=False, **settings) as kms:
            return kms.doctor()
    except KmsError as error:
        return [*probe(chosen, None), Finding("fail", f"this home does not open: {error.message}")]


def migrate(home: str | os.PathLike[str] | None = None, *, to: str, progress: Progress = lambda *_: None, **settings: Any) -> Moved:
    """Move the events of a home, and all that lies beside them, into another database; keys stay in their token.

    `to`: "postgresql", the database of KMS_DATABASE_URL, a URL of one, or "sqlite", from there back into the home.
    Raises SetupError, and nothing was moved, while a process has the home open, where the target holds something else, and where
    an event is damaged. The same call again finishes a move that was interrupted.
    """
    chosen = load_settings(home, **settings)
    url = to if "://" in to else chosen.database_url
    if to not in ("postgresql", "sqlite") and not to.startswith(("postgresql://", "postgres://")):
        raise SetupError("the target is postgresql, sqlite, or a URL that begins with postgresql://")
    if not url:
        raise SetupError("no PostgreSQL is named: set KMS_DATABASE_URL, or database_url in kms.toml")
    if not chosen.home.is_dir():
        raise SetupError(f"there is no home at {chosen.home}")
    try:
        with home_lock(chosen.home), closing(_postgres(url)) as postgres, postgres.starting():
            _require_unused(chosen, postgres)
            if to == "sqlite":
                return to_sqlite(postgres, chosen.database, progress, SystemClock().now().strftime("%Y%m%dT%H%M%SZ"))
            return to_postgres(chosen.database, postgres, progress)
    except OSError as error:
        raise SetupError(f"cannot move the database of {chosen.home}: {error.strerror}: {error.filename or ''}") from error
    raise AssertionError


def _require_unused(settings: Settings, postgres: Datastore) -> None:
    """Nobody can start on either database now; who has one open already?"""
    from kmscore.store.lease import renewing

    users = [f"process {pid}" for pid in live_processes(settings.home / "run")]
    if postgres.schema_version():
        users += [f"process {name}" for name in renewing(postgres, settings.lease_seconds)]
    if users:
        raise SetupError(f"it is in use by {', '.join(users)}: end every process of kmscore on this home and on this database first")


@contextmanager
def open_store(settings: Settings, stack: ExitStack) -> Iterator[Datastore]:
    """The database of the settings, up to date; while the block lasts nobody else starts on it. The caller holds the home lock."""
    datastore: Datastore = _postgres(settings.database_url) if settings.database_url else SqliteStore(settings.database)
    stack.callback(datastore.close)
    with datastore.starting():
        datastore.prepare()
        require_unmoved(datastore)
        require_nothing_left_behind(datastore, settings.database)
        yield datastore


def _postgres(url: str) -> Datastore:
    try:
        from kmscore.store.postgres import PostgresStore
    except ImportError as error:
        raise SetupError(f"KMS_DATABASE_URL names PostgreSQL, which needs more: pip install 'kmscore[postgres]' ({error})") from None
    return PostgresStore(url)


def _freshness(settings: Settings, datastore: Datastore) -> Freshness:
    if not datastore.shared:
        return SharedGate(settings.home / "run")
    from kmscore.store.lease import Lease
    from kmscore.store.postgres import PostgresStore

    return Lease(cast(PostgresStore, datastore), settings.home / "run", settings.lease_seconds)


def _examine(settings: Settings, hsm: Keeper | None, datastore: Datastore, queries: Queries) -> list[Finding]:
    findings = [*probe(settings, hsm if isinstance(hsm, HsmKeeper) else None), datastore.examine()]
    intents = queries.open_intents()
    if intents:
        findings.append(Finding("warn", f"{len(intents)} changes were interrupted or are under way", "kms reconcile settles them"))
    return findings


def _assemble(settings: Settings, datastore: Datastore, clock: Clock, hsm: Keeper | None, stack: ExitStack) -> Services:
    queries = Queries(datastore)
    facts = Facts(datastore)
    instance_id = facts.set_once("instance_id", secrets.token_hex(4))
    freshness = _freshness(settings, datastore)
    stack.callback(freshness.close)
    store = WatchedKeyStore(ChainedRecorder(datastore), freshness.owner)

    keepers: dict[ProtectionLevel, Keeper] = {}
    if hsm is not None:
        keepers[ProtectionLevel.HSM] = hsm
    elif settings.has_token:
        keepers[ProtectionLevel.HSM] = _open_token(settings, instance_id, queries, facts, stack)

    place = Place(settings.region, settings.account_id)
    ring = KeyRing(store, queries, freshness, keepers, clock, place)
    stack.callback(ring.close)
    freshness.start()
    # A lease is renewed three times before it ends; the rest of the start may take longer.
    poll = min(settings.poll_seconds, settings.lease_seconds / 3) if datastore.shared else settings.poll_seconds
    watcher = Watcher(ring, freshness.gate, poll, settings.idle_key_seconds)
    watcher.start()
    stack.callback(watcher.stop)
    effects = Effects(store, queries, freshness, ring, keepers, Remains(datastore))
    ids = RandomIds()
    lifecycle = Lifecycle(store, queries, effects, keepers, clock, ids, settings.account_id, settings.intent_wait_seconds)

    root, root_version = _root_key(settings, keepers, lifecycle, store, queries, facts)
    software = SoftwareKeeper(SoftwareMaterial(datastore), root, root_version)
    keepers[ProtectionLevel.SOFTWARE] = software
    digest_key = _system_key(DIGEST_KEY, KeySpec.HMAC_256, KeyUsage.GENERATE_VERIFY_MAC, ProtectionLevel.SOFTWARE, lifecycle, store)

    seal = SecretSeal(root, root_version)
    root_credentials = _credentials(settings)
    access = Access(store, queries, AccessUses(datastore), lifecycle, effects, ring, seal, settings.account_id, root_credentials)
    stack.callback(_quietly, access.flush_uses)
    public = PublicKeyOperations()
    crypto = Crypto(ring, Uses(datastore), lambda key_id: _rotate_quietly(services, key_id), Secret.random)
    attempts, pace = Attempts(datastore), _pace(settings)
    scheduling = Scheduling(attempts, Workers(datastore), clock, pace, settings.tick_seconds, scheduled=bool(settings.redis_url))
    services = Services(
        settings=settings,
        clock=clock,
        place=place,
        store=store,
        queries=queries,
        ring=ring,
        crypto=crypto,
        asymmetric=Asymmetric(ring, public),
        exporting=Exporting(crypto, public, Secret.random),
        importing=Importing(
            store,
            queries,
            lifecycle,
            effects,
            keepers,
            TokenSeal(root, root_version),
            Digests(lambda: cast(MacKey, software.load(_system_ref(digest_key)))),
            ids,
            SYSTEM,
            settings.import_failure_seconds,
            settings.eviction_wait_seconds,
        ),
        instances=Instances(instance_id, digest_key.created_on, keepers, queries, clock, place, _about(keepers)),
        lifecycle=lifecycle,
        due=DueWork(queries, attempts, lifecycle, clock, pace),
        attempts=attempts,
        scheduling=scheduling,
        reconciler=Reconciler(queries, effects, keepers, lifecycle.by),
        tagging=Tagging(lifecycle, queries, clock, place),
        access=access,
        authority=Authority(ring, access, place),
        gauges=Gauges(ring, keepers, StoreGauges(datastore, store), clock, scheduling.status, freshness.lease_age),
        examine=lambda: [*_examine(settings, keepers.get(ProtectionLevel.HSM), datastore, queries), *scheduling.findings()],
    )
    return services


def _pace(settings: Settings) -> Pace:
    """An engine that is alone does due work at once; where there is a scheduler, the ticker is what is left when that fails."""
    alone = Pace(settings.claim_seconds, settings.eviction_wait_seconds)
    if not settings.redis_url:
        return alone
    return replace(alone, spread_seconds=settings.rotation_spread_seconds, late_seconds=settings.fallback_seconds)


def _open_token(settings: Settings, instance_id: str, queries: Queries, facts: Facts, stack: ExitStack) -> HsmKeeper:
    keeper = open_hsm(settings, instance_id, material_known=queries.knows_material(ProtectionLevel.HSM.value))
    stack.callback(keeper.close)
    if keeper.owns_token and facts.get("token_serial") is None:
        found = keeper.inventory()
        if found.materials or found.foreign:
            raise SetupError(
                "the database is new, but the token of this home holds keys: restore it from backup, or name the one it was; "
                "or move the directory tokens away to begin anew"
            )
    bound = facts.set_once("token_serial", keeper.token_serial)
    if bound != keeper.token_serial:
        raise SetupError(
            f"this home is bound to the token with serial {bound}, but {keeper.token_serial} was found: "
            "restore the token from backup, or set the one this home was made with"
        )
    return keeper


def _root_key(
    settings: Settings,
    keepers: dict[ProtectionLevel, Keeper],
    lifecycle: Lifecycle,
    store: KeyStore,
    queries: Queries,
    facts: Facts,
) -> tuple[AeadKey, bytes]:
    """The key that wraps software material: in the token, or in a file of the home where the home was made without one."""
    hsm = keepers.get(ProtectionLevel.HSM)
    where = facts.set_once("root_key", "file" if hsm is None else "token")
    if where == "file":
        known = queries.knows_material(ProtectionLevel.SOFTWARE.value)
        return load_or_create_root_file(settings.home / "root.key", may_create=not known), FILE_ROOT_VERSION
    if hsm is None:
        raise SetupError("the root key of this home lives in its token: KMS_PKCS11_MODULE must name it")
    root = _system_key(ROOT_KEY, KeySpec.AES_256, KeyUsage.ENCRYPT_DECRYPT, ProtectionLevel.HSM, lifecycle, store)
    return cast(AeadKey, hsm.load(_system_ref(root))), UUID(root.versions[-1].version_id).bytes


def _system_key(stream: str, spec: KeySpec, usage: KeyUsage, level: ProtectionLevel, lifecycle: Lifecycle, store: KeyStore) -> Key:
    """A key of the service's own, made where it is missing; the caller holds the home lock."""
    key = store.key(stream)
    if key is None:
        return lifecycle.create(NewKey(spec, usage, Origin.KMS, level, creator=SYSTEM, system=True), stream)
    if not key.versions:  # its first start was interrupted
        return lifecycle.rotate(stream, lambda key, by: None)
    return key


def _system_ref(key: Key) -> MaterialRef:
    version = key.versions[-1]
    return MaterialRef(bytes.fromhex(version.material_id), key.spec, version.suite, key.usage)


def _about(keepers: dict[ProtectionLevel, Keeper]) -> dict[ProtectionLevel, Callable[[], tuple[str, str]]]:
    """How each custody is asked what it is."""
    hsm = keepers.get(ProtectionLevel.HSM)
    return {
        ProtectionLevel.SOFTWARE: lambda: ("software", f"kmscore {__version__}"),
        ProtectionLevel.HSM: hsm.about if isinstance(hsm, HsmKeeper) else lambda: ("token", ""),
    }


def _ticks(services: Services) -> Callable[[Callable[[], bool]], None]:
    """What the ticker does: the first time, compare everything; then what is due."""
    compared = False

    def tick(stop: Callable[[], bool]) -> None:
        nonlocal compared
        _quietly(services.access.flush_uses)
        report = services.reconciler.recover() if compared else services.reconciler.reconcile()
        compared = True
        for problem in (*report.quarantined, *report.missing, *report.pending):
            log.warning("reconcile: %s", problem)
        for key_id, code in services.due.run(stop).failed:
            log.warning("due work on %s failed: %s", key_id, code)

    return tick


def _rotate_quietly(services: Services, key_id: str) -> None:
    with suppress(KmsError):  # asked for again at the next block of uses
        services.lifecycle.rotate(key_id, Key.check_rotation)


def _make_directories(settings: Settings) -> None:
    home = settings.home
    home.parent.mkdir(parents=True, exist_ok=True)
    make_directory(home)
    if not any(home.iterdir()):
        home.chmod(0o700)  # an empty directory that was made for us becomes ours alone
    make_directory(home / "run")


def _credentials(settings: Settings) -> tuple[str, str]:
    """The root credentials: given by the settings, or made once into a file that only the owner reads."""
    if settings.root_access_key_id:
        return settings.root_access_key_id, settings.root_access_key_secret
    path = settings.credentials_file
    if not path.exists():
        access_key_id, secret = new_credentials()
        write_file(path, f"access_key_id={access_key_id}\naccess_key_secret={secret}\n".encode())
    require_private(path)
    return read_credentials(path)


def _quietly(act: Callable[[], None]) -> None:
    """At the end, when what fails cannot be helped any more."""
    with suppress(KmsError):
        act()
