# Every target works from a fresh clone; scripts/setup.sh installs what is missing, or says what to install.

PYTEST = .venv/bin/python -m pytest

.PHONY: help run dev build test test-full crash campaign-rotation campaign-disable fuzz lint bench bench-scale cluster clean

help:
	@echo "make run        set up and serve on KMS_LISTEN (default 127.0.0.1:8480), home in KMS_HOME (default ./var); TLS=1 for TLS"
	@echo "make cluster    the same on PostgreSQL and Redis: two nodes (KMS_LISTEN and the next port), two workers, beat"
	@echo "make test       the suite; make test-full adds the long campaigns; make crash is 300 kills; make fuzz"
	@echo "make campaign-rotation   10,000 rotations by workers that are killed; CAMPAIGN='--keys N --months K' for another size"
	@echo "make campaign-disable   20,000 races of disable against use over two nodes that are stopped and cut off; CAMPAIGN='--races N'"
	@echo "make lint       ruff, mypy, cython-lint"
	@echo "make bench      benchmarks into benchmarks/results/"
	@echo "make bench-scale   those of many keys at 1 k, 100 k and 1 M; needs 12 GB of disk under build/, kept for the next time"
	@echo "make build      compile the core again"

run:
	@scripts/setup.sh run
	@exec .venv/bin/kms serve $(if $(TLS),--tls)

cluster:
	@scripts/setup.sh cluster
	@exec .venv/bin/python scripts/cluster.py

dev:
	@scripts/setup.sh dev

build: dev
	.venv/bin/python setup.py -q build_ext --inplace --force

# Two at a time: half of the suite waits for processes that it started. What the store has to do with runs on PostgreSQL as well.
BOTH = -n 2 --dist loadfile
SHORT = -m "not slow" $(BOTH)
ON_POSTGRESQL = --store=postgresql $(SHORT)

test: dev
	$(PYTEST) $(SHORT)
	$(PYTEST) $(ON_POSTGRESQL) tests/integration/test_kms.py tests/integration/test_access.py tests/integration/test_intents.py \
		tests/integration/test_concurrency.py tests/integration/test_scheduler.py tests/crash/test_crash_points.py tests/e2e/test_wire_states.py

test-full: dev
	$(PYTEST) -m slow $(BOTH)
	$(PYTEST) $(ON_POSTGRESQL) tests/contract tests/crash tests/e2e tests/clients tests/integration

fuzz: dev
	@for target in params authorization context blob policy; do \
		.venv/bin/python -m tests.fuzz $$target --seconds $${FUZZ_SECONDS:-600} --work build/fuzz || exit 1; done

campaign-rotation: dev
	.venv/bin/python -m tests.campaigns.rotation $(CAMPAIGN)

campaign-disable: dev
	.venv/bin/python -m tests.campaigns.disable $(CAMPAIGN)

crash: dev
	$(PYTEST) -s tests/crash -k "three_hundred"

lint: dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/mypy --strict scripts/*.py
	PATH="$(CURDIR)/.venv/bin:$$PATH" cython-lint ext  # it looks for pycodestyle on the path

bench:
	@scripts/setup.sh bench
	.venv/bin/python -m benchmarks

bench-scale:
	@scripts/setup.sh bench
	BENCH_SCALE=full $(PYTEST) -p no:cacheprovider benchmarks/bench_scale.py benchmarks/bench_commits.py

clean:
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find kmscore -name '*.so' -delete
