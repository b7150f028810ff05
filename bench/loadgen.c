/* A closed-loop HTTP/1.1 client that checks every answer: one thread, one epoll, kept connections.
 *
 * usage: loadgen HOST PORT CONNECTIONS SECONDS WARM_UP_SECONDS WORK
 *
 * Each connection asks, waits for the whole answer, checks it, and asks the next; they walk over the work at different
 * places, so that answers which went to each other's requests are seen.  After the warm-up it writes "begin" to stderr,
 * after the measurement "end".  Then it reads on: what is still to come is checked, though not counted where it is
 * right, and what does not come within PATIENCE_S is stuck.  At last it writes one line of JSON to stdout.  Times are
 * from the first byte that is written to the last byte that is read.
 *
 * WORK, little-endian: u32 items; each u32 length and a whole request, u32 kind, u32 length and what is right:
 *   kind 0  bytes that the answer's body has to hold
 *   kind 1  float64 tolerance, float64 values: the numbers of the body, these and no others, in this order
 *   kind 2  the body, byte by byte
 * what ends with 503 is refused, and counted by itself; who is told by Retry-After to wait does so.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CONTAINS, NUMBERS, EQUALS };
/* once this many connections have failed, nothing is there to be measured */
enum { MOST_FAILURES = 20000 };
/* how often those are looked at who wait, or have no connection */
static const double LOOK_S = 0.01;
/* longer than any server here lets a client wait */
static const double PATIENCE_S = 6;

struct item {
    char *request, *right;
    uint32_t size, kind, right_size;
};

struct connection {
    int fd, place, connecting, asked, closing, chunked, status;
    /* of the request; and when to ask the next, after a refusal */
    size_t sent;
    double began, until;
    /* of the answer: what has come, where its body begins, and how long that is (-1: nobody said) */
    char *buffer;
    size_t got, room, body;
    long length, retry_after;
};

static struct item *items;
static uint32_t count;
static struct sockaddr_in address;
static int epoll, measuring, stopping;
static long right, refused, wrong, failed, cut, reopened;
static uint32_t *latencies;
static size_t measured, room_for_latencies = 1 << 16;
static char first_wrong[300];

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void *grown(void *memory, size_t size) {
    memory = realloc(memory, size);
    if (!memory) abort();
    return memory;
}

static void watch(struct connection *c, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(epoll, operation, c->fd, &event);
}

static void hang_up(struct connection *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
}

static int dial(struct connection *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) return -1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->connecting = connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0;
    if (c->connecting && errno != EINPROGRESS) {
        hang_up(c);
        return -1;
    }
    watch(c, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT);
    return 0;
}

static void write_request(struct connection *c) {
    struct item *item = &items[c->place];
    while (c->sent < item->size) {
        ssize_t wrote = send(c->fd, item->request + c->sent, item->size - c->sent, MSG_NOSIGNAL);
        if (wrote > 0) {
            c->sent += (size_t)wrote;
        } else {
            /* an error is told by the next read */
            if (wrote < 0 && errno == EAGAIN) watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
            return;
        }
    }
    watch(c, EPOLL_CTL_MOD, EPOLLIN);
}

static void ask(struct connection *c) {
    c->sent = c->got = c->body = 0;
    c->status = c->chunked = c->closing = 0;
    c->length = -1;
    c->retry_after = 0;
    c->until = 0;
    c->asked = !stopping;
    if (stopping) return;
    c->began = now();
    if (c->fd < 0) {
        if (dial(c) < 0) failed++;
        /* the loop dials again */
        if (c->fd < 0 || c->connecting) return;
    }
    write_request(c);
}

/* The next number that is not inside a name; the end of the body where there is none. */
static char *next_number(char *at) {
    while (*at && *at != '-' && !(*at >= '0' && *at <= '9')) {
        if (*at == '"')
            for (at++; *at && *at != '"'; at++) {}
        if (*at) at++;
    }
    return at;
}

static int numbers_are_right(struct item *item, char *body) {
    double *values = (double *)item->right, tolerance = values[0];
    uint32_t expected = item->right_size / sizeof(double) - 1;
    char *at = next_number(body);
    for (uint32_t k = 1; k <= expected; k++) {
        char *end;
        double value = strtod(at, &end);
        if (end == at || !(fabs(value - values[k]) <= tolerance)) return 0;
        at = next_number(end);
    }
    return !*at;
}

static int is_right(struct item *item, char *body, size_t size) {
    switch (item->kind) {
    case CONTAINS: return memmem(body, size, item->right, item->right_size) != NULL;
    case NUMBERS: return numbers_are_right(item, body);
    default: return size == item->right_size && !memcmp(body, item->right, size);
    }
}

static void take_answer(struct connection *c, char *body, size_t size) {
    double took = now() - c->began;
    c->asked = 0;
    int good = c->status == 200 && is_right(&items[c->place], body, size);
    if (!good && c->status != 503 && !first_wrong[0])
        snprintf(first_wrong, sizeof first_wrong, "item %d: %d %.200s", c->place, c->status, body);
    if (measuring) {
        if (good) {
            right++;
            if (measured == room_for_latencies)
                latencies = grown(latencies, (room_for_latencies *= 2) * sizeof *latencies);
            latencies[measured++] = (uint32_t)(took * 1e6);
        } else if (c->status == 503) {
            refused++;
        }
    }
    if ((measuring || stopping) && !good && c->status != 503) wrong++;
    if (c->closing) {
        if (measuring) reopened++;
        hang_up(c);
    }
    c->place = (c->place + 1) % (int)count;
    if (c->status == 503 && c->retry_after > 0)
        c->until = now() + (double)c->retry_after;
    else
        ask(c);
}

static void ended(struct connection *c) {
    if (c->until) {
        /* nothing was asked */
        hang_up(c);
        return;
    }
    if (c->status && c->length < 0 && !c->chunked) {
        /* the end of the connection is the end of the answer */
        c->closing = 1;
        take_answer(c, c->buffer + c->body, c->got - c->body);
        return;
    }
    if (measuring || (stopping && c->asked)) cut++;
    if (!first_wrong[0]) snprintf(first_wrong, sizeof first_wrong, "cut after %zu bytes of an answer", c->got);
    hang_up(c);
    ask(c);
}

static void read_head(struct connection *c, char *end) {
    *end = 0;
    sscanf(c->buffer, "HTTP/%*s %d", &c->status);
    c->closing = !strncmp(c->buffer, "HTTP/1.0", 8);
    for (char *line = strchr(c->buffer, '\n'); line; line = strchr(line, '\n')) {
        line++;
        if (!strncasecmp(line, "content-length:", 15)) c->length = atol(line + 15);
        if (!strncasecmp(line, "retry-after:", 12)) c->retry_after = atol(line + 12);
        if (!strncasecmp(line, "transfer-encoding: chunked", 26)) c->chunked = 1;
        if (!strncasecmp(line, "connection: close", 17)) c->closing = 1;
        if (!strncasecmp(line, "connection: keep-alive", 22)) c->closing = 0;
    }
    c->body = (size_t)(end + 4 - c->buffer);
}

/* Chunks joined in place.  Returns the size of the body. */
static size_t join(char *body) {
    char *to = body, *at = body;
    for (;;) {
        long size = strtol(at, &at, 16);
        if (size <= 0) break;
        at = strchr(at, '\n') + 1;
        memmove(to, at, (size_t)size);
        to += size;
        at += size + 2;
    }
    *to = 0;
    return (size_t)(to - body);
}

static void read_answer(struct connection *c) {
    for (;;) {
        if (c->room - c->got < 65536) c->buffer = grown(c->buffer, (c->room = c->room ? 2 * c->room : 131072) + 1);
        ssize_t got = recv(c->fd, c->buffer + c->got, c->room - c->got, 0);
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0) {
            ended(c);
            return;
        }
        c->got += (size_t)got;
        c->buffer[c->got] = 0;
        if (!c->status) {
            char *end = strstr(c->buffer, "\r\n\r\n");
            if (!end) continue;
            read_head(c, end);
        }
        char *body = c->buffer + c->body;
        size_t size = c->got - c->body;
        if (c->length >= 0 ? size >= (size_t)c->length : c->chunked && size >= 5 && !memcmp(c->buffer + c->got - 5, "0\r\n\r\n", 5)) {
            take_answer(c, body, c->length >= 0 ? (size_t)c->length : join(body));
            return;
        }
    }
}

static void handle(struct connection *c, uint32_t events) {
    if (c->fd < 0) return;
    if (c->connecting) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        c->connecting = 0;
        if (error) {
            failed++;
            hang_up(c);
        } else {
            write_request(c);
        }
    } else if (events & EPOLLIN) {
        read_answer(c);
    } else if (events & (EPOLLHUP | EPOLLERR)) {
        ended(c);
    } else if (events & EPOLLOUT) {
        write_request(c);
    }
}

static void *piece(FILE *file, uint32_t *size) {
    if (fread(size, sizeof *size, 1, file) != 1) exit(2);
    char *memory = grown(NULL, *size + 1);
    if (*size && fread(memory, *size, 1, file) != 1) exit(2);
    memory[*size] = 0;
    return memory;
}

static void load(const char *name) {
    FILE *file = fopen(name, "rb");
    if (!file || fread(&count, sizeof count, 1, file) != 1 || !count) {
        fprintf(stderr, "loadgen: %s is no work\n", name);
        exit(2);
    }
    items = grown(NULL, count * sizeof *items);
    for (uint32_t k = 0; k < count; k++) {
        items[k].request = piece(file, &items[k].size);
        if (fread(&items[k].kind, sizeof items[k].kind, 1, file) != 1) exit(2);
        items[k].right = piece(file, &items[k].right_size);
    }
    fclose(file);
}

static int ascending(const void *one, const void *other) {
    uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;
    return (a > b) - (a < b);
}

static double percentile(double share) {
    return measured ? latencies[(size_t)((double)(measured - 1) * share)] / 1000.0 : 0;
}

static double cpu(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

static void say(const char *word) {
    fprintf(stderr, "%s\n", word);
    fflush(stderr);
}

int main(int argc, char **argv) {
    if (argc != 7) {
        fprintf(stderr, "usage: loadgen HOST PORT CONNECTIONS SECONDS WARM_UP_SECONDS WORK\n");
        return 2;
    }
    int connections = atoi(argv[3]);
    double seconds = atof(argv[4]), warm_up = atof(argv[5]);
    load(argv[6]);
    address.sin_family = AF_INET;
    address.sin_port = htons((uint16_t)atoi(argv[2]));
    if (inet_pton(AF_INET, argv[1], &address.sin_addr) != 1) {
        fprintf(stderr, "loadgen: %s is no IPv4 address\n", argv[1]);
        return 2;
    }
    latencies = grown(NULL, room_for_latencies * sizeof *latencies);
    epoll = epoll_create1(0);
    struct connection *all = calloc((size_t)connections, sizeof *all);
    for (int k = 0; k < connections; k++) {
        all[k].fd = -1;
        all[k].place = k % (int)count;
        ask(&all[k]);
    }
    double begin = now() + warm_up, end = begin + seconds, cpu_before = 0, look_at = 0;
    struct epoll_event events[256];
    while (failed < MOST_FAILURES) {
        double time = now();
        if (!measuring && time >= begin) {
            measuring = 1;
            begin = time;
            end = begin + seconds;
            cpu_before = cpu();
            failed = 0;
            say("begin");
        }
        if (measuring && time >= end) break;
        int found = epoll_wait(epoll, events, 256, 10);
        for (int k = 0; k < found; k++) handle(events[k].data.ptr, events[k].events);
        if (time < look_at) continue;
        look_at = time + LOOK_S;
        for (int k = 0; k < connections; k++)
            if (all[k].until ? time >= all[k].until : all[k].fd < 0) ask(&all[k]);
    }
    double took = now() - begin, used = cpu() - cpu_before;
    measuring = 0;
    stopping = 1;
    say("end");
    long stuck;
    for (double last = now() + PATIENCE_S;;) {
        stuck = 0;
        for (int k = 0; k < connections; k++) stuck += all[k].asked && all[k].fd >= 0;
        if (!stuck || now() >= last) break;
        int found = epoll_wait(epoll, events, 256, 10);
        for (int k = 0; k < found; k++) handle(events[k].data.ptr, events[k].events);
    }
    qsort(latencies, measured, sizeof *latencies, ascending);
    for (char *at = first_wrong; *at; at++)
        if (*at == '"' || *at == '\\' || *at < ' ') *at = '\'';
    printf("{\"connections\":%d,\"seconds\":%.4f,\"right\":%ld,\"refused\":%ld,\"wrong\":%ld,\"cut\":%ld,\"failed\":%ld,"
           "\"stuck\":%ld,\"reopened\":%ld,\"p50_ms\":%.3f,\"p90_ms\":%.3f,\"p99_ms\":%.3f,\"max_ms\":%.3f,\"cpu_s\":%.4f,"
           "\"first_wrong\":\"%s\"}\n",
           connections, took, right, refused, wrong, cut, failed, stuck, reopened, percentile(0.5), percentile(0.9),
           percentile(0.99), percentile(1), used, first_wrong);
    return 0;
}
