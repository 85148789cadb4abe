/* One probe makes the kernel allocate as much as it can by one kind of call, and returns how often it worked. */
#ifndef PIN_H
#define PIN_H
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

struct probe {
  const char *name;
  long (*run)(void);
};

extern const struct probe file_probes[], memory_probes[], process_probes[], socket_probes[];

int more(void);  /* there is time left */
extern int self; /* which of the processes this is, from 0 */

/* What is negative when it fails: then the probe ends, and its errno is told. */
#define GET(name, expression)         \
  long name = (long)(expression);     \
  if (name < 0) return worked
#define MUST(expression) \
  if ((expression) < 0) return worked

/* 64 KiB of anything. */
static inline void *page(void) {
  static char bytes[65536] __attribute__((aligned(4096)));
  return bytes;
}
#endif
