/* The floor: what the kernel takes to send the same bytes to the same sockets, with next to nothing around it.
 *
 *     cc -O2 -o floor floor.c
 *     floor PORT
 *
 * One thread and one epoll loop. It takes the HTTP publishes that notify takes, makes one frame of each message and sends
 * it to each member by `send`; the messages of one list for one chat go out joined, as one `send` a member. Each client is
 * pinged every 25 s. The chats of a connection are in its path, `/1,2,3`.
 *
 * No authentication and no buffers: a frame that would block is dropped, and a client that took a part of one is closed. It
 * trusts its publisher, and knows the answer to one handshake, that of load.c.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PING_INTERVAL = 25 };

typedef struct { char *data; size_t len, cap; } bytes;
typedef struct { int *items; int n, cap; } list;
typedef struct { list members; bytes frames; } chat;
typedef struct { bytes unread; list chats; } client;

static client *clients; /* by descriptor */
static chat *chats;     /* by number */
static int most_clients, most_chats, highest;
static list touched; /* chats of the list that is being read */

/* The nonce of load.c is that of RFC 6455, and so is the answer. */
static const char nonce[] = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
static const char welcome[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                              "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

static void *grown(void *data, size_t size) {
    if (!(data = realloc(data, size))) { perror("floor"); exit(1); }
    return data;
}

static void append(bytes *to, const void *data, size_t len) {
    if (to->len + len > to->cap) to->data = grown(to->data, to->cap = 2 * (to->len + len));
    memcpy(to->data + to->len, data, len);
    to->len += len;
}

static void add(list *to, int item) {
    if (to->n == to->cap) to->items = grown(to->items, (to->cap = 2 * to->cap + 1) * sizeof *to->items);
    to->items[to->n++] = item;
}

static void delete(list *from, int item) {
    for (int i = 0; i < from->n; i++)
        if (from->items[i] == item) from->items[i--] = from->items[--from->n];
}

static chat *chat_of(int number) {
    if (number >= most_chats) {
        chats = grown(chats, (number + 1) * sizeof *chats);
        memset(chats + most_chats, 0, (number + 1 - most_chats) * sizeof *chats);
        most_chats = number + 1;
    }
    return &chats[number];
}

static void leave(int fd) {
    client *c = &clients[fd];
    for (int i = 0; i < c->chats.n; i++) delete(&chat_of(c->chats.items[i])->members, fd);
    free(c->unread.data);
    free(c->chats.items);
    memset(c, 0, sizeof *c);
    close(fd);
}

/* Where the JSON object at `p` ends; `end` where it does not. */
static char *object_end(char *p, char *end) {
    int depth = 0, string = 0;
    for (; p < end; p++) {
        if (string) {
            if (*p == '\\') p++;
            else if (*p == '"') string = 0;
        } else if (*p == '"') string = 1;
        else if (*p == '{') depth++;
        else if (*p == '}' && !--depth) return p + 1;
    }
    return end;
}

static void frame(bytes *to, const char *object, size_t len) {
    static const char type[] = "{\"type\":\"chat_message\",";
    size_t size = sizeof type - 1 + len - 1; /* without the brace of the object */
    unsigned char head[4] = {0x81, size, size >> 8, size};
    if (size < 126) append(to, head, 2);
    else { head[1] = 126; append(to, head, 4); }
    append(to, type, sizeof type - 1);
    append(to, object + 1, len - 1);
}

static void publish(char *body, char *end) {
    static const char key[] = "\"payload\":", number[] = "\"chat_id\":";
    char *p = body;
    while ((p = memmem(p, end - p, key, sizeof key - 1))) {
        p += sizeof key - 1;
        char *after = object_end(p, end), *id = memmem(p, after - p, number, sizeof number - 1);
        if (id && after - p < 65000) {
            int to = atoi(id + sizeof number - 1);
            bytes *frames = &chat_of(to)->frames;
            if (!frames->len) add(&touched, to);
            frame(frames, p, after - p);
        }
        p = after;
    }
    for (int i = 0; i < touched.n; i++) {
        chat *to = &chats[touched.items[i]];
        for (int j = 0; j < to->members.n; j++) {
            ssize_t sent = send(to->members.items[j], to->frames.data, to->frames.len, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (sent > 0 && (size_t)sent < to->frames.len) leave(to->members.items[j--]);
        }
        to->frames.len = 0;
    }
    touched.n = 0;
}

static void subscribe(int fd, char *path) {
    for (char *p = path; *p == '/' || *p == ','; ) {
        int number = strtol(p + 1, &p, 10);
        add(&chat_of(number)->members, fd);
        add(&clients[fd].chats, number);
    }
}

/* Act on whatever is whole of what came, and keep the rest. */
static void on_bytes(int fd) {
    bytes *in = &clients[fd].unread;
    for (;;) {
        append(in, "", 1); /* for string functions */
        in->len--;
        char *end = memmem(in->data, in->len, "\r\n\r\n", 4);
        if (!end) return;
        end += 4;
        if (!strncmp(in->data, "GET ", 4)) {
            if (!strstr(in->data, nonce)) { leave(fd); return; }
            send(fd, welcome, sizeof welcome - 1, MSG_NOSIGNAL);
            subscribe(fd, in->data + 4);
            free(in->data);
            memset(in, 0, sizeof *in);
            return;
        }
        char *length = strcasestr(in->data, "\r\nContent-Length:");
        size_t head = end - in->data, size = length && length < end ? strtoul(length + 17, NULL, 10) : 0;
        if (in->len < head + size) return;
        publish(end, end + size);
        send(fd, answer, sizeof answer - 1, MSG_NOSIGNAL);
        in->len -= head + size;
        memmove(in->data, in->data + head + size, in->len);
    }
}

static void ping(long second) {
    for (int fd = second % PING_INTERVAL; fd <= highest; fd += PING_INTERVAL)
        if (clients[fd].chats.n) send(fd, "\x89\0", 2, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static long seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec;
}

int main(int argc, char **argv) {
    static char buffer[1 << 20];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event events[512], in = {.events = EPOLLIN};
    struct rlimit files;
    int one = 1, ep = epoll_create1(EPOLL_CLOEXEC), listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    long pinged = seconds();
    if (argc != 2) { fprintf(stderr, "floor PORT\n"); return 2; }
    getrlimit(RLIMIT_NOFILE, &files);
    most_clients = files.rlim_cur;
    if (!(clients = calloc(most_clients, sizeof *clients))) { perror("floor"); return 1; }
    address.sin_port = htons(atoi(argv[1]));
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) { perror("floor"); return 1; }
    in.data.fd = listener;
    epoll_ctl(ep, EPOLL_CTL_ADD, listener, &in);
    for (;;) {
        int n = epoll_wait(ep, events, 512, 1000);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                if ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) < 0) continue;
                if (fd >= most_clients) { close(fd); continue; }
                if (fd > highest) highest = fd;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                in.data.fd = fd;
                epoll_ctl(ep, EPOLL_CTL_ADD, fd, &in);
                continue;
            }
            ssize_t got = recv(fd, buffer, sizeof buffer, 0);
            if (got < 0 && (errno == EAGAIN || errno == EINTR || errno == EBADF)) continue; /* EBADF: left in this turn */
            if (got <= 0) { leave(fd); continue; }
            if (clients[fd].chats.n) continue; /* a pong */
            append(&clients[fd].unread, buffer, got);
            on_bytes(fd);
        }
        for (long now = seconds(); pinged < now; pinged++) ping(pinged);
    }
}
