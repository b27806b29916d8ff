PYTHON_IN_VENV = .venv/bin/python
# Six files of tests at a time, so that the fixtures of each are made once: most of the time tests wait for something.
SIDE_BY_SIDE = -n 6 --dist loadfile --no-loadscope-reorder
TESTS =
# Each of these processes would compile all of the program and of its tests anew.
unexport PYTHONDONTWRITEBYTECODE
.DEFAULT_GOAL = help
.PHONY: help run manuals deb test bench siege fuzz soak report pictures style format types clean venv

help: ## list what can be made
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | awk -F'|' '{ printf "make %-8s %s\n", $$1, $$2 }'

run: ## start the proxy with conf/proxy.ini
	scripts/proxy-server -c conf/proxy.ini

manuals: venv ## write manual pages and the completion of three shells into build/manuals
	@$(PYTHON_IN_VENV) -m scripts.manuals build/manuals

deb: venv ## build the Debian package build/proxy-server_VERSION_all.deb; see docs/install.md
	@PYTHON=$(PYTHON_IN_VENV) scripts/build-deb

test: venv ## run the tests; make test TESTS="-k socks5" runs some of them
	$(PYTHON_IN_VENV) -m pytest $(SIDE_BY_SIDE) $(TESTS)

bench: venv ## measure it beside its peers, in eight minutes; QUICK=1 in one; see docs/performance.md
	@$(PYTHON_IN_VENV) -m tests.bench

siege: venv ## attack it, and show what a good client notices; see docs/security.md
	@$(PYTHON_IN_VENV) -m tests.siege

fuzz: venv ## try a million inputs of each parser; SEED= COUNT= TIME= ONLY= choose; see CONTRIBUTING.md
	@nice $(PYTHON_IN_VENV) -m tests.fuzz

soak: venv ## keep a node busy for twenty minutes, and see that nothing grows; MINUTES= TUNNELS= choose
	@$(PYTHON_IN_VENV) -m tests.soak

report: venv ## measure success rate, integrity, recovery, switch-over and bandwidth, on real runs
	@$(PYTHON_IN_VENV) -m tests.report

pictures: venv ## draw the pictures of the documents anew; needs tmux and chromium
	@$(PYTHON_IN_VENV) -m tests.pictures

style: venv ## check how the code is written and laid out
	$(PYTHON_IN_VENV) -m ruff check
	$(PYTHON_IN_VENV) -m ruff format --check

format: venv ## lay the code out as `make style` wants it
	$(PYTHON_IN_VENV) -m ruff check --fix
	$(PYTHON_IN_VENV) -m ruff format

types: venv ## check the types
	$(PYTHON_IN_VENV) -m mypy

clean: ## remove all that was made here, .venv too
	rm -rf .venv .venv.old build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

venv:
	@scripts/setup-venv test
