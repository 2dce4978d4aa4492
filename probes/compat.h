/*
 * The one home of kernel differences that C sees.  The loader proves each by trying and defines:
 * HAVE_RINGBUF (Linux >= 5.8), HAVE_CMPXCHG (>= 5.12), HAVE_PROBE_READ_KERNEL (>= 5.5),
 * TICK_NS and TICK_OFFSET_NS (>= 5.10).
 */
#ifndef EBPFWATCH_COMPAT_H
#define EBPFWATCH_COMPAT_H

#define FENTRY_FRAMES 6

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

/*
 * A pointer that the compiler may not take apart: it would keep an offset, or a flag that says
 * whether it is NULL, and old verifiers do not connect those with the pointer.
 */
#define WHOLE(pointer) asm volatile("" : "+r"(pointer))

/*
 * CLOCK_MONOTONIC to a tick, without reading the hardware's clock (ebpfwatch/loader/ticks.py): for
 * the ordinary steps, whose order the table knows anyway.
 */
static __always_inline u64 coarse_ns(void)
{
#ifdef TICK_NS
	return bpf_jiffies64() * TICK_NS + TICK_OFFSET_NS;
#else
	return bpf_ktime_get_ns();
#endif
}

#ifdef WORDS_TYPE
/*
 * Kernel memory that instructions load, where each call of bpf_probe_read_kernel() costs 20 ns.  bpf_rdonly_cast()
 * (Linux 6.2; the verifier makes a plain move of it) gives an address the type that we name, and a load through such a pointer
 * is 0 where there is no memory (BPF_PROBE_MEM).  WORDS_TYPE is a struct that holds nothing but numbers, so what is
 * loaded is a number, too; the loader has seen that it is long enough for every offset (ebpfwatch/loader/prober.py).
 * For objects that the kernel itself uses at that moment.  What may be none (a neighbour, a parent, the memory of a free object) is
 * read with READ() before anything is said of it, which tells what cannot be read.
 */
static u64 (*words_at)(u64 address,
		       u64 type) = (void *)RDONLY_CAST; /* see ebpfwatch/loader/image.py */
#define WORDS(address) words_at(address, WORDS_TYPE)

#define LOAD(bits, words, offset)                            \
	({                                                   \
		u64 value;                                   \
		asm volatile("%0 = *(u" #bits " *)(%1 + %2)" \
			     : "=r"(value)                   \
			     : "r"(words), "i"(offset));     \
		(u##bits) value;                             \
	})
#endif

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

/* bpf_get_func_ip and bpf_get_func_arg, by number: bcc's list may be older. */
static u64 (*func_ip)(void *ctx) = (void *)173;
static long (*func_arg)(void *ctx, u32 n, u64 *value) = (void *)183;

/* As a number: the context itself holds a typed pointer, which may not be hashed. */
static __always_inline u64 fentry_argument(void *ctx, u32 n)
{
	u64 value = 0;

	func_arg(ctx, n, &value);
	return value;
}

/* The return address of the function that a fentry program stands in: the frame behind its own. */
static __always_inline u64 fentry_caller(void *ctx)
{
	u64 frames[FENTRY_FRAMES] = {};
	u64 function = func_ip(ctx);

	bpf_get_stack(ctx, frames, sizeof(frames), 0);
#pragma unroll
	for (int i = 0; i < FENTRY_FRAMES - 1; i++)
		if (frames[i] - function < 64)
			return frames[i + 1];
	return 0;
}

#endif
