"""The options and commands that a sandbox may use in setsockopt, ioctl, prctl and fcntl.

Everything else is answered as by a kernel that lacks the feature. An entry is in a list if real programs ask for it, as
traces show (docs/isolation.md names the programs), and if it takes no memory and makes no work that the sandbox does
not pay for. The kernel reads only 32 bits of each of these numbers, whatever the rest of the register holds. The
numbers are the same on x86_64 and aarch64.

Programs ask for these, and they are left out on purpose:

- Joining a multicast group: 20 memberships a socket and more, charged to nobody. One process took 23 MiB in 3 s,
  measured, and the source filters of a thousand sockets 169 MiB. Nothing inside is reached by multicast.
- TCP_MD5SIG, TCP_AO_*: keys are charged to nobody, 37 MiB with 300 sockets, measured.
- Headers and options of packets (IP_OPTIONS, IPV6_HOPOPTS and the like), flow labels, SO_TIMESTAMP, SO_ZEROCOPY,
  TCP_SAVE_SYN: memory that is charged to nobody, or switches of the whole kernel.
- TCP_FASTOPEN and TCP_FASTOPEN_CONNECT: surface, and callers go on without.
- Locks of an open file description (F_OFD_*): in flight in a socket such a lock belongs to no process, so nobody finds
  its holder. SQLite, git and the languages' libraries use F_SETLK or flock. QEMU falls back to F_SETLK.
- FICLONE and FS_IOC_FIEMAP: they write dirty pages of the host's files. cp copies without them.
- PR_SET_VMA names (charged to nobody), PR_SET_MM, PR_SET_SPECULATION_CTRL (slows the sibling hardware thread),
  PR_SET_MEMORY_MERGE (work of a kernel thread), PR_SET_PTRACER. Go, PHP and allocators go on without names.
"""

from __future__ import annotations

SOL_IP, SOL_SOCKET, SOL_TCP, SOL_UDP, SOL_IPV6, SOL_NETLINK = 0, 1, 6, 17, 41, 270

# Name: (level, option).
SOCKET_OPTIONS = {
    "SO_REUSEADDR": (SOL_SOCKET, 2),  # every server
    "SO_BROADCAST": (SOL_SOCKET, 6),  # Go, Node and Java set it on UDP sockets
    "SO_KEEPALIVE": (SOL_SOCKET, 9),  # curl, Go, Node, nginx, Redis, PostgreSQL
    "SO_OOBINLINE": (SOL_SOCKET, 10),  # Java, CPython
    "SO_LINGER": (SOL_SOCKET, 13),  # Go, Java, memcached
    "SO_PASSCRED": (SOL_SOCKET, 16),  # Chromium, D-Bus: who sends on a Unix socket
    "SO_RCVTIMEO": (SOL_SOCKET, 20),  # C programs with time limits: clients of Redis and MySQL, PHP
    "SO_SNDTIMEO": (SOL_SOCKET, 21),
    "SO_BINDTODEVICE": (SOL_SOCKET, 25),  # curl --interface
    "SO_RCVTIMEO_NEW": (SOL_SOCKET, 66),  # the two, with 64-bit time
    "SO_SNDTIMEO_NEW": (SOL_SOCKET, 67),
    "IP_TOS": (SOL_IP, 1),  # Java, ssh
    "IP_TTL": (SOL_IP, 2),  # Go, Node
    "IP_PKTINFO": (SOL_IP, 8),  # dnsmasq: to which of its addresses a datagram came
    "IP_MTU_DISCOVER": (SOL_IP, 10),  # Java
    "IP_RECVTOS": (SOL_IP, 13),  # QUIC in Go
    "IP_MULTICAST_IF": (SOL_IP, 32),  # Go, Node; this and the next: numbers of the socket, nobody is joined
    "IP_MULTICAST_TTL": (SOL_IP, 33),  # Java, Node
    "IP_MULTICAST_LOOP": (SOL_IP, 34),  # Go, Java, Node
    "IP_MULTICAST_ALL": (SOL_IP, 49),  # Java, on every UDP socket
    "TCP_NODELAY": (SOL_TCP, 1),  # every client and server
    "TCP_CORK": (SOL_TCP, 3),  # nginx
    "TCP_KEEPIDLE": (SOL_TCP, 4),  # as SO_KEEPALIVE
    "TCP_KEEPINTVL": (SOL_TCP, 5),
    "TCP_KEEPCNT": (SOL_TCP, 6),
    "TCP_DEFER_ACCEPT": (SOL_TCP, 9),  # nginx
    "TCP_QUICKACK": (SOL_TCP, 12),  # Java
    "TCP_USER_TIMEOUT": (SOL_TCP, 18),  # PostgreSQL's clients, gRPC
    "IPV6_UNICAST_HOPS": (SOL_IPV6, 16),  # as their likes of IP
    "IPV6_MULTICAST_IF": (SOL_IPV6, 17),
    "IPV6_MULTICAST_HOPS": (SOL_IPV6, 18),
    "IPV6_MULTICAST_LOOP": (SOL_IPV6, 19),
    "IPV6_MTU_DISCOVER": (SOL_IPV6, 23),
    "IPV6_V6ONLY": (SOL_IPV6, 26),  # every server that listens on IPv6
    "IPV6_MULTICAST_ALL": (SOL_IPV6, 29),
    "IPV6_RECVPKTINFO": (SOL_IPV6, 49),  # Java, dnsmasq
    "IPV6_RECVHOPLIMIT": (SOL_IPV6, 51),  # CPython's tests
    "IPV6_RECVTCLASS": (SOL_IPV6, 66),  # CPython's tests, QUIC in Go
    "IPV6_TCLASS": (SOL_IPV6, 67),  # Java
    "NETLINK_EXT_ACK": (SOL_NETLINK, 11),  # ip, where there are netlink sockets: profile `loopback`
    "NETLINK_GET_STRICT_CHK": (SOL_NETLINK, 12),
}

IOCTL_COMMANDS = {
    # Terminals, of the sandbox's own devpts. Nothing inside has the controlling side of one, so its commands are not
    # here: TIOCPKT, TIOCGPTN, TIOCSPTLCK, TIOCGPTPEER.
    "TCGETS": 0x5401,  # isatty: everybody
    "TCSETS": 0x5402,
    "TCSETSW": 0x5403,
    "TCSETSF": 0x5404,
    "TCGETS2": 0x802C542A,  # the same four, as glibc 2.42 asks
    "TCSETS2": 0x402C542B,
    "TCSETSW2": 0x402C542C,
    "TCSETSF2": 0x402C542D,
    "TCSBRK": 0x5409,  # tcdrain: bash, CPython
    "TCXONC": 0x540A,
    "TCFLSH": 0x540B,
    "TCSBRKP": 0x5425,
    "TIOCSCTTY": 0x540E,  # script, tmux, screen, Ruby
    "TIOCGPGRP": 0x540F,  # shells
    "TIOCSPGRP": 0x5410,
    "TIOCOUTQ": 0x5411,  # on a socket SIOCOUTQ: what is not sent yet
    "TIOCGWINSZ": 0x5413,
    "TIOCSWINSZ": 0x5414,
    "FIONREAD": 0x541B,  # Java
    "FIONBIO": 0x5421,  # CPython, Node, nginx, Rust
    "TIOCNOTTY": 0x5422,
    "TIOCGSID": 0x5429,
    # Any descriptor.
    "FIONCLEX": 0x5450,  # CPython
    "FIOCLEX": 0x5451,
    "FIOASYNC": 0x5452,  # nginx; 48 bytes for each open file, charged to nobody
    "FS_IOC_GETFLAGS": 0x80086601,  # lsattr, bsdtar
    # What the own network interface is: Java, libc's if_nametoindex, ifconfig.
    "SIOCGIFNAME": 0x8910,
    "SIOCGIFCONF": 0x8912,
    "SIOCGIFFLAGS": 0x8913,
    "SIOCGIFADDR": 0x8915,
    "SIOCGIFDSTADDR": 0x8917,
    "SIOCGIFBRDADDR": 0x8919,
    "SIOCGIFNETMASK": 0x891B,
    "SIOCGIFMETRIC": 0x891D,
    "SIOCGIFMTU": 0x8921,
    "SIOCGIFHWADDR": 0x8927,
    "SIOCGIFINDEX": 0x8933,
    "SIOCGIFTXQLEN": 0x8942,
    "SIOCGIFMAP": 0x8970,
}

FCNTL_COMMANDS = {
    "F_DUPFD": 0,
    "F_GETFD": 1,
    "F_SETFD": 2,
    "F_GETFL": 3,
    "F_SETFL": 4,
    "F_GETLK": 5,  # SQLite
    "F_SETLK": 6,  # SQLite, Java, Rust
    "F_SETLKW": 7,
    "F_SETOWN": 8,  # nginx, screen
    "F_GETOWN": 9,
    "F_DUPFD_CLOEXEC": 1030,
    "F_GETPIPE_SZ": 1032,  # CPython, Go
    "F_ADD_SEALS": 1033,  # Chromium
    "F_GET_SEALS": 1034,
}

PRCTL_OPTIONS = {
    "PR_SET_PDEATHSIG": 1,  # Go, PostgreSQL
    "PR_GET_PDEATHSIG": 2,
    "PR_GET_DUMPABLE": 3,
    "PR_SET_DUMPABLE": 4,  # nginx, ssh-agent
    "PR_SET_NAME": 15,  # whoever names threads
    "PR_GET_NAME": 16,
    "PR_GET_SECCOMP": 21,  # man
    "PR_CAPBSET_READ": 23,  # libcap, at each start of a program that is linked with it
    "PR_GET_SECUREBITS": 27,
    "PR_SET_CHILD_SUBREAPER": 36,  # tini
    "PR_GET_CHILD_SUBREAPER": 37,
    "PR_SET_NO_NEW_PRIVS": 38,  # Chromium, man
    "PR_GET_NO_NEW_PRIVS": 39,
    "PR_SET_THP_DISABLE": 41,  # Ruby
    "PR_GET_THP_DISABLE": 42,
    "PR_CAP_AMBIENT": 47,  # libcap asks; to raise one takes a capability
    "PR_SVE_SET_VL": 50,  # aarch64: Java; elsewhere the kernel has neither
    "PR_SVE_GET_VL": 51,
    "PR_SET_TAGGED_ADDR_CTRL": 55,  # aarch64: glibc, sanitizers
    "PR_GET_TAGGED_ADDR_CTRL": 56,
}
