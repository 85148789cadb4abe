/* Mappings, page tables, and memory that processes share. */
#include <mqueue.h>
#include <signal.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/shm.h>

#include "pin.h"

#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

static long page_tables(void) { /* the page of zeros, once in each GiB */
  long worked = 0;
  for (; more() && worked < 30000; worked++) {
    char *at = mmap((char *)0x100000000000 + (worked << 30), 4096, PROT_READ,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (at == MAP_FAILED) return worked;
    (void)*(volatile char *)at;
  }
  return worked;
}

static long tables_of_huge_pages(void) {
  long worked = 0;
  char *at = mmap(NULL, 1L << 40, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return worked;
  madvise(at, 1L << 40, MADV_HUGEPAGE);
  for (; more() && worked < 200000; worked++) (void)*(volatile char *)(at + (worked << 21));
  return worked;
}

static long many_mappings(void) {
  long worked = 0;
  char *at = mmap(NULL, 65000L * 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return worked;
  for (; more() && worked < 32000; worked++) MUST(mprotect(at + worked * 8192, 4096, PROT_READ));
  return worked;
}

static long names_of_mappings(void) {
  long worked = 0;
  char *at = mmap(NULL, 65000L * 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return worked;
  for (; more() && worked < 32000; worked++) {
    char name[80];
    snprintf(name, sizeof name, "%070ld", worked);
    MUST(prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, at + worked * 8192, 4096, name));
  }
  return worked;
}

static long advised_memory(void) { /* freed, reclaimed, collapsed, populated, locked, sealed */
  long worked = 0;
  static const int advice[] = {MADV_FREE, 14 /* HUGEPAGE */, 22 /* POPULATE_READ */, 20 /* COLD */, 21 /* PAGEOUT */,
                               25 /* COLLAPSE */, 12 /* MERGEABLE */, MADV_DONTFORK, MADV_WIPEONFORK, MADV_DONTNEED};
  for (; more() && worked < 200; worked++) {
    char *at = mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return worked;
    memset(at, (int)worked, 1 << 20);
    mlock(at, 4096);
    for (size_t i = 0; i < sizeof advice / sizeof *advice; i++) madvise(at, 2 << 20, advice[i]);
    syscall(462 /* mseal */, at, 4096, 0);
  }
  return worked;
}

static long moved_mappings(void) {
  long worked = 0;
  for (; more() && worked < 30000; worked++) {
    char *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED || mremap(at, 0, 4096, MREMAP_MAYMOVE) == MAP_FAILED) return worked;
    *at = 1;
  }
  return worked;
}

static long shared_segments(void) {
  long worked = 0;
  for (; more(); worked++) {
    GET(id, shmget(IPC_PRIVATE, 4096, 0600));
    void *at = shmat(id, NULL, 0);
    if (at == (void *)-1) return worked;
    *(char *)at = 1;
    if (worked > 100) shmdt(at);
  }
  return worked;
}

static long semaphores(void) {
  long worked = 0;
  for (; more() && worked < 400; worked++) MUST(semget(IPC_PRIVATE, 32000, 0600));
  return worked;
}

static long undos_of_semaphores(void) {
  long worked = 0;
  for (; more() && worked < 400; worked++) {
    GET(id, semget(IPC_PRIVATE, 32000, 0600));
    struct sembuf one = {0, 1, SEM_UNDO};
    MUST(semop(id, &one, 1));
  }
  return worked;
}

static long messages(void) {
  long worked = 0;
  struct {
    long kind;
    char text[8192];
  } message = {.kind = 1};
  while (more()) {
    GET(queue, msgget(IPC_PRIVATE, 0600));
    while (more() && worked < 40000 && !msgsnd(queue, &message, sizeof message.text, IPC_NOWAIT)) worked++;
  }
  return worked;
}

static long empty_messages(void) {
  long worked = 0;
  long message[1] = {1};
  while (more()) {
    GET(queue, msgget(IPC_PRIVATE, 0600));
    while (more() && !msgsnd(queue, message, 0, IPC_NOWAIT)) worked++;
  }
  return worked;
}

static long message_queues(void) {
  long worked = 0;
  for (; more(); worked++) {
    char name[64];
    snprintf(name, sizeof name, "/q.%d.%ld", self, worked);
    struct mq_attr size = {.mq_maxmsg = 10, .mq_msgsize = 8192};
    GET(queue, mq_open(name, O_CREAT | O_RDWR | O_NONBLOCK, 0600, &size));
    while (!mq_send(queue, page(), 8192, 0)) continue;
    struct sigevent nothing = {.sigev_notify = SIGEV_NONE};
    mq_notify(queue, &nothing);
  }
  return worked;
}

static long protection_keys(void) {
  long worked = 0;
  for (; more(); worked++) MUST(syscall(SYS_pkey_alloc, 0, 0));
  return worked;
}

const struct probe memory_probes[] = {
    {"page_tables", page_tables},
    {"tables_of_huge_pages", tables_of_huge_pages},
    {"many_mappings", many_mappings},
    {"names_of_mappings", names_of_mappings},
    {"advised_memory", advised_memory},
    {"moved_mappings", moved_mappings},
    {"shared_segments", shared_segments},
    {"semaphores", semaphores},
    {"undos_of_semaphores", undos_of_semaphores},
    {"messages", messages},
    {"empty_messages", empty_messages},
    {"message_queues", message_queues},
    {"protection_keys", protection_keys},
    {NULL, NULL},
};
