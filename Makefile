# The contributor's manual. Two commands matter: `sudo make run` and `sudo make test`.
PYTHON  := /usr/bin/python3
VENV    := .venv
RUN     := $(VENV)/bin/python3
CONFIG  := config.example.yaml
STORM   := 1000000
KERNELS :=
KERNEL  :=
SCENARIOS :=
MINUTES :=
ONLY    :=
BENCH   := $(if $(ONLY),,--write docs/performance.md)
HOURS   := 1
KILLS   := 1000
AUDITED := 6.1
FORM    := elf
SECONDS := 20
FUZZ    := 600
KEY     :=
ARCH    := arm64
RUNS    := 10
HOGS    := 5
COMMAND := make test SEED=1
SEED    :=
EVENTS  := 4000000
UNLINKS := 1000000
SUITE   :=

RUN_PACKAGES  := python3-bpfcc libbpfcc linux-libc-dev procps python3-venv python3-systemd python3-yaml \
                 python3-prometheus-client
TEST_PACKAGES := $(RUN_PACKAGES) help2man gcc libc6-dev e2fsprogs mount util-linux bpftool prometheus \
                 prometheus-alertmanager curl systemd python3-bcrypt strace python3-capstone \
                 python3-seccomp bash zsh fish

# Where the linters and the unit tests run: with the daemon's own packages where those are installed,
# else in a plain venv that pip fills.
PLAIN := .venv-plain
TOOLS := $(if $(wildcard $(VENV)/.test),$(VENV),$(PLAIN))
READY := $(if $(wildcard $(VENV)/.test),,$(PLAIN)/.test)

C_SOURCES     := $(wildcard probes/*.[ch] tests/*/*.c tests/vm/modules/*.c)
SHELL_SOURCES := .ci/run deploy/ebpfwatch-generator deploy/image/ebpfwatch \
                 $(wildcard deploy/*.sh deploy/*/*.sh deploy/debian/*.postrm deploy/image/debian/*.postrm \
                   tests/vm/scripts/*.sh)

# What is done to the daemon, or shown to it, apart from the kills.
FAULTS := $(addprefix tests/live/test_,faults.py hostile.py journald.py refusals.py kernel_log.py \
          permissions.py) tests/deploy/test_scrapes.py

DEPLOY_PACKAGES := ansible-core systemd-journal-remote iproute2 chromium chromium-driver python3-selenium \
                   apache2-utils openssl
DEPLOY_MODULES  := axe-core@4 @grafana/ui@13 @grafana/data@13 @grafana/schema@13 react@19 react-dom@19 rxjs@7 esbuild@0.28 \
                   typescript@5

BENCH_PACKAGES := bpftrace bpfcc-tools gcc libc6-dev e2fsprogs mount tar

VM_PACKAGES   := qemu-system-arm qemu-utils qemu-user-static binfmt-support mmdebstrap arch-test make \
                 gcc-aarch64-linux-gnu libc6-dev-arm64-cross xz-utils kmod cpio e2fsprogs pahole

IMAGE_PACKAGES := mmdebstrap qemu-user-static binfmt-support arch-test squashfs-tools

DEB_PACKAGES  := build-essential debhelper dh-python pybuild-plugin-pyproject python3-all python3-setuptools \
                 python3-yaml help2man lintian man-db mmdebstrap rpm rpmlint cpio systemd-container

# Every target here is no file, and has a line for `make help`.
TARGETS := $(shell sed -n 's/^\([a-z-]*\):.*  \#\# .*/\1/p' $(MAKEFILE_LIST))
.PHONY: $(TARGETS)

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/\1: \2/p' $(MAKEFILE_LIST) | \
	    while IFS=: read -r name text; do printf '%-20s%s\n' "$$name" "$$text"; done

run: install-run  ## install what the daemon needs and follow the kernel in the foreground
	$(RUN) -m ebpfwatch run --config $(CONFIG)

# By a make of its own: which venv the linters and the unit tests use is seen when the file is read.
test: install-test  ## everything that CI runs; as root
	$(MAKE) lint unit live fuzz alerts guests

quick:  ## style and the fast unit tests, from a clone: no root, no apt
	@echo "make quick leaves out what is marked slow, and tries little of what Hypothesis makes up: make unit"
	@began=$$(date +%s) && $(MAKE) --no-print-directory style fast && \
	    echo "make quick: $$(($$(date +%s) - began)) s"

lint: style types  ## style and types of Python, C and shell

style: $(READY)  ## ruff, clang-format, shellcheck
	$(TOOLS)/bin/ruff format --check ebpfwatch tests deploy
	$(TOOLS)/bin/ruff check ebpfwatch tests deploy
	$(TOOLS)/bin/clang-format --dry-run --Werror $(C_SOURCES)
	$(TOOLS)/bin/shellcheck $(SHELL_SOURCES)

types: $(READY)  ## mypy, over the tests, too
	$(TOOLS)/bin/mypy

format: $(READY)  ## write Python and C in the project's style
	$(TOOLS)/bin/ruff format ebpfwatch tests deploy
	$(TOOLS)/bin/ruff check --fix-only ebpfwatch tests deploy
	$(TOOLS)/bin/clang-format -i $(C_SOURCES)

fast: $(READY)  ## the unit tests that are not slow, on all CPUs
	$(TOOLS)/bin/python3 -m pytest -q -n auto --hypothesis-profile=quick -m "not slow" tests/unit

unit: $(READY)  ## all unit tests: no root, no BCC
	$(TOOLS)/bin/python3 -m pytest tests/unit

live:  ## as root, on the running kernel
	EBPFWATCH_STORM=$(STORM) $(RUN) -m pytest tests/live

test-vm: install-vm install-deb  ## crimes in arm64 guests: KERNELS=4.19 or KERNEL=/an/image, SCENARIOS=benign,destroy
	EBPFWATCH_FIGURES=$(FIGURES) $(RUN) -m tests.vm.matrix \
	    --kernels "$(or $(KERNEL),$(KERNELS))" --scenarios "$(SCENARIOS)" $(if $(MINUTES),--minutes $(MINUTES)) $(if $(GUESTS),--ready $(GUESTS)) \
	    $(if $(SCENARIOS)$(KERNEL)$(KERNELS),$(if $(FIGURES),--sections docs/detection.md),--table docs/detection.md --survival docs/evidence.md)

test-postmortem: install-vm  ## vmcores of a second free, of other mistakes and of a busy guest, made in guests and read here
	$(RUN) -m pip install --quiet --disable-pip-version-check 'drgn>=0.1,<1'
	$(RUN) -m tests.vm.postmortem
	$(RUN) -m tests.vm.audited --kernel $(AUDITED) --form $(FORM)
	sh deploy/install-packages.sh qemu-system-x86
	$(RUN) -m tests.vm.amd64

# One boot each: the unit under systemd as PID 1, a real double free, refusals.
guests: install-vm install-deb  ## Debian's oldest and newest kernel as arm64 guests, and 4.19 where one was brought
	$(RUN) -m tests.vm.matrix --ci --kernels "4.19 5.10 6.12" --scenarios service

alerts:  ## as root: from the kernel to a webhook, through Prometheus and Alertmanager
	$(RUN) -m pytest tests/deploy/test_alerts.py

test-alerts: install-test alerts  ## the same, installing what it needs

test-deploy: install-deploy  ## as root: real Prometheus, Alertmanager and Chromium around the real daemon
	$(RUN) -m pytest tests/deploy

screenshots: install-deploy  ## rewrite docs/page-*.png
	EBPFWATCH_SCREENSHOTS=1 $(RUN) -m pytest -q tests/deploy/test_page.py -k shown

dashboard: install-run  ## rewrite deploy/grafana/ebpfwatch.json from dashboard.py
	PYTHONPATH=. $(RUN) deploy/grafana/dashboard.py

dashboard-pictures: install-deploy  ## as root: draw the dashboard; rewrite docs/dashboard-*.png and the table
	EBPFWATCH_SCREENSHOTS=1 $(RUN) -m pytest -q tests/deploy/test_dashboard.py

deb: install-deb  ## dist/ebpfwatch_VERSION_all.deb, lintian clean
	sh deploy/build-deb.sh dist

rpm: install-deb  ## dist/ebpfwatch-VERSION-1.noarch.rpm, read by rpmlint: for RHEL 9, openEuler
	sh deploy/build-rpm.sh dist

# KEY: a key of gpg; without it nothing is signed, and the list says so.
release: deb rpm triage  ## everything in dist/, with sizes and checksums; KEY=ID signs the list
	$(MAKE) image ARCH=arm64
	$(MAKE) image ARCH=amd64
	sh deploy/release.sh dist "$(KEY)"

times: $(VENV)/.test  ## how long make quick and make test take here, each from a fresh clone (an hour)
	$(RUN) -m tests.trust.repeat --runs 1 --hogs 0 --command "make quick"
	$(RUN) -m tests.trust.repeat --runs 1 --hogs 0 --command "make test"

test-deb: install-deb $(VENV)/.test  ## packages in a clean Debian 12: installed, upgraded, purged; the DaemonSet's rights
	$(RUN) -m pytest tests/deb

messages:  ## rewrite tests/golden/messages.txt: every text that a person may see, from the source
	$(RUN) -m tests.messages >tests/golden/messages.txt

contracts:  ## how often legal work breaks a rule of the VFS: UNLINKS=n, at most MINUTES=60
	nice $(RUN) -m tests.trust.contracts --unlinks $(UNLINKS) --minutes $(or $(MINUTES),60)

rule-costs: install-test  ## what each rule of the VFS costs, in nanoseconds: FIGURES=1 fills docs/contracts.md
	EBPFWATCH_FIGURES=$(FIGURES) $(RUN) -m tests.trust.rule_costs

contract:  ## rewrite probes/contract.h and docs/catalogue.md from ebpfwatch/catalogue
	$(RUN) -m ebpfwatch.catalogue.header >probes/contract.h
	$(RUN) -m ebpfwatch.catalogue.tables >docs/catalogue.md

mutations: install-test  ## drop rows, swap counters, change constants: a test fails each time (minutes)
	$(RUN) -m tests.trust.mutations

triage:  ## dist/ebpfwatch-triage.pyz: that command as one file, for any Python from 3.7
	$(PYTHON) deploy/build_triage.py dist

golden:  ## rewrite tests/golden from the present output
	EBPFWATCH_GOLDEN=1 $(RUN) -m pytest -q tests/unit/test_sinks.py -k golden

bench: install-bench  ## cost, side by side; as root, on a quiet machine: half an hour. ONLY=storm,churn
	$(RUN) -m tests.bench --only "$(ONLY)" $(BENCH)

soak: install-test  ## millions of model events, then storm, reclaim and self-tests: HOURS=n; FIGURES=1 writes docs/reliability.md
	EBPFWATCH_FIGURES=$(FIGURES) EBPFWATCH_EVENTS=$(EVENTS) $(RUN) -m pytest tests/live/test_model.py tests/live/test_witness.py
	$(RUN) -m tests.trust.fuzz --seconds $(FUZZ)
	EBPFWATCH_FIGURES=$(FIGURES) $(RUN) -m tests.trust.soak --hours $(HOURS)

stable:  ## `make test` RUNS times, each from a fresh clone, the last HOGS beside CPU hogs; COMMAND="make quick"
	python3 -m tests.trust.repeat --runs $(RUNS) --hogs $(HOGS) --command "$(COMMAND)"

fuzz: install-test  ## damaged input to everything that parses: SECONDS=n, SEED=n to repeat; EACH=1 for so long each, ONLY=names
	EBPFWATCH_FIGURES=$(FIGURES) $(RUN) -m tests.trust.fuzz --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) \
	    $(if $(EACH),--each) $(if $(ONLY),--only "$(ONLY)")

sbom: deb  ## dist/sbom.cdx.json: the one in the package, what is in it and what it runs on, as CycloneDX
	dpkg-deb --fsys-tarfile dist/ebpfwatch_*_all.deb | tar -xO ./usr/share/ebpfwatch/sbom.cdx.json >dist/sbom.cdx.json

# --strict: a package that the advisory database does not know is not one without advisories.
audit: $(VENV)/.audit  ## advisories for what the daemon runs on; fails where nobody can be asked
	mkdir -p dist
	$(RUN) -m tests.trust.pins >dist/runtime.txt
	$(VENV)/audit/bin/pip-audit --strict --disable-pip --no-deps -r dist/runtime.txt

# A venv of their own: their dependencies are none of ours.
$(VENV)/.audit: $(VENV)/.test
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --quiet --disable-pip-version-check 'pip-audit>=2.7,<3'
	touch $@

faults: install-test  ## as root: kill -9 at random points, KILLS=n, then every other fault once; FIGURES=1 as above
	EBPFWATCH_FIGURES=$(FIGURES) $(RUN) -m tests.trust.faults --kills $(KILLS)
	EBPFWATCH_FIGURES=$(FIGURES) $(RUN) -m pytest -p tests.trust.survived $(FAULTS)

http-process: install-test  ## what HTTP in a process of its own would cost; FIGURES=1 writes docs/security.md
	EBPFWATCH_FIGURES=$(FIGURES) $(RUN) -m tests.trust.http_process

hostile: install-test  ## as root: a user of no rights, made for it, does his worst; FIGURES=1 writes docs/security.md
	EBPFWATCH_FIGURES=$(FIGURES) EBPFWATCH_TABLE=hostile $(RUN) -m pytest -p tests.trust.survived \
	    tests/live/test_neighbours.py tests/live/test_hostile.py

install-run: $(VENV)/.run  ## as root: what the daemon needs
install-test: $(VENV)/.test  ## as root: what the tests need besides

# A venv over the system Python, because bcc comes with that one.
$(VENV)/.run: Makefile
	PYTHON=$(PYTHON) sh deploy/supported.sh
	sh deploy/install-packages.sh $(RUN_PACKAGES)
	$(PYTHON) -m venv --system-site-packages $(VENV)
	touch $@

$(VENV)/.test: $(VENV)/.run tests/requirements.txt
	sh deploy/install-packages.sh $(TEST_PACKAGES)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@

# What the full venv has from the distribution comes from pip here.
$(PLAIN)/.test: tests/requirements.txt
	python3 -m venv $(PLAIN)
	$(PLAIN)/bin/pip install --quiet --disable-pip-version-check --no-compile -r tests/requirements.txt \
	    bcrypt 'capstone>=4,<6' 'prometheus-client>=0.9,<1' 'pyyaml>=5.3,<7'
	touch $@

install-deploy: $(VENV)/.deploy  ## as root: what test-deploy needs

# npm brings what Debian has not; without npm the tests that need it say so.
$(VENV)/.deploy: $(VENV)/.test Makefile
	sh deploy/install-packages.sh $(DEPLOY_PACKAGES)
	if command -v npm >/dev/null; then \
	    npm install --prefix $(VENV)/npm --no-audit --no-fund --ignore-scripts --silent $(DEPLOY_MODULES); fi
	touch $@

bench-vm: install-vm  ## the same on kprobe and fentry rungs: arm64 guests that count instructions
	$(RUN) -m tests.bench.guests --kernels "$(KERNELS)" $(if $(KERNELS),,--write docs/performance.md)

# The headers are for bcc's memleak; where Debian's are not to be had, the table says that it was not measured.
install-bench: $(VENV)/.test  ## as root: what bench needs
	sh deploy/install-packages.sh $(BENCH_PACKAGES)
	-sh deploy/install-packages.sh linux-headers-$$(dpkg --print-architecture)

install-vm: $(VENV)/.test  ## as root: what the guests need
	sh deploy/install-packages.sh $(VM_PACKAGES)

test-install: install-test install-deb  ## as root, in a fresh Debian 12 with systemd: docs/install.md, README's commands, the playbook; SUITE=trixie: 13
	sh deploy/install-packages.sh systemd-container mmdebstrap git
	EBPFWATCH_SUITE=$(SUITE) $(RUN) -m pytest -s tests/install

image: install-deb  ## dist/ebpfwatch-image_VERSION_arm64.deb: self-contained, for hosts with an old Python; ARCH=amd64
	sh deploy/install-packages.sh $(IMAGE_PACKAGES)
	sh deploy/image/build.sh dist $(ARCH)

test-image: image install-vm  ## the image in a 4.19 guest that has no Python
	$(RUN) -m tests.vm.matrix --kernels 4.19 --scenarios image

install-deb:  ## as root: what the packages need
	sh deploy/install-packages.sh $(DEB_PACKAGES)

clean:  ## remove what make has made here
	rm -rf $(VENV) $(PLAIN) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
