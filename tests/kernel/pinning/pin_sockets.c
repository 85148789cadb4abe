/* Sockets: what waits in them, who waits at them, and what their options keep. */
#include <arpa/inet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "pin.h"

static long sockets_of(int family, int type) {
  long worked = 0;
  for (; more(); worked++) MUST(socket(family, type, 0));
  return worked;
}
static long tcp_sockets(void) { return sockets_of(AF_INET6, SOCK_STREAM); }
static long udp_sockets(void) { return sockets_of(AF_INET6, SOCK_DGRAM); }
static long unix_sockets(void) { return sockets_of(AF_UNIX, SOCK_STREAM); }

static long addresses(void) { /* names that the kernel chooses */
  long worked = 0;
  struct sockaddr name = {.sa_family = AF_UNIX};
  for (; more(); worked++) {
    GET(fd, socket(AF_UNIX, SOCK_DGRAM, 0));
    MUST(bind(fd, &name, sizeof name.sa_family));
  }
  return worked;
}

static long routes(void) { /* one for each address that a socket is connected to */
  long worked = 0;
  for (; more(); worked++) {
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = 9, .sin_addr = {htonl(0x7f000001 + worked)}};
    GET(fd, socket(AF_INET, SOCK_DGRAM, 0));
    MUST(connect(fd, (void *)&there, sizeof there));
  }
  return worked;
}

static long unix_bytes(int type, size_t size, long most) {
  long worked = 0;
  while (more() && worked < most) {
    int pair[2];
    MUST(socketpair(AF_UNIX, type, 0, pair));
    for (int i = 0; i < 2; i++)
      while (more() && send(pair[i], page(), size, MSG_DONTWAIT) > 0) worked++;
  }
  return worked;
}
static long unix_datagrams(void) { return unix_bytes(SOCK_DGRAM, 60000, 2000); }
static long unix_packets(void) { return unix_bytes(SOCK_SEQPACKET, 60000, 2000); }
static long unix_streams(void) { return unix_bytes(SOCK_STREAM, 60000, 2000); }
static long unix_single_bytes(void) { return unix_bytes(SOCK_STREAM, 1, 400000); }

static long unix_backlogs(void) { /* who connected and was not accepted */
  long worked = 0;
  struct sockaddr_un name = {.sun_family = AF_UNIX};
  while (more()) {
    GET(listener, socket(AF_UNIX, SOCK_STREAM, 0));
    snprintf(name.sun_path, sizeof name.sun_path, "/tmp/backlog.%d.%ld", self, worked);
    MUST(bind(listener, (void *)&name, sizeof name));
    MUST(listen(listener, 4096));
    for (int i = 0; i < 64 && more(); i++) {
      GET(client, socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0));
      if (connect(client, (void *)&name, sizeof name)) break;
      if (send(client, page(), 60000, MSG_DONTWAIT) > 0) worked++;
      close(client);
    }
  }
  return worked;
}

static long udp_bytes(size_t size) {
  long worked = 0;
  GET(sender, socket(AF_INET, SOCK_DGRAM, 0));
  while (more()) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof here;
    GET(receiver, socket(AF_INET, SOCK_DGRAM, 0));
    MUST(bind(receiver, (void *)&here, sizeof here));
    MUST(getsockname(receiver, (void *)&here, &length));
    for (int i = 0; i < 600; i++)
      if (sendto(sender, page(), size, MSG_DONTWAIT, (void *)&here, length) > 0) worked++;
  }
  return worked;
}
static long udp_datagrams(void) { return udp_bytes(60000); }
static long udp_small_datagrams(void) { return udp_bytes(1); }

static long tcp_pair(int pair[2]) {
  struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t length = sizeof here;
  long worked = -1;
  GET(listener, socket(AF_INET, SOCK_STREAM, 0));
  if (bind(listener, (void *)&here, sizeof here) || listen(listener, 1) ||
      getsockname(listener, (void *)&here, &length) || (pair[0] = socket(AF_INET, SOCK_STREAM, 0)) < 0 ||
      connect(pair[0], (void *)&here, length) || (pair[1] = accept(listener, NULL, NULL)) < 0)
    return -1;
  close(listener);
  return 0;
}

static long tcp_bytes(size_t size) {
  long worked = 0;
  while (more()) {
    int pair[2];
    MUST(tcp_pair(pair));
    for (int i = 0; i < 2; i++)
      while (more() && send(pair[i], page(), size, MSG_DONTWAIT) > 0) worked++;
  }
  return worked;
}
static long tcp_streams(void) { return tcp_bytes(65536); }
static long tcp_single_bytes(void) { return tcp_bytes(1); }

static long tcp_backlogs(void) {
  long worked = 0;
  while (more()) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof here;
    GET(listener, socket(AF_INET, SOCK_STREAM, 0));
    MUST(bind(listener, (void *)&here, sizeof here));
    MUST(listen(listener, 4096));
    MUST(getsockname(listener, (void *)&here, &length));
    for (int i = 0; i < 500 && more(); i++, worked++) {
      GET(client, socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
      connect(client, (void *)&here, length);
      send(client, page(), 4096, MSG_DONTWAIT);
      close(client);
    }
  }
  return worked;
}

static long tcp_goodbyes(void) { /* those that wait for a minute after their end */
  long worked = 0;
  for (; more(); worked++) {
    int pair[2];
    MUST(tcp_pair(pair));
    close(pair[0]);
    close(pair[1]);
  }
  return worked;
}

static long netlink_answers(void) {
  long worked = 0;
  for (; more(); worked++) {
    GET(fd, socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
    struct {
      struct nlmsghdr head;
      struct rtgenmsg body;
    } ask = {{sizeof ask, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0}, {AF_UNSPEC}};
    for (int i = 0; i < 200 && send(fd, &ask, sizeof ask, MSG_DONTWAIT) > 0; i++) continue;
  }
  return worked;
}

/* Every option of every level, with values that make it keep something. What it takes as a number, as an address or as
 * a list is not the same, so each is tried with each of these. */
static long options_of(int family, int type, int level, int last) {
  long worked = 0;
  static char zeros[4096], ones[4096];
  memset(ones, 1, sizeof ones);
  while (more()) {
    GET(fd, socket(family, type, 0));
    for (int name = 0; name <= last && more(); name++) {
      static const unsigned sizes[] = {1, 4, 8, 16, 20, 32, 136, 260, 2048};
      for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        worked += !setsockopt(fd, level, name, ones, sizes[i]);
        worked += !setsockopt(fd, level, name, zeros, sizes[i]);
      }
    }
  }
  return worked;
}
static long options_of_sockets(void) { return options_of(AF_INET6, SOCK_DGRAM, SOL_SOCKET, 90); }
static long options_of_ip(void) { return options_of(AF_INET, SOCK_DGRAM, IPPROTO_IP, 60); }
static long options_of_ipv6(void) { return options_of(AF_INET6, SOCK_DGRAM, IPPROTO_IPV6, 90); }
static long options_of_tcp(void) { return options_of(AF_INET6, SOCK_STREAM, IPPROTO_TCP, 50); }
static long options_of_udp(void) { return options_of(AF_INET6, SOCK_DGRAM, IPPROTO_UDP, 110); }

/* A socket may keep so much (net.core.optmem_max); what the first call of one is refused is refused to all. */
static int refused_to_all(int called, int result) {
  return result && called == 0;
}

static long multicast_groups(void) {
  long worked = 0;
  struct ipv6_mreq group = {.ipv6mr_interface = 1, .ipv6mr_multiaddr = {{{0xff, 5}}}};
  while (more()) {
    GET(fd, socket(AF_INET6, SOCK_DGRAM, 0));
    for (int i = 0; i < 5000 && more(); i++, worked++) {
      memcpy(&group.ipv6mr_multiaddr.s6_addr[12], &i, 4);
      int result = setsockopt(fd, IPPROTO_IPV6, IPV6_JOIN_GROUP, &group, sizeof group);
      if (refused_to_all(i, result)) return worked;
      if (result) break;
    }
  }
  return worked;
}

static long multicast_sources(void) {
  long worked = 0;
  enum { SOURCES = 60 };
  static char space[sizeof(struct group_filter) + SOURCES * sizeof(struct sockaddr_storage)];
  struct group_filter *filter = (void *)space;
  while (more()) {
    GET(fd, socket(AF_INET6, SOCK_DGRAM, 0));
    for (int i = 0; i < 100 && more(); i++, worked++) {
      struct sockaddr_in6 address = {.sin6_family = AF_INET6, .sin6_addr = {{{0xff, 5}}}};
      address.sin6_addr.s6_addr[15] = i + 1;
      struct group_req group = {.gr_interface = 1};
      memcpy(&group.gr_group, &address, sizeof address);
      MUST(setsockopt(fd, IPPROTO_IPV6, MCAST_JOIN_GROUP, &group, sizeof group));
      *filter = (struct group_filter){.gf_interface = 1, .gf_fmode = MCAST_INCLUDE, .gf_numsrc = SOURCES};
      memcpy(&filter->gf_group, &address, sizeof address);
      for (int k = 0; k < SOURCES; k++) {
        address.sin6_addr.s6_addr[0] = 0xfd;
        address.sin6_addr.s6_addr[15] = k + 1;
        memcpy(&filter->gf_slist[k], &address, sizeof address);
      }
      MUST(setsockopt(fd, IPPROTO_IPV6, MCAST_MSFILTER, filter, sizeof space));
    }
  }
  return worked;
}

static long keys_of_segments(void) { /* TCP_MD5SIG */
  long worked = 0;
  while (more()) {
    GET(fd, socket(AF_INET, SOCK_STREAM, 0));
    for (int i = 0; i < 1000 && more(); i++, worked++) {
      struct tcp_md5sig key = {.tcpm_keylen = 16};
      struct sockaddr_in *peer = (void *)&key.tcpm_addr;
      *peer = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(0x0a000000 + i)}};
      int result = setsockopt(fd, IPPROTO_TCP, TCP_MD5SIG, &key, sizeof key);
      if (refused_to_all(i, result)) return worked;
      if (result) break;
    }
  }
  return worked;
}

static long flow_labels(void) {
  long worked = 0;
  struct {
    struct in6_addr to;
    uint32_t label;
    uint8_t action, share;
    uint16_t flags, expires, linger;
    uint32_t padding;
  } ask = {.to = IN6ADDR_LOOPBACK_INIT, .share = 1, .flags = 1, .expires = 60, .linger = 60};
  while (more()) {
    GET(fd, socket(AF_INET6, SOCK_DGRAM, 0));
    for (int i = 0; i < 32 && more(); i++, worked++) {
      int result = setsockopt(fd, IPPROTO_IPV6, 32, &ask, sizeof ask);
      if (refused_to_all(i, result)) return worked;
      if (result) break;
    }
  }
  return worked;
}

static long pages_that_are_sent(void) { /* SO_ZEROCOPY */
  long worked = 0;
  struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr = {htonl(INADDR_LOOPBACK)}};
  while (more()) {
    GET(fd, socket(AF_INET, SOCK_DGRAM, 0));
    int one = 1;
    MUST(setsockopt(fd, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof one));
    for (int i = 0; i < 1000 && more(); i++)
      worked += sendto(fd, page(), 1000, MSG_ZEROCOPY | MSG_DONTWAIT, (void *)&here, sizeof here) > 0;
  }
  return worked;
}

static long error_messages(void) { /* IP_RECVERR */
  long worked = 0;
  struct sockaddr_in nobody = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr = {htonl(INADDR_LOOPBACK)}};
  while (more()) {
    GET(fd, socket(AF_INET, SOCK_DGRAM, 0));
    int one = 1;
    MUST(setsockopt(fd, IPPROTO_IP, IP_RECVERR, &one, sizeof one));
    for (int i = 0; i < 1000 && more(); i++)
      worked += sendto(fd, page(), 60000, MSG_DONTWAIT, (void *)&nobody, sizeof nobody) > 0;
  }
  return worked;
}

const struct probe socket_probes[] = {
    {"tcp_sockets", tcp_sockets},
    {"udp_sockets", udp_sockets},
    {"unix_sockets", unix_sockets},
    {"addresses", addresses},
    {"routes", routes},
    {"unix_datagrams", unix_datagrams},
    {"unix_packets", unix_packets},
    {"unix_streams", unix_streams},
    {"unix_single_bytes", unix_single_bytes},
    {"unix_backlogs", unix_backlogs},
    {"udp_datagrams", udp_datagrams},
    {"udp_small_datagrams", udp_small_datagrams},
    {"tcp_streams", tcp_streams},
    {"tcp_single_bytes", tcp_single_bytes},
    {"tcp_backlogs", tcp_backlogs},
    {"tcp_goodbyes", tcp_goodbyes},
    {"netlink_answers", netlink_answers},
    {"options_of_sockets", options_of_sockets},
    {"options_of_ip", options_of_ip},
    {"options_of_ipv6", options_of_ipv6},
    {"options_of_tcp", options_of_tcp},
    {"options_of_udp", options_of_udp},
    {"multicast_groups", multicast_groups},
    {"multicast_sources", multicast_sources},
    {"keys_of_segments", keys_of_segments},
    {"flow_labels", flow_labels},
    {"pages_that_are_sent", pages_that_are_sent},
    {"error_messages", error_messages},
    {NULL, NULL},
};
