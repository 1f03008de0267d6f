/* Counters and latencies of a load. */
#include "load.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define RETRY_SECONDS 0.2 /* Pause of a stream after an error. */

typedef struct {
    float *values; /* Seconds. */
    size_t size, capacity;
} Samples;

Outcomes outcomes;
double window_start, window_end, bytes_per_token;
long expected_tokens;
static Samples gaps, first_tokens;
static long responses, tokens, text;
static long answer_tokens, answer_text; /* Of all finished answers. */
static char last_error[200];

double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static void add_sample(Samples *samples, double value) {
    if (samples->size == samples->capacity) {
        samples->capacity = samples->capacity * 2 + 4096;
        samples->values = realloc(samples->values, samples->capacity * sizeof(float));
    }
    samples->values[samples->size++] = value;
}

void count_response(Stream *stream, long total, long text_bytes) {
    double time = now();
    long new_tokens = total < 0 ? 0 : total - stream->tokens;
    bool measured = time >= window_start && time < window_end;
    if (stream->begun) {
        if (measured) add_sample(&gaps, time - stream->last);
    } else if (new_tokens || text_bytes) {
        stream->begun = true;
        if (measured && stream->start >= window_start)
            add_sample(&first_tokens, time - stream->start);
    }
    stream->last = time;
    stream->tokens += new_tokens;
    stream->text += text_bytes;
    if (measured) responses++, tokens += new_tokens, text += text_bytes;
}

void end_request(Stream *stream, double pause) {
    stream->active = false;
    stream->due = now() + pause;
}

void finish(Stream *stream, long total) {
    if (total < 0) total = stream->tokens;
    outcomes.finished++;
    outcomes.truncated += expected_tokens && total != expected_tokens;
    answer_tokens += total;
    answer_text += stream->text;
    end_request(stream, 0);
}

void fail(Stream *stream, const char *message, ssize_t size) {
    outcomes.errors++;
    int length = snprintf(last_error, sizeof last_error, "%.*s", (int)size, message);
    for (int i = 0; i < length && last_error[i]; i++)
        if (last_error[i] < ' ' || last_error[i] == '"' || last_error[i] == '\\') last_error[i] = ' ';
    end_request(stream, RETRY_SECONDS);
}

void print_outcomes(void) {
    printf("{\"finished\": %ld, \"left\": %ld, \"truncated\": %ld, \"errors\": %ld"
           ", \"last_error\": \"%s\"",
           outcomes.finished, outcomes.left, outcomes.truncated, outcomes.errors, last_error);
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void print_quantiles(const char *name, Samples *samples) {
    if (!samples->size) {
        printf(", \"%s_p50_ms\": null, \"%s_p99_ms\": null", name, name);
        return;
    }
    qsort(samples->values, samples->size, sizeof(float), by_value);
    printf(", \"%s_p50_ms\": %.3f, \"%s_p99_ms\": %.3f", name,
           samples->values[(size_t)((samples->size - 1) * 0.5)] * 1e3, name,
           samples->values[(size_t)((samples->size - 1) * 0.99)] * 1e3);
}

void print_report(double seconds, double cpu_seconds) {
    if (tokens) bytes_per_token = (double)text / tokens;
    else if (!bytes_per_token && answer_tokens)
        bytes_per_token = (double)answer_text / answer_tokens;
    /* If responses do not tell their tokens, their text does. */
    double counted = tokens || !bytes_per_token ? tokens : text / bytes_per_token;
    print_outcomes();
    printf(", \"responses_per_second\": %.2f, \"tokens_per_second\": %.2f"
           ", \"bytes_per_token\": %.6f, \"client_cores\": %.4f",
           responses / seconds, counted / seconds, bytes_per_token, cpu_seconds / seconds);
    print_quantiles("ttft", &first_tokens);
    print_quantiles("gap", &gaps);
    printf("}\n");
}
