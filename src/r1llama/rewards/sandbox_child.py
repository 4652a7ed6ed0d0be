"""The process that runs untrusted Python, started by `sandbox` as a script: first it locks itself in, then it runs.

Order: own mount, network, process and IPC namespaces with a root that holds only the interpreter (as root directly,
else in a user namespace); Landlock over the file system; limits; seccomp. Whatever the kernel refuses is reported,
and without seccomp and one of the other two the program is not run unless the caller allows that.
"""

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
NOBODY = 65534

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_DUMPABLE = 1, 38, 4

# name: (x86_64, aarch64); None where the architecture has no such call.
SYSCALLS = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "mount_setattr": (442, 442), "move_mount": (429, 429), "open_tree": (428, 428),
    "fsopen": (430, 430), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "open_by_handle_at": (304, 265),
    "init_module": (175, 105), "finit_module": (313, 273), "kexec_load": (246, 104), "reboot": (169, 142),
    "setsid": (112, 157), "setpgid": (109, 154), "kill": (62, 129), "tkill": (200, 130),
    "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "mknod": (133, None), "mknodat": (259, 33),
    "prlimit64": (302, 261), "setpriority": (141, 140), "sched_setaffinity": (203, 122), "shmget": (29, 194),
    "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "inotify_init1": (294, 26),
}  # fmt: skip
CLONE, CLONE3, TGKILL = (56, 220), (435, 435), (234, 131)
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
# execute, read file, read directory; and all of the first ABI's thirteen rights.
LANDLOCK_READ, LANDLOCK_ALL = 0b1101, (1 << 13) - 1


def check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encode = lambda text: None if text is None else text.encode()  # noqa: E731
    check(
        LIBC.mount(encode(source), encode(target), encode(kind), ctypes.c_ulong(flags), encode(data)),
        f"mount {target}",
    )


def enter_namespaces(root: str, paths: list[str], megabytes: int, user: bool) -> None:
    """Leave the machine's view: see only `paths`, read-only, and an empty /tmp of so many megabytes."""
    uid, gid = os.getuid(), os.getgid()
    spaces = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    check(LIBC.unshare(spaces | (CLONE_NEWUSER if user else 0)), "unshare")
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {uid} 1"), ("gid_map", f"{NOBODY} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in paths:
        show(path, root + path)
    os.makedirs(f"{root}/tmp")
    mount("tmpfs", f"{root}/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"size={megabytes}m,nr_inodes=1000,mode=1777")
    os.makedirs(f"{root}/old")
    os.chdir(root)
    check(LIBC.pivot_root(b".", b"old"), "pivot_root")
    os.chdir("/")
    check(LIBC.umount2(b"/old", MNT_DETACH), "umount")
    os.rmdir("/old")
    mount(None, "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir("/tmp")


def show(path: str, target: str) -> None:
    if os.path.islink(path):  # /lib -> usr/lib
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "w").close()
    mount(path, target, None, MS_BIND | MS_REC)
    kept = os.statvfs(target).f_flag & (8 | 1024 | 2048)  # noexec, noatime, nodiratime stay locked in a user namespace
    relative = (1 << 21) if os.statvfs(target).f_flag & 4096 else 0
    mount(None, target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | kept | relative)


def restrict_files(readable: list[str], writable: str) -> None:
    """Landlock: read below `readable`, write below `writable`, nothing else."""
    ruleset = LIBC.syscall(LANDLOCK_CREATE, struct.pack("Q", LANDLOCK_ALL), 8, 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "landlock is not there")
    for path, rights in [*((p, LANDLOCK_READ) for p in readable), (writable, LANDLOCK_ALL)]:
        if os.path.exists(path):
            if not os.path.isdir(path):
                rights &= 0b101
            parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
            check(LIBC.syscall(LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", rights, parent), 0), f"landlock {path}")
            os.close(parent)
    check(LIBC.syscall(LANDLOCK_RESTRICT, ruleset, 0), "landlock")
    os.close(ruleset)


def restrict_calls() -> None:
    """Seccomp: no new processes, no sockets, no signals to others, no kernel interfaces beyond files and memory."""
    column, architecture = MACHINES[platform.machine()]
    code: list[tuple[int, int, int, int]] = []
    deny, allow, gone, kill = 0x00050000 | 1, 0x7FFF0000, 0x00050000 | 38, 0x80000000

    def load(offset: int) -> None:
        code.append((0x20, 0, 0, offset))

    def answer(value: int) -> None:
        code.append((0x06, 0, 0, value))

    load(4)
    code.append((0x15, 1, 0, architecture))
    answer(kill)
    load(0)
    if column == 0:
        code.append((0x35, 0, 1, 0x40000000))  # the x32 calls have other numbers
        answer(kill)
    for numbers in SYSCALLS.values():
        if numbers[column] is not None:
            code.append((0x15, 0, 1, numbers[column]))  # type: ignore[arg-type]
            answer(deny)
    code.append((0x15, 0, 1, CLONE3[column]))
    answer(gone)  # so that the C library falls back to clone, whose flags can be read
    code.append((0x15, 0, 4, CLONE[column]))
    load(16)
    code.append((0x45, 0, 1, 0x00010000))  # threads only
    answer(allow)
    answer(deny)
    code.append((0x15, 0, 4, TGKILL[column]))
    load(16)
    code.append((0x15, 0, 1, os.getpid()))  # abort() may signal its own process
    answer(allow)
    answer(deny)
    answer(allow)
    program = b"".join(struct.pack("HBBI", *line) for line in code)
    buffer = ctypes.create_string_buffer(program)
    filter_ = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(buffer))
    check(LIBC.prctl(22, 2, filter_, 0, 0), "seccomp")


def limit(settings: dict) -> None:
    megabyte = 1 << 20
    for name, value in (
        (resource.RLIMIT_AS, settings["memory"] * megabyte),
        (resource.RLIMIT_CPU, settings["seconds"]),
        (resource.RLIMIT_FSIZE, settings["files"] * megabyte),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_STACK, 64 * megabyte),
    ):
        _, hard = resource.getrlimit(name)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))


def drop_privileges(change_user: bool) -> None:
    # Without namespaces the interpreter may lie where only its owner can read; Landlock and seccomp hold for root too.
    if change_user and os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    LIBC.capset(struct.pack("Ii", 0x20080522, 0), struct.pack("6I", *[0] * 6))
    check(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def lock_in(settings: dict) -> None:
    """Apply every layer that the kernel has; fork into the new process namespace on the way."""
    layers, problems = [], []
    modes = [settings["user"]] if settings["user"] is not None else [False, True] if os.getuid() == 0 else [True]
    for user in modes if settings["namespaces"] else []:
        probe = os.fork()  # a failed attempt must not leave this process in half of its namespaces
        if probe == 0:
            try:
                enter_namespaces(settings["root"], settings["paths"], settings["files"], user)
                os._exit(0)
            except BaseException as error:
                os.write(2, str(error).encode())
                os._exit(1)
        if os.waitpid(probe, 0)[1] == 0:
            enter_namespaces(settings["root"], settings["paths"], settings["files"], user)
            layers.append("namespaces")
            break
    if "namespaces" in layers:
        child = os.fork()
        if child:
            os.close(1)
            status = os.waitpid(child, 0)[1]
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    folder = "/tmp" if "namespaces" in layers else settings["root"]
    os.chdir(folder)
    drop_privileges(change_user="namespaces" in layers)
    check(LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "pdeathsig")
    limit(settings)
    for name, restrict in (
        ("landlock", lambda: restrict_files(settings["paths"], folder)),
        ("seccomp", restrict_calls),
    ):
        try:
            restrict()
            layers.append(name)
        except (OSError, KeyError) as error:
            problems.append(f"{name}: {error}")
    if not settings["unsafe"] and not ("seccomp" in layers and len(layers) > 1):
        os.write(2, f"r1llama-sandbox-refused {layers} {problems}".encode())
        os._exit(97)
    if settings["report"]:
        os.write(1, json.dumps(layers).encode())
        os._exit(0)


def main() -> None:
    settings = json.loads(sys.argv[1])
    with os.fdopen(settings["code"], "rb") as file:
        code = file.read().decode("utf-8", "replace")
    # Everything the runner itself needs must be imported before the file system is gone.
    import builtins
    import io  # noqa: F401

    lock_in(settings)
    sys.argv = ["main.py"]
    sys.path[:] = [p for p in sys.path if p]
    scope: dict = {"__name__": "__main__", "__builtins__": builtins}
    call = settings["call"]
    try:
        exec(compile(code, "main.py", "exec"), scope)
        if call:
            target = scope.get(call) or getattr(scope["Solution"](), call)
            result = target(*settings["arguments"])
            sys.stdout.flush()
            sys.stdout.write("\n" + json.dumps(result))
    except SystemExit as stop:
        sys.stdout.flush()
        os._exit(stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}"[:1000].encode("utf-8", "replace"))
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
