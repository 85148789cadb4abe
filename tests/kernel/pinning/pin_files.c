/* Files, their names, locks and watches; descriptors of every kind. */
#include <linux/landlock.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/xattr.h>
#include <signal.h>
#include <termios.h>

#include "pin.h"

static long open_files(void) {
  long worked = 0;
  for (; more(); worked++) MUST(open("/usr/bin/env", O_RDONLY));
  return worked;
}

static long copies_of_descriptors(void) {
  long worked = 0;
  for (; more(); worked++) MUST(fcntl(0, F_DUPFD, 3));
  return worked;
}

static long owned_descriptors(void) { /* F_SETOWN, F_SETSIG and O_ASYNC: somebody to signal */
  long worked = 0;
  for (; more(); worked++) {
    GET(fd, socket(AF_UNIX, SOCK_DGRAM, 0));
    MUST(fcntl(fd, F_SETOWN, getpid()));
    fcntl(fd, F_SETSIG, SIGUSR1);
    fcntl(fd, F_SETFL, O_ASYNC);
  }
  return worked;
}

static long descriptors_in_flight(void) {
  long worked = 0;
  while (more()) {
    int pair[2], many[200];
    MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
    for (int full = 0; !full && more();) {
      char control[CMSG_SPACE(sizeof many)] = {0};
      struct iovec one = {"x", 1};
      struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
      struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
      *rights = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof many)};
      int opened = 0;
      for (; opened < 200; opened++)
        if ((many[opened] = open("/usr/bin/env", O_RDONLY)) < 0) break;
      memcpy(CMSG_DATA(rights), many, sizeof many);
      full = opened < 200 || sendmsg(pair[0], &message, MSG_DONTWAIT) < 0;
      int error = errno;
      for (int i = 0; i < opened; i++) close(many[i]);
      errno = error;
      if (full && errno != EAGAIN) return worked;
      if (!full) worked += 200;
    }
  }
  return worked;
}

static long epoll_instances(void) {
  long worked = 0;
  for (; more(); worked++) MUST(epoll_create1(0));
  return worked;
}

static long epoll_watches(void) {
  long worked = 0;
  int pair[2];
  MUST(pipe(pair));
  while (more()) {
    GET(instance, epoll_create1(0));
    for (int fd = pair[0]; fd < pair[0] + 2; fd++) {
      struct epoll_event event = {.events = EPOLLIN};
      MUST(epoll_ctl(instance, EPOLL_CTL_ADD, fd, &event));
      worked++;
    }
  }
  return worked;
}

static long eventfds(void) {
  long worked = 0;
  for (; more(); worked++) MUST(eventfd(0, 0));
  return worked;
}

static long timerfds(void) {
  long worked = 0;
  for (; more(); worked++) {
    GET(fd, timerfd_create(CLOCK_REALTIME, 0));
    struct itimerspec hour = {.it_value = {3600, 0}};
    MUST(timerfd_settime(fd, 0, &hour, NULL));
  }
  return worked;
}

static long signalfds(void) {
  long worked = 0;
  sigset_t all;
  sigfillset(&all);
  for (; more(); worked++) MUST(signalfd(-1, &all, 0));
  return worked;
}

static long pidfds(void) {
  long worked = 0;
  for (; more(); worked++) MUST(syscall(SYS_pidfd_open, getpid(), 0));
  return worked;
}

static long memfds(void) {
  long worked = 0;
  for (; more(); worked++) MUST(memfd_create("with a name as long as it may be", 0));
  return worked;
}

static long inotify_instances(void) {
  long worked = 0;
  for (; more(); worked++) MUST(inotify_init1(0));
  return worked;
}

static long inotify_watches(void) {
  long worked = 0;
  GET(instance, inotify_init1(0));
  for (; more(); worked++) {
    char name[64];
    snprintf(name, sizeof name, "/tmp/watched.%d.%ld", self, worked);
    MUST(mkdir(name, 0700));
    MUST(inotify_add_watch(instance, name, IN_ALL_EVENTS));
  }
  return worked;
}

static long inotify_events(void) { /* nobody reads them */
  long worked = 0;
  GET(file, open("/tmp/seen", O_CREAT | O_RDWR, 0600));
  while (more()) {
    GET(instance, inotify_init1(0));
    MUST(inotify_add_watch(instance, "/tmp", IN_ALL_EVENTS));
    for (int i = 0; i < 20000 && more(); i++, worked++) {
      char name[280];
      snprintf(name, sizeof name, "/tmp/%0200d", i % 2);
      close(open(name, O_CREAT | O_RDWR, 0600));
    }
  }
  return worked + 0 * file;
}

static long directory_notices(void) { /* F_NOTIFY */
  long worked = 0;
  for (; more(); worked++) {
    GET(fd, open("/tmp", O_RDONLY | O_DIRECTORY));
    MUST(fcntl(fd, F_NOTIFY, DN_CREATE | DN_DELETE | DN_MULTISHOT));
  }
  return worked;
}

static long record_locks(void) {
  long worked = 0;
  while (more()) {
    char name[64];
    snprintf(name, sizeof name, "/tmp/locked.%d.%ld", self, worked);
    GET(fd, open(name, O_CREAT | O_RDWR, 0600));
    for (int i = 0; i < 500 && more(); i++, worked++) {
      struct flock lock = {.l_type = F_WRLCK, .l_start = i * 2, .l_len = 1};
      MUST(fcntl(fd, F_SETLK, &lock));
    }
  }
  return worked;
}

static long whole_file_locks(void) { /* a mapping keeps its file, and so the lock, without a descriptor */
  long worked = 0;
  GET(made, open("/tmp/mapped", O_CREAT | O_RDWR, 0600));
  MUST(ftruncate(made, 4096));
  for (; more() && worked < 60000; worked++) {
    GET(fd, open("/tmp/mapped", O_RDWR));
    MUST(flock(fd, LOCK_SH));
    if (mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED) return worked;
    close(fd);
  }
  return worked;
}

static long missing_names(const char *folder) {
  long worked = 0;
  for (; more(); worked++) {
    char name[300];
    snprintf(name, sizeof name, "%s/%0200d.%d", folder, (int)worked, self);
    if (!access(name, F_OK)) return worked;
  }
  return worked;
}
static long missing_names_in_tmp(void) { return missing_names("/tmp"); }
static long missing_names_in_usr(void) { return missing_names("/usr"); }
static long missing_names_in_proc(void) { return missing_names("/proc/self"); }

static long names_in_proc(void) { /* directories and files of own descriptors and threads */
  long worked = 0;
  while (dup(0) >= 0) continue;
  while (more()) {
    for (int fd = 0; fd < 4096 && more(); fd++, worked++) {
      char name[64];
      struct stat found;
      snprintf(name, sizeof name, "/proc/self/fdinfo/%d", fd);
      stat(name, &found);
      snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
      lstat(name, &found);
    }
  }
  return worked;
}

static long small_files(void) {
  long worked = 0;
  for (; more(); worked++) {
    char name[300];
    snprintf(name, sizeof name, "/tmp/%0200d.%d", (int)worked, self);
    GET(fd, open(name, O_CREAT | O_WRONLY, 0600));
    close(fd);
  }
  return worked;
}

static long folders_and_links(void) {
  long worked = 0;
  char target[4096];
  memset(target, 'x', sizeof target);
  target[4094] = 0;
  for (; more(); worked++) {
    char name[64];
    snprintf(name, sizeof name, "/tmp/d.%d.%ld", self, worked);
    MUST(mkdir(name, 0700));
    snprintf(name, sizeof name, "/tmp/l.%d.%ld", self, worked);
    MUST(symlink(target, name));
    snprintf(name, sizeof name, "/tmp/p.%d.%ld", self, worked);
    MUST(mkfifo(name, 0600));
  }
  return worked;
}

static long unlinked_files(void) {
  long worked = 0;
  for (; more(); worked++) {
    GET(fd, open("/tmp", O_TMPFILE | O_RDWR, 0600));
    MUST(fallocate(fd, 0, 0, 1));
  }
  return worked;
}

static long sparse_files(void) { /* one page here and there: the tree that finds it */
  long worked = 0;
  GET(fd, memfd_create("sparse", 0));
  MUST(ftruncate(fd, 1L << 60));
  for (; more() && worked < 20000; worked++) MUST(pwrite(fd, "x", 1, worked << 40));
  return worked;
}

static long attributes(void) {
  long worked = 0;
  GET(fd, open("/tmp/attributed", O_CREAT | O_RDWR, 0600));
  for (; more(); worked++) {
    char name[64];
    snprintf(name, sizeof name, "user.%ld", worked);
    MUST(fsetxattr(fd, name, page(), 60000, 0));
  }
  return worked;
}

static long access_lists(void) { /* POSIX ACLs: version 2, owner, users, group, mask, other */
  long worked = 0;
  enum { USERS = 8000 };
  struct entry {
    uint16_t tag, rights;
    uint32_t id;
  };
  static struct {
    uint32_t version;
    struct entry entries[USERS + 4];
  } list = {.version = 2};
  list.entries[0] = (struct entry){1, 6, -1};
  for (int i = 0; i < USERS; i++) list.entries[i + 1] = (struct entry){2, 6, i};
  list.entries[USERS + 1] = (struct entry){4, 6, -1};
  list.entries[USERS + 2] = (struct entry){16, 6, -1};
  list.entries[USERS + 3] = (struct entry){32, 6, -1};
  int users = geteuid() ? 0 : USERS; /* inside one id is mapped */
  if (!users)
    for (int i = 0; i < USERS; i++) list.entries[i + 1].id = 1000;
  for (; more(); worked++) {
    GET(fd, open("/dev/shm", O_TMPFILE | O_RDWR, 0600));
    MUST(fsetxattr(fd, "system.posix_acl_access", &list, sizeof list, 0));
  }
  return worked;
}

static long full_pipes(void) {
  long worked = 0;
  while (more() && worked < 2000) {
    int pair[2];
    MUST(pipe2(pair, O_NONBLOCK));
    while (write(pair[1], page(), 65536) > 0) worked++;
  }
  return worked;
}

static long pipes_of_others_pages(void) { /* vmsplice, tee and splice: pages that stay when their mapping goes */
  long worked = 0;
  while (more() && worked < 2000) {
    int pair[2], copy[2];
    MUST(pipe2(pair, O_NONBLOCK));
    MUST(pipe2(copy, O_NONBLOCK));
    void *pages = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) return worked;
    memset(pages, 1, 65536);
    struct iovec all = {pages, 65536};
    MUST(vmsplice(pair[1], &all, 1, SPLICE_F_GIFT));
    MUST(tee(pair[0], copy[1], 65536, 0));
    munmap(pages, 65536);
    worked++;
  }
  return worked;
}

static long pipes_of_files(void) { /* splice */
  long worked = 0;
  GET(file, open("/usr/bin/env", O_RDONLY));
  for (; more(); worked++) {
    int pair[2];
    MUST(pipe2(pair, O_NONBLOCK));
    for (off_t at = 0; at < 16; at++) {
      off_t begin = at;
      if (splice(file, &begin, pair[1], NULL, 1, SPLICE_F_NONBLOCK) < 0) break;
    }
  }
  return worked;
}

static long landlock_rulesets(void) {
  long worked = 0;
  struct landlock_ruleset_attr handled = {.handled_access_fs = LANDLOCK_ACCESS_FS_EXECUTE};
  GET(folder, open("/usr", O_PATH));
  struct landlock_path_beneath_attr rule = {LANDLOCK_ACCESS_FS_EXECUTE, folder};
  for (; more(); worked++) {
    GET(ruleset, syscall(SYS_landlock_create_ruleset, &handled, 8, 0));
    MUST(syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0));
  }
  return worked;
}

static long landlock_rules(void) { /* of ports, of which there are 65,536 in a set; and layers */
  long worked = 0;
  struct {
    uint64_t files, net;
  } handled = {0, 1};
  while (more()) {
    GET(ruleset, syscall(SYS_landlock_create_ruleset, &handled, 16, 0));
    for (uint64_t port = 0; port < 65536 && more(); port++, worked++) {
      struct {
        uint64_t access, port;
      } rule = {1, port};
      MUST(syscall(SYS_landlock_add_rule, ruleset, 2, &rule, 0));
    }
    syscall(SYS_landlock_restrict_self, ruleset, 0);
  }
  return worked;
}

static long terminals(void) { /* pairs, and what waits in both directions */
  long worked = 0;
  while (more()) {
    GET(master, open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK));
    worked++;
    char name[64];
    int slave = unlockpt(master) || ptsname_r(master, name, sizeof name) ? -1 : open(name, O_RDWR | O_NOCTTY | O_NONBLOCK);
    for (int refused = 0; refused < 4 && more();) {
      refused++;
      if (write(slave, page(), 4096) > 0) refused = 0;
      if (write(master, page(), 4096) > 0) refused = 0;
    }
  }
  return worked;
}

static long opens_of_a_terminal(void) { /* the own one, with new sizes and modes */
  long worked = 0;
  struct termios modes;
  while (more()) {
    GET(fd, open("/dev/tty", O_RDWR | O_NOCTTY));
    struct winsize size = {.ws_row = worked, .ws_col = worked};
    MUST(ioctl(fd, TIOCSWINSZ, &size));
    MUST(tcgetattr(fd, &modes));
    MUST(tcsetattr(fd, TCSANOW, &modes));
    worked++;
  }
  return worked;
}

const struct probe file_probes[] = {
    {"opens_of_a_terminal", opens_of_a_terminal},
    {"open_files", open_files},
    {"copies_of_descriptors", copies_of_descriptors},
    {"owned_descriptors", owned_descriptors},
    {"descriptors_in_flight", descriptors_in_flight},
    {"epoll_instances", epoll_instances},
    {"epoll_watches", epoll_watches},
    {"eventfds", eventfds},
    {"timerfds", timerfds},
    {"signalfds", signalfds},
    {"pidfds", pidfds},
    {"memfds", memfds},
    {"inotify_instances", inotify_instances},
    {"inotify_watches", inotify_watches},
    {"inotify_events", inotify_events},
    {"directory_notices", directory_notices},
    {"record_locks", record_locks},
    {"whole_file_locks", whole_file_locks},
    {"missing_names_in_tmp", missing_names_in_tmp},
    {"missing_names_in_usr", missing_names_in_usr},
    {"missing_names_in_proc", missing_names_in_proc},
    {"names_in_proc", names_in_proc},
    {"small_files", small_files},
    {"folders_and_links", folders_and_links},
    {"unlinked_files", unlinked_files},
    {"sparse_files", sparse_files},
    {"attributes", attributes},
    {"access_lists", access_lists},
    {"full_pipes", full_pipes},
    {"pipes_of_others_pages", pipes_of_others_pages},
    {"pipes_of_files", pipes_of_files},
    {"landlock_rulesets", landlock_rulesets},
    {"landlock_rules", landlock_rules},
    {"terminals", terminals},
    {NULL, NULL},
};
