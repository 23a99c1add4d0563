"""`python -m kmscore.cli` is the `kms` command."""

import sys

from kmscore.cli.main import main

sys.exit(main())
