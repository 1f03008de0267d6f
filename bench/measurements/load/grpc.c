/* Triton's ModelStreamInfer over gRPC: HTTP/2 without TLS, one HTTP/2 stream for each request. */
#define _GNU_SOURCE
#include "load.h"

#include <string.h>

#define PATH "/inference.GRPCInferenceService/ModelStreamInfer"
#define WINDOW 0x7fffffffL
#define MAX_UNANNOUNCED (1L << 29) /* Bytes received before the server is allowed as many more. */

enum { FRAME_HEAD = 9, MESSAGE_HEAD = 5, END_STREAM = 1, ACK = 1, END_HEADERS = 4, CANCEL = 8 };
enum { DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE };

static uint32_t number(const void *bytes, int size) {
    uint32_t value = 0;
    for (int i = 0; i < size; i++) value = value << 8 | ((const unsigned char *)bytes)[i];
    return value;
}

static void send_frame(Connection *connection, int type, int flags, uint32_t id, const void *data,
                       size_t size) {
    unsigned char head[FRAME_HEAD] = {size >> 16, size >> 8, size,    type, flags,
                                      id >> 24,   id >> 16,  id >> 8, id};
    append(&connection->out, head, sizeof head);
    append(&connection->out, data, size);
}

static void send_number(Connection *connection, int type, uint32_t id, uint32_t value) {
    unsigned char data[4] = {value >> 24, value >> 16, value >> 8, value};
    send_frame(connection, type, 0, id, data, sizeof data);
}

static void open_grpc(Connection *connection) {
    static const unsigned char settings[] = {0, 4, 0x7f, 0xff, 0xff, 0xff}; /* window of streams */
    append(&connection->out, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
    send_frame(connection, SETTINGS, 0, 0, settings, sizeof settings);
    send_number(connection, WINDOW_UPDATE, 0, WINDOW - 65535);
    connection->next_id = 1;
    connection->window = 65535;
    connection->received = 0;
}

static void add_text(Buffer *buffer, const char *text) {
    unsigned char size = strlen(text);
    append(buffer, &size, 1);
    append(buffer, text, size);
}

static bool ask(Stream *stream) {
    static Buffer headers;
    Connection *connection = stream->connection;
    if (connection->window < (long)request.size + MESSAGE_HEAD) return false;
    if (!headers.size) {
        append(&headers, "\x83\x86\x04", 3); /* POST, http, and the path, never indexed */
        add_text(&headers, PATH);
        append(&headers, "\x01", 1); /* authority */
        add_text(&headers, "localhost");
        const char *names[] = {"te", "trailers", "content-type", "application/grpc"};
        for (int i = 0; i < 4; i += 2) {
            append(&headers, "\0", 1);
            add_text(&headers, names[i]);
            add_text(&headers, names[i + 1]);
        }
    }
    stream->id = connection->next_id;
    stream->in.size = 0;
    connection->next_id += 2;
    connection->window -= request.size + MESSAGE_HEAD;
    send_frame(connection, HEADERS, END_HEADERS, stream->id, headers.data, headers.size);
    size_t size = request.size;
    unsigned char head[FRAME_HEAD + MESSAGE_HEAD] = {
        (size + MESSAGE_HEAD) >> 16, (size + MESSAGE_HEAD) >> 8, size + MESSAGE_HEAD, DATA,
        END_STREAM, stream->id >> 24, stream->id >> 16, stream->id >> 8, stream->id,
        0, size >> 24, size >> 16, size >> 8, size};
    append(&connection->out, head, sizeof head);
    append(&connection->out, request.data, size);
    return true;
}

static void leave(Stream *stream) {
    send_number(stream->connection, RST_STREAM, stream->id, CANCEL);
    stream->id = 0;
}

typedef struct {
    const unsigned char *at, *end;
} Bytes;

static uint64_t varint(Bytes *bytes) {
    uint64_t value = 0;
    for (int shift = 0; bytes->at < bytes->end; shift += 7) {
        value |= (uint64_t)(*bytes->at & 127) << shift;
        if (!(*bytes->at++ & 128)) break;
    }
    return value;
}

/* Take the next field of a protobuf message. Returns its number, and 0 at the end; `content` is
 * empty for a number. */
static int next_field(Bytes *bytes, Bytes *content) {
    if (bytes->at >= bytes->end) return 0;
    uint64_t tag = varint(bytes), size = varint(bytes);
    *content = (Bytes){bytes->at, bytes->at};
    if ((tag & 7) == 2) bytes->at = content->end = bytes->at + size;
    return tag >> 3;
}

static bool is(Bytes bytes, const char *text) {
    return bytes.end - bytes.at == (long)strlen(text) && !memcmp(bytes.at, text, strlen(text));
}

/* Count a ModelInferResponse: its outputs' names are fields 5.1, and their contents fields 6. */
static void receive_response(Stream *stream, Bytes response) {
    Bytes field, name;
    int outputs = 0, contents = 0, total = -1, text = -1;
    long total_value = -1, text_bytes = 0;
    for (int id; (id = next_field(&response, &field));) {
        if (id == 5) {
            if (next_field(&field, &name) == 1 && is(name, "num_output_tokens")) total = outputs;
            if (is(name, "text_output")) text = outputs;
            outputs++;
        } else if (id == 6) {
            if (contents == total && field.end - field.at == 4) {
                int32_t value;
                memcpy(&value, field.at, 4);
                total_value = value;
            }
            if (contents == text) text_bytes = field.end - field.at - 4;
            contents++;
        }
    }
    if (outputs) count_response(stream, total_value, text_bytes);
}

/* Receive a ModelStreamInferResponse: an error message, or a response. */
static void receive_message(Stream *stream, Bytes message) {
    Bytes field;
    for (int id; stream->active && (id = next_field(&message, &field));) {
        if (id == 1 && field.end > field.at)
            fail(stream, (const char *)field.at, field.end - field.at);
        if (id == 2) receive_response(stream, field);
    }
}

static void receive_data(Stream *stream, const char *data, size_t size) {
    append(&stream->in, data, size);
    size_t start = 0;
    while (stream->in.size - start >= MESSAGE_HEAD) {
        const unsigned char *message = (unsigned char *)stream->in.data + start + MESSAGE_HEAD;
        size_t length = number(message - 4, 4);
        if (stream->in.size - start - MESSAGE_HEAD < length) break;
        receive_message(stream, (Bytes){message, message + length});
        start += MESSAGE_HEAD + length;
    }
    consume(&stream->in, start);
}

static void receive_frame(Connection *connection, int type, int flags, uint32_t id,
                          const char *data, size_t size) {
    Stream *stream = NULL;
    for (int i = 0; id && i < connection->count; i++)
        if (connection->streams[i]->active && connection->streams[i]->id == id)
            stream = connection->streams[i];
    if (type == SETTINGS && !(flags & ACK)) send_frame(connection, SETTINGS, ACK, 0, "", 0);
    if (type == PING && !(flags & ACK)) send_frame(connection, PING, ACK, 0, data, size);
    if (type == WINDOW_UPDATE && !id) connection->window += number(data, 4);
    if (type == GOAWAY) fail_connection(connection, "GOAWAY");
    if (type == DATA && (connection->received += size) > MAX_UNANNOUNCED) {
        send_number(connection, WINDOW_UPDATE, 0, connection->received);
        connection->received = 0;
    }
    if (type == DATA && stream) receive_data(stream, data, size);
    bool ends = type == RST_STREAM || ((type == DATA || type == HEADERS) && flags & END_STREAM);
    if (!stream || !stream->active || !ends) return;
    if (type != RST_STREAM && stream->tokens) finish(stream, -1);
    else fail(stream, "a stream without an answer", 26);
}

static void receive(Connection *connection) {
    size_t start = 0;
    while (connection->fd >= 0 && connection->in.size - start >= FRAME_HEAD) {
        const unsigned char *head = (unsigned char *)connection->in.data + start;
        size_t size = number(head, 3);
        if (connection->in.size - start - FRAME_HEAD < size) break;
        start += FRAME_HEAD + size;
        receive_frame(connection, head[3], head[4], number(head + 5, 4) & WINDOW,
                      (const char *)head + FRAME_HEAD, size);
    }
    if (connection->fd >= 0) consume(&connection->in, start);
}

const Protocol grpc = {"grpc", open_grpc, ask, receive, leave};
