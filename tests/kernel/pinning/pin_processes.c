/* Processes and threads, what waits for them, and what they carry. */
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

#include "pin.h"

static void *sleeper(void *nothing) {
  for (;;) pause();
  return nothing;
}

static long threads(void) {
  long worked = 0;
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 16384);
  for (; more(); worked++) {
    pthread_t thread;
    if ((errno = pthread_create(&thread, &small, sleeper, NULL))) return worked;
  }
  return worked;
}

static long zombies(void) {
  long worked = 0;
  for (; more(); worked++) {
    pid_t pid = fork();
    if (pid == 0) _exit(0);
    if (pid < 0) return worked;
  }
  return worked;
}

static long short_lives(void) { /* and the records of their end */
  long worked = 0;
  for (; more(); worked++) {
    pid_t pid = fork();
    if (pid == 0) _exit(0);
    MUST(waitpid(pid, NULL, 0));
  }
  return worked;
}

static long family_of_mappings(void) { /* each generation is linked to the memory of all before it */
  long worked = 0;
  char *pages = page();
  for (; more() && worked < 8; worked++) {
    pid_t pid = fork();
    if (pid < 0) return worked;
    memset(pages, (int)worked, 65536);
    if (pid) continue;
    for (int depth = 0; depth < 3 && fork() == 0; depth++)
      memset(pages, depth, 65536);
    for (;;) pause();
  }
  return worked;
}

static long interval_timers(void) {
  long worked = 0;
  for (; more(); worked++) {
    timer_t timer;
    struct sigevent none = {.sigev_notify = SIGEV_NONE};
    MUST(timer_create(worked % 2 ? CLOCK_MONOTONIC : CLOCK_PROCESS_CPUTIME_ID, &none, &timer));
    struct itimerspec hour = {.it_value = {3600, 0}};
    MUST(timer_settime(timer, 0, &hour, NULL));
  }
  return worked;
}

static long queued_signals(void) {
  long worked = 0;
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_BLOCK, &all, NULL);
  union sigval value = {0};
  for (; more(); worked++) MUST(sigqueue(getpid(), SIGRTMIN, value));
  return worked;
}

static uint32_t *words;

static void *locker(void *which) {
  long at = (long)which;
  syscall(SYS_futex, words + at, FUTEX_LOCK_PI, 0, NULL, NULL, 0);
  if (at % 16) return NULL;
  for (;;) pause();
  return NULL;
}

static long inherited_priorities(void) { /* the state of each futex whose owner inherits: one waits, one owns */
  long worked = 0;
  words = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (words == MAP_FAILED) return worked;
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 16384);
  for (; more(); worked++) {
    words[worked] = syscall(SYS_gettid);
    pthread_t thread;
    if ((errno = pthread_create(&thread, &small, locker, (void *)worked))) return worked;
  }
  return worked;
}

static void *poller(void *nothing) {
  static struct pollfd same[4096];
  for (int i = 0; i < 4096; i++) same[i] = (struct pollfd){.fd = 0, .events = POLLPRI};
  for (;;)
    if (poll(same, 4096, -1) < 0) poll(same, 1024, -1);
  return nothing;
}

static long waits_for_descriptors(void) { /* the kernel's table of whom to wake, while a call waits */
  long worked = 0;
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 16384);
  for (; more(); worked++) {
    pthread_t thread;
    if ((errno = pthread_create(&thread, &small, poller, NULL))) return worked;
  }
  return worked;
}

static long futex_waits(void) {
  long worked = 0;
  static uint32_t word;
  struct timespec moment = {0, 1000};
  for (; more(); worked++) syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &moment, NULL, 0);
  return worked;
}

static long credentials(void) { /* each open file keeps those of its opener */
  long worked = 0;
  for (; more(); worked++) {
    struct {
      uint32_t version;
      int pid;
    } head = {0x20080522, 0};
    uint32_t none[6] = {0};
    MUST(syscall(SYS_capset, &head, none));
    MUST(setfsuid(geteuid()));
    MUST(open("/usr/bin/env", O_RDONLY));
  }
  return worked;
}

static long attributes_of_processes(void) { /* what prctl and the scheduler keep for each */
  long worked = 0;
  while (more()) {
    pid_t pid = fork();
    if (pid < 0) return worked;
    if (pid == 0) {
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(0, &one);
      sched_setaffinity(0, sizeof one, &one);
      for (int option = 1; option < 80; option++)
        if (option != PR_SET_SECCOMP && option != PR_SET_PDEATHSIG) prctl(option, 1, 0, 0, 0);
      syscall(SYS_membarrier, 16 /* register private expedited */, 0, 0);
      setpriority(0, 0, 5);
      for (;;) pause();
    }
    worked++;
  }
  return worked;
}

static long programs(void) { /* as many arguments as a program may have, while it is started */
  long worked = 0;
  static char *many[32 + 1];
  char *word = malloc(100001);
  memset(word, 'x', 100000);
  word[100000] = 0;
  for (int i = 0; i < 10; i++) many[i] = word;
  for (; more(); worked++) {
    pid_t pid = fork();
    if (pid < 0) return worked;
    if (pid == 0) {
      execv("/usr/bin/true", many);
      _exit(1);
    }
    waitpid(pid, NULL, 0);
  }
  return worked;
}

static long lists_of_mounts(void) {
  long worked = 0;
  static char buffer[1 << 16];
  while (more()) {
    GET(fd, open("/proc/self/mountinfo", O_RDONLY));
    if (read(fd, buffer, sizeof buffer) < 0) return worked;
    worked++;
  }
  return worked;
}

const struct probe process_probes[] = {
    {"threads", threads},
    {"zombies", zombies},
    {"short_lives", short_lives},
    {"family_of_mappings", family_of_mappings},
    {"interval_timers", interval_timers},
    {"queued_signals", queued_signals},
    {"inherited_priorities", inherited_priorities},
    {"waits_for_descriptors", waits_for_descriptors},
    {"futex_waits", futex_waits},
    {"credentials", credentials},
    {"attributes_of_processes", attributes_of_processes},
    {"programs", programs},
    {"lists_of_mounts", lists_of_mounts},
    {NULL, NULL},
};
