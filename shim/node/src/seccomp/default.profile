# Seccomp profile "default" of Nimbus: containerd's, without io_uring. Its SHA-256 is what a lease names.
#
# A call that is not allowed here answers EPERM; "enosys" calls, and calls newer than the table of
# numbers, answer ENOSYS so that programs fall back; 32-bit calls kill the process. A name that only
# another architecture has means nothing here.
#
#   allow NAME...                          always
#   allow NAME if ARG OP VALUE [and ...]   ARG is arg0 to arg5, its low 32 bits; OP is == or !=, or
#                                          & MASK ==
#   with CAPABILITY allow NAME...          only where the lease gives the capability
#   enosys NAME...                         as if the kernel did not have it
#
# Absent on purpose: mount, umount2, pivot_root, the new mount calls, setns, unshare (namespaces are
# made by us only); bpf, perf_event_open, userfaultfd (kernel attack surface without a use in a
# job); keyctl, add_key, request_key (keyrings are not namespaced); init_module and kin, kexec,
# reboot, swapon, acct, quotactl, syslog, settimeofday (the host's); open_by_handle_at and
# name_to_handle_at (escape a root); process_vm_readv and writev, pidfd_getfd, kcmp; mbind and kin;
# nfsservctl, uselib, ustat, vhangup, iopl, ioperm (obsolete or the host's).

# Files.
allow access chdir chmod chown close close_range copy_file_range creat dup dup2 dup3 faccessat
allow faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl
allow fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstatfs fsync ftruncate
allow futimesat getcwd getdents getdents64 getxattr getxattrat lchown lgetxattr link linkat
allow listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat mkdir mkdirat mknod
allow mknodat newfstatat open openat openat2 pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev
allow pwritev2 read readahead readlink readlinkat readv removexattr removexattrat rename renameat
allow renameat2 rmdir sendfile setxattr setxattrat splice stat statfs statx symlink symlinkat sync
allow sync_file_range syncfs tee truncate umask unlink unlinkat utime utimensat utimes vmsplice
allow write writev file_getattr file_setattr
allow fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch
with CAP_SYS_CHROOT allow chroot

# Waiting.
allow epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
allow epoll_wait_old eventfd eventfd2 pause poll ppoll pselect6 select signalfd signalfd4
allow io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit

# io_uring reaches most of the kernel past this filter.
enosys io_uring_enter io_uring_register io_uring_setup

# Memory.
allow brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock
allow mlock2 mlockall mmap mprotect mremap mseal msync munlock munlockall munmap pkey_alloc
allow pkey_free pkey_mprotect process_mrelease remap_file_pages

# Processes. A new namespace is an attack surface of its own: CLONE_NEW* is denied in clone, and
# clone3, whose flags a filter cannot see, does not exist.
allow clone if arg0 & 0x7e020000 == 0
enosys clone3
allow arch_prctl capget capset execve execveat exit exit_group fork futex futex_requeue futex_wait
allow futex_waitv futex_wake get_robust_list get_thread_area getcpu getegid geteuid getgid getgroups
allow getpgid getpgrp getpid getppid getpriority getresgid getresuid getrlimit getrusage getsid
allow gettid getuid ioprio_get ioprio_set kill landlock_add_rule landlock_create_ruleset
allow landlock_restrict_self modify_ldt pidfd_open pidfd_send_signal prctl prlimit64 ptrace
allow restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
allow rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max
allow sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
allow sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler
allow sched_yield seccomp set_robust_list set_thread_area set_tid_address setfsgid setfsuid setgid
allow setgroups setpgid setpriority setregid setresgid setresuid setreuid setrlimit setsid setuid
allow sigaltstack tgkill tkill vfork wait4 waitid
# PER_LINUX, PER_LINUX32, UNAME26, both, and "tell me". The others turn off address randomisation.
allow personality if arg0 == 0x0
allow personality if arg0 == 0x8
allow personality if arg0 == 0x20000
allow personality if arg0 == 0x20008
allow personality if arg0 == 0xffffffff

# Time. adjtimex and clock_adjtime read without CAP_SYS_TIME, which no lease gives.
allow adjtimex alarm clock_adjtime clock_getres clock_gettime clock_nanosleep getitimer gettimeofday
allow nanosleep setitimer time timer_create timer_delete timer_getoverrun timer_gettime
allow timer_settime timerfd_create timerfd_gettime timerfd_settime times

# Network. AF_VSOCK (40) reaches the hypervisor past the network namespace; AF_ALG (38) is kernel
# crypto that libraries do without.
allow socket if arg0 != 40 and arg0 != 38
allow accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg
allow sendmmsg sendmsg sendto setsockopt shutdown socketpair

# Devices. TIOCSTI (0x5412) and TIOCLINUX (0x541c) type into somebody else's terminal.
allow ioctl if arg1 != 0x5412 and arg1 != 0x541c

# System V and POSIX IPC, in a namespace of the job's own.
allow mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv
allow msgsnd semctl semget semop semtimedop shmat shmctl shmdt shmget

# The rest.
allow getrandom sysinfo uname
