/* The engine's own socket: all streams on one connection, MessagePack in frames.
 *
 * The request is a frame of `nemotron_engine.protocol` with one request, whose key is `KEY`. */
#define _GNU_SOURCE
#include "load.h"

#include <stdlib.h>
#include <string.h>

#define KEY "KEYKEYKEYKEYKEYK"

enum { LENGTH_BYTES = 4, KEY_BYTES = 16, STEP = 11, FAILED = 13 };
enum { CHUNK_KEY, CHUNK_TOKEN_IDS, CHUNK_LOG_PROBS, CHUNK_FINISH_REASON, CHUNK_ERROR = 5 };

static uint64_t process_key; /* Half of each key, so that no other process has the same one. */

static void open_engine(Connection *connection) {
    (void)connection;
    if (!process_key) process_key = (uint64_t)(now() * 1e9) * 6364136223846793005u | 1;
}

/* A key is the stream's place among all, the request's number, and the process's half. */
static void write_key(char *key, const Stream *stream) {
    uint32_t index = 0;
    while (stream->connection->streams[index] != stream) index++;
    memcpy(key, &index, 4);
    memcpy(key + 4, &stream->number, 4);
    memcpy(key + 8, &process_key, 8);
}

static bool ask(Stream *stream) {
    char *key = memmem(request.data, request.size, KEY, KEY_BYTES), written[KEY_BYTES];
    if (!key) return false;
    size_t before = key - request.data;
    write_key(written, stream);
    Buffer *out = &stream->connection->out;
    append(out, request.data, before);
    append(out, written, KEY_BYTES);
    append(out, key + KEY_BYTES, request.size - before - KEY_BYTES);
    return true;
}

static void leave(Stream *stream) {
    char frame[] = "\x16\0\0\0\x93\x02\x91\xc4\x10" KEY "\x90"; /* [2, [key], []] */
    write_key(frame + 9, stream);
    append(&stream->connection->out, frame, sizeof frame - 1);
}

typedef struct {
    const unsigned char *at, *end;
} Bytes;

static uint64_t number(Bytes *bytes, int size) {
    uint64_t value = 0;
    for (; size && bytes->at < bytes->end; size--) value = value << 8 | *bytes->at++;
    return value;
}

/* The kinds of MessagePack values, as far as this protocol needs them. */
typedef enum { SCALAR, TEXT, ARRAY, MAP } Kind;

/* Read the head of a value. `value` is its number, its size in bytes or its number of elements. */
static Kind read_head(Bytes *bytes, uint64_t *value) {
    static const unsigned char sizes[] = {/* 0xc0 */ 0, 0, 0, 0, 1, 2, 4, 1, 2, 4, 4, 8, 1, 2, 4, 8,
                                          /* 0xd0 */ 1, 2, 4, 8, 1, 1, 1, 1, 1, 1, 2, 4, 2, 4, 2, 4};
    unsigned type = number(bytes, 1);
    *value = type;
    if (type < 0x80 || type >= 0xe0) return SCALAR;
    if (type < 0xc0) {
        *value = type < 0xa0 ? type & 15 : type & 31;
        return type < 0x90 ? MAP : type < 0xa0 ? ARRAY : TEXT;
    }
    *value = number(bytes, sizes[type - 0xc0]);
    if ((type >= 0xc4 && type <= 0xc6) || (type >= 0xd9 && type <= 0xdb)) return TEXT;
    return type < 0xdc ? SCALAR : type < 0xde ? ARRAY : MAP;
}

static void skip(Bytes *bytes) {
    uint64_t size;
    Kind kind = read_head(bytes, &size);
    if (kind == TEXT) bytes->at += size;
    if (kind == MAP) size *= 2;
    if (kind == ARRAY || kind == MAP)
        for (; size && bytes->at < bytes->end; size--) skip(bytes);
}

static Stream *stream_of(Connection *connection, const unsigned char *key) {
    uint32_t index, request_number;
    uint64_t process;
    memcpy(&index, key, 4);
    memcpy(&request_number, key + 4, 4);
    memcpy(&process, key + 8, 8);
    if (process != process_key || index >= (uint32_t)connection->count) return NULL;
    Stream *stream = connection->streams[index];
    return stream->active && stream->number == request_number ? stream : NULL;
}

static void receive_chunk(Connection *connection, Bytes *bytes) {
    uint64_t fields, size, tokens = 0;
    Stream *stream = NULL;
    bool last = false, failed = false;
    read_head(bytes, &fields);
    for (uint64_t field = 0; field < fields; field++) {
        if (field == CHUNK_LOG_PROBS || field == CHUNK_FINISH_REASON + 1 || field > CHUNK_ERROR) {
            skip(bytes);
            continue;
        }
        Bytes start = *bytes;
        read_head(bytes, &size);
        if (field == CHUNK_KEY && size == KEY_BYTES) stream = stream_of(connection, bytes->at);
        if (field == CHUNK_TOKEN_IDS) tokens = size;
        if (field == CHUNK_FINISH_REASON) {
            last = size > 0;
            failed = size == 5 && !memcmp(bytes->at, "error", 5);
        }
        if (field == CHUNK_ERROR && failed && stream) fail(stream, (const char *)bytes->at, size);
        *bytes = start;
        skip(bytes);
    }
    if (!stream || !stream->active) return;
    if (tokens) count_response(stream, stream->tokens + tokens, 0);
    if (last) finish(stream, -1);
}

static void receive_message(Connection *connection, Bytes message) {
    uint64_t fields, tag, chunks;
    read_head(&message, &fields);
    read_head(&message, &tag);
    if (tag == FAILED) fail_connection(connection, "the engine failed");
    if (tag != STEP) return;
    read_head(&message, &chunks);
    for (; chunks && message.at < message.end; chunks--) receive_chunk(connection, &message);
}

static void receive(Connection *connection) {
    size_t start = 0;
    while (connection->fd >= 0 && connection->in.size - start >= LENGTH_BYTES) {
        const unsigned char *data = (unsigned char *)connection->in.data + start;
        size_t size = data[0] | data[1] << 8 | data[2] << 16 | (size_t)data[3] << 24;
        if (connection->in.size - start - LENGTH_BYTES < size) break;
        start += LENGTH_BYTES + size;
        receive_message(connection, (Bytes){data + LENGTH_BYTES, data + LENGTH_BYTES + size});
    }
    if (connection->fd >= 0) consume(&connection->in, start);
}

const Protocol engine = {"engine", open_engine, ask, receive, leave};
