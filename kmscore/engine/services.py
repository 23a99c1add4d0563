"""What an open engine is made of; bootstrap wires it, Kms uses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kmscore.clock import Clock
from kmscore.config import Settings
from kmscore.domain.names import Place
from kmscore.engine.access import Access
from kmscore.engine.asymmetric import Asymmetric
from kmscore.engine.authority import Authority
from kmscore.engine.crypto import Crypto
from kmscore.engine.due import DueWork
from kmscore.engine.exporting import Exporting
from kmscore.engine.gauges import Gauges
from kmscore.engine.importing import Importing
from kmscore.engine.instances import Instances
from kmscore.engine.keyring import KeyRing
from kmscore.engine.lifecycle import Lifecycle
from kmscore.engine.reconcile import Reconciler
from kmscore.engine.scheduling import Scheduling
from kmscore.engine.tagging import Tagging
from kmscore.results import Finding
from kmscore.store.attempts import Attempts
from kmscore.store.keystore import KeyStore
from kmscore.store.queries import Queries


@dataclass(frozen=True, slots=True)
class Services:
    settings: Settings
    clock: Clock
    place: Place
    store: KeyStore
    queries: Queries
    ring: KeyRing
    crypto: Crypto
    asymmetric: Asymmetric
    exporting: Exporting
    importing: Importing
    instances: Instances
    lifecycle: Lifecycle
    due: DueWork
    attempts: Attempts
    scheduling: Scheduling
    reconciler: Reconciler
    tagging: Tagging
    access: Access
    authority: Authority
    gauges: Gauges
    examine: Callable[[], list[Finding]]
