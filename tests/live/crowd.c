/*
 * crowd DIR TASKS COUNT: at a line on stdin, TASKS threads unlink COUNT names each in one directory, as fast as
 * they can.  Thread N goes by the name of crowd-N, as do its names, of which there may be no file.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

static const char *directory;
static int count;
static pthread_barrier_t begin;

static void *unlink_all(void *argument)
{
	char name[16], path[4096];

	snprintf(name, sizeof(name), "crowd-%d", (int)(long)argument);
	prctl(PR_SET_NAME, name, 0, 0, 0);
	pthread_barrier_wait(&begin);
	for (int i = 0; i < count; i++) {
		snprintf(path, sizeof(path), "%s/%s-%d", directory, name, i);
		unlink(path);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	int tasks = argc > 3 ? atoi(argv[2]) : 0;
	pthread_t thread[64];

	if (tasks < 1 || tasks > 64)
		return 1;
	directory = argv[1];
	count = atoi(argv[3]);
	pthread_barrier_init(&begin, NULL, tasks);
	getchar();
	for (long i = 0; i < tasks; i++)
		if (pthread_create(&thread[i], NULL, unlink_all, (void *)i))
			return 1;
	for (int i = 0; i < tasks; i++)
		pthread_join(thread[i], NULL);
	return 0;
}
