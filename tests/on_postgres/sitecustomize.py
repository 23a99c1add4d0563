"""Gives each home of the tests a schema of its own in PostgreSQL, in this process and in every one that it starts (on PYTHONPATH).

TEST_POSTGRES_URL names the database; without it nothing changes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import kmscore.config as config

plain_settings = config.load_settings


def url_of(home: object) -> str:
    """Of the schema of a home, which is made where it is missing."""
    import psycopg

    base = os.environ["TEST_POSTGRES_URL"]
    schema = f"home_{hashlib.sha256(str(home).encode()).hexdigest()[:20]}"
    with psycopg.connect(base, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    return f"{base}?options={quote(f'-csearch_path={schema}')}"


def load_settings(home: Any = None, environ: Mapping[str, str] | None = None, **overrides: Any) -> config.Settings:
    env = os.environ if environ is None else environ
    if "database_url" not in overrides and not env.get("KMS_DATABASE_URL"):
        overrides["database_url"] = url_of(config.home_directory(home, env))
    return plain_settings(home, environ, **overrides)


if os.environ.get("TEST_POSTGRES_URL"):
    config.load_settings = load_settings  # bootstrap takes it from there when it is imported
