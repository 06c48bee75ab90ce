# make wheels       everything to be installed, in build/wheels: as any user; it may need the network
# make install      [PREFIX=/usr/local] [DESTDIR=DIR]: from build/wheels, as root; needs no network
# make uninstall    the same taken away again; configuration stays
# docs/install.md says what goes where.

PREFIX ?= /usr/local
DESTDIR ?=
SYSCONFDIR ?= /etc
# Where systemd looks: below /usr and /usr/local, else only in /etc.
UNITDIR ?= $(if $(filter /usr /usr/local,$(PREFIX)),$(PREFIX)/lib,$(SYSCONFDIR))/systemd/system
WHEELS ?= $(CURDIR)/build/wheels

BINDIR = $(PREFIX)/bin
LIBDIR = $(PREFIX)/lib/mirrorfs
MANDIR = $(PREFIX)/share/man
EXAMPLES = $(PREFIX)/share/doc/mirrorfs/examples
# mount(8) looks in /sbin alone.
SBINDIR = /sbin

COMMANDS := $(shell sed -n '/^\[project.scripts\]/,/^$$/s/ *=.*//p' pyproject.toml)
PACKAGED := pyproject.toml README.md LICENSE mirrorfs replicator xrootdfs
HELPERS := mount.mirrorfs umount.mirrorfs
HELPER_LINKS := mount.xrootdfs mount.fuse.mirrorfs mount.fuse.xrootdfs
INIT_SCRIPTS := $(notdir $(wildcard mount-scripts/init.d/*))
UNITS := $(notdir $(wildcard mount-scripts/systemd/*.service))
FILES_OF_EXAMPLES := $(notdir $(wildcard mount-scripts/examples/*))

# Put a file there with the path of the commands filled in: $(call put,MODE,FROM,TO)
put = sed 's|@BINDIR@|$(BINDIR)|g' '$(2)' >'$(DESTDIR)$(3)' && chmod $(1) '$(DESTDIR)$(3)'

.PHONY: wheels install uninstall

wheels: $(WHEELS)/.made

# Built from a copy, so that nothing is left here; with the versions that were tested.
$(WHEELS)/.made: $(shell find $(PACKAGED) -type f ! -name '*.pyc') | setup
	@mkdir -p '$(WHEELS)' && rm -f '$(WHEELS)'/*.whl
	@copy=$$(mktemp -d) && trap 'rm -rf "$$copy"' EXIT && cp -R $(PACKAGED) "$$copy" \
	    && $(BIN)/python -m pip list --format=freeze --exclude-editable >"$$copy/versions" \
	    && $(BIN)/python -m pip wheel -qq --disable-pip-version-check --no-input \
	        --wheel-dir '$(WHEELS)' --constraint "$$copy/versions" "$$copy"
	@touch $@

# The virtual environment is made beside the old one, and takes its place when it is complete.
install: $(WHEELS)/.made
	@umask 022; rm -rf '$(DESTDIR)$(LIBDIR).new' && mkdir -p '$(DESTDIR)$(PREFIX)/lib'
	@umask 022; $(BIN)/python -m venv --without-pip '$(DESTDIR)$(LIBDIR).new'
	@umask 022; $(BIN)/python -m pip -qq --disable-pip-version-check --no-input \
	    --python '$(DESTDIR)$(LIBDIR).new/bin/python' install --root-user-action=ignore \
	    --no-index --find-links '$(WHEELS)' --no-compile mirrorfs
	@umask 022; cd '$(DESTDIR)$(LIBDIR).new' && sed -i '/^command/d' pyvenv.cfg \
	    && find bin -type f $(foreach each,$(COMMANDS),! -name '$(each)') -delete \
	    && sed -i '1s|^#!.*|#!$(LIBDIR)/bin/python -I|' $(COMMANDS:%=bin/%) \
	    && bin/python -m compileall -q -s '$(DESTDIR)$(LIBDIR).new' -p '$(LIBDIR)' lib
	@rm -rf '$(DESTDIR)$(LIBDIR)' && mv '$(DESTDIR)$(LIBDIR).new' '$(DESTDIR)$(LIBDIR)'
	@umask 022; install -d '$(DESTDIR)$(BINDIR)' '$(DESTDIR)$(SBINDIR)' '$(DESTDIR)$(MANDIR)/man1' \
	    '$(DESTDIR)$(MANDIR)/man8' '$(DESTDIR)$(UNITDIR)' '$(DESTDIR)$(EXAMPLES)' \
	    $(foreach each,init.d mirrorfs xrootdfs,'$(DESTDIR)$(SYSCONFDIR)/$(each)')
	@$(foreach each,$(COMMANDS),ln -sf '../lib/mirrorfs/bin/$(each)' '$(DESTDIR)$(BINDIR)/$(each)' &&) :
	@$(foreach each,$(HELPERS),$(call put,755,mount-scripts/$(each),$(SBINDIR)/$(each)) &&) :
	@$(foreach each,$(HELPER_LINKS),ln -sf mount.mirrorfs '$(DESTDIR)$(SBINDIR)/$(each)' \
	    && ln -sf umount.mirrorfs '$(DESTDIR)$(SBINDIR)/u$(each)' &&) :
	@$(foreach each,$(INIT_SCRIPTS),$(call put,755,mount-scripts/init.d/$(each),$(SYSCONFDIR)/init.d/$(each)) &&) :
	@$(foreach each,$(UNITS),$(call put,644,mount-scripts/systemd/$(each),$(UNITDIR)/$(each)) &&) :
	@$(foreach each,$(FILES_OF_EXAMPLES),$(call put,644,mount-scripts/examples/$(each),$(EXAMPLES)/$(each)) &&) :
	@install -m 644 docs/man/*.1 '$(DESTDIR)$(MANDIR)/man1'
	@install -m 644 docs/man/*.8 '$(DESTDIR)$(MANDIR)/man8'

uninstall:
	@rm -rf '$(DESTDIR)$(LIBDIR)' '$(DESTDIR)$(LIBDIR).new' '$(DESTDIR)$(PREFIX)/share/doc/mirrorfs'
	@rm -f $(COMMANDS:%='$(DESTDIR)$(BINDIR)/%') \
	    $(HELPERS:%='$(DESTDIR)$(SBINDIR)/%') $(HELPER_LINKS:%='$(DESTDIR)$(SBINDIR)/%') \
	    $(HELPER_LINKS:%='$(DESTDIR)$(SBINDIR)/u%') $(UNITS:%='$(DESTDIR)$(UNITDIR)/%') \
	    $(INIT_SCRIPTS:%='$(DESTDIR)$(SYSCONFDIR)/init.d/%') \
	    $(patsubst docs/man/%,'$(DESTDIR)$(MANDIR)/man1/%',$(wildcard docs/man/*.1)) \
	    $(patsubst docs/man/%,'$(DESTDIR)$(MANDIR)/man8/%',$(wildcard docs/man/*.8))
	@rmdir '$(DESTDIR)$(SYSCONFDIR)/mirrorfs' '$(DESTDIR)$(SYSCONFDIR)/xrootdfs' 2>/dev/null || :
