/* Sends prepared HTTP requests over several connections as fast as they are answered: httpload PORT CONNECTIONS FILE.
 *
 * FILE: requests one after the other, each behind its length (4 bytes, this machine's order). Every connection sends its next request as
 * soon as an answer is whole, and is made anew when the server closes it. Prints one line of JSON: seconds, requests, failed (answers other
 * than 200), and the median and 99th percentile of the time of one request in microseconds. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BUFFER (1 << 20)

struct connection {
    int fd;
    size_t got, need; /* need: bytes of the whole answer, 0 until its headers are there */
    int closes;
    double started;
    char *buffer;
};

static struct sockaddr_in address = {.sin_family = AF_INET};
static char *requests, *end;
static double *times;
static size_t sent, answered, failed;
static int poller;

static double now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void open_connection(struct connection *c)
{
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address))
        die("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event))
        die("epoll_ctl");
}

static void send_next(struct connection *c)
{
    if (requests == end) {
        close(c->fd);
        c->fd = -1;
        return;
    }
    uint32_t length;
    memcpy(&length, requests, 4);
    c->got = c->need = 0;
    c->started = now();
    if (send(c->fd, requests + 4, length, MSG_NOSIGNAL) != (ssize_t)length)
        die("send");
    requests += 4 + length;
    sent++;
}

static const char *header(const char *from, const char *name)
{
    const char *found = strcasestr(from, name);
    return found ? found + strlen(name) : NULL;
}

static void finish(struct connection *c)
{
    times[answered++] = now() - c->started;
    failed += strncmp(c->buffer + 8, " 200", 4) != 0;
    if (c->closes) {
        close(c->fd);
        if (requests != end)
            open_connection(c);
    }
    if (c->fd >= 0 && !(c->closes && requests == end))
        send_next(c);
}

static void readable(struct connection *c)
{
    ssize_t n = recv(c->fd, c->buffer + c->got, BUFFER - 1 - c->got, 0);
    if (n <= 0)
        die("an answer ended early");
    c->got += n;
    c->buffer[c->got] = 0;
    if (!c->need) {
        char *body = strstr(c->buffer, "\r\n\r\n");
        if (!body)
            return;
        *body = 0;
        const char *length = header(c->buffer, "\r\ncontent-length:"), *closes = header(c->buffer, "\r\nconnection:");
        if (!length)
            die("an answer without Content-Length");
        c->closes = closes && strncasecmp(closes, " close", 6) == 0;
        c->need = body + 4 - c->buffer + strtoul(length, NULL, 10);
    }
    if (c->got >= c->need)
        finish(c);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int count, char **arguments)
{
    if (count != 4)
        return 2;
    address.sin_port = htons(atoi(arguments[1]));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    size_t connections = strtoul(arguments[2], NULL, 10);
    FILE *file = fopen(arguments[3], "rb");
    struct stat facts;
    if (!file || fstat(fileno(file), &facts))
        die(arguments[3]);
    requests = malloc(facts.st_size);
    times = malloc(facts.st_size * sizeof *times / 4);
    if (!requests || !times || fread(requests, 1, facts.st_size, file) != (size_t)facts.st_size)
        die("read");
    end = requests + facts.st_size;
    poller = epoll_create1(0);
    struct connection *all = calloc(connections, sizeof *all);
    double started = now();
    for (size_t i = 0; i < connections; i++) {
        all[i].buffer = malloc(BUFFER);
        open_connection(&all[i]);
        send_next(&all[i]);
    }
    while (answered < sent || requests != end) {
        struct epoll_event events[64];
        int n = epoll_wait(poller, events, 64, 30000);
        if (n == 0 || (n < 0 && errno != EINTR))
            die(n == 0 ? "nothing came for 30 seconds" : "epoll_wait");
        for (int i = 0; i < n; i++)
            readable(events[i].data.ptr);
    }
    double seconds = now() - started;
    qsort(times, answered, sizeof *times, compare);
    printf("{\"seconds\": %.6f, \"requests\": %zu, \"failed\": %zu, \"p50\": %.1f, \"p99\": %.1f}\n", seconds, answered, failed,
           times[answered / 2] * 1e6, times[answered * 99 / 100] * 1e6);
    return 0;
}
