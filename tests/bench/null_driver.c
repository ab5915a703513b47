/* The least that a driver can do: read a call, cast its data back, answer ok. The limit of the Erlang side.
 *
 * It speaks what the harness's VM sends and nothing else: frames of a 4-byte length and
 * {'C', Id, Module, Function, [Pid, Data, State]}, written in old or new atoms. Many frames a read, one write.
 *
 * usage: null_driver [MICROSECONDS]
 * A driver that is too quick finds few calls a read, and the Erlang side then spends its time on waking up and
 * on small writes. With MICROSECONDS it rests before each read, and more calls come at once.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

static unsigned char *in, *out;
static size_t in_size = 1 << 20, out_size = 1 << 20, have, filled;

static uint32_t u32(const unsigned char *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static void fail(const char *what) {
    fprintf(stderr, "null_driver: %s\n", what);
    exit(1);
}

static void put(const void *data, size_t size) {
    if (filled + size > out_size) {
        out_size = 2 * (filled + size);
        if (!(out = realloc(out, out_size))) fail("no memory");
    }
    memcpy(out + filled, data, size);
    filled += size;
}

static void put_length(size_t size) {
    unsigned char head[4] = {size >> 24, size >> 16, size >> 8, size};
    put(head, 4);
}

static void flush(void) {
    for (size_t done = 0; done < filled;) {
        ssize_t wrote = write(1, out + done, filled - done);
        if (wrote <= 0) fail("the broker reads no more");
        done += wrote;
    }
    filled = 0;
}

/* The end of the atom or number at *at*. */
static const unsigned char *skip(const unsigned char *at) {
    switch (*at) {
    case 97: return at + 2;
    case 98: return at + 5;
    case 100: case 118: return at + 3 + (at[1] << 8 | at[2]);
    case 115: case 119: return at + 2 + at[1];
    case 110: return at + 3 + at[1];
    default: fail("an unknown term"); return NULL;
    }
}

static void call(const unsigned char *frame) {
    static const char cast[] = "\x83h\x03" "d\0\1M", words[] = "h\2d\0\11$gen_casth\2d\0\4sendm";
    static const char answer[] = "\x83h\x03" "d\0\1r", ok[] = "d\0\2ok", state[] = "h\2a\0d\0\11undefined";
    const unsigned char *id, *function, *pid, *data;
    size_t id_size, pid_size, size;

    if (frame[0] != 131 || frame[1] != 104 || frame[2] != 5) fail("no call");
    id = skip(frame + 3);
    function = skip(skip(id));
    id_size = skip(id) - id;
    pid = skip(function);
    if (*pid != 108) fail("no list of arguments");
    pid += 5;
    data = skip(pid + 1) + (*pid == 88 ? 12 : 9);
    pid_size = data - pid;
    function += *function == 100 || *function == 118 ? 3 : 2;
    if (*function == 'r') {
        size = u32(data + 1);
        put_length(sizeof cast - 1 + pid_size + sizeof words - 1 + 4 + size);
        put(cast, sizeof cast - 1);
        put(pid, pid_size);
        put(words, sizeof words - 1);
        put(data + 1, 4 + size);
    }
    size = *function == 'i' ? sizeof state - 1 : sizeof ok - 1;
    put_length(sizeof answer - 1 + id_size + size);
    put(answer, sizeof answer - 1);
    put(id, id_size);
    put(*function == 'i' ? state : ok, size);
}

int main(int count, char **words) {
    int rest = count > 1 ? atoi(words[1]) : 0;
    struct timespec pause = {0, rest * 1000L};

    prctl(PR_SET_TIMERSLACK, 1UL);
    if (!(in = malloc(in_size)) || !(out = malloc(out_size))) fail("no memory");
    for (;;) {
        if (rest) nanosleep(&pause, NULL);
        ssize_t got = read(0, in + have, in_size - have);
        size_t at = 0;
        if (got <= 0) return 0;
        have += got;
        while (have - at >= 4 && have - at - 4 >= u32(in + at)) {
            call(in + at + 4);
            at += 4 + u32(in + at);
        }
        flush();
        have -= at;
        memmove(in, in + at, have);
        if (have == in_size) {
            in_size *= 2;
            if (!(in = realloc(in, in_size))) fail("no memory");
        }
    }
}
