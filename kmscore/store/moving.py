"""A move of a home's events from its SQLite database to PostgreSQL, or back: nobody uses either meanwhile, and only one is good afterwards.

    keep both still -> copy, check, compare -> commit the copy -> mark the source as moved

A kill before the commit leaves the source as it was and nothing in the target. A kill after it leaves a target that is the same as the
source: the next run finds it so, and marks.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path

from kmscore.disk import sync_directory
from kmscore.errors import SetupError
from kmscore.results import Moved
from kmscore.store.datastore import Cursor, Datastore
from kmscore.store.material import MovedTo, mark_as_moved, moved_to
from kmscore.store.schema import SCHEMA_VERSION
from kmscore.store.sqlite import SqliteStore
from kmscore.store.transfer import Progress, copy, head, is_empty, require_same, require_whole, tables


def require_unmoved(datastore: Datastore) -> None:
    """Raises SetupError for a store whose events go on elsewhere."""
    with datastore.reading() as cursor:
        moved = moved_to(cursor)
    if moved is not None:
        raise _was_moved(datastore, moved)


def require_nothing_left_behind(datastore: Datastore, path: Path) -> None:
    """Raises SetupError for a shared store that is new while the home has events of its own at `path`: they would seem to be lost."""
    if not datastore.shared or not path.exists() or _position(datastore):
        return
    with closing(SqliteStore(path)) as own:
        if own.schema_version() and not _moved(own) and _position(own):
            raise SetupError(
                f"this home has its keys in {path}, and {datastore.where} is new: kms migrate --to postgresql moves them there; "
                "or take KMS_DATABASE_URL away"
            )


def to_postgres(path: Path, target: Datastore, told: Progress) -> Moved:
    """The caller holds the home lock and is within `starting` of the target, and knows that nobody has the source open."""
    if not path.exists():
        raise SetupError(f"there is no {path}: nothing to move")
    with closing(SqliteStore(path)) as source:
        _require_current(source)
        if not target.schema_version():
            require_unmoved(source)
            target.prepare()
        _require_current(target)
        return _move(source, target, told, lambda: None)


def to_sqlite(source: Datastore, path: Path, told: Progress, stamp: str) -> Moved:
    """The same the other way. What is at `path` and not needed any more is kept beside it, with `stamp` in its name."""
    _require_current(source)
    if path.exists() and not _may_be_replaced(path, source):
        with closing(SqliteStore(path)) as target:
            _require_current(target)
            return _move(source, target, told, lambda: None)
    require_unmoved(source)
    fresh = path.with_name(f"{path.name}.incoming")
    _clear(fresh)  # of a run that was killed
    kept = ""

    def put_in_place() -> None:
        nonlocal kept
        target.close()
        kept = _replace(path, fresh, stamp)

    try:
        with closing(SqliteStore(fresh)) as target:
            target.prepare()
            moved = _move(source, target, told, put_in_place, where=path)
    finally:
        _clear(fresh)
    return Moved(moved.where, moved.events, moved.rows, moved.already, kept)


def _move(source: Datastore, target: Datastore, told: Progress, committed: Callable[[], None], where: Path | None = None) -> Moved:
    """`committed` is called between the commit of the target and the mark. `where` names the file that the target becomes by it."""
    name = SqliteStore.name(where) if where else target.where
    still = [*(table.name for table in tables()), "processes"]
    with source.writing() as s:
        source.keep_still(s, still)
        position, log = head(s)
        mark = moved_to(s)
        with target.writing() as t:
            target.keep_still(t, still)
            already = not is_empty(t)
            if mark is not None:
                if not _goes_on(t, mark):
                    raise _was_moved(source, mark)
                return Moved(mark.where, mark.position, 0, True)
            if already:
                rows = _compare(source, s, target, t, position, told)
            else:
                copy(source, s, target, t, position, told)
                rows = require_same(source, s, target, t, position, told)
                require_whole(t, position, told)
        committed()
        mark_as_moved(s, MovedTo(name, position, log))
    return Moved(name, position, rows, already)


def _compare(source: Datastore, s: Cursor, target: Datastore, t: Cursor, position: int, told: Progress) -> int:
    """Whether a target that is not empty is what a run before this one made of the source."""
    elsewhere = moved_to(t)
    if elsewhere is not None:
        raise SetupError(
            f"{target.where} holds events that were moved to {elsewhere.where} before, and is not overwritten: "
            "name another database or schema"
        )
    try:
        require_whole(t, position, told)
        return require_same(source, s, target, t, position, told)
    except SetupError as error:
        raise SetupError(
            f"{target.where} is not empty, and not a copy of {source.where} ({error.message}): name another database or schema, or move "
            "what is there away"
        ) from None


def _goes_on(t: Cursor, mark: MovedTo) -> bool:
    """Whether it is there that the events go on."""
    t.execute("SELECT 1 FROM stored_events WHERE position = ? AND log_hash = ?", (mark.position, mark.log_hash))
    return t.fetchone() is not None and moved_to(t) is None


def _was_moved(datastore: Datastore, moved: MovedTo) -> SetupError:
    do = (
        "take KMS_DATABASE_URL (database_url in kms.toml) away to go on there, on the home that it is of"
        if datastore.shared
        else "set KMS_DATABASE_URL (or database_url in kms.toml) to go on there; kms migrate --to sqlite brings it back"
    )
    return SetupError(f"the events of {datastore.where} were moved to {moved.where} (position {moved.position}): {do}")


def _require_current(datastore: Datastore) -> None:
    version = datastore.schema_version()
    if version == SCHEMA_VERSION:
        return
    if not version:
        raise SetupError(f"{datastore.where} holds no events of kmscore: nothing to move")
    do = "open it once first: kms doctor" if version < SCHEMA_VERSION else "use the newer kmscore that wrote it"
    raise SetupError(f"{datastore.where} has schema {version}, this kmscore moves schema {SCHEMA_VERSION}: {do}")


def _moved(datastore: Datastore) -> MovedTo | None:
    with datastore.reading() as cursor:
        return moved_to(cursor)


def _position(datastore: Datastore) -> int:
    with datastore.reading() as cursor:
        return head(cursor)[0]


def _may_be_replaced(path: Path, source: Datastore) -> bool:
    """Nothing that counts is there: no events, or those that were moved away before. False also when the move is over."""
    with closing(SqliteStore(path)) as there:
        if not there.schema_version():
            return True
        if _moved(there) is not None:
            return _moved(source) is None
        with there.reading() as cursor:
            return there.schema_version() == SCHEMA_VERSION and is_empty(cursor)


def _clear(path: Path) -> None:
    for left in path.parent.glob(f"{path.name}*"):
        left.unlink()


def _replace(path: Path, fresh: Path, stamp: str) -> str:
    """Put `fresh` at `path` in one step; what was there has another name before. Answers that name, or nothing."""
    for database in (path, fresh):
        if database.with_name(f"{database.name}-wal").exists():  # the last to close it removes it
            raise SetupError(f"another program has {database} open: end it, and run this again")
    kept = None
    if path.exists():
        names = (path.with_name(f"{path.name}.before-{stamp}{f'-{n}' if n else ''}") for n in count())
        kept = next(name for name in names if not name.exists())
        os.link(path, kept)
    os.rename(fresh, path)
    sync_directory(path.parent)
    return kept.name if kept else ""
