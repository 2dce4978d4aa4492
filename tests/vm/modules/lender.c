// SPDX-License-Identifier: GPL-2.0
/*
 * lender.ko path=FILE: takes and gives back references of FILE, for tests of `ebpfwatch balance` in a guest.
 *
 * "N" written to /sys/module/lender/parameters/work makes N rounds, each of which takes a reference of the inode and of
 * the dentry in several ways, opens and closes FILE, and gives everything back.  What else a round does is the parameter habit, which can be changed:
 *
 *   pairs  nothing
 *   wrong  one iput() too many in each 50 rounds; opens FILE once more and never closes it
 *
 * The references that are given back too often were taken at the beginning, so that nothing is freed in use.
 */
#include <linux/dcache.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/namei.h>

static char *path = "";
module_param(path, charp, 0400);
static char *habit = "pairs";
module_param(habit, charp, 0600);

#define SPARE 10000

static struct path where;
static struct inode *inode;
static unsigned int rounds;

static noinline void pair_inode(void)
{
	ihold(inode);
	iput(inode);
	if (igrab(inode))
		iput(inode);
	barrier();
}

static noinline void pair_dentry(void)
{
	struct dentry *parent = dget_parent(where.dentry);
	struct path again;

	dput(parent);
	dput(dget(where.dentry));
	path_get(&where);
	path_put(&where);
	if (!kern_path(path, LOOKUP_FOLLOW, &again))
		path_put(&again);
	if (!kern_path("/no/such/file", 0, &again))
		path_put(&again);
	barrier();
}

static noinline void pair_file(void)
{
	struct file *file = filp_open(path, O_RDONLY, 0);

	if (!IS_ERR(file))
		filp_close(file, NULL);
	barrier();
}

/* A jump at the end of a function, where the compiler makes one: its return address is not in this module. */
static noinline void once_too_often(void)
{
	iput(inode);
}

static noinline void never_closed(void)
{
	struct file *file = filp_open(path, O_RDONLY, 0);

	if (IS_ERR(file))
		pr_info("lender: %s cannot be opened: %ld\n", path, PTR_ERR(file));
	barrier();
}

static int work(const char *value, const struct kernel_param *parameter)
{
	unsigned int number, i;
	int error = kstrtouint(value, 10, &number);

	if (error || !inode)
		return error ?: -EINVAL;
	for (i = 0; i < number; i++) {
		rounds++;
		pair_inode();
		pair_dentry();
		pair_file();
		if (strcmp(habit, "wrong"))
			continue;
		if (rounds % 50 == 0 && rounds / 50 < SPARE)
			once_too_often();
		never_closed();
	}
	return 0;
}

static const struct kernel_param_ops work_ops = { .set = work };
module_param_cb(work, &work_ops, NULL, 0200);

static int notrace __init lender_init(void)
{
	int i, error = kern_path(path, LOOKUP_FOLLOW, &where);

	if (error)
		return error;
	inode = d_inode(where.dentry);
	for (i = 0; i < SPARE; i++)
		ihold(inode);
	return 0;
}

/* It stays: it holds references. */
module_init(lender_init);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Takes and gives back references, for the tests of ebpfwatch");
