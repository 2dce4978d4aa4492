"""The Debian package in clean chroots of Debian 12: `make test-deb`."""
