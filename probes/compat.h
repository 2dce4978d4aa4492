/*
 * The one home of kernel differences that C sees.  The loader proves each by trying and defines:
 * HAVE_RINGBUF (Linux >= 5.8), HAVE_CMPXCHG (>= 5.12), HAVE_PROBE_READ_KERNEL (>= 5.5).
 */
#ifndef EBPFWATCH_COMPAT_H
#define EBPFWATCH_COMPAT_H

#ifndef HAVE_PROBE_READ_KERNEL
/* One helper for both address spaces, before Linux 5.5. */
#define bpf_probe_read_kernel bpf_probe_read
#define bpf_probe_read_kernel_str bpf_probe_read_str
#define bpf_probe_read_user_str bpf_probe_read_str
#endif

/*
 * Old verifiers forget what a comparison told of a value; a mask that the compiler cannot see to be
 * needless is believed.  `size` is a power of two.
 */
#define BOUND(index, size)                      \
	do {                                    \
		asm volatile("" : "+r"(index)); \
		(index) &= (size) - 1;          \
	} while (0)

/* The return address at a function's entry. */
static __always_inline u64 caller_of(struct pt_regs *ctx)
{
#if defined(__TARGET_ARCH_arm64) || defined(__aarch64__)
	return PT_REGS_RET(ctx); /* the link register */
#else
	u64 address = 0;

	bpf_probe_read_kernel(&address, sizeof(address), (void *)PT_REGS_SP(ctx));
	return address;
#endif
}

#endif
