# Seccomp profile "nimbus-strict" of Nimbus: "default" less what building and testing does without and
# what faults of the kernel have been reached through. A lease names the SHA-256 of "default" and this.
#
#   deny NAME...                     answers EPERM
#   only NAME if ARG OP VALUE ...    what "default" allows of it, and this; several lines are alternatives
#   enosys NAME...                   as if the kernel did not have it: programs fall back
#
# Each name must be allowed by "default": what is already denied there (namespaces, mounts, io_uring, bpf,
# perf_event_open, userfaultfd, keyrings, process_vm_*, kcmp, iopl; AF_VSOCK and AF_ALG) is not repeated.
# What a line costs is told with it, so that who asks for this profile knows.

# Tracing other processes (CVE-2019-13272). Costs gdb, strace, rr and LeakSanitizer.
deny ptrace

# Segments of 16 bits (CVE-2017-17053). Costs Wine and DOS emulators.
deny modify_ldt

# Execution domains, other than to ask: they turn layout and mapping rules of old systems on. Costs
# linux32 and setarch.
only personality if arg0 == 0x0
only personality if arg0 == 0xffffffff

# Families and protocols that load a module when a socket is made: DCCP (CVE-2017-6074), RDS
# (CVE-2010-3904), TIPC (CVE-2022-0435), packet sockets (CVE-2020-14386), raw and ping sockets
# (CVE-2015-3636), SCTP, MPTCP, UDP-Lite, L2TP, Bluetooth, CAN. Left are Unix sockets, TCP and UDP, and of
# netlink NETLINK_ROUTE (0, which libc asks for addresses) and NETLINK_AUDIT (9, without which useradd and
# login give up). Costs ping, tcpdump, udev.
only socket if arg0 == 1
only socket if arg0 == 2 and arg1 & 0xf == 1 and arg2 == 0
only socket if arg0 == 2 and arg1 & 0xf == 1 and arg2 == 6
only socket if arg0 == 2 and arg1 & 0xf == 2 and arg2 == 0
only socket if arg0 == 2 and arg1 & 0xf == 2 and arg2 == 17
only socket if arg0 == 10 and arg1 & 0xf == 1 and arg2 == 0
only socket if arg0 == 10 and arg1 & 0xf == 1 and arg2 == 6
only socket if arg0 == 10 and arg1 & 0xf == 2 and arg2 == 0
only socket if arg0 == 10 and arg1 & 0xf == 2 and arg2 == 17
only socket if arg0 == 16 and arg2 == 0
only socket if arg0 == 16 and arg2 == 9
only socketpair if arg0 == 1

# TCP_ULP (6, 31: CVE-2023-0461), and filters of a socket's own (1: 26, 50, 51, 52), which are programs
# for the kernel. Costs kernel TLS and dhclient.
only setsockopt if arg1 != 1 and arg1 != 6
only setsockopt if arg1 == 6 and arg2 != 31
only setsockopt if arg1 == 1 and arg2 != 26 and arg2 != 50 and arg2 != 51 and arg2 != 52

# TIOCSETD (0x5423) loads line disciplines (CVE-2017-2636).
only ioctl if arg1 != 0x5423

# Message queues, which fill the kernel's heap as an exploit wishes (CVE-2021-22555) and have had faults
# of their own (CVE-2017-11176). Costs programs that use them; shared memory and semaphores are left.
deny msgctl msgget msgrcv msgsnd
enosys mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink

# The old asynchronous I/O: databases do without it when it is not there.
enosys io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit

# Pages given away to a pipe (CVE-2008-0600), pages mapped out of order (deprecated since Linux 3.16),
# pages hidden from the kernel itself.
deny vmsplice
enosys remap_file_pages memfd_secret

# Device nodes; regular files (0, 0x8000), fifos (0x1000) and sockets (0xc000) are left. Costs debootstrap.
only mknod if arg1 & 0xf000 == 0x0
only mknod if arg1 & 0xf000 == 0x1000
only mknod if arg1 & 0xf000 == 0x8000
only mknod if arg1 & 0xf000 == 0xc000
only mknodat if arg2 & 0xf000 == 0x0
only mknodat if arg2 & 0xf000 == 0x1000
only mknodat if arg2 & 0xf000 == 0x8000
only mknodat if arg2 & 0xf000 == 0xc000

# A second root is no wall, whatever the lease says, and an old way out of the first.
# Costs debootstrap and pbuilder.
deny chroot

# The host's clock, even to read; marks of a group that cannot be made; ending somebody's memory.
deny adjtimex clock_adjtime fanotify_mark process_mrelease
