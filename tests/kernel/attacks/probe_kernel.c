/* Section C: the kernel's surface. Arguments are such that a call that gets through does no harm. */
#include "probe.h"
#include <linux/filter.h>
#include <linux/seccomp.h>

/* With arguments that the kernel finds wrong if it gets to see them: another errno than the filter's is the proof. */
#define WRONG(name) \
  static long name(void) { return syscall(SYS_##name, -1, -1, -1, -1, -1, -1); }
#define UNSHARES(name, flag) \
  static long unshare_##name(void) { return unshare(flag); } \
  static long clone_##name(void) { \
    long pid = syscall(SYS_clone, (flag) | SIGCHLD, 0, 0, 0, 0); \
    if (pid == 0) _exit(0); \
    return pid; \
  }

UNSHARES(user, CLONE_NEWUSER)
UNSHARES(mounts, CLONE_NEWNS)
UNSHARES(pids, CLONE_NEWPID)
UNSHARES(net, CLONE_NEWNET)
UNSHARES(ipc, CLONE_NEWIPC)
UNSHARES(uts, CLONE_NEWUTS)
UNSHARES(cgroup, CLONE_NEWCGROUP)
static long unshare_time(void) { return unshare(0x80); }
static long clone3_user(void) {
  unsigned long long args[11] = {CLONE_NEWUSER, 0, 0, 0, SIGCHLD};
  long pid = syscall(SYS_clone3, args, sizeof args);
  if (pid == 0) _exit(0);
  return pid;
}
static long enter_namespace(void) { return setns(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), 0); }
static long enter_by_pidfd(void) { return setns(syscall(SYS_pidfd_open, getpid(), 0), CLONE_NEWUTS); }

static long mount_tmpfs(void) { return syscall(SYS_mount, "none", ".", "tmpfs", 0, NULL); }
static long mount_proc(void) { return syscall(SYS_mount, "none", ".", "proc", 0, NULL); }
static long mount_cgroup(void) { return syscall(SYS_mount, "none", ".", "cgroup2", 0, NULL); }
static long remount_root(void) { return syscall(SYS_mount, NULL, "/", NULL, 32 | 4096, NULL); } /* REMOUNT | BIND */
static long unmount_proc(void) { return syscall(SYS_umount2, "/proc", 2); }
static long change_root(void) { return chroot("."); }
static long open_filesystem(void) { return syscall(SYS_fsopen, "tmpfs", 0); }
static long clone_tree(void) { return syscall(SYS_open_tree, AT_FDCWD, "/", 1); }
WRONG(pivot_root) WRONG(fsmount) WRONG(fsconfig) WRONG(fspick) WRONG(move_mount)
static long mount_setattr_(void) { return syscall(SYS_mount_setattr, -1, "", 0x1000, bsearch, 0); }

static long io_uring_setup(void) {
  char parameters[128] = {0};
  return syscall(SYS_io_uring_setup, 4, parameters);
}
WRONG(io_uring_enter) WRONG(io_uring_register) WRONG(io_setup)
static long keyctl(void) { return syscall(SYS_keyctl, 0, -3, 1); } /* GET_KEYRING_ID, session, create */
static long add_key(void) { return syscall(SYS_add_key, "user", "attack", "x", 1, -2); }
WRONG(request_key) WRONG(bpf) WRONG(perf_event_open) WRONG(fanotify_mark) WRONG(lookup_dcookie)
static long userfaultfd(void) { return syscall(SYS_userfaultfd, 0); }
static long fanotify_init(void) { return syscall(SYS_fanotify_init, 0, 0); }
static long read_implies_exec(void) { return syscall(SYS_personality, 0x0400000); }
static long no_randomize(void) { return syscall(SYS_personality, 0x0040000); }
WRONG(init_module) WRONG(finit_module) WRONG(delete_module) WRONG(reboot) WRONG(swapon) WRONG(swapoff)
WRONG(quotactl) WRONG(settimeofday) WRONG(clock_settime) WRONG(adjtimex)
WRONG(move_pages) WRONG(mbind) WRONG(kexec_load)
static long accounting(void) { return syscall(SYS_acct, "/nonexistent"); }
static long read_kernel_log(void) { return syscall(SYS_syslog, 10, NULL, 0); } /* SIZE_BUFFER */
static long name_host(void) { return sethostname("attack", 6); }
static long hang_up(void) { return syscall(SYS_vhangup); }
static long secret_memory(void) { return syscall(SYS_memfd_secret, 0); }
static long huge_pages(void) {
  return mmap(NULL, 2 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | 0x40000, -1, 0) == MAP_FAILED ? -1 : 0;
}

static long load_filter(unsigned action, int by_prctl, int flags) {
  struct sock_filter code[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW), BPF_STMT(BPF_RET | BPF_K, action)};
  struct sock_fprog program = {2, code}; /* the second is never reached, so that whoever gets it can still exit */
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (by_prctl) return prctl(PR_SET_SECCOMP, 2, &program, 0, 0);
  return syscall(SYS_seccomp, 1, flags, &program);
}
static long filter_allow(void) { return load_filter(SECCOMP_RET_ALLOW, 0, 0); }
static long filter_by_prctl(void) { return load_filter(SECCOMP_RET_ALLOW, 1, 0); }
static long filter_trace(void) { return load_filter(SECCOMP_RET_TRACE, 0, 0); }
static long filter_notify(void) { return load_filter(SECCOMP_RET_ALLOW, 0, 8); } /* NEW_LISTENER */
static long grow_pipe(void) {
  int ends[2];
  return pipe(ends) < 0 ? -1 : fcntl(ends[1], 1031, 1 << 20); /* F_SETPIPE_SZ */
}
static long take_lease(void) { return fcntl(open("lease", O_CREAT | O_RDONLY | O_CLOEXEC, 0600), 1024, F_RDLCK); }
static long lock_description(void) { /* in flight in a socket it belongs to no process */
  struct flock whole = {.l_type = F_WRLCK};
  return fcntl(open("locked", O_CREAT | O_RDWR | O_CLOEXEC, 0600), F_OFD_SETLK, &whole);
}
static long map_extents(void) { /* FS_IOC_FIEMAP, which can be told to write the file's dirty pages first */
  struct { unsigned long long start, length; unsigned flags, mapped, count, reserved; } request = {0, ~0ULL, 1, 0, 0, 0};
  return ioctl(open(given("LINK", "/usr/bin/env"), O_RDONLY | O_CLOEXEC), 0xC020660B, &request);
}

#ifdef __x86_64__
WRONG(modify_ldt)
static long io_privilege(void) { return syscall(SYS_iopl, 3); }
static long io_permission(void) { return syscall(SYS_ioperm, 0x80, 1, 1); }
static long x32_call(void) { return syscall(0x40000000 | SYS_getpid); }
static long int80_call(void) { /* getpid of the 32-bit table; 20 is writev in the 64-bit one */
  int result;
  __asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory", "r8", "r9", "r10", "r11");
  errno = -result;
  return result > 0 ? 0 : -1;
}
#endif

#define ROW(name) {#name, name}
#define BOTH(name) ROW(unshare_##name), ROW(clone_##name)
const struct attack kernel_attacks[] = {
    BOTH(user), BOTH(mounts), BOTH(pids), BOTH(net), BOTH(ipc), BOTH(uts), BOTH(cgroup), ROW(unshare_time),
    ROW(clone3_user), ROW(enter_namespace), ROW(enter_by_pidfd), ROW(mount_tmpfs), ROW(mount_proc), ROW(mount_cgroup),
    ROW(remount_root), ROW(unmount_proc), ROW(change_root), ROW(open_filesystem), ROW(clone_tree), ROW(pivot_root),
    ROW(fsmount), ROW(fsconfig), ROW(fspick), ROW(move_mount), {"mount_setattr", mount_setattr_}, ROW(io_uring_setup),
    ROW(io_uring_enter), ROW(io_uring_register), ROW(io_setup), ROW(keyctl), ROW(add_key), ROW(request_key), ROW(bpf),
    ROW(perf_event_open), ROW(fanotify_mark), ROW(lookup_dcookie), ROW(userfaultfd), ROW(fanotify_init),
    ROW(read_implies_exec), ROW(no_randomize), ROW(init_module), ROW(finit_module), ROW(delete_module), ROW(reboot),
    ROW(swapon), ROW(swapoff), ROW(quotactl), ROW(settimeofday), ROW(clock_settime), ROW(adjtimex),
    ROW(move_pages), ROW(mbind), ROW(kexec_load), ROW(accounting), ROW(read_kernel_log),
    ROW(name_host), ROW(hang_up), ROW(secret_memory), ROW(huge_pages), ROW(filter_allow), ROW(filter_by_prctl),
    ROW(filter_trace), ROW(filter_notify), ROW(grow_pipe), ROW(take_lease), ROW(lock_description),
    ROW(map_extents),
#ifdef __x86_64__
    ROW(modify_ldt), ROW(io_privilege), ROW(io_permission), ROW(x32_call), ROW(int80_call),
#endif
    {NULL, NULL}};
