/*
 * legal DIR COUNT: COUNT rounds of what a file's life may legally be: linked, renamed, renamed over, deleted while it is
 * open, mapped or run, nameless, deleted by another name, in directories that go while somebody is in them.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char a[4096], b[4096], directory[4096], below[4096 + 8];

static int make(const char *path)
{
	int fd = open(path, O_CREAT | O_RDWR | O_TRUNC, 0700);

	if (fd < 0 || write(fd, "#!/bin/true\n", 12) != 12) {
		perror(path);
		exit(1);
	}
	return fd;
}

static void linked(void)
{
	close(make(a));
	if (link(a, b) || unlink(a) || unlink(b))
		perror("linked");
}

static void renamed(void)
{
	close(make(a));
	close(make(b));
	if (rename(a, b) || unlink(b))
		perror("renamed");
}

static void deleted_while_open(void)
{
	int writer = make(a), reader = open(a, O_RDONLY);

	if (unlink(a) || write(writer, "x", 1) != 1)
		perror("deleted_while_open");
	close(writer);
	close(reader);
}

static void deleted_while_mapped(void)
{
	int fd = make(a);
	char *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	close(fd);
	if (memory == MAP_FAILED || unlink(a))
		perror("deleted_while_mapped");
	else
		memory[0] = 'x';
	munmap(memory, 4096);
}

static void nameless(void)
{
	int fd = open(directory, O_TMPFILE | O_RDWR, 0600);

	if (fd >= 0 && linkat(AT_FDCWD, "/dev/null", AT_FDCWD, a, 0) == 0)
		unlink(a);
	close(fd);
}

/* The directory goes while it is open and somebody works in it. */
static void directories(void)
{
	DIR *open_directory;
	int fd;

	if (mkdir(directory, 0700))
		perror("mkdir");
	snprintf(below, sizeof(below), "%s/file", directory);
	fd = make(below);
	open_directory = opendir(directory);
	while (open_directory && readdir(open_directory))
		;
	if (unlink(below) || rmdir(directory))
		perror("directories");
	closedir(open_directory);
	close(fd);
	/* A name that is not there, in what is no directory any more. */
	if (open(below, O_RDONLY) >= 0)
		perror("a directory that is gone");
}

/* Written, then run: deny_write_access(). */
static void run(void)
{
	pid_t child;

	close(make(a));
	child = fork();
	if (child == 0) {
		execl(a, a, (char *)NULL);
		_exit(1);
	}
	unlink(a);
	waitpid(child, NULL, 0);
}

int main(int argc, char **argv)
{
	const char *root = argc > 1 ? argv[1] : ".";
	long count = argc > 2 ? atol(argv[2]) : 0;

	for (long i = 0; i < count; i++) {
		snprintf(a, sizeof(a), "%s/%d-a-%ld", root, getpid(), i);
		snprintf(b, sizeof(b), "%s/%d-b-%ld-and-a-name-that-does-not-lie-in-the-dentry",
			 root, getpid(), i);
		snprintf(directory, sizeof(directory), "%s/%d-d-%ld", root, getpid(), i);
		linked();
		renamed();
		deleted_while_open();
		deleted_while_mapped();
		directories();
		if (i % 64 == 0)
			run();
		snprintf(directory, sizeof(directory), "%s", root);
		nameless();
	}
	return 0;
}
