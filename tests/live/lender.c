/*
 * lender HABIT ROUNDS: calls functions that have the names of the kernel's, as a module would, for tests of `ebpfwatch
 * balance`: uprobes on these calls run the program that kprobes on a module's calls run.
 *
 * Linked with lent.c, where the functions are.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void ihold(void *inode);
void *igrab(void *inode);
void iput(void *inode);
void dput(void *dentry);
void *dget_parent(void *dentry);
void *filp_open(const char *path, int flags, int mode);
int filp_close(void *file, void *id);

#define BARRIER() __asm__ volatile("" ::: "memory")

__attribute__((noinline)) void pairs(char *objects, int round)
{
	char *inode = objects + round % 8 * 64;

	ihold(inode);
	if (igrab(round % 10 ? inode : NULL))
		iput(inode);
	iput(inode);
	dput(dget_parent(inode + 32));
	filp_close(filp_open(round % 2 ? "x" : "y", 0, 0), NULL);
	BARRIER();
}

__attribute__((noinline)) void once_too_often(char *objects)
{
	iput(objects);
}

__attribute__((noinline)) void never_closed(void)
{
	filp_open("z", 0, 0);
	filp_open(NULL, 0, 0); /* fails */
	BARRIER();
}

int main(int argc, char **argv)
{
	static char objects[1024];
	int round, rounds = argc > 2 ? atoi(argv[2]) : 0;

	getchar(); /* until the probes are there */
	for (round = 1; round <= rounds; round++) {
		pairs(objects, round);
		if (!strcmp(argv[1], "wrong")) {
			if (round % 50 == 0)
				once_too_often(objects);
			never_closed();
		}
	}
	return 0;
}
