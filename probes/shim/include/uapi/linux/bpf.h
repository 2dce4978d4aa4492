#ifndef EBPFWATCH_SHIM_BPF_H
#define EBPFWATCH_SHIM_BPF_H

#include_next <linux/bpf.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s8 s8;
typedef __s16 s16;
typedef __s32 s32;
typedef __s64 s64;
typedef _Bool bool;
typedef unsigned long size_t;
typedef unsigned long uintptr_t;

#define true 1
#define false 0
#define NULL ((void *)0)

/* What a kprobe's context points to; the kernel's layout, the part that BCC's PT_REGS_* read. */
#if defined(__aarch64__)
struct pt_regs {
	u64 regs[31];
	u64 sp;
	u64 pc;
	u64 pstate;
};
#else
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di;
	unsigned long orig_ax, ip, cs, flags, sp, ss;
};
#endif

/* helpers.h leaves its map macros out without it. */
#define CONFIG_BPF_SYSCALL 1

#endif
