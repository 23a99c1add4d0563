"""`python -m scheduler worker|beat [options of celery]`: with our defaults, on KMS_HOME."""

from __future__ import annotations

import sys

from scheduler import app

# Workers need no word from each other: the store tells them everything.
DEFAULTS = {
    "worker": ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=warning"],
    "beat": ["--loglevel=warning"],
}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in DEFAULTS:
        print("usage: python -m scheduler worker|beat [options of celery]", file=sys.stderr)
        return 2
    app.start([arguments[0], *DEFAULTS[arguments[0]], *arguments[1:]])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
