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
SECONDS := 20
SEED    :=
EVENTS  := 4000000

RUN_PACKAGES  := python3-bpfcc libbpfcc linux-libc-dev procps python3-venv python3-systemd python3-yaml \
                 python3-prometheus-client
TEST_PACKAGES := $(RUN_PACKAGES) help2man gcc libc6-dev e2fsprogs mount util-linux bpftool prometheus \
                 prometheus-alertmanager curl systemd python3-bcrypt strace python3-capstone \
                 shellcheck

C_SOURCES     := $(wildcard probes/*.[ch] tests/*/*.c tests/vm/modules/*.c)
SHELL_SOURCES := .ci/run deploy/ebpfwatch-generator deploy/image/ebpfwatch \
                 $(wildcard deploy/*.sh deploy/*/*.sh deploy/debian/*.postrm deploy/image/debian/*.postrm \
                   tests/vm/scripts/*.sh)

# What is done to the daemon, or shown to it, apart from the kills.
FAULTS := $(addprefix tests/live/test_,faults.py hostile.py journald.py refusals.py kernel_log.py \
          permissions.py) tests/deploy/test_scrapes.py

DEPLOY_PACKAGES := ansible-core systemd-journal-remote iproute2 chromium chromium-driver python3-selenium \
                   apache2-utils openssl
DEPLOY_MODULES  := axe-core@4 @grafana/schema@13 typescript@5

BENCH_PACKAGES := bpftrace bpfcc-tools gcc libc6-dev e2fsprogs mount tar

VM_PACKAGES   := qemu-system-arm qemu-utils qemu-user-static binfmt-support mmdebstrap arch-test make \
                 gcc-aarch64-linux-gnu libc6-dev-arm64-cross xz-utils kmod cpio e2fsprogs pahole

IMAGE_PACKAGES := mmdebstrap qemu-user-static binfmt-support arch-test squashfs-tools

DEB_PACKAGES  := build-essential debhelper dh-python pybuild-plugin-pyproject python3-all python3-setuptools \
                 python3-shtab python3-yaml help2man bash-completion lintian man-db mmdebstrap

.PHONY: run test lint format unit live test-vm test-postmortem guests alerts test-alerts test-deploy screenshots \
        deb test-deb contract mutations golden bench soak fuzz sbom audit faults install-run install-test install-deploy \
        bench-vm install-bench install-vm test-install image test-image install-deb clean

run: install-run  ## install what the daemon needs and follow the kernel in the foreground
	$(RUN) -m ebpfwatch run --config $(CONFIG)

test: install-test lint unit live fuzz alerts guests  ## everything that CI runs

lint:  ## style and types of Python, C and shell
	$(VENV)/bin/ruff format --check ebpfwatch tests deploy
	$(VENV)/bin/ruff check ebpfwatch tests deploy
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(C_SOURCES)
	shellcheck $(SHELL_SOURCES)

format:  ## write Python and C in the project's style
	$(VENV)/bin/ruff format ebpfwatch tests deploy
	$(VENV)/bin/ruff check --fix-only ebpfwatch tests deploy
	$(VENV)/bin/clang-format -i $(C_SOURCES)

unit:  ## no root, no BCC
	$(RUN) -m pytest tests/unit

live:  ## as root, on the running kernel
	EBPFWATCH_STORM=$(STORM) $(RUN) -m pytest tests/live

test-vm: install-vm install-deb  ## crimes in arm64 guests: KERNELS=4.19 or KERNEL=/an/image, SCENARIOS=benign,destroy
	EBPFWATCH_FIGURES=$(FIGURES) $(RUN) -m tests.vm.matrix \
	    --kernels "$(or $(KERNEL),$(KERNELS))" --scenarios "$(SCENARIOS)" $(if $(MINUTES),--minutes $(MINUTES)) \
	    $(if $(SCENARIOS)$(KERNEL)$(KERNELS),,--table docs/detection.md --survival docs/evidence.md)

test-postmortem: install-vm  ## a vmcore of a second free, made in a guest and read here
	$(RUN) -m pip install --quiet --disable-pip-version-check 'drgn>=0.0.30,<1'
	$(RUN) -m tests.vm.postmortem

# One boot each: the unit under systemd as PID 1, a real double free, refusals.
guests: install-vm install-deb  ## Debian's oldest and newest kernel as arm64 guests, and 4.19 where one was brought
	$(RUN) -m tests.vm.matrix --ci --kernels "4.19 5.10 6.12" --scenarios service

alerts:  ## as root: from the kernel to a webhook, through Prometheus and Alertmanager
	$(RUN) -m pytest tests/deploy/test_alerts.py

test-alerts: install-test alerts

test-deploy: install-deploy  ## as root: real Prometheus, Alertmanager and Chromium around the real daemon
	$(RUN) -m pytest tests/deploy

screenshots: install-deploy  ## rewrite docs/page-*.png
	EBPFWATCH_SCREENSHOTS=1 $(RUN) -m pytest -q tests/deploy/test_page.py -k shown

deb: install-deb  ## dist/ebpfwatch_VERSION_all.deb, lintian clean
	sh deploy/build-deb.sh dist

test-deb: install-deb $(VENV)/.test  ## the package in a clean Debian 12: installed, upgraded, purged
	$(RUN) -m pytest tests/deb

contract:  ## rewrite probes/contract.h and docs/catalogue.md from ebpfwatch/catalogue
	$(RUN) -m ebpfwatch.catalogue.header >probes/contract.h
	$(RUN) -m ebpfwatch.catalogue.tables >docs/catalogue.md

mutations: install-test  ## drop rows, swap counters, change constants: a test fails each time (minutes)
	$(RUN) -m tests.trust.mutations

golden:  ## rewrite tests/golden from the present output
	EBPFWATCH_GOLDEN=1 $(RUN) -m pytest -q tests/unit/test_sinks.py -k golden

bench: install-bench  ## cost, side by side; as root, on a quiet machine: half an hour. ONLY=storm,churn
	$(RUN) -m tests.bench --only "$(ONLY)" $(BENCH)

soak: install-test  ## millions of model events, then storm, reclaim and self-tests: HOURS=n; FIGURES=1 writes docs/reliability.md
	EBPFWATCH_FIGURES=$(FIGURES) EBPFWATCH_EVENTS=$(EVENTS) $(RUN) -m pytest tests/live/test_model.py tests/live/test_witness.py
	EBPFWATCH_FIGURES=$(FIGURES) $(RUN) -m tests.trust.soak --hours $(HOURS)

fuzz: install-test  ## damaged input to everything that parses: SECONDS=n, SEED=n to repeat
	EBPFWATCH_FIGURES=$(FIGURES) $(RUN) -m tests.trust.fuzz --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

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

install-run: $(VENV)/.run
install-test: $(VENV)/.test

# A venv over the system Python, because bcc comes with that one.
$(VENV)/.run: Makefile
	sh deploy/install-packages.sh $(RUN_PACKAGES)
	$(PYTHON) -m venv --system-site-packages $(VENV)
	touch $@

$(VENV)/.test: $(VENV)/.run tests/requirements.txt
	sh deploy/install-packages.sh $(TEST_PACKAGES)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	touch $@

install-deploy: $(VENV)/.deploy

# npm brings what Debian has not; without npm the tests that need it say so.
$(VENV)/.deploy: $(VENV)/.test Makefile
	sh deploy/install-packages.sh $(DEPLOY_PACKAGES)
	if command -v npm >/dev/null; then \
	    npm install --prefix $(VENV)/npm --no-audit --no-fund --ignore-scripts --silent $(DEPLOY_MODULES); fi
	touch $@

bench-vm: install-vm  ## the same on kprobe and fentry rungs: arm64 guests that count instructions
	$(RUN) -m tests.bench.guests --kernels "$(KERNELS)" $(if $(KERNELS),,--write docs/performance.md)

# The headers are for bcc's memleak; where Debian's are not to be had, the table says that it was not measured.
install-bench: $(VENV)/.test
	sh deploy/install-packages.sh $(BENCH_PACKAGES)
	-sh deploy/install-packages.sh linux-headers-$$(dpkg --print-architecture)

install-vm: $(VENV)/.test
	sh deploy/install-packages.sh $(VM_PACKAGES)

test-install: install-test install-deb  ## as root: docs/install.md, word by word, and the playbook, in a fresh Debian 12 with systemd
	sh deploy/install-packages.sh systemd-container mmdebstrap git
	$(RUN) -m pytest -s tests/install

image: install-deb  ## dist/ebpfwatch-image_VERSION_arm64.deb: self-contained, for hosts with an old Python
	sh deploy/install-packages.sh $(IMAGE_PACKAGES)
	sh deploy/image/build.sh dist

test-image: image install-vm  ## the image in a 4.19 guest that has no Python
	$(RUN) -m tests.vm.matrix --kernels 4.19 --scenarios image

install-deb:
	sh deploy/install-packages.sh $(DEB_PACKAGES)

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
