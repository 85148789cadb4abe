/* Section B: other processes, limits, priorities; and identity, from section C. */
#include "probe.h"
#include <grp.h>
#include <linux/capability.h>

static char bait[8], large[1 << 20];

static pid_t pausing_child(void) {
  pid_t pid = fork();
  if (pid == 0)
    for (;;) pause();
  return pid;
}
static long seize(pid_t pid) { return ptrace(PTRACE_SEIZE, pid, 0, 0); }
static long ptrace_target(void) { return seize(target()); }
static long ptrace_child(void) { return seize(pausing_child()); }
static long ptrace_me(void) { return ptrace(PTRACE_TRACEME, 0, 0, 0); }

static long read_memory(pid_t pid) {
  char into[8];
  struct iovec here = {into, 8}, there = {bait, 8};
  return process_vm_readv(pid, &here, 1, &there, 1, 0);
}
static long read_memory_child(void) { return read_memory(pausing_child()); }
static long write_memory_child(void) {
  struct iovec here = {bait, 8}, there = {bait, 8};
  return process_vm_writev(pausing_child(), &here, 1, &there, 1, 0);
}
static long read_memory_target(void) { /* from the target's own map, so that the control finds something */
  struct iovec here = {bait, 8}, there = {(void *)strtoul(given("ADDRESS", "4096"), NULL, 0), 8};
  return process_vm_readv(target(), &here, 1, &there, 1, 0);
}
static long get_descriptor(void) {
  int pidfd = syscall(SYS_pidfd_open, target(), 0);
  return pidfd < 0 ? -1 : syscall(SYS_pidfd_getfd, pidfd, 0, 0);
}
static long signal_gateway(void) { return kill(atoi(given("GATEWAY", "1")), 0); }
static long compare_processes(void) { return syscall(SYS_kcmp, getpid(), getpid(), 0, 0, 0); }
static long advise_target(void) {
  struct iovec there = {bait, 8};
  int pidfd = syscall(SYS_pidfd_open, getpid(), 0);
  return pidfd < 0 ? -1 : syscall(SYS_process_madvise, pidfd, &there, 1, MADV_COLD, 0);
}
static long limits_of_target(void) {
  struct rlimit limit;
  return prlimit(target(), RLIMIT_NOFILE, NULL, &limit);
}
static long raise_limit(void) {
  struct rlimit low = {4096, 4096}, high = {8192, 8192};
  return setrlimit(RLIMIT_MEMLOCK, &low) < 0 ? -1 : setrlimit(RLIMIT_MEMLOCK, &high);
}
static long raise_core_limit(void) {
  struct rlimit limit = {RLIM_INFINITY, RLIM_INFINITY}, now;
  if (setrlimit(RLIMIT_CORE, &limit) < 0) return -1;
  getrlimit(RLIMIT_CORE, &now);
  errno = EPERM; /* the filter answers 0 and does nothing */
  return now.rlim_cur == RLIM_INFINITY ? 0 : -1;
}
static long lock_memory(void) { return mlock(large, sizeof large); }
static long real_time(void) {
  struct sched_param parameters = {.sched_priority = 1};
  return sched_setscheduler(0, SCHED_FIFO, &parameters);
}
static long be_urgent(void) { return setpriority(PRIO_PROCESS, 0, -20); }
static long slow_down_target(void) { return setpriority(PRIO_PROCESS, target(), 19); }
static long slow_down_user(void) { return setpriority(PRIO_USER, 0, getpriority(PRIO_USER, 0)); }
static long disk_first(void) { return syscall(SYS_ioprio_set, 1, 0, 1 << 13); } /* IOPRIO_CLASS_RT */
static long idle_disk_of_target(void) { return syscall(SYS_ioprio_set, 1, target(), 3 << 13); }
static long pin_target(void) {
  cpu_set_t set;
  sched_getaffinity(0, sizeof set, &set);
  return sched_setaffinity(target(), sizeof set, &set);
}
static long become_root(void) { return syscall(SYS_setresuid, 0, 0, 0); }
static long become_group_root(void) { return syscall(SYS_setresgid, 0, 0, 0); }
static long join_groups(void) {
  gid_t group = 0;
  return setgroups(1, &group);
}
static long gain_capabilities(void) {
  struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct data[2] = {{1 << 21, 1 << 21, 0}, {0, 0, 0}}; /* CAP_SYS_ADMIN */
  return syscall(SYS_capset, &head, data);
}
static long raise_ambient(void) {
  struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct data[2] = {{0}};
  if (syscall(SYS_capget, &head, data) < 0) return -1;
  data[0].inheritable = data[0].permitted, data[1].inheritable = data[1].permitted;
  if (syscall(SYS_capset, &head, data) < 0) return -1;
  return prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, 21, 0, 0); /* CAP_SYS_ADMIN */
}
static long drop_bounding(void) { return prctl(PR_CAPBSET_DROP, 39, 0, 0, 0); }
static long set_securebits(void) { return prctl(PR_SET_SECUREBITS, prctl(PR_GET_SECUREBITS), 0, 0, 0); }

#define ROW(name) {#name, name}
const struct attack process_attacks[] = {
    ROW(ptrace_target), ROW(ptrace_child), ROW(ptrace_me), ROW(read_memory_child), ROW(write_memory_child),
    ROW(read_memory_target), ROW(get_descriptor), ROW(signal_gateway), ROW(compare_processes), ROW(advise_target),
    ROW(limits_of_target), ROW(raise_limit), ROW(raise_core_limit), ROW(lock_memory), ROW(real_time), ROW(be_urgent),
    ROW(slow_down_target), ROW(slow_down_user), ROW(disk_first), ROW(idle_disk_of_target), ROW(pin_target),
    ROW(become_root), ROW(become_group_root), ROW(join_groups), ROW(gain_capabilities), ROW(raise_ambient),
    ROW(drop_bounding), ROW(set_securebits), {NULL, NULL}};
