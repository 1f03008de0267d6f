/* A load that takes little CPU: many streams in a closed loop, in one thread.
 *
 * Usage: load sse|grpc|engine --request FILE (--port PORT | --socket PATH) [options]
 *
 * Prints its results as one JSON object; with --progress also its outcomes so far, every second.
 * Exit code: 0, or 2 if it cannot run. SIGTERM ends it early. */
#define _GNU_SOURCE
#include "load.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define LEAVE_SECONDS 0.3 /* Clients that leave do so within this time. */
#define MAX_WAIT 0.25     /* Seconds between looks at the clock. */
#define EVENTS 256

static struct {
    const Protocol *protocol;
    const char *request, *socket;
    int port, streams, connections; /* Connections: only gRPC. */
    double warm, seconds;           /* Before the counting, and of it. */
    double ramp;                    /* Seconds in which the streams start, one after the other. */
    double leave;                   /* Fraction of the requests whose client leaves early. */
    double silence;                 /* Seconds without a response that are an error. */
    bool progress;
} options = {.streams = 1, .connections = 16, .warm = 2, .seconds = 5, .ramp = 1, .silence = 60};
static Connection *connections;
static Stream *streams;
static int epoll;
static volatile sig_atomic_t stopped;
Buffer request;

void append(Buffer *buffer, const void *data, size_t size) {
    if (buffer->size + size > buffer->capacity) {
        buffer->capacity = (buffer->size + size) * 2 + 256;
        buffer->data = realloc(buffer->data, buffer->capacity);
    }
    memcpy(buffer->data + buffer->size, data, size);
    buffer->size += size;
}

void consume(Buffer *buffer, size_t size) {
    buffer->size -= size;
    memmove(buffer->data, buffer->data + size, buffer->size);
}

void end_connection(Connection *connection, bool reset) {
    struct linger linger = {1, 0};
    if (reset) setsockopt(connection->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(connection->fd);
    connection->fd = -1;
    connection->in.size = connection->out.size = connection->body.size = 0;
}

void fail_connection(Connection *connection, const char *message) {
    end_connection(connection, false);
    for (int i = 0; i < connection->count; i++)
        if (connection->streams[i]->active) fail(connection->streams[i], message, strlen(message));
}

static bool open_connection(Connection *connection) {
    struct sockaddr_in tcp = {.sin_family = AF_INET, .sin_port = htons(options.port)};
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    int on = 1, failed;
    if (options.socket) {
        strncpy(local.sun_path, options.socket, sizeof local.sun_path - 1);
        connection->fd = socket(AF_UNIX, SOCK_STREAM, 0);
        failed = connect(connection->fd, (void *)&local, sizeof local);
        fcntl(connection->fd, F_SETFL, O_NONBLOCK);
    } else {
        tcp.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        failed = connect(connection->fd, (void *)&tcp, sizeof tcp) && errno != EINPROGRESS;
    }
    if (failed) {
        end_connection(connection, false);
        return false;
    }
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    epoll_ctl(epoll, EPOLL_CTL_ADD, connection->fd, &event);
    connection->writing = connection->reused = false;
    options.protocol->open(connection);
    return true;
}

static void flush(Connection *connection) {
    Buffer *out = &connection->out;
    while (out->size) {
        ssize_t sent = send(connection->fd, out->data, out->size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) break;
        if (sent < 0) {
            fail_connection(connection, strerror(errno));
            return;
        }
        consume(out, sent);
    }
    bool writing = out->size > 0;
    if (connection->writing == writing) return;
    struct epoll_event event = {.events = EPOLLIN | (writing ? EPOLLOUT : 0)};
    event.data.ptr = connection;
    epoll_ctl(epoll, EPOLL_CTL_MOD, connection->fd, &event);
    connection->writing = writing;
}

static void start(Stream *stream) {
    static uint32_t requests;
    Connection *connection = stream->connection;
    if (connection->fd < 0 && !open_connection(connection)) {
        fail(stream, strerror(errno), strlen(strerror(errno)));
        return;
    }
    stream->number = requests++;
    stream->begun = false;
    stream->tokens = stream->text = 0;
    stream->start = stream->last = now();
    stream->leave = drand48() < options.leave ? stream->start + drand48() * LEAVE_SECONDS : 0;
    stream->active = options.protocol->ask(stream);
    flush(connection);
}

static void leave(Stream *stream) {
    end_request(stream, 0);
    options.protocol->leave(stream);
    if (stream->connection->fd >= 0) flush(stream->connection);
}

/* Start and end what is due. Returns the time until which nothing else is due. */
static double run_streams(void) {
    double time = now(), next = time + MAX_WAIT;
    for (int i = 0; i < options.streams; i++) {
        Stream *stream = &streams[i];
        if (!stream->active && stream->due <= time) start(stream);
        if (stream->active && stream->leave && stream->leave <= time) {
            outcomes.left++;
            leave(stream);
        } else if (stream->active && stream->last + options.silence < time) {
            leave(stream);
            fail(stream, "no response in time", 19);
        }
        double due = !stream->active ? stream->due : stream->leave ? stream->leave : next;
        if (due < next) next = due;
    }
    return next;
}

static void receive(Connection *connection) {
    static char data[1 << 16];
    while (connection->fd >= 0) {
        ssize_t size = recv(connection->fd, data, sizeof data, 0);
        if (size < 0 && errno == EAGAIN) return;
        if (size > 0) {
            append(&connection->in, data, size);
            options.protocol->receive(connection);
            if (connection->fd >= 0) flush(connection);
            if (size < (ssize_t)sizeof data) return;
        } else if (connection->reused && !connection->in.size && !connection->state) {
            /* The server closed an idle connection while the next request was on its way. */
            end_connection(connection, false);
            if (connection->streams[0]->active) end_request(connection->streams[0], 0);
        } else {
            fail_connection(connection, size ? strerror(errno) : "connection closed");
        }
    }
}

static double cpu_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
           (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

static void stop(int number) {
    (void)number;
    stopped = 1;
}

static void refuse(const char *message, const char *value) {
    fprintf(stderr, "load: %s: %s\n", message, value);
    exit(2);
}

static void read_options(int count, char **values) {
    static const struct option names[] = {
        {"request", 1, 0, 'b'}, {"port", 1, 0, 'p'},    {"socket", 1, 0, 'u'},
        {"streams", 1, 0, 'n'}, {"tokens", 1, 0, 't'},  {"connections", 1, 0, 'c'},
        {"warm", 1, 0, 'w'},    {"seconds", 1, 0, 's'}, {"ramp", 1, 0, 'r'},
        {"leave", 1, 0, 'l'},   {"silence", 1, 0, 'i'}, {"progress", 0, 0, 'o'},
        {"bytes", 1, 0, 'y'},   {0}};
    for (int name; (name = getopt_long(count, values, "", names, 0)) != -1;) switch (name) {
            case 'b': options.request = optarg; break;
            case 'p': options.port = atoi(optarg); break;
            case 'u': options.socket = optarg; break;
            case 'n': options.streams = atoi(optarg); break;
            case 't': expected_tokens = atol(optarg); break;
            case 'c': options.connections = atoi(optarg); break;
            case 'w': options.warm = atof(optarg); break;
            case 's': options.seconds = atof(optarg); break;
            case 'r': options.ramp = atof(optarg); break;
            case 'l': options.leave = atof(optarg); break;
            case 'i': options.silence = atof(optarg); break;
            case 'o': options.progress = true; break;
            case 'y': bytes_per_token = atof(optarg); break;
            default: exit(2);
        }
    const char *name = optind < count ? values[optind] : "";
    const Protocol *protocols[] = {&sse, &grpc, &engine};
    for (int i = 0; i < 3; i++)
        if (!strcmp(name, protocols[i]->name)) options.protocol = protocols[i];
    if (!options.protocol) refuse("no such protocol", name);
    if (options.protocol == &sse) options.connections = options.streams;
    if (options.protocol == &engine) options.connections = 1;
    if (options.connections > options.streams) options.connections = options.streams;
    FILE *file = options.request ? fopen(options.request, "rb") : NULL;
    if (!file) refuse("cannot read the request", options.request ? options.request : "none");
    char data[4096];
    for (size_t size; (size = fread(data, 1, sizeof data, file)) > 0;)
        append(&request, data, size);
    fclose(file);
}

static void create_streams(double time) {
    connections = calloc(options.connections, sizeof *connections);
    streams = calloc(options.streams, sizeof *streams);
    for (int i = 0; i < options.connections; i++) {
        connections[i].fd = -1;
        connections[i].streams = calloc(options.streams, sizeof(Stream *));
    }
    for (int i = 0; i < options.streams; i++) {
        Connection *connection = &connections[i % options.connections];
        connection->streams[connection->count++] = &streams[i];
        streams[i].connection = connection;
        streams[i].due = time + options.ramp * i / options.streams;
    }
}

int main(int count, char **values) {
    read_options(count, values);
    srand48(getpid());
    signal(SIGTERM, stop);
    epoll = epoll_create1(0);
    double begin = now(), cpu = -1, tick = begin + 1;
    window_start = begin + options.warm;
    window_end = window_start + options.seconds;
    create_streams(begin);
    struct epoll_event events[EVENTS];
    while (!stopped && now() < window_end) {
        double next = run_streams(), time = now();
        if (cpu < 0 && time >= window_start) cpu = cpu_seconds();
        if (options.progress && time >= tick) {
            print_outcomes();
            printf("}\n");
            fflush(stdout);
            tick += 1;
        }
        int wait = next > time ? (int)((next - time) * 1e3) + 1 : 0;
        int ready = epoll_wait(epoll, events, EVENTS, wait);
        for (int i = 0; i < ready; i++) {
            Connection *connection = events[i].data.ptr;
            if (connection->fd >= 0 && events[i].events & ~EPOLLOUT) receive(connection);
            if (connection->fd >= 0 && events[i].events & EPOLLOUT) flush(connection);
        }
    }
    print_report(now() - window_start, cpu_seconds() - (cpu < 0 ? 0 : cpu));
    return 0;
}
