/* context WAY ARGUMENT PROGRAM [WORD...]: execute PROGRAM in a state that no tool makes.
 *
 *   environment - PROGRAM ENTRY...  with these strings as its environment, whatever they are
 *   chroot FOLDER PROGRAM           in a root that its working directory lies outside of
 *   group - PROGRAM                 in a process group of its own, in its parent's session
 *   memfd NAME PROGRAM              a copy that never had another name
 *   tmpfile FOLDER PROGRAM          a copy that has no name (O_TMPFILE)
 *   shared - PROGRAM                sharing root and working directory with its parent
 *   traced - PROGRAM                traced by its parent
 *   thread UID PROGRAM              from a thread that alone has become another user
 *   users ID PROGRAM                as root of a user namespace where this and the next ids are 0, 1, 2
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define IDS 10000

static char *program, **arguments, *argument, *none[] = {NULL};

static void check(long result, const char *what)
{
    if (result < 0) {
        perror(what);
        exit(1);
    }
}

static int is(const char *way, const char *name)
{
    return strcmp(way, name) == 0;
}

static void execute(void)
{
    check(execvpe(program, arguments, none), program);
}

static void execute_descriptor(int descriptor)
{
    check(syscall(SYS_execveat, descriptor, "", arguments, none, AT_EMPTY_PATH), "execveat");
}

/* Through a descriptor that can only be read: else the file is busy. */
static void execute_copy(int writable)
{
    char name[64];
    struct stat status;
    int from = open(program, O_RDONLY | O_CLOEXEC);

    check(fstat(from, &status), program);
    check(fchmod(writable, 0755), "fchmod");
    check(sendfile(writable, from, NULL, status.st_size), "sendfile");
    snprintf(name, sizeof(name), "/proc/self/fd/%d", writable);
    int readable = open(name, O_RDONLY | O_CLOEXEC);
    check(readable, name);
    close(writable);
    execute_descriptor(readable);
}

static void *as_other_user(void *unused)
{
    long uid = atol(argument);

    /* libc's setresuid changes all threads. */
    check(syscall(SYS_setresuid, uid, uid, uid), "setresuid");
    execute();
    return unused;
}

static void execute_in_thread(void)
{
    pthread_t thread;

    pthread_create(&thread, NULL, as_other_user, NULL);
    pthread_join(thread, NULL);
}

static void write_file(const char *name, const char *text)
{
    int descriptor = open(name, O_WRONLY | O_CLOEXEC);

    check(descriptor, name);
    check(write(descriptor, text, strlen(text)), name);
    close(descriptor);
}

/* Only who stayed outside may map ids that are not its own. */
static void execute_among_users(void)
{
    char name[64], map[64], byte = 0;
    int ready[2], status;

    check(pipe2(ready, O_CLOEXEC), "pipe");
    pid_t inside = getpid(), outside = fork();
    check(outside, "fork");
    if (outside == 0) {
        close(ready[1]);
        if (read(ready[0], &byte, 1) != 1)
            _exit(1);
        snprintf(map, sizeof(map), "0 %s %d", argument, IDS);
        snprintf(name, sizeof(name), "/proc/%d/uid_map", inside);
        write_file(name, map);
        snprintf(name, sizeof(name), "/proc/%d/gid_map", inside);
        write_file(name, map);
        _exit(0);
    }
    check(unshare(CLONE_NEWUSER), "unshare");
    check(write(ready[1], &byte, 1), "write");
    check(waitpid(outside, &status, 0), "waitpid");
    check(setresgid(0, 0, 0), "setresgid");
    check(setresuid(0, 0, 0), "setresuid");
    execute();
}

/* It stops at its exec, as what is traced does. */
static void let_go(pid_t child)
{
    int status;

    check(waitpid(child, &status, 0), "waitpid");
    if (WIFSTOPPED(status))
        check(ptrace(PTRACE_DETACH, child, NULL, NULL), "detach");
}

static int execute_in_child(int flags, int traced)
{
    pid_t child = syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, NULL);
    int status;

    check(child, "clone");
    if (child == 0) {
        if (traced)
            check(ptrace(PTRACE_TRACEME, 0, NULL, NULL), "traceme");
        execute();
    }
    if (traced)
        let_go(child);
    check(waitpid(child, &status, 0), "waitpid");
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    const char *way = argv[1];
    char *alone[] = {argv[3], NULL};

    argument = argv[2];
    program = argv[3];
    arguments = argv + 3;
    if (is(way, "shared"))
        return execute_in_child(CLONE_FS, 0);
    if (is(way, "traced"))
        return execute_in_child(0, 1);
    if (is(way, "memfd"))
        execute_copy(memfd_create(argument, MFD_CLOEXEC));
    if (is(way, "tmpfile"))
        execute_copy(open(argument, O_TMPFILE | O_WRONLY | O_CLOEXEC, 0755));
    if (is(way, "thread"))
        execute_in_thread();
    if (is(way, "users"))
        execute_among_users();
    if (is(way, "environment"))
        check(execve(program, alone, argv + 4), program);
    if (is(way, "chroot"))
        check(chroot(argument), argument);
    if (is(way, "group"))
        check(setpgid(0, 0), "setpgid");
    if (is(way, "chroot") || is(way, "group"))
        execute();
    return 1;
}
