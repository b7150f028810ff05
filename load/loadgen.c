/* An HTTP/1.1 client that checks every answer: one thread, one epoll, kept connections.
 *
 * usage: loadgen HOST PORT CONNECTIONS SECONDS WARM_UP_SECONDS WORK [RATE SEED [SAMPLES]]
 *
 * RATE 0, a closed loop: each connection asks, waits for the whole answer, checks it, and asks the next; they walk over
 * the work at different places, so that answers which went to each other's requests are seen.  After the warm-up it
 * writes "begin" to stderr, after the measurement "end".  Then it reads on: what is still to come is checked, though not
 * counted where it is right, and what does not come within PATIENCE_S is stuck.  At last it writes one line of JSON to
 * stdout.  Times are from the first byte that is written to the last byte that is read.
 *
 * RATE requests a second, an open loop: they fall due at the moments of a Poisson process that SEED draws, whatever the
 * server does.  One that finds no connection free waits for the first, and each time counts from when it fell due: a
 * server that stalls cannot put off what would have shown it.  All that fall due in the measurement are counted, also
 * those that are answered after it; late are those that were written more than LATE_S after they fell due.
 *
 * SAMPLES is a file for all that was counted, one after the other: five u32, microseconds from the beginning to when it
 * was due (or written), those it took, its status (0: no whole and right answer), and what the server's own
 * Server-Timing says of queue and predict.
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
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { CONTAINS, NUMBERS, EQUALS };
/* once this many connections have failed, nothing is there to be measured */
enum { MOST_FAILURES = 20000 };
/* how often those are looked at who wait, or have no connection */
static const double LOOK_S = 0.01;
/* longer than any server here lets a client wait */
static const double PATIENCE_S = 6;
static const double LATE_S = 0.001;

struct item {
    char *request, *right;
    uint32_t size, kind, right_size;
};

struct connection {
    int fd, place, connecting, asked, counted, closing, chunked, status;
    /* of the request; and when to ask the next, after a refusal */
    size_t sent;
    double began, until;
    /* of the answer: what has come, where its body begins, and how long that is (-1: nobody said) */
    char *buffer;
    size_t got, room, body;
    long length, retry_after;
    uint32_t queue_us, predict_us;
};

/* one that has fallen due and finds no connection free */
struct arrival {
    double due;
    int place;
};

static struct item *items;
static uint32_t count;
static struct sockaddr_in address;
static int epoll, measuring, stopping;
static long right, refused, wrong, failed, cut, reopened, late;
/* of an open loop: what waits for a connection, and the connections that wait */
static double rate, due_next, begin, end;
static struct arrival *waiting;
static size_t first_waiting, behind_waiting, room_for_waiting = 1 << 10;
static struct connection **idle;
static int idle_count, place_next, timer = -1;
static uint64_t drawn;
static FILE *samples;
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

static void clear(struct connection *c) {
    c->sent = c->got = c->body = 0;
    c->status = c->chunked = c->closing = 0;
    c->length = -1;
    c->retry_after = 0;
    c->until = 0;
    c->queue_us = c->predict_us = 0;
}

static void ask(struct connection *c) {
    clear(c);
    c->asked = rate || !stopping;
    if (!c->asked) return;
    if (!rate) c->began = now();
    if (c->fd < 0) {
        if (dial(c) < 0) failed++;
        /* the loop dials again */
        if (c->fd < 0 || c->connecting) return;
    }
    write_request(c);
}

/* Seconds to the next arrival of a Poisson process. */
static double gap(void) {
    /* splitmix64 */
    uint64_t mixed = drawn += 0x9e3779b97f4a7c15;
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
    mixed ^= mixed >> 31;
    return -log((double)((mixed >> 11) + 1) / 9007199254740992.0) / rate;
}

static void set_timer(void) {
    struct itimerspec at = {.it_value = {(time_t)due_next, (long)((due_next - floor(due_next)) * 1e9)}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
}

/* What has fallen due by now waits, and goes out as far as connections are free. */
static void send_due(void) {
    double time = now();
    while (!stopping && due_next <= time) {
        if (behind_waiting - first_waiting == room_for_waiting) {
            struct arrival *more = grown(NULL, 2 * room_for_waiting * sizeof *more);
            for (size_t k = first_waiting; k < behind_waiting; k++)
                more[k % (2 * room_for_waiting)] = waiting[k % room_for_waiting];
            free(waiting);
            waiting = more;
            room_for_waiting *= 2;
        }
        waiting[behind_waiting++ % room_for_waiting] = (struct arrival){due_next, place_next};
        place_next = (place_next + 1) % (int)count;
        due_next += gap();
    }
    while (idle_count && first_waiting < behind_waiting) {
        struct arrival *arrival = &waiting[first_waiting++ % room_for_waiting];
        struct connection *c = idle[--idle_count];
        c->began = arrival->due;
        c->place = arrival->place;
        c->counted = begin && c->began >= begin && (!end || c->began < end);
        late += c->counted && now() - c->began > LATE_S;
        ask(c);
    }
}

static void sample(double due, double took, int status, uint32_t queue_us, uint32_t predict_us) {
    uint32_t row[] = {(uint32_t)((due - begin) * 1e6), (uint32_t)(took * 1e6), (uint32_t)status, queue_us, predict_us};
    if (samples) fwrite(row, sizeof row, 1, samples);
}

static void rest(struct connection *c) {
    c->asked = c->counted = 0;
    clear(c);
    idle[idle_count++] = c;
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
    int counted = rate ? c->counted : measuring;
    int good = c->status == 200 && is_right(&items[c->place], body, size);
    if (!good && c->status != 503 && !first_wrong[0])
        snprintf(first_wrong, sizeof first_wrong, "item %d: %d %.200s", c->place, c->status, body);
    if (counted) {
        sample(c->began, took, good || c->status != 200 ? c->status : 0, c->queue_us, c->predict_us);
        if (good) {
            right++;
            if (measured == room_for_latencies)
                latencies = grown(latencies, (room_for_latencies *= 2) * sizeof *latencies);
            latencies[measured++] = (uint32_t)(took * 1e6);
        } else if (c->status == 503) {
            refused++;
        }
    }
    if ((rate ? counted : measuring || stopping) && !good && c->status != 503) wrong++;
    if (c->closing) {
        if (measuring) reopened++;
        hang_up(c);
    }
    if (rate) {
        rest(c);
        return;
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
    if (rate && !c->asked) {
        /* the server has closed what nobody used; it is opened again for the next request */
        hang_up(c);
        return;
    }
    if (rate ? c->counted : measuring || (stopping && c->asked)) cut++;
    if (!first_wrong[0]) snprintf(first_wrong, sizeof first_wrong, "cut after %zu bytes of an answer", c->got);
    hang_up(c);
    if (rate) {
        if (c->counted) sample(c->began, now() - c->began, 0, 0, 0);
        rest(c);
    } else {
        ask(c);
    }
}

/* The microseconds of one part of Server-Timing. */
static uint32_t part(const char *line, const char *name) {
    const char *found = strstr(line, name), *stop = strchr(line, '\n');
    return found && (!stop || found < stop) ? (uint32_t)(atof(found + strlen(name)) * 1000) : 0;
}

static void read_head(struct connection *c, char *stop) {
    *stop = 0;
    sscanf(c->buffer, "HTTP/%*s %d", &c->status);
    c->closing = !strncmp(c->buffer, "HTTP/1.0", 8);
    for (char *line = strchr(c->buffer, '\n'); line; line = strchr(line, '\n')) {
        line++;
        if (!strncasecmp(line, "content-length:", 15)) c->length = atol(line + 15);
        if (!strncasecmp(line, "retry-after:", 12)) c->retry_after = atol(line + 12);
        if (!strncasecmp(line, "transfer-encoding: chunked", 26)) c->chunked = 1;
        if (!strncasecmp(line, "connection: close", 17)) c->closing = 1;
        if (!strncasecmp(line, "connection: keep-alive", 22)) c->closing = 0;
        if (!strncasecmp(line, "server-timing:", 14)) {
            c->queue_us = part(line, "queue;dur=");
            c->predict_us = part(line, "predict;dur=");
        }
    }
    c->body = (size_t)(stop + 4 - c->buffer);
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
            char *stop = strstr(c->buffer, "\r\n\r\n");
            if (!stop) continue;
            read_head(c, stop);
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

static void look_at(struct epoll_event *events, int found) {
    for (int k = 0; k < found; k++) {
        uint64_t times;
        if (events[k].data.ptr)
            handle(events[k].data.ptr, events[k].events);
        else if (read(timer, &times, sizeof times) < 0)
            continue;
    }
}

/* Which have an answer to come, or wait for a connection. */
static long unanswered(struct connection *all, int connections) {
    long found = (long)(behind_waiting - first_waiting);
    for (int k = 0; k < connections; k++) found += all[k].asked && all[k].fd >= 0;
    return found;
}

static void say(const char *word) {
    fprintf(stderr, "%s\n", word);
    fflush(stderr);
}

int main(int argc, char **argv) {
    if (argc != 7 && argc != 9 && argc != 10) {
        fprintf(stderr, "usage: loadgen HOST PORT CONNECTIONS SECONDS WARM_UP_SECONDS WORK [RATE SEED [SAMPLES]]\n");
        return 2;
    }
    /* nobody would read what it finds */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int connections = atoi(argv[3]);
    double seconds = atof(argv[4]), warm_up = atof(argv[5]);
    load(argv[6]);
    if (argc > 7) {
        rate = atof(argv[7]);
        drawn = strtoull(argv[8], NULL, 10);
    }
    if (argc > 9 && !(samples = fopen(argv[9], "wb"))) {
        fprintf(stderr, "loadgen: %s cannot be written\n", argv[9]);
        return 2;
    }
    address.sin_family = AF_INET;
    address.sin_port = htons((uint16_t)atoi(argv[2]));
    if (inet_pton(AF_INET, argv[1], &address.sin_addr) != 1) {
        fprintf(stderr, "loadgen: %s is no IPv4 address\n", argv[1]);
        return 2;
    }
    latencies = grown(NULL, room_for_latencies * sizeof *latencies);
    epoll = epoll_create1(0);
    struct connection *all = calloc((size_t)connections, sizeof *all);
    idle = calloc((size_t)connections, sizeof *idle);
    waiting = grown(NULL, room_for_waiting * sizeof *waiting);
    for (int k = 0; k < connections; k++) {
        all[k].fd = -1;
        all[k].place = k % (int)count;
        if (rate)
            rest(&all[k]);
        else
            ask(&all[k]);
    }
    double begin_at = now() + warm_up, cpu_before = 0, look_again = 0;
    if (rate) {
        struct epoll_event event = {.events = EPOLLIN};
        /* the kernel may wake a sleeper 50 microseconds too late, so as to save power */
        prctl(PR_SET_TIMERSLACK, 1);
        timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
        epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &event);
        due_next = now() + gap();
    }
    struct epoll_event events[256];
    while (failed < MOST_FAILURES) {
        double time = now();
        if (!measuring && time >= begin_at) {
            measuring = 1;
            begin = time;
            end = begin + seconds;
            cpu_before = cpu();
            failed = 0;
            say("begin");
        }
        if (measuring && time >= end) break;
        if (rate) {
            send_due();
            set_timer();
        }
        look_at(events, epoll_wait(epoll, events, 256, 10));
        if (time < look_again) continue;
        look_again = time + LOOK_S;
        for (int k = 0; k < connections; k++)
            if (rate ? all[k].asked && all[k].fd < 0 : all[k].until ? time >= all[k].until : all[k].fd < 0) ask(&all[k]);
    }
    double took = now() - begin, used = cpu() - cpu_before;
    /* those that fell due in the last moment */
    if (rate) send_due();
    measuring = 0;
    stopping = 1;
    say("end");
    long stuck;
    for (double last = now() + PATIENCE_S; (stuck = unanswered(all, connections)) && now() < last;) {
        look_at(events, epoll_wait(epoll, events, 256, 10));
        if (rate) send_due();
    }
    if (rate) {
        for (int k = 0; k < connections; k++)
            if (all[k].asked && all[k].counted) sample(all[k].began, PATIENCE_S, 0, 0, 0);
        for (; first_waiting < behind_waiting; first_waiting++) {
            double due = waiting[first_waiting % room_for_waiting].due;
            if (due >= begin && due < end) sample(due, PATIENCE_S, 0, 0, 0);
        }
    }
    if (samples) fclose(samples);
    qsort(latencies, measured, sizeof *latencies, ascending);
    for (char *at = first_wrong; *at; at++)
        if (*at == '"' || *at == '\\' || *at < ' ') *at = '\'';
    printf("{\"connections\":%d,\"seconds\":%.4f,\"right\":%ld,\"refused\":%ld,\"wrong\":%ld,\"cut\":%ld,\"failed\":%ld,"
           "\"stuck\":%ld,\"late\":%ld,\"reopened\":%ld,\"p50_ms\":%.3f,\"p90_ms\":%.3f,\"p99_ms\":%.3f,\"max_ms\":%.3f,"
           "\"cpu_s\":%.4f,\"first_wrong\":\"%s\"}\n",
           connections, took, right, refused, wrong, cut, failed, stuck, late, reopened, percentile(0.5), percentile(0.9),
           percentile(0.99), percentile(1), used, first_wrong);
    return 0;
}
