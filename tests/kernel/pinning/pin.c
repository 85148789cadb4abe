/* pin NAME PROCESSES MILLISECONDS: runs one probe in so many processes at once, each for so long at most, prints
 * "NAME COUNT ERRNO..." (0 when time was up), and then holds all that it has until stdin ends. */
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

#include "pin.h"

int self;
static struct timespec deadline;

int more(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec < deadline.tv_sec || (now.tv_sec == deadline.tv_sec && now.tv_nsec < deadline.tv_nsec);
}

static long (*find(const char *name))(void) {
  const struct probe *tables[] = {file_probes, memory_probes, process_probes, socket_probes};
  for (size_t t = 0; t < sizeof tables / sizeof *tables; t++)
    for (const struct probe *probe = tables[t]; probe->name; probe++)
      if (!strcmp(probe->name, name)) return probe->run;
  return NULL;
}

int main(int argc, char **argv) {
  long (*run)(void) = argc == 4 ? find(argv[1]) : NULL;
  if (!run) return 2;
  setpgid(0, 0); /* inside it leads a session, and so this is refused and not needed */
  int processes = atoi(argv[2]), said[2], begin[2];
  long milliseconds = atol(argv[3]);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max < 4096 ? files.rlim_max : 4096; /* outside it may be a million */
  setrlimit(RLIMIT_NOFILE, &files);
  clock_gettime(CLOCK_MONOTONIC, &deadline);
  deadline.tv_nsec += milliseconds % 1000 * 1000000;
  deadline.tv_sec += milliseconds / 1000 + deadline.tv_nsec / 1000000000;
  deadline.tv_nsec %= 1000000000;
  if (pipe(said) || pipe(begin)) return 1;
  for (self = 0; self < processes; self++) {
    pid_t pid = fork();
    if (pid < 0) return 1;
    if (pid == 0) {
      close(said[0]);
      close(begin[1]);
      char nothing; /* the first must not use up what all may have before the last is there */
      if (read(begin[0], &nothing, 1) < 0) return 1;
      errno = 0;
      long result[2] = {run(), 0};
      result[1] = more() ? errno : 0;
      if (write(said[1], result, sizeof result) < 0) return 1;
      close(said[1]); /* so that nobody waits for one that was killed */
      for (;;) pause();
    }
  }
  close(said[1]);
  close(begin[1]);
  long total = 0, result[2], last = 0;
  for (int i = 0; i < processes && read(said[0], result, sizeof result) > 0; i++) {
    total += result[0];
    if (result[1]) last = result[1];
  }
  printf("%s %ld %s\n", argv[1], total, last ? strerrorname_np(last) : "0");
  fflush(stdout);
  char end;
  while (read(0, &end, 1) > 0) continue;
  if (getpgrp() == getpid()) kill(0, SIGKILL);
  return 0;
}
