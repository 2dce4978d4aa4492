/* storm DIR COUNT [THREAD]: creates and unlinks COUNT files in DIR, one after the other. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	char path[4096];
	long count = argc > 2 ? atol(argv[2]) : 0;

	for (long i = 0; i < count; i++) {
		int fd;

		snprintf(path, sizeof(path), "%s/storm-%s-%ld", argv[1], argc > 3 ? argv[3] : "0",
			 i);
		fd = open(path, O_CREAT | O_EXCL | O_WRONLY, 0600);
		if (fd < 0 || close(fd) || unlink(path)) {
			perror(path);
			return 1;
		}
	}
	return 0;
}
