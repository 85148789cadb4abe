/* Section A: files, devices, /proc. */
#include "probe.h"
#include <sys/inotify.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/xattr.h>
#include <termios.h>

#define READS(name, path) \
  static long name(void) { return reads(path); }
#define OPENS(name, path, flags) \
  static long name(void) { return opens(path, flags); }

OPENS(read_shadow, "/etc/shadow", O_RDONLY)
OPENS(read_secret, given("SECRET", "/secret"), O_RDONLY)
OPENS(read_source, given("SOURCE", "/source"), O_RDONLY)
OPENS(read_data, given("DATA", "/data"), O_RDONLY | O_DIRECTORY)
OPENS(read_canary, "/.bulkhead/canary", O_RDONLY)
OPENS(write_root, "/", O_TMPFILE | O_WRONLY)
OPENS(write_usr, "/usr", O_TMPFILE | O_WRONLY)
OPENS(write_bin, "/usr/bin", O_TMPFILE | O_WRONLY)
OPENS(write_lib, "/usr/lib", O_TMPFILE | O_WRONLY)
OPENS(write_etc, "/etc", O_TMPFILE | O_WRONLY)
OPENS(write_passwd, "/etc/passwd", O_WRONLY)
OPENS(open_block, given("BLOCK", "/dev/vda"), O_RDONLY)
OPENS(open_mem, "/dev/mem", O_RDONLY)
OPENS(open_kmsg, "/dev/kmsg", O_RDONLY)
OPENS(open_kvm, "/dev/kvm", O_RDWR)
OPENS(open_vsock, "/dev/vsock", O_RDONLY)
OPENS(open_fuse, "/dev/fuse", O_RDWR)
OPENS(open_core_pattern, "/proc/sys/kernel/core_pattern", O_WRONLY)
OPENS(open_sysctl, "/proc/sys/vm/drop_caches", O_WRONLY)
OPENS(open_sysrq, "/proc/sysrq-trigger", O_WRONLY)
OPENS(open_oom_score, "/proc/self/oom_score_adj", O_WRONLY)
OPENS(open_uid_map, "/proc/self/uid_map", O_WRONLY)
OPENS(read_kmsg, "/proc/kmsg", O_RDONLY | O_NONBLOCK)
OPENS(open_kcore, "/proc/kcore", O_RDONLY)
READS(read_keys, "/proc/keys")
READS(read_kallsyms, "/proc/kallsyms")
READS(read_cmdline, "/proc/cmdline")
READS(read_interrupts, "/proc/interrupts")
READS(read_timers, "/proc/timer_list")
OPENS(read_firmware, "/sys/firmware", O_RDONLY | O_DIRECTORY)
OPENS(open_release_agent, given("RELEASE_AGENT", "/sys/fs/cgroup/release_agent"), O_WRONLY)
OPENS(open_cgroup_procs, given("CGROUP_PROCS", "/sys/fs/cgroup/cgroup.procs"), O_WRONLY)
OPENS(open_run_folder, given("SOCKET_FOLDER", "/run/docker"), O_RDONLY | O_DIRECTORY)

static long of_target(const char *name, int flags) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/%s", target(), name);
  return opens(path, flags);
}
static long target_mem(void) { return of_target("mem", O_RDONLY); }
static long target_environ(void) { return of_target("environ", O_RDONLY); }
static long target_maps(void) { return of_target("maps", O_RDONLY); }
static long target_fd(void) { return of_target("fd", O_RDONLY | O_DIRECTORY); }
static long target_root(void) { return of_target("root/etc", O_RDONLY); }
static long target_cwd(void) { return of_target("cwd", O_RDONLY); }
static long target_exe(void) { return of_target("exe", O_RDONLY); }

static long gateway_environ(void) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%s/environ", given("GATEWAY", "1"));
  return opens(path, O_RDONLY);
}
static long hard_link(void) { return link(given("LINK", "/usr/bin/env"), "link-name"); }
static long hard_link_by_descriptor(void) {
  int fd = open(given("LINK", "/usr/bin/env"), O_RDONLY | O_CLOEXEC);
  return fd < 0 ? -1 : linkat(fd, "", AT_FDCWD, "link-fd", AT_EMPTY_PATH);
}
static long hard_link_by_proc(void) {
  char path[64];
  int fd = open(given("LINK", "/usr/bin/env"), O_PATH | O_CLOEXEC);
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  return fd < 0 ? -1 : linkat(AT_FDCWD, path, AT_FDCWD, "link-proc", AT_SYMLINK_FOLLOW);
}
static long make_block(void) { return mknod("node-block", S_IFBLK | 0600, makedev(254, 0)); }
static long make_char(void) { return mknod("node-char", S_IFCHR | 0600, makedev(1, 1)); }
static long make_whiteout(void) { return mknod("node-white", S_IFCHR | 0600, makedev(0, 0)); }
static long set_capability(void) {
  struct { unsigned magic, words[4]; } caps = {0x02000001, {~0u, 0, ~0u, 0}}; /* struct vfs_cap_data, revision 2 */
  int fd = open("file-caps", O_CREAT | O_WRONLY | O_CLOEXEC, 0700);
  return fd < 0 ? -1 : fsetxattr(fd, "security.capability", &caps, sizeof caps, 0);
}
/* A POSIX ACL, which the kernel charges to nobody: its owner may set it on any file system that has them. */
struct acl_entry { unsigned short tag, permissions; unsigned id; };
static const struct { unsigned version; struct acl_entry entries[5]; } acl = {
    2, {{1, 7, -1}, {2, 7, 1000}, {4, 7, -1}, {0x10, 7, -1}, {0x20, 7, -1}}};
static long set_acl(void) {
  if (mkdir("acl", 0700) < 0 && errno != EEXIST) return -1;
  return setxattr("acl", "system.posix_acl_access", &acl, sizeof acl, 0);
}
static long set_default_acl(void) {
  if (mkdir("acl", 0700) < 0 && errno != EEXIST) return -1;
  return lsetxattr("acl", "system.posix_acl_default", &acl, sizeof acl, 0);
}
static long set_acl_by_descriptor(void) {
  int fd = open("file-acl", O_CREAT | O_WRONLY | O_CLOEXEC, 0700);
  return fd < 0 ? -1 : fsetxattr(fd, "system.posix_acl_access", &acl, sizeof acl, 0);
}
static long chown_root(void) {
  int fd = open("file-owner", O_CREAT | O_WRONLY | O_CLOEXEC, 0700);
  return fd < 0 ? -1 : fchown(fd, 0, 0);
}
static union { struct file_handle head; char room[sizeof(struct file_handle) + 128]; } handle;
static long name_handle(void) {
  int mount;
  handle.head.handle_bytes = 128;
  return name_to_handle_at(AT_FDCWD, given("LINK", "/usr"), &handle.head, &mount, 0);
}
static long open_handle(void) { /* the "shocker": 2 is the root folder of most file systems */
  int fd = open(".", O_RDONLY | O_CLOEXEC);
  if (name_handle() < 0) {
    handle.head.handle_bytes = 8, handle.head.handle_type = 1;
    *(unsigned *)handle.head.f_handle = 2;
  }
  return open_by_handle_at(fd, &handle.head, O_RDONLY);
}
static long device_ioctl(void) { /* one that the filter lets pass; ENOTTY is the device's own word */
  struct termios modes;
  return ioctl(open("/dev/null", O_RDWR | O_CLOEXEC), TCGETS, &modes);
}
static long touch_device(void) { return utimes("/dev/null", NULL); }
static long type_into_terminal(void) {
  int fd = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
  return ioctl(fd < 0 ? open("/dev/null", O_RDWR | O_CLOEXEC) : fd, TIOCSTI, "x");
}
static long make_terminal(void) { /* what is written to one makes threads of the kernel work, for nothing */
  return open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC) < 0 ? -1 : 0;
}
static long let_all_make_terminals(void) { return chmod("/dev/pts/ptmx", 0666); }

#define ROW(name) {#name, name}
const struct attack file_attacks[] = {
    ROW(read_shadow), ROW(read_secret), ROW(read_source), ROW(read_data), ROW(read_canary), ROW(write_root),
    ROW(write_usr), ROW(write_bin), ROW(write_lib), ROW(write_etc), ROW(write_passwd), ROW(open_block), ROW(open_mem),
    ROW(open_kmsg), ROW(open_kvm), ROW(open_vsock), ROW(open_fuse), ROW(open_core_pattern), ROW(open_sysctl),
    ROW(open_sysrq), ROW(open_oom_score), ROW(open_uid_map), ROW(open_kcore), ROW(read_kmsg), ROW(read_keys), ROW(read_kallsyms),
    ROW(read_cmdline), ROW(read_interrupts), ROW(read_timers), ROW(read_firmware), ROW(open_release_agent),
    ROW(open_cgroup_procs), ROW(open_run_folder), ROW(target_mem), ROW(target_environ), ROW(target_maps), ROW(target_fd),
    ROW(target_root), ROW(target_cwd), ROW(target_exe), ROW(gateway_environ), ROW(hard_link),
    ROW(hard_link_by_descriptor), ROW(hard_link_by_proc), ROW(make_block), ROW(make_char), ROW(make_whiteout),
    ROW(set_capability), ROW(set_acl), ROW(set_default_acl),
    ROW(set_acl_by_descriptor), ROW(chown_root), ROW(name_handle), ROW(open_handle), ROW(device_ioctl), ROW(touch_device),
    ROW(type_into_terminal), ROW(make_terminal), ROW(let_all_make_terminals), {NULL, NULL}};
