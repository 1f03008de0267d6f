/* HTTP/1.1 with server-sent events: Triton's `generate_stream` and OpenAI's completions.
 *
 * Connections are kept alive, one for each stream. */
#define _GNU_SOURCE
#include "load.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { HEAD, SIZE, DATA, DATA_END, WHOLE };

static void open_sse(Connection *connection) { connection->state = HEAD; }

static bool ask(Stream *stream) {
    append(&stream->connection->out, request.data, request.size);
    return true;
}

static void leave(Stream *stream) { end_connection(stream->connection, drand48() < 0.5); }

/* Return the start of the value of a key in one line of JSON, or NULL. */
static const char *value_of(const char *line, size_t size, const char *key) {
    const char *start = memmem(line, size, key, strlen(key)), *end = line + size;
    if (!start) return NULL;
    for (start += strlen(key); start < end && (*start == ' ' || *start == ':'); start++) {}
    return start < end ? start : NULL;
}

/* Return the number of bytes of the string that begins at a quote. */
static long string_bytes(const char *start, const char *end) {
    long bytes = 0;
    for (start++; start < end && *start != '"'; start++, bytes++)
        if (*start == '\\') start += start + 1 < end && start[1] == 'u' ? 5 : 1;
    return bytes;
}

static void receive_event(Connection *connection, const char *line, size_t size) {
    Stream *stream = connection->streams[0];
    const char *value, *end = line + size;
    if (!stream->active) return;
    if ((value = value_of(line, size, "\"error\""))) {
        fail(stream, line, size);
    } else if (size >= 6 && !memcmp(line, "[DONE]", 6)) {
        finish(stream, -1);
    } else if ((value = value_of(line, size, "\"completion_tokens\""))) {
        stream->tokens = atol(value);
    } else if ((value = value_of(line, size, "\"text_output\"")) ||
               (value = value_of(line, size, "\"text\""))) {
        const char *total = value_of(line, size, "\"num_output_tokens\"");
        count_response(stream, total ? atol(total) : -1, *value == '"' ? string_bytes(value, end) : 0);
    }
}

static void receive_lines(Connection *connection) {
    if (connection->status != 200) return;
    Buffer *body = &connection->body;
    size_t start = 0;
    for (char *end; (end = memchr(body->data + start, '\n', body->size - start));) {
        char *line = body->data + start;
        if (end - line > 6 && !memcmp(line, "data: ", 6))
            receive_event(connection, line + 6, end - line - 6);
        start = end + 1 - body->data;
    }
    consume(body, start);
}

static void end_response(Connection *connection) {
    Stream *stream = connection->streams[0];
    if (connection->status == 200 && connection->body.size) /* not an event, but a whole answer */
        receive_event(connection, connection->body.data, connection->body.size);
    if (stream->active && connection->status != 200)
        fail(stream, connection->body.data, connection->body.size);
    else if (stream->active && stream->tokens)
        finish(stream, -1); /* Triton ends a stream without a mark. */
    else if (stream->active)
        fail(stream, "an answer without tokens", 24);
    connection->body.size = 0;
    connection->state = HEAD;
    connection->reused = true;
}

static bool receive_head(Connection *connection) {
    char *end = memmem(connection->in.data, connection->in.size, "\r\n\r\n", 4);
    if (!end) return false;
    *end = 0;
    connection->status = atoi(connection->in.data + strcspn(connection->in.data, " "));
    const char *length = strcasestr(connection->in.data, "content-length:");
    connection->remaining = length ? atol(length + strlen("content-length:")) : 0;
    connection->state = length ? WHOLE : SIZE;
    consume(&connection->in, end + 4 - connection->in.data);
    if (length && !connection->remaining) end_response(connection);
    return true;
}

/* Take one part of the response. Returns false if it is incomplete. */
static bool receive_part(Connection *connection) {
    Buffer *in = &connection->in;
    char *end = in->size ? memchr(in->data, '\n', in->size) : NULL;
    switch (connection->state) {
        case HEAD:
            return receive_head(connection);
        case SIZE:
            if (!end) return false;
            connection->remaining = strtoul(in->data, NULL, 16);
            connection->done = !connection->remaining;
            connection->state = connection->done ? DATA_END : DATA;
            consume(in, end + 1 - in->data);
            return true;
        case DATA_END:
            if (!end) return false;
            consume(in, end + 1 - in->data);
            connection->state = SIZE;
            if (connection->done) end_response(connection);
            return true;
        default: {
            size_t size = in->size < connection->remaining ? in->size : connection->remaining;
            if (!size) return false;
            append(&connection->body, in->data, size);
            consume(in, size);
            connection->remaining -= size;
            receive_lines(connection);
            if (connection->remaining) return true;
            if (connection->state == WHOLE) end_response(connection);
            else connection->state = DATA_END;
            return true;
        }
    }
}

static void receive(Connection *connection) {
    while (receive_part(connection)) {}
}

const Protocol sse = {"sse", open_sse, ask, receive, leave};
