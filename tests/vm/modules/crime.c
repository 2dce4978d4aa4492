// SPDX-License-Identifier: GPL-2.0
/*
 * crime.ko path=FILE scenario=NAME: frees an ext4 inode object twice, on purpose, for tests in a guest.
 *
 * The victim is FILE's inode.  Nothing happens until it dies the ordinary way (rm FILE); then, by scenario:
 *
 *   again      a second RCU callback right after the first free
 *   late       the same two seconds later: the slab page may be gone
 *   reused     the same once another inode lives at the address: the silent one
 *   destroy    ext4_destroy_inode() a second time before the grace period ends
 *   shrink     the same by the task that evicts, while it shrinks the slabs
 *   by_module  kmem_cache_free() from this module's own text, after the first free
 *   tail       the same as the last act of a function: a jump, so that no stack shows this module
 *   foreign    RCU's callback is swallowed, and this module frees in its place: one free, by this module
 *   benign     the first free is swallowed, so that the second harms nothing
 *   twice      ext4_destroy_inode() again at once, and a second free by an RCU callback of its own; the first is
 *              swallowed, as with "benign", so that it can be committed as often as wanted
 *
 * Each crime is one line in the kernel log: "crime: SCENARIO object=... ino=... generation=... at=NS", and so is the
 * second free that comes of "destroy", "shrink" and "twice"; NS is CLOCK_MONOTONIC, as in the findings.
 *
 * Where the inode lies in its object, and which cache that is from, is learned before the module is armed, from the
 * ordinary ends of unnamed files (O_TMPFILE) beside FILE: the object that ext4's RCU callback hands to
 * kmem_cache_free() is the inode's.  Two ends that agree are enough; without them insmod fails with ETIMEDOUT.
 */
#include <linux/delay.h>
#include <linux/file.h>
#include <linux/fs.h>
#ifdef CONFIG_KFENCE
#include <linux/kfence.h>
#endif
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/namei.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/version.h>
#include <linux/workqueue.h>

static char *path = "";
module_param(path, charp, 0400);
static char *scenario = "again";
module_param(scenario, charp, 0400);
static int sampled; /* the victim is the first of FILE1 ... FILEn in KFENCE's pool */
module_param(sampled, int, 0400);

static struct inode *victim;
static void *object; /* the ext4_inode_info; known at its first free */
static struct kmem_cache *cache;
static unsigned long victim_ino;
static u32 victim_generation;
static bool freed, freed_again, reused, done;
static struct inode
	*last_inode; /* of the latest RCU callback, of any file, while vfs_inode is not known; */
static struct task_struct *last_task; /* it is freed in the same context, */
static int last_cpu;                  /* on the same CPU */
static bool swallow_queueing;
static long vfs_inode = -1; /* where it lies in its object; known before the module is armed */
static long seen_once = -1; /* the same after one free: a second one must agree */

static void (*free_inode)(void *argument); /* ext4_i_callback or ext4_free_in_core_inode */
static void (*destroy_inode_)(struct inode *inode);
static void (*destroy_both)(struct inode *inode); /* destroy_inode of fs/inode.c */
static bool free_takes_head;

static bool is(const char *name)
{
	return !strcmp(scenario, name);
}

static void confess(const char *what)
{
	pr_info("crime: %s object=%px ino=%lu generation=%u at=%llu\n", what, object, victim_ino,
		victim_generation, ktime_get_ns());
}

static struct rcu_head second;

static void second_callback(struct rcu_head *head)
{
	if (!is("twice"))
		confess(scenario);
	free_inode(free_takes_head ? (void *)&victim->i_rcu : (void *)victim);
	barrier(); /* no tail call: it would leave our text out of every stack */
}

static void commit(struct work_struct *work)
{
	if (is("destroy")) {
		confess("destroy");
		destroy_inode_(victim);
		barrier();
	} else if (is("by_module") || is("foreign")) {
		confess(scenario);
		kmem_cache_free(cache, object);
		barrier();
	} else {
		call_rcu(&second, second_callback);
	}
}

static DECLARE_DELAYED_WORK(crime, commit);

/* Ends in a jump: what kmem_cache_free returns to is the workqueue's own code. */
static void commit_by_jump(struct work_struct *work)
{
	confess("tail");
	kmem_cache_free(cache, object);
}

static DECLARE_DELAYED_WORK(crime_by_jump, commit_by_jump);

static void at(unsigned int milliseconds)
{
	if (done)
		return;
	done = true;
	mod_delayed_work(system_highpri_wq, is("tail") ? &crime_by_jump : &crime,
			 msecs_to_jiffies(milliseconds));
}

/* The first object freed after ext4's callback began, in its context, is the inode's own. */
static void learn(struct kmem_cache *from, unsigned long address)
{
	long offset;

	if (!last_inode || last_task != current || last_cpu != smp_processor_id())
		return;
	offset = (unsigned long)last_inode - address;
	last_inode = NULL;
	if (offset < 0 || offset >= 4096)
		return; /* an interrupt's, or of what belongs to the inode */
	if (offset == seen_once && from == cache)
		vfs_inode = offset;
	cache = from;
	seen_once = offset;
}

/* kmem_cache_free(cache, object) */
static int on_slab_free(struct kprobe *probe, struct pt_regs *regs)
{
	unsigned long address = regs->regs[1];

	if (vfs_inode < 0) {
		learn((struct kmem_cache *)regs->regs[0], address);
		return 0;
	}
	if (!victim || (struct kmem_cache *)regs->regs[0] != cache ||
	    (unsigned long)victim - address != vfs_inode)
		return 0;
	if (freed && done && (is("destroy") || is("shrink") || is("twice"))) {
		if (!freed_again)
			confess("freed again");
		freed_again = true;
	}
	if (freed)
		return 0;
	object = (void *)address;
	freed = true;
	if (is("again") || is("by_module") || is("tail"))
		at(0);
	if (is("late"))
		at(2000);
	if (is("benign"))
		at(100);
	if (is("benign") || is("twice")) {
		/* Return to the caller without freeing: the object stays allocated for the second. */
		instruction_pointer_set(regs, regs->regs[30]);
		return 1;
	}
	return 0;
}

/* ext4_free_in_core_inode(inode) or ext4_i_callback(head) */
static int on_callback(struct kprobe *probe, struct pt_regs *regs)
{
	void *argument = (void *)regs->regs[0];
	struct inode *inode =
		free_takes_head ? container_of(argument, struct inode, i_rcu) : argument;

	if (vfs_inode < 0) {
		last_task = current;
		last_cpu = smp_processor_id();
		last_inode = inode;
		return 0;
	}
	if (inode != victim || !is("foreign") || done)
		return 0;
	object = (void *)victim - vfs_inode;
	at(100);
	instruction_pointer_set(regs, regs->regs[30]);
	return 1;
}

/* ext4_destroy_inode(inode) */
static int on_destroy(struct kprobe *probe, struct pt_regs *regs)
{
	if (victim && (struct inode *)regs->regs[0] == victim && is("destroy"))
		at(0);
	return 0;
}

/* Runs in the place of destroy_inode(inode), in whatever context evicts. */
static void destroy_twice(struct inode *inode)
{
	destroy_both(inode);
	confess("shrink");
	destroy_inode_(inode);
	barrier();
}

/* call_rcu(head, function): queueing the same head twice would damage RCU's list instead of the slab. */
static int on_call_rcu(struct kprobe *probe, struct pt_regs *regs)
{
	if (!swallow_queueing || (struct rcu_head *)regs->regs[0] != &victim->i_rcu)
		return 0;
	instruction_pointer_set(regs, regs->regs[30]);
	return 1;
}

/* The same with a second free; ext4_destroy_inode() itself asks for one only before Linux 5.2. */
static void destroy_and_free_twice(struct inode *inode)
{
	destroy_both(inode);
	confess("twice");
	swallow_queueing = true;
	destroy_inode_(inode);
	swallow_queueing = false;
	call_rcu(&second, second_callback);
	barrier();
}

/* destroy_inode(inode) of fs/inode.c, for any filesystem */
static int on_any_destroy(struct kprobe *probe, struct pt_regs *regs)
{
	if (!victim || (struct inode *)regs->regs[0] != victim || done)
		return 0;
	done = true;
	instruction_pointer_set(regs, (unsigned long)(is("twice") ? destroy_and_free_twice
								  : destroy_twice));
	return 1;
}

/* inode_init_always(super, inode) */
static int on_init(struct kprobe *probe, struct pt_regs *regs)
{
	if (freed && (struct inode *)regs->regs[1] == victim && is("reused") && !reused) {
		reused = true;
		at(500);
	}
	return 0;
}

static struct kprobe slab_free = { .symbol_name = "kmem_cache_free", .pre_handler = on_slab_free };
static struct kprobe destroy = { .symbol_name = "ext4_destroy_inode", .pre_handler = on_destroy };
static struct kprobe any_destroy = { .symbol_name = "destroy_inode",
				     .pre_handler = on_any_destroy };
static struct kprobe queueing = { .symbol_name = "call_rcu", .pre_handler = on_call_rcu };
static struct kprobe callback = { .pre_handler = on_callback };
static struct kprobe init_always = { .symbol_name = "inode_init_always", .pre_handler = on_init };

/* The address of a function that is not exported. */
static void *address_of(const char *name)
{
	struct kprobe probe = { .symbol_name = name };
	void *address;

	if (register_kprobe(&probe))
		return NULL;
	address = probe.addr;
	unregister_kprobe(&probe);
	return address;
}

static bool is_sampled(struct inode *inode)
{
#ifdef CONFIG_KFENCE
	return is_kfence_address(inode);
#else
	return false;
#endif
}

/* PATH, or the first of PATH1, PATH2 ... that KFENCE watches. */
static int find_file(struct path *found)
{
	char name[64];
	int i, error;

	if (!sampled)
		return kern_path(path, LOOKUP_FOLLOW, found);
	for (i = 1; i <= sampled; i++) {
		snprintf(name, sizeof(name), "%s%d", path, i);
		error = kern_path(name, LOOKUP_FOLLOW, found);
		if (error)
			return error;
		if (is_sampled(d_inode(found->dentry)))
			return 0;
		path_put(found);
	}
	return -EAGAIN;
}

static int find_victim(void)
{
	struct path found;
	int error = find_file(&found);

	if (error)
		return error;
	victim_ino = d_inode(found.dentry)->i_ino;
	victim_generation = d_inode(found.dentry)->i_generation;
	victim = d_inode(found.dentry);
	path_put(&found);
	return 0;
}

static int arm(void)
{
	int error;

	if (register_kprobe(&init_always)) {
		init_always.symbol_name = "inode_init_always_gfp";
		init_always.addr = NULL;
		init_always.flags = 0;
		register_kprobe(&init_always);
	}
	register_kprobe(&destroy);
	if (is("shrink") || is("twice")) {
		error = register_kprobe(&any_destroy);
		if (error)
			return error;
	}
	if (is("twice") && free_takes_head && register_kprobe(&queueing)) {
		queueing.symbol_name =
			"call_rcu_sched"; /* a macro over it, where 4.19 does not preempt */
		queueing.addr = NULL;
		queueing.flags = 0;
		error = register_kprobe(&queueing);
		if (error)
			return error;
	}
	return 0;
}

/* unregister_kprobe() ignores a probe that is not registered. */
static void disarm(void)
{
	struct kprobe *probes[] = { &slab_free, &callback,    &init_always,
				    &destroy,   &any_destroy, &queueing };

	unregister_kprobes(probes, ARRAY_SIZE(probes));
}

/* In a worker: the last reference to a file is given back at once there, not at the return to user space. */
static void open_unnamed(struct work_struct *work)
{
	char directory[64];
	struct file *file;

	strscpy(directory, path, sizeof(directory));
	if (strrchr(directory, '/'))
		*strrchr(directory, '/') = 0;
	file = filp_open(directory, O_TMPFILE | O_RDWR, 0600);
	if (!IS_ERR(file))
		fput(file);
}

static DECLARE_WORK(unnamed, open_unnamed);

/* Sets vfs_inode and cache, with both probes in place. */
static int learn_where(void)
{
	int i;

	for (i = 0; i < 100 && vfs_inode < 0; i++) {
		schedule_work(&unnamed);
		flush_work(&unnamed);
		msleep(50); /* fput() of a kernel thread is a delayed work of one tick */
		rcu_barrier();
	}
	return vfs_inode < 0 ? -ETIMEDOUT : 0;
}

static int __init crime_init(void)
{
	int error;

	free_inode = address_of("ext4_free_in_core_inode");
	if (!free_inode) {
		free_inode = address_of("ext4_i_callback");
		free_takes_head = true;
	}
	destroy_inode_ = address_of("ext4_destroy_inode");
	destroy_both = address_of("destroy_inode");
	if (!free_inode || !destroy_inode_ || ((is("shrink") || is("twice")) && !destroy_both))
		return -ENOENT;
	error = register_kprobe(&slab_free);
	if (error)
		return error;
	callback.symbol_name = free_takes_head ? "ext4_i_callback" : "ext4_free_in_core_inode";
	error = register_kprobe(&callback);
	if (!error)
		error = learn_where();
	if (!error)
		error = find_victim();
	if (!error)
		error = arm();
	if (error) {
		disarm();
		return error;
	}
	pr_info("crime: %s armed for %s inode=%px ino=%lu\n", scenario, path, victim, victim_ino);
	return 0;
}

/* Only after "benign" and "twice": whatever else happened, nothing of ours may be running. */
static void __exit crime_exit(void)
{
	disarm();
	cancel_delayed_work_sync(&crime);
	rcu_barrier();
}

module_init(crime_init);
module_exit(crime_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Frees an ext4 inode twice, for the tests of ebpfwatch");
