/* churn COUNT: slab-heavy work without ext4: pipes, socket pairs with data in flight, epoll. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	long count = argc > 1 ? atol(argv[1]) : 0;
	char byte[64] = "x";

	for (long i = 0; i < count; i++) {
		struct epoll_event event = { .events = EPOLLIN };
		int pipes[2], sockets[2], poll = epoll_create1(0);

		if (poll < 0 || pipe(pipes) || socketpair(AF_UNIX, SOCK_DGRAM, 0, sockets) ||
		    epoll_ctl(poll, EPOLL_CTL_ADD, pipes[0], &event) ||
		    write(pipes[1], byte, sizeof(byte)) < 0 ||
		    write(sockets[0], byte, sizeof(byte)) < 0 ||
		    write(sockets[0], byte, sizeof(byte)) < 0 ||
		    read(sockets[1], byte, sizeof(byte)) < 0) {
			perror("churn");
			return 1;
		}
		close(poll);
		close(pipes[0]);
		close(pipes[1]);
		close(sockets[0]);
		close(sockets[1]);
	}
	return 0;
}
