// SPDX-License-Identifier: GPL-2.0
/*
 * causes.ko path=FILE cause=NAME [count=N] [often=N]: the mistakes that end in a double free, on purpose, for tests in a guest.
 *
 * crime.ko frees twice; this module makes the mistake that somebody else's free later suffers from.  Nothing happens
 * at insmod but that FILE's objects are looked up.  "go" in /sys/module/causes/parameters/go makes the mistake, and
 * "-" there takes the references of a dput() back, so that nothing comes of it:
 *
 *   dir_put        dput() of the directory FILE, OFTEN times too often: its children hold references of it
 *   dirs_put       the same for FILE1 ... FILEcount
 *   iput_open      iput() once too often; the caller holds the file open
 *   iput_idle      the same, and nobody holds it
 *   dput_open      dput() once too often; the caller holds the file open
 *   dput_many      the same for FILE1 ... FILEcount
 *   dput_deleted   the same for a file that is open and deleted (FILE is /proc/self/fd/N)
 *   iput_stale     iput() of an inode that the module has no reference of: it has been freed
 *   iput_reused    the same once another inode lives there
 *   unlink_each    two kernel threads delete FILE1 ... FILEcount, each with a reference, without the directory's lock
 *   unlink_shared  the same, both threads sharing one reference of each
 *   write_freed    mark_inode_dirty() of an inode that has been freed
 *   free_live      ext4's own RCU callback called for a living inode: the slab hands its memory out again
 *   rcu_twice      one rcu_head queued on two CPUs, COUNT times, some 300 us apart: their callback lists cross
 *   files_leaked   COUNT files opened and never closed: wrong, but nothing is freed
 *
 * Each mistake is one line in the kernel log, written before it is made: "cause: NAME object=... ino=... at=NS"; NS is
 * CLOCK_MONOTONIC, as in the findings.  The inode is the one that lives there then, 0 where there are several, or none.
 */
#include <linux/cpumask.h>
#include <linux/dcache.h>
#include <linux/delay.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/kprobes.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/namei.h>
#include <linux/rcupdate.h>
#include <linux/version.h>

static char *path = "";
module_param(path, charp, 0400);
static char *cause = "";
module_param(cause, charp, 0400);
static int count = 1;
module_param(count, int, 0400);
static int often = 1;
module_param(often, int, 0400);

#define MOST 4096

static struct dentry *dentries[MOST]; /* without a reference, except while a cause says so */
static struct inode *victim;          /* without a reference */
static unsigned long victim_ino;
static int found;

static bool is(const char *name)
{
	return !strcmp(cause, name);
}

static void confess(void *object)
{
	unsigned long ino = is("iput_reused") ? victim->i_ino : victim_ino;

	pr_info("cause: %s object=%px ino=%lu at=%llu\n", cause, object, found == 1 ? ino : 0,
		ktime_get_ns());
}

static int remove(struct inode *directory, struct dentry *dentry)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	return vfs_unlink(&nop_mnt_idmap, directory, dentry, NULL);
#elif LINUX_VERSION_CODE >= KERNEL_VERSION(5, 12, 0)
	return vfs_unlink(&init_user_ns, directory, dentry, NULL);
#else
	return vfs_unlink(directory, dentry, NULL);
#endif
}

static void dput_all(void)
{
	int i, j;

	confess(dentries[0]);
	for (i = 0; i < found; i++)
		for (j = 0; j < often; j++)
			dput(dentries[i]);
	barrier(); /* no tail call: it would leave our text out of every stack */
}

static void dget_all(void)
{
	int i, j;

	for (i = 0; i < found; i++)
		for (j = 0; j < often; j++)
			dget(dentries[i]);
}

static void iput_once(void)
{
	if (is("iput_reused") && (victim->i_ino == victim_ino || !atomic_read(&victim->i_count)))
		pr_info("cause: no other inode lives there\n");
	confess(victim);
	iput(victim);
	barrier();
}

static void write_freed(void)
{
	confess(victim);
	mark_inode_dirty(victim);
	barrier();
}

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

static void free_live(void)
{
	void (*free_inode)(struct inode *) = address_of("ext4_free_in_core_inode");
	void (*callback)(struct rcu_head *) = address_of("ext4_i_callback");

	confess(victim);
	if (free_inode)
		free_inode(victim);
	else if (callback)
		callback(&victim->i_rcu);
	barrier();
}

/* Both threads begin each round together. */
static atomic_t arrived;

static void meet(int round)
{
	atomic_inc(&arrived);
	while (atomic_read(&arrived) < 2 * (round + 1)) {
		cpu_relax();
		cond_resched();
	}
}

static int unlinker(void *number)
{
	int i;

	for (i = 0; i < found; i++) {
		meet(i);
		remove(d_inode(dentries[i]->d_parent), dentries[i]);
		if (is("unlink_each"))
			dput(dentries[i]);
	}
	barrier();
	return 0;
}

static struct rcu_head crossed;
static atomic_t ran = ATOMIC_INIT(0);

static void count_run(struct rcu_head *head)
{
	atomic_inc(&ran);
}

static int queuer(void *number)
{
	int i;

	for (i = 0; i < count; i++) {
		meet(i);
		if (number)
			udelay(300);
		call_rcu(&crossed, count_run);
		msleep(1000);
	}
	return 0;
}

static void two_threads(int (*function)(void *))
{
	struct task_struct *task;
	unsigned int cpu, number = 0;

	confess(dentries[0]);
	for_each_online_cpu(cpu) {
		if (number == 2)
			break;
		task = kthread_create(function, (void *)(long)number++, "causes/%u", cpu);
		if (IS_ERR(task))
			continue;
		kthread_bind(task, cpu);
		wake_up_process(task);
	}
}

static void leak_files(void)
{
	struct file *file;
	char name[96];
	int i;

	confess(NULL);
	for (i = 1; i <= count; i++) {
		snprintf(name, sizeof(name), "%s%d", path, i);
		file = filp_open(name, O_RDONLY, 0);
		if (IS_ERR(file))
			pr_info("cause: %s cannot be opened: %ld\n", name, PTR_ERR(file));
	}
}

static const struct {
	const char *name;
	void (*commit)(void);
	bool many, no_file; /* FILE1 ... FILEcount; FILE is not looked up */
	int references;     /* that the module takes of each dentry */
} causes[] = {
	{ "dir_put", dput_all },
	{ "dirs_put", dput_all, .many = true },
	{ "iput_open", iput_once },
	{ "iput_idle", iput_once },
	{ "dput_open", dput_all },
	{ "dput_many", dput_all, .many = true },
	{ "dput_deleted", dput_all },
	{ "iput_stale", iput_once },
	{ "iput_reused", iput_once },
	{ "unlink_each", NULL, .many = true, .references = 2 },
	{ "unlink_shared", NULL, .many = true, .references = 1 },
	{ "write_freed", write_freed },
	{ "free_live", free_live },
	{ "rcu_twice", NULL, .no_file = true },
	{ "files_leaked", leak_files, .no_file = true },
};

static int chosen = -1;

static int find(const char *name)
{
	struct path where;
	int i, error = kern_path(name, LOOKUP_FOLLOW, &where);

	if (error)
		return error;
	if (!found)
		victim = d_inode(where.dentry);
	if (!found)
		victim_ino = victim->i_ino;
	for (i = 0; i < causes[chosen].references; i++)
		dget(where.dentry);
	dentries[found++] = where.dentry;
	path_put(&where);
	return 0;
}

static int go(const char *value, const struct kernel_param *parameter)
{
	if (chosen < 0)
		return -EINVAL; /* "go" on insmod's own command line */
	if (value[0] == '-')
		dget_all();
	else if (is("unlink_each") || is("unlink_shared"))
		two_threads(unlinker);
	else if (is("rcu_twice"))
		two_threads(queuer);
	else
		causes[chosen].commit();
	barrier();
	return 0;
}

static const struct kernel_param_ops go_ops = { .set = go };
module_param_cb(go, &go_ops, NULL, 0200);

static int __init causes_init(void)
{
	char name[96];
	int i, error = 0;

	for (i = 0; i < ARRAY_SIZE(causes); i++)
		if (is(causes[i].name))
			chosen = i;
	if (chosen < 0 || count < 1 || count > MOST)
		return -EINVAL;
	if (causes[chosen].many) {
		for (i = 1; i <= count && !error; i++) {
			snprintf(name, sizeof(name), "%s%d", path, i);
			error = find(name);
		}
	} else if (!causes[chosen].no_file) {
		error = find(path);
	}
	pr_info("cause: %s is ready for %s, error %d\n", cause, path, error);
	return error;
}

/* It stays: its threads may run. */
module_init(causes_init);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Makes mistakes with references and locks, for the tests of ebpfwatch");
