# Each target works on a fresh machine with Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
SERVER := .venv/.server
STAMP := .venv/.installed
JS := tests/js/node_modules/.package-lock.json
# Tests start hundreds of processes: each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help env js run chat programs test coverage test-debian13 test-lowest faults simulate sabotage audit mutations fuzz conformance soak check format bench bench-loss lock docs screenshots news deb npm package-test dist-upgrade-test image-test asyncapi proto clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

env: $(STAMP) ## the environment, .venv, with notify and all that its tests need

# The libraries are those that the package and the image bring: a release of one changes nothing here before `make lock`.
$(SERVER): setup.py requirements.lock notify/_version.py notify/transport/_fanout.c
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "notify needs Python 3.11 or newer: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) makes no virtual environments: apt-get install python3-venv"; exit 1; }
	@[ -e $(BIN)/python ] || echo "making .venv, an environment of its own: about 5 s"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing notify and the libraries that it runs on: about 15 s"
	@packaging/pins >.venv/pins.txt
	@$(BIN)/python -m pip install --quiet --constraint .venv/pins.txt --editable '.[uvloop]'
	@touch $@

$(STAMP): $(SERVER)
	@echo "installing what tests, checks and examples need: about 40 s"
	@$(BIN)/python -m pip install --quiet --constraint .venv/pins.txt --editable '.[dev]'
	@touch $@

run: $(SERVER) ## a server on embedded defaults, with a token and commands to paste
	$(BIN)/twistd --nodaemon --pidfile= notify --dev

chat: env ## the example application on this machine: a chat with its backend, worker and page (examples/chat)
	@$(BIN)/python examples/chat/run.py

export SAMPLE

ifdef ALL
export REQUIRE_ALL := 1
env js: programs
endif

programs: ## whatever some tests need beside Python, by apt-get (Debian, root) and Go; ALL=1 does this first and skips no test
	@$(PYTHON) -m tests.support.programs install

test: env js ## all tests, under pytest and under trial (RUNNERS=trial: under one; SAMPLE=3: a third of the modules, each day another)
	$(BIN)/python -m tests $(RUNNERS)

# Not part of `make test`: measuring makes it half as long again.
coverage: env js ## branch coverage of everything by all tests under pytest (OF=core: of one package by its own tests)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -q --numprocesses=4 --dist=worksteal $(OF:%=tests/%)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --fail-under=$(if $(OF),97,90) $(OF:%=--include='notify/%/*')

test-debian13: ## most tests, and the Debian package, on Debian 13 with Python 3.13 (root; SUITE=forky: another one)
	packaging/debian13 $(SUITE)

test-lowest: env ## most tests with the lowest versions of the libraries that setup.py allows
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python -m venv --clear build/lowest
	VIRTUAL_ENV=build/lowest $(BIN)/uv pip install --quiet --resolution lowest-direct --editable '.[test]'
	PATH="$(CURDIR)/build/lowest/bin:$$PATH" build/lowest/bin/python -m pytest -q -p no:cacheprovider --numprocesses=4 --dist=worksteal $(LOWEST) $(NOT_LOWEST)

# Where our code meets the libraries; a process of its own is started by one module, for all the others that do. Left out are the
# clients' pages in a browser, the page for admins, what is JavaScript's own, and Schemathesis, which asks of the description what
# any library leaves as it is: `make test` has them all.
LOWEST = tests/wire tests/core tests/transport tests/http tests/auth tests/brokers tests/registries tests/control tests/nats tests/cli \
	tests/test_twistd.py tests/test_config.py tests/test_tap.py tests/test_components.py \
	$(filter-out %_process.py,$(wildcard tests/observe/test_*.py tests/service/test_*.py)) \
	$(filter-out $(addprefix %/test_,alone.py back_forward.py blocked.py js.py npm.py react.py tabs.py twins.py),$(wildcard tests/client/test_*.py))
NOT_LOWEST = --deselect=tests/http/test_admin.py::Browsed --deselect=tests/http/test_openapi.py::SchemathesisTest

js: $(JS) ## what the tests of the JavaScript client need, where npm is

$(JS): tests/js/package-lock.json
	@if command -v npm >/dev/null; then npm ci --silent --no-audit --no-fund --prefix tests/js || \
	echo "npm could not fetch its packages: tests of the JavaScript client will be skipped (REQUIRE_ALL=1: fail)"; fi

faults: env ## what happens when servers, links, disks and nodes fail; prints a table (some minutes)
	FAULTS=1 $(BIN)/pytest -q -rP --numprocesses=2 --dist=worksteal tests/faults

simulate: env ## simulated lives in which whatever can go wrong does (SECONDS=600; SEED=7 STEPS=1,4: one life, with its trace)
	$(BIN)/python -m tests.simulation.run --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED)) $(if $(FIRST),--first $(FIRST)) $(if $(STEPS),--steps $(STEPS))

sabotage: env ## breaks notify in one line after the other: the simulation must catch each within a minute
	$(BIN)/python -m tests.simulation.sabotage $(ARGS)

audit: env ## requirements*.lock against the known vulnerabilities; says so where those cannot be had
	$(BIN)/python -m venv build/audit
	build/audit/bin/python -m pip install --quiet pip-audit
	$(BIN)/python -m tests.security.audit build/audit/bin/python

mutations: env ## takes one defence after the other away: the test that docs/security.md names must fail (ARGS='--sample 6')
	$(BIN)/python -m tests.security.mutations $(ARGS)

fuzz: env ## streams of frames and opening handshakes beside autobahn alone, ever new ones (SECONDS=600; SEED=7 first)
	$(BIN)/python -m tests.transport.fuzz $(or $(SECONDS),600) $(SEED)

conformance: env ## the Autobahn test cases against our own end of a WebSocket, beside docs/conformance.md, which is written anew (some minutes)
	CONFORMANCE=1 $(BIN)/pytest -q tests/autobahn

check: env ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy examples/chat

soak: env js ## both client libraries for five minutes through a proxy that breaks things (ARGS='--seconds 60 --seed 7')
	$(BIN)/python -m tests.soak.run $(ARGS)

format: env ## mend what can be mended by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: env ## notify beside its peers, into benchmarks/results (QUICK=1: the short version; ARGS='--works tens')
	@$(BIN)/python -c 'import aiohttp, matplotlib, picows, socketio, uvicorn, uvloop, websockets' 2>/dev/null || $(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick) $(ARGS)

bench-loss: env ## what clients of notify and of its peers lose behind a breaking proxy (ARGS='--seconds 20 --peers ws')
	@$(BIN)/python -c 'import aiohttp, matplotlib, socketio, uvicorn' 2>/dev/null || $(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m benchmarks.loss $(ARGS)

lock: env ## requirements*.lock anew, with the newest versions that fit
	$(BIN)/python -m pip install --quiet uv
	echo '# Made by `make lock`: what the Debian package and the image install, tested together.' >requirements.lock
	$(COMPILE) --extra otel --extra uvloop setup.py >>requirements.lock
	echo '# Made by `make lock`: what builds the wheel, and the list of what is in the package and the image.' >requirements-build.lock
	printf 'setuptools>=69\ncyclonedx-python-lib>=11.12\n' | $(COMPILE) - >>requirements-build.lock

COMPILE = $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

docs: env ## the pages and a reference of clients and interfaces as a site, in build/site
	$(BIN)/sphinx-build -q -W --keep-going -c packaging/site . build/site
	@echo build/site/index.html

screenshots: env ## docs/images, the pictures in the README, of the example in a real Chromium
	$(BIN)/python -m tests.whole.screenshots

news: env ## what the next release changes, a draft from changes/
	@$(BIN)/towncrier build --draft

deb: ## dist/notify-server_*.deb, on Debian 12 or 13
	packaging/build-deb dist

npm: js ## dist/notify-client-*.tgz, the JavaScript client, and dist/notify-client.global.js for a plain script tag
	mkdir -p dist
	PATH="$(CURDIR)/tests/js/node_modules/.bin:$$PATH" npm pack --silent --pack-destination dist ./notify/web/client
	cp notify/web/client/dist/notify-client.global.js dist

package-test: env ## the Debian package through its life, on a real systemd in a container (root; SUITE=trixie: built and tried on that Debian; STAGES=few: in part)
	$(if $(SUITE),SUITE=$(SUITE) )$(if $(STAGES),STAGES=$(STAGES) )$(BIN)/python -m tests.package.lifecycle

dist-upgrade-test: env ## a server with the Debian package on the way from Debian 12 to 13, as the page tells it (root; some minutes)
	$(BIN)/python -m tests.package.dist_upgrade

image-test: env ## the container image: built without a registry, run read-only (root)
	$(BIN)/python -m tests.package.image

asyncapi: env ## docs/asyncapi.yaml from the frames
	$(BIN)/python packaging/asyncapi.py docs/asyncapi.yaml

proto: ## notify/wire/proto from proto/notify.proto; made by an old protoc, so that any protobuf from 5.26 on can load it
	$(PYTHON) -m venv build/protoc
	build/protoc/bin/python -m pip install --quiet grpcio-tools==1.63.2
	build/protoc/bin/python -m grpc_tools.protoc -Iproto --python_out=notify/wire/proto --pyi_out=notify/wire/proto notify.proto

clean: ## remove everything that make made
	rm -rf .venv notify/transport/*.so tests/js/node_modules notify/web/client/dist build debian/.tools debian/notify-server debian/.debhelper debian/files dist *.egg-info .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis _trial_temp*
