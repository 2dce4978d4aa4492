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
 *   stranger   kmem_cache_free() from this module's own text, after the first free
 *   benign     the first free is swallowed, so that the second harms nothing
 *
 * Each crime is one line in the kernel log: "crime: SCENARIO object=... ino=... generation=...".
 */
#include <linux/fs.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/namei.h>
#include <linux/slab.h>
#include <linux/version.h>
#include <linux/workqueue.h>

static char *path = "";
module_param(path, charp, 0400);
static char *scenario = "again";
module_param(scenario, charp, 0400);

static struct inode *victim;
static void *object; /* the ext4_inode_info; known at its first free */
static struct kmem_cache *cache;
static unsigned long victim_ino;
static u32 victim_generation;
static bool freed, reused, done;

static void (*free_inode)(void *argument);   /* ext4_i_callback or ext4_free_in_core_inode */
static void (*destroy_inode_)(struct inode *inode);
static void (*destroy_both)(struct inode *inode); /* destroy_inode of fs/inode.c */
static bool free_takes_head;

static bool is(const char *name)
{
	return !strcmp(scenario, name);
}

static void confess(const char *what)
{
	pr_info("crime: %s object=%px ino=%lu generation=%u\n", what, object, victim_ino,
		victim_generation);
}

static struct rcu_head second;

static void second_callback(struct rcu_head *head)
{
	confess(scenario);
	free_inode(free_takes_head ? (void *)&victim->i_rcu : (void *)victim);
}

static void commit(struct work_struct *work)
{
	if (is("destroy")) {
		confess("destroy");
		destroy_inode_(victim);
	} else if (is("stranger")) {
		confess("stranger");
		kmem_cache_free(cache, object);
		barrier(); /* no tail call: it would leave our text out of every stack */
	} else {
		call_rcu(&second, second_callback);
	}
}

static DECLARE_DELAYED_WORK(crime, commit);

static void at(unsigned int milliseconds)
{
	if (done)
		return;
	done = true;
	mod_delayed_work(system_highpri_wq, &crime, msecs_to_jiffies(milliseconds));
}

/* kmem_cache_free(cache, object) */
static int on_slab_free(struct kprobe *probe, struct pt_regs *regs)
{
	unsigned long address = regs->regs[1];

	if (!victim || (unsigned long)victim - address >= 2048 || freed)
		return 0;
	cache = (struct kmem_cache *)regs->regs[0];
	object = (void *)address;
	freed = true;
	if (is("again") || is("stranger"))
		at(0);
	if (is("late"))
		at(2000);
	if (is("benign")) {
		at(100);
		/* Return to the caller without freeing: the object stays allocated for the second. */
		instruction_pointer_set(regs, regs->regs[30]);
		return 1;
	}
	return 0;
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
}

/* destroy_inode(inode) of fs/inode.c, for any filesystem */
static int on_any_destroy(struct kprobe *probe, struct pt_regs *regs)
{
	if (!victim || (struct inode *)regs->regs[0] != victim || done || !is("shrink"))
		return 0;
	done = true;
	instruction_pointer_set(regs, (unsigned long)destroy_twice);
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
static struct kprobe any_destroy = { .symbol_name = "destroy_inode", .pre_handler = on_any_destroy };
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

static int find_victim(void)
{
	struct path found;
	int error = kern_path(path, LOOKUP_FOLLOW, &found);

	if (error)
		return error;
	victim_ino = d_inode(found.dentry)->i_ino;
	victim_generation = d_inode(found.dentry)->i_generation;
	victim = d_inode(found.dentry);
	path_put(&found);
	return 0;
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
	if (!free_inode || !destroy_inode_ || (is("shrink") && !destroy_both))
		return -ENOENT;
	error = find_victim();
	if (error)
		return error;
	error = register_kprobe(&slab_free);
	if (error)
		return error;
	if (register_kprobe(&init_always)) {
		init_always.symbol_name = "inode_init_always_gfp";
		init_always.addr = NULL;
		init_always.flags = 0;
		register_kprobe(&init_always);
	}
	register_kprobe(&destroy);
	if (is("shrink")) {
		error = register_kprobe(&any_destroy);
		if (error)
			return error;
	}
	pr_info("crime: %s armed for %s inode=%px ino=%lu\n", scenario, path, victim, victim_ino);
	return 0;
}

module_init(crime_init);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Frees an ext4 inode twice, for the tests of ebpfwatch");
