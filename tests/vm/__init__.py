"""Real arm64 guests: QEMU, Debian's user space, kernels from 4.19 on. See docs/vm.md."""
