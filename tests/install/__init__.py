"""docs/install.md, followed word by word: `make test-install`."""
