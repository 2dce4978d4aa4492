"""Which files hold the page cache: asked file by file, for the kernel keeps no such list."""
