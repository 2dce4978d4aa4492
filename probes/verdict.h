/*
 * Reporting: a verdict with all the evidence of its moment, or one step of the canary.
 *
 * Invariant: called at most once a program run, and only when something should not have happened
 * (or the canary did it): it may cost microseconds.
 */
#include "inode.h"
#include "table.h"
#include "task.h"

/*
 * A superblock's device, read once a tick and CPU.  Within a tick no superblock goes and another comes in its place.
 * Another task may have written the entry while we were preempted: `super` is looked at before and after.
 */
static __always_inline u32 dev_at(u64 super, u64 ns)
{
	u32 zero = 0, dev;
	struct device_seen *seen = devices.lookup(&zero);

	if (!seen)
		return dev_of(super);
	if (*(volatile u64 *)&seen->super == super && seen->ns == ns) {
		dev = *(volatile u32 *)&seen->dev;
		if (*(volatile u64 *)&seen->super == super)
			return dev;
	}
	dev = dev_of(super);
	*(volatile u64 *)&seen->super = 0;
	*(volatile u32 *)&seen->dev = dev;
	*(volatile u64 *)&seen->ns = ns;
	*(volatile u64 *)&seen->super = super;
	return dev;
}

static __always_inline u64 inode_of(u64 object)
{
	return object + OFF_VFS_INODE;
}

static __always_inline u64 object_of(u64 inode)
{
	return inode - OFF_VFS_INODE;
}

struct suspicion {
	u64 object;
	u64 call_site;
	u64 ino;
	u32 generation;
	u32 dev;
	u64 state;
	u32 count;
	u32 flags; /* WITNESS_* */
	u32 verdict;
	u32 reclaim_pid;
	u32 broken; /* BROKEN_* */
	s32 writers;
	u64 related;
	u64 found;
	u64 dentry; /* whose names are told, where it is known; else those of the unlink's note */
	u64 super;  /* whose filesystem's type is told; 0 = ext4 */
};

/*
 * What the link to the superblock's list says.  It points at itself in an inode that is on no list:
 * evict() takes it off with list_del_init() (fs/inode.c).  NULL: fresh from the slab's constructor, where
 * that sets no list up (new_inode() does, but iget_locked() leaves it to inode_sb_list_add(), which a
 * lost race never reaches).  A neighbour that does not point back is none: the memory is somebody
 * else's.  Asked twice, for the neighbour may just be leaving the list.
 */
#ifdef HAVE_RINGBUF
#define LINK_LOOKS 2
#else
/*
 * Linux 4.19's verifier follows 131072 instructions (BPF_COMPLEXITY_LIMIT_INSNS), then refuses kmem_cache_free.  What
 * is lost with one look: a living inode that is freed while its neighbour leaves the list is told as double_free.
 */
#define LINK_LOOKS 1
#endif

static __always_inline u32 read_link(u64 link)
{
	u64 next = 0, back = 0;

#pragma unroll
	for (int i = 0; i < LINK_LOOKS; i++) {
		READ(next, link);
		if (!next || next == link)
			return 0;
		back = 0;
		READ(back, next + 8); /* struct list_head: next, prev */
		if (back == link)
			return WITNESS_PUBLISHED;
	}
	return WITNESS_NO_INODE;
}

/* The flags WITNESS_*, and the raw fields they were read from. */
static __always_inline u32 read_witness(u64 inode, u64 *state, u32 *count)
{
	u32 state32 = 0;
	u32 flags = WITNESS_READ;

	if (READ(state32, inode + OFF_I_STATE))
		return 0;
	READ(*count, inode + OFF_I_COUNT);
	*state = state32;
	if ((state32 & DEAD_STATE) == DEAD_STATE)
		flags |= WITNESS_CLEAR;
	return flags | read_link(inode + OFF_I_SB_LIST);
}

/* The device of an inode, whose pointer to its superblock is followed only where it is one. */
static __always_inline u32 dev_of_witness(const struct suspicion *why, const struct life *life,
					  u64 super)
{
	if (why->flags & WITNESS_NO_INODE)
		return life ? life->dev : 0;
	return dev_of(super);
}

/* Whether an allocation of this address would have been seen since its last step, or nearly always. */
static __always_inline bool alloc_seen_since(const struct life *life, u64 key)
{
#ifdef HAVE_ALLOC
	struct settings *config = get_settings();
	u64 last = key & OBJECT_DEAD ? life->freed.ns : life->evicted.ns;

	return config && last >= config->alloc_since;
#else
	return false;
#endif
}

/*
 * The same for certain.  A fentry program is skipped while another task runs it on that CPU, for preemption
 * stays on in there (__bpf_prog_enter_recur() in kernel/bpf/trampoline.c): ALLOC_MAY_MISS.  A kprobe and
 * a raw tracepoint run with preemption off.
 */
static __always_inline bool alloc_certain_since(const struct life *life, u64 key)
{
#ifdef ALLOC_MAY_MISS
	return false;
#else
	return alloc_seen_since(life, key);
#endif
}

/*
 * An inode that has its memory but no life: destroyed without an eviction, legally, because it lost
 * the race in iget_locked().  inode_init_always() has set its count to 1 (fs/inode.c), and an evicted
 * inode has none.  Before Linux 6.11 it leaves i_state as the former life left it, so I_CLEAR alone
 * tells nothing.
 */
static __always_inline bool never_lived(const struct suspicion *why)
{
	return why->flags & WITNESS_READ &&
	       !(why->flags & (WITNESS_PUBLISHED | WITNESS_NO_INODE)) && why->count == 1;
}

/* Whether that may be so of an object whose former life the table knows: `life` is dead, or another's. */
static __always_inline bool may_never_have_lived(const struct life *life, u64 key,
						 const struct suspicion *why)
{
	return !alloc_certain_since(life, key) && never_lived(why);
}

static __always_inline struct note *note_of(u64 inode)
{
	u32 index = place_of(inode) & (NOTE_SLOTS - 1);

	return notes.lookup(&index);
}

/* Over all of a note that an unlink writes once, but the end of a long name. */
static __always_inline u64 seal_of_note(const struct note *note, u64 inode)
{
	const u64 *name = (const u64 *)note->name, *comm = (const u64 *)note->actor.comm;
	u64 seal = inode;

	seal = (seal << 7 | seal >> 57) ^ note->actor.ns;
	seal = (seal << 7 | seal >> 57) ^ ((u64)note->actor.pid << 32 | note->actor.cpu);
	seal = (seal << 7 | seal >> 57) ^ comm[0];
	seal = (seal << 7 | seal >> 57) ^ note->parent_ino;
	seal = (seal << 7 | seal >> 57) ^ note->directory;
	seal = (seal << 7 | seal >> 57) ^ name[0];
	seal = (seal << 7 | seal >> 57) ^ name[1];
	return seal;
}

/*
 * Whether that unlink has not returned.  Its return was seen only if the hook has been there since;
 * and up to Linux 5.8 ext4_unlink() has three returns on errors between its two tracepoints (a
 * quota that cannot be had, a directory block that cannot be read), so the task itself must not have
 * begun another one since.
 */
static __always_inline bool in_flight(const struct note *note)
{
	struct settings *config = get_settings();
	struct task *task = task_slot(note->actor.pid);

	if (!(note->flags & NOTE_IN_FLIGHT) || !config || !task)
		return false;
	return note->actor.ns >= config->unlink_since && task->unlink_pid == note->actor.pid &&
	       task->inode == note->inode;
}

#ifdef OFF_I_RWSEM_OWNER
/* Who holds an inode's lock for writing; 0 = nobody (bit 0: readers do, kernel/locking/rwsem.c). */
static __always_inline u64 lock_owner(u64 inode)
{
	u64 owner = 0;

	READ(owner, inode + OFF_I_RWSEM_OWNER);
	return owner & 1 ? 0 : owner & ~7ull;
}

static __always_inline bool is_locked_by_us(u64 inode)
{
	return lock_owner(inode) == bpf_get_current_task();
}

/* vfs_unlink() holds it around ->unlink (fs/namei.c): what came back with an error let it go. */
static __always_inline bool is_locked(const struct inode_seen *seen)
{
	return !(seen->owner & 1) && seen->owner & ~7ull;
}
#else
/* PREEMPT_RT keeps no owner, and other kernels may not (CONFIG_RWSEM_SPIN_ON_OWNER). */
static __always_inline bool is_locked_by_us(u64 inode)
{
	return false;
}

static __always_inline bool is_locked(const struct inode_seen *seen)
{
	return true;
}
#endif

#ifdef TRACE_VERDICTS
#define TRACED_FRAMES 15

/*
 * The verdict in the trace buffer before the kernel goes on: ftrace_dump_on_oops brings it to the
 * console when it dies of the very free we stand before.  ebpfwatch/postmortem/last_boot.py reads it back.
 */
static __always_inline void trace_verdict(const struct suspicion *why, const struct life *life)
{
	const struct actor *first;

	bpf_trace_printk("ebpfwatch verdict=%u ino=%llu obj=%llx\n", why->verdict, why->ino,
			 why->object);
	bpf_trace_printk("ebpfwatch caller=%llx gen=%u dev=%x\n", why->call_site, why->generation,
			 why->dev);
	if (!life)
		return;
	first = life->freed.ns ? &life->freed : &life->evicted;
	if (why->verdict == VERDICT_DOUBLE_DESTROY && life->destroyed.ns)
		first = &life->destroyed;
	bpf_trace_printk("ebpfwatch first pid=%u ns=%llu caller=%llx\n", first->pid, first->ns,
			 first->caller);
	bpf_trace_printk("ebpfwatch evicted pid=%u by %s\n", life->evicted.pid, life->evicted.comm);
}

/*
 * Its callers, nearest first: a tracepoint and a fentry program have no caller of their own (call_site is 0), so without them
 * the dump would name no module.  Before Linux 5.8 only for the hooks that are tracepoints there: 4.19's verifier
 * follows 131072 instructions, and kprobes have their caller.
 */
static __always_inline void trace_stack(const struct verdict_record *record)
{
#pragma unroll
	for (int i = 0; i + 2 < TRACED_FRAMES; i += 3)
		bpf_trace_printk("ebpfwatch stack %llx %llx %llx\n", record->stack[i],
				 record->stack[i + 1], record->stack[i + 2]);
}
#ifdef HAVE_RINGBUF
#define STACK_IS_TRACED(hook) true
#else
#define STACK_IS_TRACED(hook) ((hook) == HOOK_EVICT || (hook) == HOOK_UNLINK)
#endif
#endif

/*
 * The dentry above a deleted name, if it is still the directory that the note means; else 0.  A directory
 * that is gone has lost its inode; one whose memory was reused has another.
 */
static __always_inline u64 directory_of(const struct note *note, u32 dev)
{
	u64 inode = 0, ino = 0;

	if (READ(inode, note->directory + OFF_D_INODE) || READ(ino, inode + OFF_I_INO))
		return 0;
	return ino == note->parent_ino && read_dev(inode) == dev ? note->directory : 0;
}

/* The name of a dentry of this moment, into the note; the directory above it. */
static __always_inline u64 read_name(struct verdict_record *record, u64 dentry)
{
	u64 name = 0, above = 0, inode = 0;

	if (READ(name, dentry + OFF_D_NAME) || READ(above, dentry + OFF_D_PARENT))
		return 0;
	if (bpf_probe_read_kernel_str(record->note.name, NAME_LEN, (void *)name) < 0)
		return 0;
	record->flags |= NAME_NOW;
	if (above == dentry)
		return 0;
	if (!READ(inode, above + OFF_D_INODE))
		READ(record->note.parent_ino, inode + OFF_I_INO);
	return above;
}

/*
 * The names of the directories above, as they are now: eight names at each unlink would cost a storm
 * 2 %, eight at a verdict cost nothing.
 */
static __always_inline void read_parents(struct verdict_record *record, u64 directory)
{
	u64 above = 0, name = 0;
	u64 at = 0;
	long size;

	record->flags |= PARENTS_VALID;
#pragma unroll
	for (int i = 0; i < PARENTS_MAX; i++) {
		if (READ(above, directory + OFF_D_PARENT))
			break;
		if (above == directory) {
			record->flags |= PARENTS_WHOLE;
			break;
		}
		if (at > PARENTS_LEN - 2 * NAME_LEN - 1 || READ(name, directory + OFF_D_NAME))
			break;
		BOUND(at, PARENTS_LEN / 2);
		size = bpf_probe_read_kernel_str(&record->parents[at], NAME_LEN, (void *)name);
		if (size < 0)
			break;
		at += size;
		directory = above;
	}
	BOUND(at, PARENTS_LEN);
	record->parents[at] = 0;
}

/* The type of the filesystem, as /proc/filesystems has it. */
static __always_inline void read_filesystem(struct verdict_record *record, u64 super)
{
	u64 type = 0, name = 0;

	__builtin_memset(record->filesystem, 0, FILESYSTEM_LEN);
	if (super && !READ(type, super + OFF_S_TYPE) && !READ(name, type + OFF_FS_NAME))
		bpf_probe_read_kernel_str(record->filesystem, FILESYSTEM_LEN, (void *)name);
}

/*
 * What is left of this object's former life, where the allocation has freed its way and nobody has
 * taken it since: the seal says whose it is.  Not before Linux 5.8: 4.19's verifier refuses the program with it.
 */
#ifdef HAVE_RINGBUF
static __always_inline const struct life *former_life(u64 object)
{
	struct bucket *bucket = bucket_of(object);
	u32 last = NO_WAY;
	u64 ns = 0;

	if (!bucket)
		return NULL;
#pragma unroll
	for (u32 way = 0; way < WAYS; way++) {
		const struct life *life = &bucket->life[way];

		if (life->evicted.ns > ns && life->seal == seal_of(object, life)) {
			ns = life->evicted.ns;
			last = way;
		}
	}
	return last == NO_WAY ? NULL : life_in(bucket, last);
}
#endif

/* `life` may be NULL; it and `key` must still be the entry as it was before this step. */
static __always_inline void report(void *ctx, u32 hook, const struct suspicion *why,
				   const struct life *life, u64 key)
{
	u64 ns = bpf_ktime_get_ns();
	struct verdict_record *record = verdict_scratch.lookup(&hook);
	u32 *in_use = verdict_in_use.lookup(&hook);
	struct note *note = note_of(inode_of(why->object));
	u64 directory = 0;
	const struct life *former = NULL;
	long bytes;

	count(COUNTER_VERDICT, 1);
#ifdef TRACE_VERDICTS
	/* User space may know the caller, and withdraw it (ebpfwatch/daemon/judging.py). */
	if (why->verdict != VERDICT_FOREIGN_FREE)
		trace_verdict(why, life);
#endif
	if (!record || !in_use)
		return;
	if (*in_use) {
		/* A softirq on top of the same program on this CPU, in its report, too (maps.h). */
		count(COUNTER_SUBMIT_LOST, 1);
		return;
	}
	*in_use = 1;
	record->header.kind = RECORD_VERDICT;
	record->header.size = sizeof(*record);
	record->header.cpu = bpf_get_smp_processor_id();
	record->header.ns = ns;
	record->verdict = why->verdict;
	record->hook = hook;
	record->flags = why->flags;
	record->object = why->object;
	record->call_site = why->call_site;
	record->ino_now = why->ino;
	record->generation_now = why->generation;
	record->dev_now = why->dev;
	record->state_now = why->state;
	record->count_now = why->count;
	record->reclaim_pid = why->reclaim_pid;
	record->broken = why->broken;
	record->writers = why->writers;
	record->related = why->related;
	record->found = why->found;
	read_filesystem(record, why->super);
	if (life) {
		record->life = *life;
		record->life.state = state_of(key);
		record->flags |= LIFE_VALID;
		if (life->seal != seal_of(why->object, life))
			record->flags |= SEAL_BROKEN;
	} else {
#ifdef HAVE_RINGBUF
		if (why->verdict == VERDICT_FREE_WHILE_ALIVE)
			former = former_life(why->object);
#endif
		if (former) {
			record->life = *former;
			record->life.state = STATE_FREED;
			record->flags |= LIFE_VALID | LIFE_FORMER;
		} else {
			__builtin_memset(&record->life, 0, sizeof(record->life));
		}
	}
	if (note && note->inode == inode_of(why->object) &&
	    (life ? life->flags & LIFE_UNLINKED : !(note->flags & NOTE_SPENT))) {
		record->note = *note;
		if (life ? !(life->flags & LIFE_IN_FLIGHT) : !in_flight(note))
			record->note.flags &= ~NOTE_IN_FLIGHT;
		if (record->note.seal == seal_of_note(&record->note, inode_of(why->object)))
			record->flags |= NOTE_VALID;
	}
	if (!(record->flags & NOTE_VALID))
		__builtin_memset(&record->note, 0, sizeof(record->note));
	if (why->dentry)
		directory = read_name(record, why->dentry);
	else if (record->flags & NOTE_VALID)
		directory = directory_of(&record->note, life ? life->dev : why->dev);
	if (directory)
		read_parents(record, directory);
	fill_actor(&record->actor, ns, why->call_site);
	bytes = bpf_get_stack(ctx, record->stack, sizeof(record->stack), 0);
	record->stack_bytes = bytes > 0 ? bytes : 0;
#ifdef TRACE_VERDICTS
	if (STACK_IS_TRACED(hook) && why->verdict != VERDICT_FOREIGN_FREE)
		trace_stack(record);
#endif
	submit(ctx, record, sizeof(*record));
	*in_use = 0;
}

static __always_inline void report_step(void *ctx, u32 hook, u64 object, u64 ino, u32 generation,
					u32 dev, u32 leaving)
{
	u64 ns = bpf_ktime_get_ns();
	struct step_record record = {};

	record.header.kind = RECORD_STEP;
	record.header.size = sizeof(record);
	record.header.cpu = bpf_get_smp_processor_id();
	record.header.ns = ns;
	record.object = object;
	record.ino = ino;
	record.generation = generation;
	record.dev = dev;
	record.hook = hook;
	record.leaving = leaving;
	fill_actor(&record.actor, ns, 0);
	submit(ctx, &record, sizeof(record));
}
