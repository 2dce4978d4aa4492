/*
 * race DIR COUNT: two tasks open COUNT cold files of DIR by handle, each file at the same moment.
 *
 * By handle no lock of a directory stands between them, so one often loses the race in iget_locked(): its
 * inode is freed without ever having lived, and without an eviction.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

struct name {
	struct file_handle handle;
	unsigned char bytes[MAX_HANDLE_SZ];
};

static int fail(const char *what)
{
	perror(what);
	return 1;
}

int main(int argc, char **argv)
{
	int count = argc > 2 ? atoi(argv[2]) : 0, mount_id, mount, drop, child, status = 1;
	struct name *names = calloc(count, sizeof(*names));
	/* Whose turn it is: files that the parent has begun with, and that the child is done with. */
	volatile int *turn =
		mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char path[4096];

	mount = open(argv[1], O_RDONLY | O_DIRECTORY);
	drop = open("/proc/sys/vm/drop_caches", O_WRONLY);
	if (mount < 0 || drop < 0 || !names || turn == MAP_FAILED)
		return fail(argv[1]);
	for (int i = 0; i < count; i++) {
		int fd;

		snprintf(path, sizeof(path), "race-%d", i);
		fd = openat(mount, path, O_CREAT | O_EXCL | O_WRONLY, 0600);
		names[i].handle.handle_bytes = MAX_HANDLE_SZ;
		if (fd < 0 || close(fd) ||
		    name_to_handle_at(mount, path, &names[i].handle, &mount_id, 0))
			return fail(path);
	}
	sync();
	/* Inodes and dentries that were used lately are spared once. */
	for (int i = 0; i < 3; i++)
		if (write(drop, "2", 1) != 1)
			return fail("drop_caches");
	child = fork();
	for (int i = 0; i < count; i++) {
		if (child)
			turn[0] = i + 1;
		while (turn[0] < i + 1)
			;
		close(open_by_handle_at(mount, &names[i].handle, O_PATH));
		if (!child)
			turn[1] = i + 1;
		while (turn[1] < i + 1)
			;
	}
	if (!child)
		_exit(0);
	waitpid(child, &status, 0);
	for (int i = 0; i < count; i++) {
		snprintf(path, sizeof(path), "race-%d", i);
		if (unlinkat(mount, path, 0))
			return fail(path);
	}
	return status;
}
