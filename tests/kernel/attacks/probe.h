/* One attack is one function: it returns 0 or more when the attack worked, else -1 with errno. */
#ifndef PROBE_H
#define PROBE_H
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

struct attack {
  const char *name;
  long (*run)(void);
};

extern const struct attack file_attacks[], process_attacks[], kernel_attacks[], network_attacks[];

/* What only the test knows comes in the environment: paths, pids and ports of the host. */
static inline const char *given(const char *name, const char *otherwise) {
  const char *value = getenv(name);
  return value ? value : otherwise;
}
static inline int target(void) { return atoi(given("TARGET", "1")); }
static inline long opens(const char *path, int flags) { return open(path, flags | O_CLOEXEC, 0600); }
static inline long reads(const char *path) {
  char buffer[64];
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  return fd < 0 ? -1 : read(fd, buffer, sizeof buffer);
}
#endif
