/*
 * Hooks: kprobes on the call instructions of one module, and behind those whose result matters; the unit of `ebpfwatch balance`.
 *
 * Invariant: runs only when that module calls; a call is counted for the object it is about, by the site it is made from.
 * The sums by site are exact.  The balance by object is, too, but where two CPUs use one object at the same moment a call
 * beyond the balance may be counted on the other CPU's site.
 *
 * MOST_SITES and OFF_D_LOCKREF come from the loader.
 */
#include "compat.h"

#define MOST_OBJECTS 16384
#define IS_ERROR(value) ((u64)(value) >= (u64) - 4095)

enum how { HOW_ARGUMENT, HOW_PATH, HOW_LOCKREF, HOW_RESULT, HOW_RESULT_PATH };

struct site {
	u32 index;
	u32 how;
	u32 argument;
	s32 sign;
	u32 length; /* of the instruction */
	u32 tail;   /* nothing comes behind it */
};

struct counts {
	u64 calls;   /* with an object */
	u64 nothing; /* NULL, an error */
	u64 beyond;  /* given back although the balance of the object was 0 */
	u64 again;   /* of those, of objects that were seen taken, and had been beyond before */
	u64 lost;    /* no room for the object */
};

struct object {
	s64 balance;
	u64 taken;  /* how often */
	u64 beyond; /* how often it was given back beyond that */
	u64 since;  /* when it was last taken */
	u64 site;   /* from where */
};

struct waiting_key {
	u64 task;
	u64 after;
};

struct waiting {
	struct site site;
	u64 argument;
};

/* Hashes that are allocated whole; a module may call in a softirq, where the lock of a bucket may be held below us: then
 * the update fails and is counted. */
BPF_HASH(sites, u64, struct site, MOST_SITES);
BPF_ARRAY(counts, struct counts, MOST_SITES);
BPF_HASH(objects, u64, struct object, MOST_OBJECTS);
BPF_HASH(waiting, struct waiting_key, struct waiting, 1024);

static __always_inline u64 address(struct pt_regs *ctx)
{
#if defined(__TARGET_ARCH_arm64) || defined(__aarch64__)
	return PT_REGS_IP(ctx);
#else
	/* It points behind the breakpoint: kprobe_int3_handler() in arch/x86/kernel/kprobes/core.c. */
	return PT_REGS_IP(ctx) - 1;
#endif
}

/* All are read before one is chosen: the verifier takes no context whose offset was chosen. */
static __always_inline u64 argument_of(struct pt_regs *ctx, u32 number)
{
	u64 first = PT_REGS_PARM1(ctx), second = PT_REGS_PARM2(ctx), third = PT_REGS_PARM3(ctx);

	asm volatile("" : "+r"(first), "+r"(second), "+r"(third));
	if (number == 0)
		return first;
	return number == 1 ? second : third;
}

/* struct path is { mnt, dentry } (include/linux/path.h). */
static __always_inline u64 dentry_of_path(u64 path)
{
	u64 dentry = 0;

	bpf_probe_read_kernel(&dentry, sizeof(dentry), (void *)(path + 8));
	return dentry;
}

static __always_inline void give(struct counts *counted, struct object *object)
{
	__sync_fetch_and_add(&object->balance, -1);
	if (object->balance >= 0)
		return;
	/* Beyond what it took: from here on it has nothing again. */
	__sync_fetch_and_add(&object->balance, 1);
	__sync_fetch_and_add(&counted->beyond, 1);
	if (object->taken && object->beyond)
		__sync_fetch_and_add(&counted->again, 1);
	__sync_fetch_and_add(&object->beyond, 1);
}

static __always_inline void count_call(struct site *site, u64 which)
{
	u32 index = site->index;
	struct counts *found = counts.lookup(&index);
	struct object *object, fresh = {};

	if (!found)
		return;
	if (!which || IS_ERROR(which)) {
		__sync_fetch_and_add(&found->nothing, 1);
		return;
	}
	__sync_fetch_and_add(&found->calls, 1);
	object = objects.lookup(&which);
	if (!object) {
		objects.insert(&which, &fresh);
		object = objects.lookup(&which);
	}
	if (!object) {
		__sync_fetch_and_add(&found->lost, 1);
		return;
	}
	if (site->sign < 0) {
		give(found, object);
		return;
	}
	__sync_fetch_and_add(&object->taken, 1);
	__sync_fetch_and_add(&object->balance, 1);
	object->since = bpf_ktime_get_ns();
	object->site = index;
}

int at_call(struct pt_regs *ctx)
{
	u64 ip = address(ctx), value;
	struct site *site = sites.lookup(&ip);
	struct waiting_key key = {};
	struct waiting wait = {};

	if (!site)
		return 0;
	value = argument_of(ctx, site->argument);
	if (site->how == HOW_RESULT || site->how == HOW_RESULT_PATH) {
		u32 index = site->index;
		struct counts *found;

		key.task = bpf_get_current_pid_tgid();
		key.after = ip + site->length;
		wait.site = *site;
		wait.argument = value;
		if (site->tail || waiting.update(&key, &wait)) {
			found = counts.lookup(&index);
			if (found)
				__sync_fetch_and_add(&found->lost, 1);
		}
		return 0;
	}
	if (value && site->how == HOW_PATH)
		value = dentry_of_path(value);
	if (value && site->how == HOW_LOCKREF)
		value -= OFF_D_LOCKREF;
	count_call(site, value);
	return 0;
}

int after_call(struct pt_regs *ctx)
{
	struct waiting_key key = {};
	struct waiting *found, wait = {};
	u64 value = PT_REGS_RC(ctx);

	key.task = bpf_get_current_pid_tgid();
	key.after = address(ctx);
	found = waiting.lookup(&key);
	if (!found)
		return 0;
	wait = *found;
	waiting.delete(&key);
	if (wait.site.how == HOW_RESULT_PATH)
		value = (s32)value ? 0 : dentry_of_path(wait.argument);
	count_call(&wait.site, value);
	return 0;
}
