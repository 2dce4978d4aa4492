/* PAGE_SIZE comes from the loader: it is 16 or 64 KiB on some arm64 kernels. */
#ifndef PAGE_SIZE
#error "PAGE_SIZE"
#endif
