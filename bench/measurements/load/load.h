/* Streams, connections and counters of the load client, and one `Protocol` for each way to ask.
 *
 * A stream sends one request after the other. A connection carries one stream (SSE), a fraction of
 * them (gRPC), or all of them (the engine's socket). */
#ifndef LOAD_H
#define LOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct {
    char *data;
    size_t size, capacity;
} Buffer;

typedef struct Connection Connection;

typedef struct {
    Connection *connection;
    bool active;        /* A request is on its way. */
    bool begun;         /* Its first token has come. */
    double due;         /* Time of the next request while none is active. */
    double start, last; /* Times of the request and of its last response. */
    double leave;       /* Time at which the client leaves, or 0. */
    long tokens, text;  /* Tokens of the answer so far, if responses tell them; bytes of text. */
    uint32_t number;    /* Number of the request in this process. */
    uint32_t id;        /* HTTP/2 stream of the request; only gRPC. */
    Buffer in;          /* Bytes of an incomplete message; only gRPC. */
} Stream;

struct Connection {
    int fd; /* -1: closed */
    bool writing;
    Buffer in, out;
    int count;
    Stream **streams;
    /* Only SSE: the response that is being received. */
    int state, status;
    bool reused, chunked, done;
    size_t remaining;
    Buffer body;
    /* Only gRPC. */
    uint32_t next_id;
    long window, received;
};

typedef struct {
    const char *name;
    void (*open)(Connection *);
    bool (*ask)(Stream *); /* Returns false if the request has to wait. */
    void (*receive)(Connection *);
    void (*leave)(Stream *);
} Protocol;

extern const Protocol sse, grpc, engine;
extern Buffer request; /* The request as the client sends it, but for its framing. */

/* load.c */
void append(Buffer *buffer, const void *data, size_t size);
void consume(Buffer *buffer, size_t size);
void end_connection(Connection *connection, bool reset);
void fail_connection(Connection *connection, const char *message);

/* counters.c */
typedef struct {
    long finished, left, truncated, errors;
} Outcomes;

extern Outcomes outcomes;
extern double window_start, window_end; /* Responses are counted between these times. */
extern long expected_tokens;            /* Of each answer; 0 means any number. */
extern double bytes_per_token;          /* For responses that do not tell their tokens. */
double now(void);
/* Count a response. `total` is the number of the answer's tokens so far, or -1 if it is unknown. */
void count_response(Stream *stream, long total, long text_bytes);
/* End the stream's request. `total` is as above. */
void finish(Stream *stream, long total);
void fail(Stream *stream, const char *message, ssize_t size);
void end_request(Stream *stream, double pause);
void print_outcomes(void);
void print_report(double seconds, double cpu_seconds);

#endif
