/* The load generator: opens WebSocket connections, counts what arrives and how late it is, and watches itself.
 *
 *     cc -O2 -DHAVE_ZLIB -DHAVE_TLS -o load load.c -lz -lssl -lcrypto
 *     load --port 8080 --plan FILE [--host A] [--concurrency N] [--header H]... [--slow-every K] [--rcvbuf BYTES]
 *          [--reply PREFIX=ANSWER] [--retry] [--tls]
 *
 * A plan has one line a connection: the path, then steps, separated by tabs. `>TEXT` sends a text frame, `B>TEXT`
 * a binary one (with \r and \n), `X>HEX` a binary one, and `<TEXT` waits for a frame that contains TEXT. A connection is
 * ready behind its last step. Every "~T" and 16 hexadecimal digits (CLOCK_MONOTONIC, ns) in what arrives is one
 * delivery. A line of a frame that begins with PREFIX is answered with a frame that is ANSWER: servers ping among messages, too.
 * Commands on standard input: go, reset, stats, drop, quit; each answers with one line of JSON.
 *
 * One thread and one epoll loop. `lag` is how long the loop took over one batch of events, the time that data may
 * have waited for the generator and not for the server; `cpu` its own CPU, `waited` how long it was runnable but
 * had no core.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef HAVE_ZLIB
#include <zlib.h>
static z_stream inflater;
#endif
#ifdef HAVE_TLS
#include <openssl/ssl.h>
static SSL_CTX *tls;
#endif

enum { IDLE, CONNECTING, SECURING, HANDSHAKE, STEPS, READY, CLOSED, WAITING };

typedef struct {
    int fd, state;
    char *path, *step, *steps;
    unsigned char *rest; /* an incomplete frame, or an incomplete handshake */
    size_t rest_len, rest_cap;
    uint64_t started, retry_at;
    uint32_t got;
    int slow;
#ifdef HAVE_TLS
    SSL *secure;
#endif
} conn;

typedef struct { uint64_t n, max, count[64 * 32]; } histogram;

static conn *conns;
static int total, next_conn, in_flight, ready_count, failed, concurrency = 100, slow_every, rcvbuf, retrying, going, announced;
static int waiting;
static char *host = "127.0.0.1", *reply_prefix, *reply_answer;
static char headers[4096];
static int port, ep;
static uint64_t deliveries, replayed, frames, bytes, closed, retries, statuses[600], codes[5000], go_at, ready_at, reset_at;
static histogram latency, lag, admission;
static double cpu0;
static uint64_t wait0;
static unsigned char buffer[1 << 20], inflated[1 << 20];

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + t.tv_nsec;
}

static double cpu(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static uint64_t run_queue_wait(void) {
    unsigned long long run = 0, wait = 0;
    FILE *f = fopen("/proc/self/schedstat", "r");
    if (f) {
        if (fscanf(f, "%llu %llu", &run, &wait) != 2) wait = 0;
        fclose(f);
    }
    return wait;
}

/* 32 buckets an octave: within 3 % */
static void record(histogram *h, uint64_t ns) {
    int octave = ns < 64 ? 0 : 63 - __builtin_clzll(ns) - 5;
    h->count[octave * 32 + (octave ? (ns >> octave) & 31 : (ns & 31))]++;
    h->n++;
    if (ns > h->max) h->max = ns;
}

static double quantile(histogram *h, double q) {
    uint64_t seen = 0, want = (uint64_t)(q * h->n);
    if (!h->n) return 0;
    for (int i = 0; i < 64 * 32; i++) {
        seen += h->count[i];
        if (seen > want) {
            int octave = i / 32;
            double low = octave ? (double)((uint64_t)(32 + i % 32) << octave) : i;
            return low < h->max ? low : h->max;
        }
    }
    return h->max;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void finish(conn *c, int state) {
    if (c->state >= CONNECTING && c->state <= STEPS) in_flight--;
    if (c->state == READY) closed++;
#ifdef HAVE_TLS
    SSL_free(c->secure);
    c->secure = NULL;
#endif
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    free(c->rest);
    c->rest = NULL;
    c->rest_len = c->rest_cap = 0;
    c->state = state;
}

static void fail(conn *c, uint64_t retry_ms) {
    if (retrying && c->state != READY && retry_ms) {
        finish(c, WAITING);
        c->retry_at = now() + retry_ms * 1000000;
        waiting++;
        retries++;
        return;
    }
    if (c->state != READY) failed++;
    finish(c, CLOSED);
}

static int send_all(conn *c, const void *data, size_t len) {
#ifdef HAVE_TLS
    if (c->secure && SSL_write(c->secure, data, len) == (int)len) return 1;
    if (!c->secure)
#endif
    if (send(c->fd, data, len, MSG_NOSIGNAL) == (ssize_t)len) return 1;
    fail(c, 0);
    return 0;
}

static int send_frame(conn *c, int opcode, const unsigned char *data, size_t len) {
    static unsigned char out[70000];
    static const unsigned char mask[4] = {0x37, 0xfa, 0x21, 0x3d};
    size_t n = 0;
    if (len > 65000) { fprintf(stderr, "load: a step is too long\n"); exit(1); }
    out[n++] = 0x80 | opcode;
    if (len < 126) out[n++] = 0x80 | len;
    else { out[n++] = 0x80 | 126; out[n++] = len >> 8; out[n++] = len; }
    memcpy(out + n, mask, 4);
    n += 4;
    for (size_t i = 0; i < len; i++) out[n + i] = data[i] ^ mask[i & 3];
    return send_all(c, out, n + len);
}

static size_t unescape(const char *in, size_t len, unsigned char *out) {
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        if (in[i] == '\\' && i + 1 < len && (in[i + 1] == 'r' || in[i + 1] == 'n')) out[n++] = in[++i] == 'r' ? '\r' : '\n';
        else out[n++] = in[i];
    }
    return n;
}

/* Send what can be sent; stop at the next thing to wait for, or become ready. */
static void advance(conn *c) {
    static unsigned char data[65536];
    while (c->step && *c->step) {
        char *end = strchrnul(c->step, '\t');
        size_t len = end - c->step, n = 0;
        if (*c->step == '<') return;
        if (len > sizeof data) { fprintf(stderr, "load: a step is too long\n"); exit(1); }
        if (*c->step == 'X') {
            for (char *p = c->step + 2; p + 1 < end; p += 2) {
                unsigned value;
                sscanf(p, "%2x", &value);
                data[n++] = value;
            }
            if (!send_frame(c, 2, data, n)) return;
        } else if (*c->step == 'B') {
            n = unescape(c->step + 2, len - 2, data);
            if (!send_frame(c, 2, data, n)) return;
        } else if (!send_frame(c, 1, (unsigned char *)c->step + 1, len - 1)) return;
        c->step = *end ? end + 1 : end;
    }
    c->state = READY;
    in_flight--;
    ready_count++;
    record(&admission, now() - c->started);
    if (slow_every && (c - conns) % slow_every == 0) {
        c->slow = 1;
        epoll_ctl(ep, EPOLL_CTL_DEL, c->fd, NULL);
    }
}

static void message(conn *c, unsigned char *data, size_t len) {
    uint64_t t = now();
    unsigned char *p = data, *end = data + len;
    if (reply_prefix) {
        size_t want = strlen(reply_prefix);
        int binary = strchr(reply_answer, '\r') != NULL;
        for (unsigned char *line = data; (size_t)(end - line) >= want; line++) {
            if (!memcmp(line, reply_prefix, want) && !send_frame(c, binary ? 2 : 1, (unsigned char *)reply_answer, strlen(reply_answer))) return;
            line = memchr(line, '\n', end - line);
            if (!line) break;
        }
    }
    if (c->state == STEPS && c->step && *c->step == '<') {
        size_t want = strchrnul(c->step, '\t') - c->step - 1;
        if (memmem(data, len, c->step + 1, want)) {
            c->step += want + 1;
            if (*c->step) c->step++;
            advance(c);
        }
    }
    while ((p = memmem(p, end - p, "~T", 2)) && end - p >= 18) {
        char digits[17];
        memcpy(digits, p + 2, 16);
        digits[16] = 0;
        uint64_t sent = strtoull(digits, NULL, 16);
        if (sent >= reset_at && sent < t) {
            record(&latency, t - sent);
            deliveries++;
            c->got++;
        } else replayed++;
        p += 18;
    }
}

static void on_frame(conn *c, unsigned char *data, size_t len, int first) {
    int opcode = first & 15;
    frames++;
    if (opcode == 9) send_frame(c, 10, data, len);
    else if (opcode == 8) {
        int code = len >= 2 ? data[0] << 8 | data[1] : 1005;
        uint64_t ms = 0;
        char *advice = len > 2 ? memmem(data + 2, len - 2, "\"retry_after_ms\":", 17) : NULL;
        if (advice) {
            char digits[24] = {0};
            memcpy(digits, advice + 17, len - (size_t)((unsigned char *)advice + 17 - data) < 20 ? len - (size_t)((unsigned char *)advice + 17 - data) : 20);
            ms = strtoull(digits, NULL, 10);
        }
        codes[code < 5000 ? code : 4999]++;
        fail(c, code == 1013 && !ms ? 1000 : ms);
    } else if (opcode <= 2) {
#ifdef HAVE_ZLIB
        if (first & 0x40) {
            static unsigned char in[1 << 20];
            memcpy(in, data, len);
            memcpy(in + len, "\0\0\xff\xff", 4);
            inflateReset(&inflater);
            inflater.next_in = in;
            inflater.avail_in = len + 4;
            inflater.next_out = inflated;
            inflater.avail_out = sizeof inflated;
            if (inflate(&inflater, Z_SYNC_FLUSH) < 0) { fprintf(stderr, "load: a frame does not inflate\n"); exit(1); }
            data = inflated;
            len = sizeof inflated - inflater.avail_out;
        }
#endif
        message(c, data, len);
    }
}

static void on_data(conn *c, unsigned char *data, size_t len) {
    if (c->state == HANDSHAKE) {
        unsigned char *end = memmem(data, len, "\r\n\r\n", 4);
        int status = 0;
        if (!end) goto keep;
        sscanf((char *)data, "HTTP/1.1 %d", &status);
        statuses[status > 0 && status < 600 ? status : 0]++;
        if (status != 101) {
            char *after = strcasestr((char *)data, "\r\nretry-after:");
            fail(c, after && (unsigned char *)after < end ? strtoull(after + 14, NULL, 10) * 1000 : 0);
            return;
        }
        c->state = STEPS;
        len -= end + 4 - data;
        data = end + 4;
        advance(c);
    }
    while (len >= 2 && c->fd >= 0) {
        size_t head = 2, size = data[1] & 127;
        if (size == 126) {
            if (len < 4) break;
            size = data[2] << 8 | data[3];
            head = 4;
        } else if (size == 127) {
            if (len < 10) break;
            size = (size_t)data[6] << 24 | data[7] << 16 | data[8] << 8 | data[9];
            head = 10;
        }
        if (head + size > sizeof buffer / 2) { fprintf(stderr, "load: a frame of %zu bytes\n", size); exit(1); }
        if (len < head + size) break;
        on_frame(c, data + head, size, data[0]);
        data += head + size;
        len -= head + size;
    }
keep:
    if (c->fd < 0) return;
    if (len) {
        if (c->rest_cap < len) {
            unsigned char *grown = malloc(len);
            memcpy(grown, data, len);
            free(c->rest);
            c->rest = grown;
            c->rest_cap = len;
        } else memmove(c->rest, data, len);
    } else if (c->rest) {
        free(c->rest);
        c->rest = NULL;
        c->rest_cap = 0;
    }
    c->rest_len = len;
}

/* As recv. */
static ssize_t receive(conn *c, void *data, size_t len) {
#ifdef HAVE_TLS
    if (c->secure) {
        int n = SSL_read(c->secure, data, len);
        if (n > 0) return n;
        errno = EAGAIN;
        return SSL_get_error(c->secure, n) == SSL_ERROR_WANT_READ ? -1 : 0;
    }
#endif
    return recv(c->fd, data, len, 0);
}

/* Whether there may be more to read that epoll does not know of. */
static int on_readable(conn *c) {
    memcpy(buffer, c->rest, c->rest_len);
    ssize_t n = receive(c, buffer + c->rest_len, sizeof buffer - c->rest_len - 1);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (n <= 0) {
        codes[1006]++;
        fail(c, retrying ? 1000 : 0);
        return 0;
    }
    bytes += n;
    buffer[c->rest_len + n] = 0;
    on_data(c, buffer, c->rest_len + n);
#ifdef HAVE_TLS
    return c->fd >= 0 && c->secure && SSL_has_pending(c->secure);
#else
    return 0;
#endif
}

static void open_next(conn *c) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)}, from = {.sin_family = AF_INET};
    struct epoll_event event = {.events = EPOLLOUT, .data.ptr = c};
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("load: socket (ulimit -n?)");
    inet_pton(AF_INET, host, &to.sin_addr);
    if (!strncmp(host, "127.", 4)) { /* another source address each 10,000, for there are 28,000 ports to one */
        setsockopt(c->fd, IPPROTO_IP, 24 /* IP_BIND_ADDRESS_NO_PORT */, &one, sizeof one);
        from.sin_addr.s_addr = htonl(0x7f000001u + (unsigned)(c - conns) / 10000);
        if (bind(c->fd, (struct sockaddr *)&from, sizeof from)) die("load: bind");
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (rcvbuf && slow_every && (c - conns) % slow_every == 0) setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &rcvbuf, sizeof rcvbuf);
    c->state = CONNECTING;
    c->step = c->steps;
    if (!c->started) c->started = now();
    in_flight++;
    epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &event);
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) fail(c, 0);
}

static void await(conn *c, int events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &event);
}

static void shake_hands(conn *c) {
    static char request[8192];
    int n = snprintf(request, sizeof request,
                     "GET %s HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n",
                     c->path, host, port, headers);
    c->state = HANDSHAKE;
    await(c, EPOLLIN);
    send_all(c, request, n);
}

#ifdef HAVE_TLS
static void secure(conn *c) {
    int done = SSL_do_handshake(c->secure), error = done == 1 ? SSL_ERROR_NONE : SSL_get_error(c->secure, done);
    if (error == SSL_ERROR_NONE) shake_hands(c);
    else if (error == SSL_ERROR_WANT_READ) await(c, EPOLLIN);
    else if (error == SSL_ERROR_WANT_WRITE) await(c, EPOLLOUT);
    else { codes[1015]++; fail(c, retrying ? 1000 : 0); }
}
#endif

static void on_connected(conn *c) {
    int error = 0;
    socklen_t len = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &len);
    if (error) { codes[1006]++; fail(c, retrying ? 1000 : 0); return; }
#ifdef HAVE_TLS
    if (tls) {
        c->secure = SSL_new(tls);
        SSL_set_fd(c->secure, c->fd);
        SSL_set_connect_state(c->secure);
        c->state = SECURING;
        secure(c);
        return;
    }
#endif
    shake_hands(c);
}

static void print_counts(const char *name, uint64_t *counts, int n) {
    const char *comma = "";
    printf(",\"%s\":{", name);
    for (int i = 0; i < n; i++)
        if (counts[i]) { printf("%s\"%d\":%llu", comma, i, (unsigned long long)counts[i]); comma = ","; }
    printf("}");
}

static void print_histogram(const char *name, histogram *h) {
    printf(",\"%s\":{\"n\":%llu,\"p50\":%.1f,\"p99\":%.1f,\"max\":%.1f}", name, (unsigned long long)h->n,
           quantile(h, .5) / 1e3, quantile(h, .99) / 1e3, h->max / 1e3); /* us */
}

static void stats(void) {
    uint32_t low = UINT32_MAX, high = 0;
    int open = 0;
    for (int i = 0; i < total; i++)
        if (conns[i].state == READY && !conns[i].slow) {
            open++;
            if (conns[i].got < low) low = conns[i].got;
            if (conns[i].got > high) high = conns[i].got;
        }
    printf("{\"ready\":%d,\"failed\":%d,\"open\":%d,\"closed\":%llu,\"retries\":%llu,\"deliveries\":%llu,\"replayed\":%llu,\"frames\":%llu,\"bytes\":%llu"
           ",\"fewest\":%u,\"most\":%u,\"connect_seconds\":%.4f,\"cpu\":%.4f,\"waited\":%.4f,\"seconds\":%.4f",
           ready_count, failed, open, (unsigned long long)closed, (unsigned long long)retries, (unsigned long long)deliveries,
           (unsigned long long)replayed,
           (unsigned long long)frames, (unsigned long long)bytes, open ? low : 0, high, (ready_at - go_at) / 1e9, cpu() - cpu0,
           (run_queue_wait() - wait0) / 1e9, (now() - reset_at) / 1e9);
    print_histogram("latency", &latency);
    print_histogram("lag", &lag);
    print_histogram("admission", &admission);
    print_counts("codes", codes, 5000);
    print_counts("statuses", statuses, 600);
    printf("}\n");
    fflush(stdout);
}

static void reset(void) {
    memset(&latency, 0, sizeof latency);
    memset(&lag, 0, sizeof lag);
    deliveries = replayed = frames = bytes = closed = 0;
    for (int i = 0; i < total; i++) conns[i].got = 0;
    cpu0 = cpu();
    wait0 = run_queue_wait();
    reset_at = now();
}

static void command(char *line) {
    if (!strncmp(line, "go", 2)) { reset(); going = 1; go_at = now(); return; } /* answers when all are settled */
    if (!strncmp(line, "reset", 5)) { reset(); printf("{}\n"); fflush(stdout); }
    else if (!strncmp(line, "stats", 5)) stats();
    else if (!strncmp(line, "drop", 4)) {
        for (int i = 0; i < total; i++) if (conns[i].fd >= 0) finish(&conns[i], CLOSED);
        printf("{}\n");
        fflush(stdout);
    } else exit(0);
}

static void read_plan(const char *name) {
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    FILE *f = fopen(name, "r");
    if (!f) die(name);
    while ((n = getline(&line, &cap, f)) > 0) {
        if (line[n - 1] == '\n') line[--n] = 0;
        if (total % 1024 == 0) conns = realloc(conns, (total + 1024) * sizeof *conns);
        conn *c = &conns[total++];
        memset(c, 0, sizeof *c);
        c->fd = -1;
        c->path = strdup(line);
        char *tab = strchr(c->path, '\t');
        c->steps = tab ? tab + 1 : c->path + n;
        if (tab) *tab = 0;
    }
    fclose(f);
    free(line);
}

int main(int argc, char **argv) {
    struct epoll_event events[512], in = {.events = EPOLLIN};
    static char line[256];
    struct rlimit files;
    uint64_t scanned = 0;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    for (int i = 1; i < argc; i++) {
        char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(name, "--retry")) { retrying = 1; continue; }
#ifdef HAVE_TLS
        if (!strcmp(name, "--tls")) {
            tls = SSL_CTX_new(TLS_client_method()); /* checks no certificate */
            SSL_CTX_set_read_ahead(tls, 1);
            continue;
        }
#endif
        i++;
        if (!strcmp(name, "--host")) host = value;
        else if (!strcmp(name, "--port")) port = atoi(value);
        else if (!strcmp(name, "--plan")) read_plan(value);
        else if (!strcmp(name, "--concurrency")) concurrency = atoi(value);
        else if (!strcmp(name, "--slow-every")) slow_every = atoi(value);
        else if (!strcmp(name, "--rcvbuf")) rcvbuf = atoi(value);
        else if (!strcmp(name, "--header")) snprintf(headers + strlen(headers), sizeof headers - strlen(headers), "%s\r\n", value);
        else if (!strcmp(name, "--reply")) {
            char *answer = strchr(value, '=');
            if (!answer) { fprintf(stderr, "load: --reply PREFIX=ANSWER\n"); return 2; }
            *answer = 0;
            reply_prefix = calloc(1, 256);
            reply_answer = calloc(1, 256);
            unescape(value, strlen(value), (unsigned char *)reply_prefix);
            unescape(answer + 1, strlen(answer + 1), (unsigned char *)reply_answer);
        } else { fprintf(stderr, "load: unknown option %s\n", name); return 2; }
    }
    if ((rlim_t)total + 20 > files.rlim_max) { fprintf(stderr, "load: %d connections need a higher ulimit -n than %llu\n", total, (unsigned long long)files.rlim_max); return 2; }
#ifdef HAVE_ZLIB
    inflateInit2(&inflater, -15);
#endif
    ep = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(ep, EPOLL_CTL_ADD, 0, &in);
    fcntl(0, F_SETFL, O_NONBLOCK);
    reset();
    for (;;) {
        int n = epoll_wait(ep, events, 512, waiting ? 5 : -1);
        uint64_t began = now();
        for (int i = 0; i < n; i++) {
            conn *c = events[i].data.ptr;
            if (!c) {
                ssize_t got = read(0, line, sizeof line - 1);
                if (got <= 0 && errno != EAGAIN) return 0;
                if (got == 0) return 0;
                if (got > 0) {
                    line[got] = 0;
                    for (char *p = strtok(line, "\n"); p; p = strtok(NULL, "\n")) command(p);
                }
            } else if (c->fd < 0) continue;
            else if (c->state == CONNECTING) on_connected(c);
#ifdef HAVE_TLS
            else if (c->state == SECURING) secure(c);
#endif
            else while (on_readable(c));
        }
        if (waiting && began - scanned > 5000000) {
            scanned = began;
            for (int i = 0; i < total; i++)
                if (conns[i].state == WAITING && conns[i].retry_at <= began) {
                    waiting--;
                    conns[i].state = IDLE;
                    open_next(&conns[i]);
                }
        }
        while (going && next_conn < total && in_flight < concurrency) open_next(&conns[next_conn++]);
        if (going && !announced && next_conn == total && !in_flight && !waiting) {
            announced = 1;
            ready_at = now();
            stats();
        }
        if (n > 0) record(&lag, now() - began);
    }
}
