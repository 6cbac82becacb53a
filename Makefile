# `make serve` starts a server, `make try` shows a tunnel, `make test` checks everything.
# ARGS goes to the command: make serve ARGS='--domain t.example.com'

.PHONY: serve try test compile test-compiled check test-all peers lane-handshakes crossed bulk soak stalled idle overload format docs lock bench bench-profile image-check clean help run dev

ARGS ?=
PORT ?=
BIN = .venv/bin

help:
	@echo 'make serve        start a server (ARGS="--domain t.example.com …")'
	@echo 'make try          server and agent in one, with a demo page or PORT=3000'
	@echo 'make test         make check, then the test suite'
	@echo 'make check        lint, format, types, import contracts'
	@echo 'make compile      the hot path as machine code, a minute; never needed (make clean undoes it)'
	@echo 'make test-compiled  the suite with the hot path compiled, in a virtual environment of its own'
	@echo 'make test-all     the suite on each Python 3.11, 3.12, 3.13 of this machine'
	@echo 'make peers        the tests with peers of Debian and registries: nginx, Caddy, ...'
	@echo 'make lane-handshakes  what a flood of TLS handshakes costs others'
	@echo 'make format       format the code'
	@echo 'make docs         write the tables of docs/configuration.md'
	@echo 'make lock         write requirements/*.txt (needs uv)'
	@echo 'make bench        measure speed and memory beside nginx (ARGS="5 bulk": rounds, groups)'
	@echo 'make bench-profile  flame graphs of server and agent under load (ARGS=down)'
	@echo 'make crossed      a million tagged requests while agents die: no answer is somebody else'"'"'s'
	@echo 'make soak         20 minutes of everything at once; then all is as before (SOAK_SECONDS=60)'
	@echo 'make stalled      what readers that stopped cost others of their agent (ARGS=seconds)'
	@echo 'make idle         what 10 000 idle visitors cost (ARGS="connections seconds")'
	@echo 'make overload     five times what a tunnel can serve (ARGS=seconds)'
	@echo 'make bulk         10 GB each way in constant memory (ARGS=megabytes)'
	@echo 'make judges       let programs of others look at the API and at exports'
	@echo 'make kills        kill the server 50 times at full speed and look for what it acknowledged'
	@echo 'make image-check  build the image and run it (root, Debian)'
	@echo 'make clean        remove what the above made'

# Both are quick when there is nothing to do.
run:
	@scripts/venv.sh run
dev:
	@scripts/venv.sh dev

serve: run
	@exec $(BIN)/rustunnel-py serve $(ARGS)

try: run
	@exec $(BIN)/rustunnel-py try $(PORT) $(ARGS)

check: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: check
	@# Four at a time; what fails beside others is said, and run once more alone: what fails twice fails.
	export RUSTUNNEL_COMPILED=no; $(BIN)/python -m pytest -n 4 --dist worksteal $(ARGS) || \
	{ echo 'FAILED BESIDE OTHERS, once more alone:'; $(BIN)/python -m pytest --last-failed --last-failed-no-failures none $(ARGS); }

compile: dev
	@$(BIN)/python scripts/compile.py

test-compiled:
	@scripts/venv.sh dev .venv-compiled
	.venv-compiled/bin/python scripts/compile.py
	export RUSTUNNEL_COMPILED=must; .venv-compiled/bin/python -m pytest -n 4 --dist worksteal $(ARGS) || \
	{ echo 'FAILED BESIDE OTHERS, once more alone:'; \
	.venv-compiled/bin/python -m pytest --last-failed --last-failed-no-failures none $(ARGS); }

test-all:
	@scripts/test-all.sh $(ARGS)

peers: dev
	$(BIN)/python -m pytest -m peer $(ARGS)

lane-handshakes: dev
	$(BIN)/python -m tests.lanes.handshakes $(ARGS)

format: dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: dev
	$(BIN)/python scripts/configuration_keys.py docs/configuration.md

lock:
	@scripts/lock.sh $(ARGS)

bench: dev
	$(BIN)/python -m benchmarks $(ARGS)

bench-profile: dev
	$(BIN)/python -m benchmarks.profile $(ARGS)

crossed: dev
	$(BIN)/python -m tests.lanes.crossed $(ARGS)

soak: dev
	$(BIN)/python -m tests.lanes.soak

stalled: dev
	$(BIN)/python -m tests.lanes.stalled $(ARGS)

idle: dev
	$(BIN)/python -m tests.lanes.idle $(ARGS)

overload: dev
	$(BIN)/python -m tests.lanes.overload $(ARGS)

bulk: dev
	$(BIN)/python -m tests.lanes.bulk $(ARGS)

judges: dev
	@scripts/judges.sh

kills: dev
	KILLS=$${KILLS:-50} $(BIN)/python -m pytest -q -s tests/e2e/test_kill.py

image-check:
	@scripts/image-check.sh

clean:
	rm -rf .venv .venv-* dist build .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
