/* Load for an echo server: many TCP connections, a fixed number of lines outstanding on each.

   load HOST PORT PID CONNECTIONS WINDOW WARMUP SECONDS

   Every byte that comes back is compared with what was sent. Prints the lines that were echoed while it
   measured, the seconds that took, and the CPU seconds of the server (process PID) and of itself. It is in C
   so that one core of load saturates a server in Python on another. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { LINE = 64, ROOM = 65536, EVENTS = 256, PATIENCE_MS = 5000 };

/* One line after another, a line longer than a read: any offset in a line can be compared in one go. */
static char lines[ROOM + LINE];
static char room[ROOM];

struct connection {
    int fd;
    unsigned offset; /* how far into a line the echo is */
};

static void fail(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, errno ? strerror(errno) : "wrong");
    exit(1);
}

static double seconds_of(clockid_t clock)
{
    struct timespec now;
    if (clock_gettime(clock, &now) != 0)
        fail("no clock; is the server gone?");
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void send_lines(int fd, unsigned count)
{
    size_t size = (size_t)count * LINE, sent = 0;
    while (sent < size) {
        ssize_t done = send(fd, lines + sent % LINE, size - sent, MSG_NOSIGNAL);
        if (done < 0)
            fail("send");
        sent += (size_t)done;
    }
}

static int connected(const struct sockaddr_in *address)
{
    int on = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)address, sizeof *address) != 0)
        fail("connect");
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0)
        fail("setsockopt");
    return fd;
}

/* Takes what has come, sends as many lines as have come back whole, and returns their number. */
static unsigned echoed(struct connection *connection)
{
    ssize_t size = recv(connection->fd, room, ROOM, 0);
    if (size <= 0)
        fail("the server closed a connection");
    if (memcmp(room, lines + connection->offset, (size_t)size) != 0)
        fail("the echo differs from what was sent");
    unsigned whole = (connection->offset + (unsigned)size) / LINE;
    connection->offset = (connection->offset + (unsigned)size) % LINE;
    if (whole > 0)
        send_lines(connection->fd, whole);
    return whole;
}

static unsigned long run(int poll, double until)
{
    struct epoll_event events[EVENTS];
    unsigned long count = 0;
    while (seconds_of(CLOCK_MONOTONIC) < until) {
        int ready = epoll_wait(poll, events, EVENTS, PATIENCE_MS);
        if (ready <= 0)
            fail("the server answers nothing");
        for (int i = 0; i < ready; i++)
            count += echoed(events[i].data.ptr);
    }
    return count;
}

int main(int argc, char **argv)
{
    if (argc != 8) {
        fprintf(stderr, "usage: load HOST PORT PID CONNECTIONS WINDOW WARMUP SECONDS\n");
        return 2;
    }
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[2]))};
    if (inet_pton(AF_INET, argv[1], &address.sin_addr) != 1)
        fail("not an IPv4 address");
    int connections = atoi(argv[4]);
    unsigned window = (unsigned)atoi(argv[5]);
    clockid_t server;
    if ((errno = clock_getcpuclockid(atoi(argv[3]), &server)) != 0)
        fail("the server has no CPU clock");
    if (connections < 1 || window < 1 || window * LINE > ROOM)
        fail("a number is out of range");

    for (size_t i = 0; i < sizeof lines; i++)
        lines[i] = i % LINE == LINE - 1 ? '\n' : (char)('a' + i % LINE % 26);
    int poll = epoll_create1(0);
    struct connection *all = calloc((size_t)connections, sizeof *all);
    if (poll < 0 || all == NULL)
        fail("set-up");
    for (int i = 0; i < connections; i++) {
        all[i].fd = connected(&address);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &all[i]};
        if (epoll_ctl(poll, EPOLL_CTL_ADD, all[i].fd, &event) != 0)
            fail("epoll_ctl");
    }
    for (int i = 0; i < connections; i++)
        send_lines(all[i].fd, window);

    double start = seconds_of(CLOCK_MONOTONIC);
    run(poll, start + atof(argv[6]));
    double server_start = seconds_of(server), own_start = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
    start = seconds_of(CLOCK_MONOTONIC);
    unsigned long count = run(poll, start + atof(argv[7]));
    double took = seconds_of(CLOCK_MONOTONIC) - start;
    printf("%lu %.6f %.6f %.6f\n", count, took, seconds_of(server) - server_start,
           seconds_of(CLOCK_PROCESS_CPUTIME_ID) - own_start);
    return 0;
}
