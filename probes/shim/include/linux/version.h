/* LINUX_VERSION_CODE comes from the loader: before Linux 5.0 it must be the running kernel's own. */
#ifndef KERNEL_VERSION
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
#endif
