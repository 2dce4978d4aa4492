/*
 * mix DIR COUNT: COUNT operations like fsstress's, always the same ones: create, write, read, rename,
 * link, unlink, mkdir, rmdir, stat, truncate, readdir.  Errors are part of it (the file may not be
 * there), and are not looked at.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILES 512
#define DIRECTORIES 16

static unsigned long seed = 42;

static unsigned chance(unsigned below)
{
	seed = seed * 6364136223846793005ul + 1442695040888963407ul;
	return (seed >> 33) % below;
}

static char *any(char *path, const char *root)
{
	snprintf(path, 4096, "%s/d%u/f%u", root, chance(DIRECTORIES), chance(FILES));
	return path;
}

static void data(const char *path, int flags, int writes)
{
	static char block[4096];
	int fd = open(path, flags, 0600);

	if (fd < 0)
		return;
	(void)!(writes ? write(fd, block, sizeof(block)) : read(fd, block, sizeof(block)));
	close(fd);
}

static void list(const char *root)
{
	char path[4096];
	DIR *directory;

	snprintf(path, sizeof(path), "%s/d%u", root, chance(DIRECTORIES));
	directory = opendir(path);
	while (directory && readdir(directory))
		;
	if (directory)
		closedir(directory);
}

static void one(const char *root)
{
	char path[4096], other[4096];
	struct stat about;
	unsigned what = chance(100);

	any(path, root);
	if (what < 30)
		data(path, O_CREAT | O_WRONLY, 1);
	else if (what < 55)
		unlink(path);
	else if (what < 65)
		rename(path, any(other, root));
	else if (what < 72)
		link(path, any(other, root));
	else if (what < 82)
		data(path, O_RDONLY, 0);
	else if (what < 90)
		stat(path, &about);
	else if (what < 94)
		(void)!truncate(path, chance(8192));
	else if (what < 97)
		mkdir(path, 0700);
	else if (what < 99)
		rmdir(path);
	else
		list(root);
}

int main(int argc, char **argv)
{
	char path[4096];
	long count = argc > 2 ? atol(argv[2]) : 0;

	for (int i = 0; i < DIRECTORIES; i++) {
		snprintf(path, sizeof(path), "%s/d%d", argv[1], i);
		mkdir(path, 0700);
	}
	for (long i = 0; i < count; i++)
		one(argv[1]);
	return 0;
}
