/* Section D: the network, and sockets of every kind. Nothing leaves the machine: what is not loopback is UDP and only
 * connected, which asks for a route and sends nothing. */
#include "probe.h"
#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <sys/un.h>

#define SOCKET(name, family, kind, protocol) \
  static long name(void) { return socket(family, kind, protocol); }
SOCKET(vsock, 40, SOCK_STREAM, 0)
SOCKET(packet, AF_PACKET, SOCK_RAW, 0)
SOCKET(packet_in_user_space, 44, SOCK_RAW, 0)
SOCKET(crypto, 38, SOCK_SEQPACKET, 0)
SOCKET(key, 15, SOCK_RAW, 2)
SOCKET(bluetooth, 31, SOCK_RAW, 1)
SOCKET(can, 29, SOCK_RAW, 1)
SOCKET(tipc, 30, SOCK_STREAM, 0)
SOCKET(netlink_audit, AF_NETLINK, SOCK_RAW, 9)
SOCKET(netlink_netfilter, AF_NETLINK, SOCK_RAW, 12)
SOCKET(netlink_uevent, AF_NETLINK, SOCK_RAW, 15)
SOCKET(netlink_generic, AF_NETLINK, SOCK_RAW, 16)
SOCKET(raw_icmp, AF_INET, SOCK_RAW, IPPROTO_ICMP)
SOCKET(raw_ip, AF_INET, SOCK_RAW, IPPROTO_RAW)
SOCKET(raw_icmp6, AF_INET6, SOCK_RAW, IPPROTO_ICMPV6)
SOCKET(ping, AF_INET, SOCK_DGRAM, IPPROTO_ICMP)
SOCKET(mptcp, AF_INET, SOCK_STREAM, 262)
SOCKET(udplite, AF_INET, SOCK_DGRAM, 136)

static union { struct sockaddr any; struct sockaddr_in v4; struct sockaddr_in6 v6; } to;
static socklen_t address(const char *text, int port) {
  memset(&to, 0, sizeof to);
  if (inet_pton(AF_INET, text, &to.v4.sin_addr) == 1) {
    to.v4.sin_family = AF_INET, to.v4.sin_port = htons(port);
    return sizeof to.v4;
  }
  inet_pton(AF_INET6, text, &to.v6.sin6_addr);
  to.v6.sin6_family = AF_INET6, to.v6.sin6_port = htons(port);
  return sizeof to.v6;
}
static int port(void) { return atoi(given("PORT", "9")); }
static long connects(const char *text, int kind, int to_port) {
  socklen_t size = address(text, to_port);
  int fd = socket(to.any.sa_family, kind | SOCK_CLOEXEC, 0);
  return fd < 0 ? -1 : connect(fd, &to.any, size);
}
#define CONNECTS(name, text, kind, port) \
  static long name(void) { return connects(text, kind, port); }
CONNECTS(tcp_gateway, "127.0.0.1", SOCK_STREAM, atoi(given("GATEWAY_PORT", "9")))
CONNECTS(tcp_host, "127.0.0.1", SOCK_STREAM, port())
CONNECTS(tcp_host_zero, "0.0.0.0", SOCK_STREAM, port())
CONNECTS(tcp_host_v6, "::1", SOCK_STREAM, port())
CONNECTS(tcp_host_mapped, "::ffff:127.0.0.1", SOCK_STREAM, port())
CONNECTS(route_metadata, "169.254.169.254", SOCK_DGRAM, 80)
CONNECTS(route_private, "10.1.2.3", SOCK_DGRAM, 80)
CONNECTS(route_public, "198.51.100.1", SOCK_DGRAM, 53)
CONNECTS(route_mapped, "::ffff:198.51.100.1", SOCK_DGRAM, 53)
CONNECTS(route_v6, "2001:db8::1", SOCK_DGRAM, 53)

static long bind_tcp(void) {
  socklen_t size = address("127.0.0.1", 0);
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  return bind(fd, &to.any, size) < 0 ? -1 : listen(fd, 1);
}
static long listen_unbound(void) { return listen(socket(AF_INET, SOCK_STREAM, 0), 1); } /* binds by itself */
static long fast_open(void) {
  socklen_t size = address("127.0.0.1", port());
  return sendto(socket(AF_INET, SOCK_STREAM, 0), "x", 1, MSG_FASTOPEN | MSG_NOSIGNAL, &to.any, size);
}
static long fast_open_by_option(void) { /* TCP_FASTOPEN_CONNECT: connect does nothing yet, the first write does it */
  socklen_t size = address("127.0.0.1", port());
  int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
  if (setsockopt(fd, IPPROTO_TCP, 30, &one, sizeof one) < 0 || connect(fd, &to.any, size) < 0) return -1;
  return send(fd, "x", 1, MSG_NOSIGNAL);
}
static long mptcp_connect(void) {
  socklen_t size = address("127.0.0.1", port());
  int fd = socket(AF_INET, SOCK_STREAM, 262);
  return fd < 0 ? -1 : connect(fd, &to.any, size);
}
static long udp_host(void) { /* answered by the host, or refused by the own loopback: the second send tells */
  char byte;
  socklen_t size = address("127.0.0.1", port());
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  struct timeval wait = {2, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
  if (connect(fd, &to.any, size) < 0 || send(fd, "x", 1, 0) < 0) return -1;
  return recv(fd, &byte, 1, 0);
}
static long attach_filter(void) { /* compiled, they fill a pool of the whole host */
  struct sock_filter code[] = {BPF_STMT(BPF_RET | BPF_K, 0)};
  struct sock_fprog program = {1, code};
  return setsockopt(socket(AF_UNIX, SOCK_DGRAM, 0), SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program);
}
static long attach_port_filter(void) {
  struct sock_filter code[] = {BPF_STMT(BPF_RET | BPF_K, 0)};
  struct sock_fprog program = {1, code};
  int one = 1, fd = socket(AF_INET, SOCK_DGRAM, 0);
  if (setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one) < 0) return -1;
  return setsockopt(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program, sizeof program);
}
/* Memory of the kernel that is charged to nobody. */
static long join_group(void) {
  struct ip_mreq group = {{htonl(0xEF010101)}, {htonl(INADDR_LOOPBACK)}};
  return setsockopt(socket(AF_INET, SOCK_DGRAM, 0), IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group);
}
static long join_group6(void) {
  struct ipv6_mreq group = {.ipv6mr_interface = 1};
  inet_pton(AF_INET6, "ff05::4242", &group.ipv6mr_multiaddr);
  return setsockopt(socket(AF_INET6, SOCK_DGRAM, 0), IPPROTO_IPV6, IPV6_JOIN_GROUP, &group, sizeof group);
}
static long join_any_group(void) {
  struct group_req request = {.gr_interface = 1};
  address("ff05::4242", 0);
  memcpy(&request.gr_group, &to.v6, sizeof to.v6);
  return setsockopt(socket(AF_INET6, SOCK_DGRAM, 0), IPPROTO_IPV6, MCAST_JOIN_GROUP, &request, sizeof request);
}
static long sign_segments(void) {
  struct tcp_md5sig key = {.tcpm_keylen = 4, .tcpm_key = "key"};
  address("127.0.0.1", 0);
  memcpy(&key.tcpm_addr, &to.v4, sizeof to.v4);
  return setsockopt(socket(AF_INET, SOCK_STREAM, 0), IPPROTO_TCP, TCP_MD5SIG, &key, sizeof key);
}
static long switches_on(int family, int level, int option) {
  int one = 1;
  return setsockopt(socket(family, SOCK_DGRAM, 0), level, option, &one, sizeof one);
}
static long stamp_datagrams(void) { return switches_on(AF_INET, SOL_SOCKET, SO_TIMESTAMP); }
static long send_without_copy(void) { return switches_on(AF_INET, SOL_SOCKET, SO_ZEROCOPY); }
static long split_datagrams(void) { return switches_on(AF_INET, IPPROTO_UDP, 103); } /* UDP_SEGMENT */
static long share_port(void) { /* the second socket on the port is the attack: the option itself is pretended */
  int first = socket(AF_INET, SOCK_DGRAM, 0), second = socket(AF_INET, SOCK_DGRAM, 0), one = 1;
  socklen_t size = address("127.0.0.1", 0);
  if (setsockopt(first, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one) < 0) return -1;
  if (setsockopt(second, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one) < 0) return -1;
  if (bind(first, &to.any, size) < 0 || getsockname(first, &to.any, &size) < 0) return -1;
  return bind(second, &to.any, size);
}
static long connect_unix(const char *path, int abstract, int kind) {
  struct sockaddr_un un = {.sun_family = AF_UNIX};
  strncpy(un.sun_path + abstract, path, sizeof un.sun_path - 2);
  socklen_t size = offsetof(struct sockaddr_un, sun_path) + abstract + strlen(path);
  return connect(socket(AF_UNIX, kind, 0), (struct sockaddr *)&un, size);
}
static long unix_abstract(void) { return connect_unix(given("ABSTRACT", "attack"), 1, SOCK_STREAM); }
static long unix_named(void) { return connect_unix(given("SOCKET", "/run/docker.sock"), 0, SOCK_SEQPACKET); }

/* These two change a network: never the host's. */
static int is_own_network(void) {
  errno = ECANCELED;
  return getenv("OWN_NETWORK") != NULL;
}
static long spoof_source(void) {
  socklen_t size = address("198.51.100.1", 0);
  return bind(socket(AF_INET, SOCK_DGRAM, 0), &to.any, size);
}
static long transparent(void) {
  int one = 1;
  return setsockopt(socket(AF_INET, SOCK_DGRAM, 0), IPPROTO_IP, 19, &one, sizeof one); /* IP_TRANSPARENT */
}
static long take_loopback_down(void) {
  struct ifreq request = {.ifr_name = "lo"};
  if (!is_own_network()) return -1;
  return ioctl(socket(AF_INET, SOCK_DGRAM, 0), 0x8914, &request); /* SIOCSIFFLAGS */
}
static long add_address(void) {
  struct { struct nlmsghdr head; struct ifaddrmsg body; struct rtattr kind; unsigned address; } ask = {
      {sizeof ask, RTM_NEWADDR, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE, 1, 0},
      {AF_INET, 32, 0, 0, 1}, {8, IFA_LOCAL}, htonl(0xC6336401)};
  struct { struct nlmsghdr head; int error; char rest[512]; } answer;
  if (!is_own_network()) return -1;
  int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
  if (fd < 0) return -1;
  if (send(fd, &ask, sizeof ask, 0) < 0 || recv(fd, &answer, sizeof answer, 0) < 0) return -1;
  errno = -answer.error;
  return answer.error ? -1 : 0;
}

#define ROW(name) {#name, name}
const struct attack network_attacks[] = {
    ROW(vsock), ROW(packet), ROW(packet_in_user_space), ROW(crypto), ROW(key), ROW(bluetooth), ROW(can), ROW(tipc),
    ROW(netlink_audit), ROW(netlink_netfilter), ROW(netlink_uevent), ROW(netlink_generic), ROW(raw_icmp), ROW(raw_ip),
    ROW(raw_icmp6), ROW(ping), ROW(mptcp), ROW(udplite), ROW(tcp_gateway), ROW(tcp_host), ROW(tcp_host_zero),
    ROW(tcp_host_v6), ROW(tcp_host_mapped), ROW(route_metadata), ROW(route_private), ROW(route_public),
    ROW(route_mapped), ROW(route_v6), ROW(bind_tcp), ROW(listen_unbound), ROW(fast_open), ROW(fast_open_by_option),
    ROW(mptcp_connect), ROW(udp_host), ROW(unix_abstract), ROW(unix_named), ROW(spoof_source), ROW(transparent),
    ROW(take_loopback_down), ROW(add_address),
    ROW(attach_filter), ROW(attach_port_filter), ROW(join_group), ROW(join_group6), ROW(join_any_group),
    ROW(sign_segments), ROW(stamp_datagrams), ROW(send_without_copy), ROW(split_datagrams), ROW(share_port), {NULL, NULL}};
