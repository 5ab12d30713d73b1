# Everything that CI does, by name. `make demo` and `make test` also set the machine up.

CARGO ?= cargo
# Gzip through ISA-L, where it is installed. Asked anew each time: setting up may install it.
ISAL = $(shell test -e /usr/include/isa-l/igzip_lib.h && echo --features crated-snapshot/isal)
PRIMITIVES = crated-mount crated-content crated-snapshot crated-exec crated-netns crated-distribution

.PHONY: demo test build setup-demo setup-test fmt clippy doc deny package fuzz ci clean

## demo: set up, build, pull an image, run a container, show its output (needs root)
demo: setup-demo build
	.ci/demo

## test: set up and run the whole suite (needs root for mounts and namespaces)
test: setup-test
	$(CARGO) build --workspace --bins --locked $(ISAL)
	$(CARGO) test --workspace --locked $(ISAL)

build:
	$(CARGO) build --release --locked -p crated -p ctr -p crated-shim $(if $(ISAL),-p crated-snapshot $(ISAL))

setup-demo:
	.ci/setup demo

setup-test:
	.ci/setup test

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked

## deny: licences, bans and sources always; advisories where their database can be fetched
deny:
	.ci/deny

## package: every primitive packs, and builds from what it packed
package:
	$(CARGO) package --locked --quiet $(addprefix -p ,$(PRIMITIVES))

## fuzz: every fuzz target for SECONDS; without, as .ci/fuzz says
fuzz:
	.ci/fuzz $(SECONDS)

ci: test fmt clippy doc deny package

clean:
	$(CARGO) clean
