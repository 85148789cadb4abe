/* probe NAME...: tries each attack in a child of its own and prints "NAME ok", "NAME EPERM" or "NAME SIGSYS".
 *
 * The same program is the attack inside a sandbox, its control run outside, and the probe of each layer alone. It
 * decides nothing: what should happen stands in catalog.py. */
#include "probe.h"

static long (*find(const char *name))(void) {
  const struct attack *tables[] = {file_attacks, process_attacks, kernel_attacks, network_attacks};
  for (size_t t = 0; t < sizeof tables / sizeof *tables; t++)
    for (const struct attack *attack = tables[t]; attack->name; attack++)
      if (!strcmp(attack->name, name)) return attack->run;
  return NULL;
}

static void report(const char *name, int status) {
  const char *said = "ok";
  if (WIFSIGNALED(status)) {
    printf("%s SIG%s\n", name, sigabbrev_np(WTERMSIG(status)));
    return;
  }
  if (WEXITSTATUS(status)) said = strerrorname_np(WEXITSTATUS(status));
  printf("%s %s\n", name, said ? said : "UNKNOWN");
}

int main(int argc, char **argv) {
  if (argc == 2 && !strcmp(argv[1], "--ids")) { /* run as a set-uid file, or from a memfd */
    printf("%d %d\n", getuid(), geteuid());
    return 0;
  }
  setvbuf(stdout, NULL, _IOLBF, 0);
  for (int i = 1; i < argc; i++) {
    long (*attack)(void) = find(argv[i]);
    if (!attack) {
      printf("%s UNKNOWN\n", argv[i]);
      continue;
    }
    pid_t pid = fork();
    if (pid < 0) return 1;
    if (pid == 0) {
      setpgid(0, 0);
      alarm(10); /* one that hangs shows as SIGALRM */
      errno = 0;
      _exit(attack() < 0 ? errno : 0);
    }
    int status;
    if (waitpid(pid, &status, 0) != pid) return 1;
    report(argv[i], status);
    kill(-pid, SIGKILL); /* what it left behind */
  }
  return 0;
}
