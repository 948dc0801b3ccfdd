# make build     the binaries, in bin/
# make test      all tests; needs only Go, and says what it had to skip
#   SESSIONCTL_RIGS=require   installs the Debian packages first, skips nothing
#   RACE=1                    with the race detector
# make demo      a lab with a Jira, and the main job before your eyes
#   ONCE=1                    ends by itself, with status 0 if all was right
# make lint      buf, generated code, gofmt, go vet, staticcheck
# make generate  api/sessionctl/v1 from proto/
# make fuzz      every fuzz target for FUZZTIME each
# make torture   thirty days of 1,000 sites, with all that may happen to them;
#                20,000 crashes, 1,000 kills and 10,000 thefts of the store; every value
#                in every shell with every setting
# make erasing   bin/sessiond with Go's experiment that erases secrets, and its tests
# make bench     tickets and tokens beside gokrb5's client, on MIT's KDC; the store beside
#                bbolt and the disk; sessionctl raw beside git's cache and an empty Go main
# make install   what make build has made, below $(DESTDIR)$(PREFIX)

PREFIX   ?= /usr/local
FUZZTIME ?= 30s
VERSION  ?= $(or $(shell git describe --tags --always --dirty 2>/dev/null),devel)

binaries := sessionctl sessionctl-admin sessiond
# Where systemd looks for user units below /usr, /usr/local and ~/.local alike.
units    := $(PREFIX)/share/systemd/user
ldflags  := -s -w -X github.com/sessionctl/sessionctl/api.Version=$(VERSION)

export FUZZTIME

.PHONY: build
build: $(binaries:%=bin/%)
	@ln -sf sessionctl bin/git-credential-sessionctl

# Go knows better than make what is out of date. Static and not PIE: sessionctl
# runs for every cookie, and relocations are start-up time.
.PHONY: $(binaries:%=bin/%) bin/sessionlab
$(binaries:%=bin/%) bin/sessionlab: bin/%:
	CGO_ENABLED=0 go build -trimpath -buildmode=exe -ldflags "$(ldflags)" -o $@ ./cmd/$*

# sessionlab is for trying, so it is not installed.
.PHONY: demo
demo: build bin/sessionlab
	@bin/sessionlab --demo $(if $(ONCE),--once)

.PHONY: test lint fuzz
test lint fuzz:
	@.ci/$@

# Strict, and long enough for a machine with other things to do. The same test,
# short and forgiving, is part of make test.
.PHONY: bench
bench:
	go test -count=1 -v -run '^TestSpeed$$' ./daemon/internal/krb -rounds 1000 -slower 1.15
	go test -count=1 -v -timeout 20m -run '^TestSpeed$$' ./store -rounds 400 -slack 1
	go test -count=1 -v -timeout 20m -run '^TestSpeed$$' ./cmd/sessionctl -rounds 400 -slack 1

# The same tests, of one day and much shorter, are part of make test.
.PHONY: torture
torture:
	go test -count=1 -v -timeout 2h -run '^TestDays$$' ./daemon/internal/keeper -days 30
	SESSIONCTL_RIGS=require STORE_TORTURE=1 go test -count=1 -v -timeout 2h -run '^(TestCrashImages|TestCrashAfterFault|TestKillUnderLoad|TestSalvage|TestProbeDamage|TestThiefMoves)$$' ./store
	STORE_TORTURE=1 go test -count=1 -v -timeout 2h -run '^(TestDamage|TestDamageUnderAgent|TestKillAgent)$$' ./daemon/internal/e2e
	SESSIONCTL_RIGS=require SHELL_TORTURE=1 go test -count=1 -v -timeout 4h -run '^TestEval$$' ./cmd/sessionctl

# Both runs print how many copies of a served cookie, and of one that was logged out, are
# left in memory.
.PHONY: erasing
erasing:
	GOEXPERIMENT=runtimesecret $(MAKE) bin/sessiond
	GOEXPERIMENT=runtimesecret go test ./store ./daemon ./daemon/internal/secret
	go test -count=1 -v -run '^(TestCopies|TestThief)$$' ./daemon ./daemon/internal/e2e
	GOEXPERIMENT=runtimesecret go test -count=1 -v -run '^(TestCopies|TestThief)$$' ./daemon ./daemon/internal/e2e

.PHONY: generate
generate:
	.ci/buf generate

# Unreadable for others, sessiond runs without being open to their debuggers from
# its first instruction on.
.PHONY: install
install:
	@for p in $(binaries); do [ -x bin/$$p ] || { echo "bin/$$p is missing: make build" >&2; exit 1; }; done
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(units)
	install -m 0755 bin/sessionctl bin/sessionctl-admin $(DESTDIR)$(PREFIX)/bin
	install -m 0711 bin/sessiond $(DESTDIR)$(PREFIX)/bin
	ln -sf sessionctl $(DESTDIR)$(PREFIX)/bin/git-credential-sessionctl
	for unit in sessiond.service sessiond.socket sessionctl-jar@.service; do \
	  sed 's,/usr/bin/,$(PREFIX)/bin/,' systemd/user/$$unit >bin/$$unit && \
	  install -m 0644 bin/$$unit $(DESTDIR)$(units) || exit 1; \
	done

.PHONY: clean
clean:
	rm -rf bin
