/* What a program can be told to do; main.c says how. Each says one line when it is done. */
#ifndef STEPS_H
#define STEPS_H

#include "machine.h"

#define DEPTH_MOST 64u /* three descriptors each, of QUEUE_ENTRIES */

enum { DISK_READ = 0, DISK_WRITE = 1, DISK_FLUSH = 4 }; /* as the requests' types are */

/* Keeps `depth` requests of so many bytes in flight for a time. */
void disk_run(uint32_t type, bool is_random, uint32_t depth, uint32_t bytes, uint64_t cycles);

/* Writes blocks of 4 KiB (a power of two) and reads each back, all with `depth` in flight; then flushes
 * and reads all once more. Each has a content of its own. */
void disk_check(uint64_t blocks, uint32_t depth);

/* Sends so many frames. */
void net_send(uint32_t bytes, uint64_t frames);

/* Takes so many frames that come in order, and answers every `window` of them. */
void net_receive(uint64_t frames, uint64_t window, uint64_t cycles);

/* Sends so many frames back. */
void net_echo(uint64_t frames, uint64_t cycles);

void console_write(uint32_t bytes, uint64_t times);
void serial_write(uint64_t bytes);

#endif
