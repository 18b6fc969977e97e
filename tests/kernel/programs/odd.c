/* odd WAY PROGRAM ARGUMENT: execute PROGRAM in an unusual way. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char *environment[] = {NULL};
static char **arguments;
static const char *program;

static int is(const char *way, const char *name)
{
    return strcmp(way, name) == 0;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void *from_thread(void *unused)
{
    (void)unused;
    printf("%ld\n", syscall(SYS_gettid));
    fflush(stdout);
    execve(program, arguments, environment);
    fail("execve");
    return NULL;
}

static int copy_to_memfd(void)
{
    static char bytes[1 << 20];
    int from = open(program, O_RDONLY), to = memfd_create("secret", 0);
    ssize_t size = read(from, bytes, sizeof(bytes));

    if (from < 0 || to < 0 || size <= 0 || write(to, bytes, size) != size)
        fail("memfd");
    return to;
}

#ifdef __x86_64__
/* int 0x80 takes 32-bit pointers: everything it needs goes below 4 GiB. */
static int by_int80(long number, int at, const char *path, char **words)
{
    char *low = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    uint32_t *pointers = (uint32_t *)low;
    char *text = low + 4096;
    int count = 0, result;

    if (low == MAP_FAILED)
        fail("mmap");
    for (; words[count]; count++) {
        pointers[count] = (uint32_t)(uintptr_t)strcpy(text, words[count]);
        text += strlen(text) + 1;
    }
    pointers[count] = 0;
    uint32_t name = (uint32_t)(uintptr_t)strcpy(text, path);
    uint32_t vector = (uint32_t)(uintptr_t)pointers;
    if (at)
        __asm__ volatile("int $0x80"
                         : "=a"(result)
                         : "a"(number), "b"(AT_FDCWD), "c"(name), "d"(vector), "S"(0), "D"(0)
                         : "memory", "r8", "r9", "r10", "r11");
    else
        __asm__ volatile("int $0x80"
                         : "=a"(result)
                         : "a"(number), "b"(name), "c"(vector), "d"(0)
                         : "memory", "r8", "r9", "r10", "r11");
    return result;
}
#endif

static int run(const char *way)
{
    pid_t child = 0;
    int fd;

    if (is(way, "execve"))
        return execve(program, arguments, environment);
    if (is(way, "execveat"))
        return syscall(SYS_execveat, AT_FDCWD, program, arguments, environment, 0);
    if (is(way, "execveat_empty_path")) {
        fd = open(program, O_PATH);
        return syscall(SYS_execveat, fd, "", arguments, environment, AT_EMPTY_PATH);
    }
    if (is(way, "fexecve"))
        return fexecve(open(program, O_RDONLY), arguments, environment);
    if (is(way, "memfd"))
        return fexecve(copy_to_memfd(), arguments, environment);
    if (is(way, "deleted")) {
        fd = open(program, O_PATH);
        unlink(program);
        return syscall(SYS_execveat, fd, "", arguments, environment, AT_EMPTY_PATH);
    }
    if (is(way, "thread")) {
        pthread_t thread;
        pthread_create(&thread, NULL, from_thread, NULL);
        pthread_join(thread, NULL);
        return -1;
    }
    if (is(way, "vfork")) {
        child = vfork();
        if (child == 0) {
            execve(program, arguments, environment);
            _exit(127);
        }
    } else if (is(way, "posix_spawn")) {
        errno = posix_spawn(&child, program, NULL, NULL, arguments, environment);
    } else if (is(way, "empty_argv")) {
        arguments[0] = NULL;
        return execve(program, arguments, environment);
#ifdef __x86_64__
    } else if (is(way, "int80")) {
        return by_int80(11, 0, program, arguments);
    } else if (is(way, "int80_execveat")) {
        return by_int80(358, 1, program, arguments);
#endif
    } else if (is(way, "bad_pointers")) {
        return syscall(SYS_execve, (char *)8, (char **)16, environment);
    } else if (is(way, "bad_argv")) {
        return syscall(SYS_execve, program, (char **)16, environment);
    } else {
        errno = EINVAL;
        return -1;
    }
    return child > 0 ? waitpid(child, NULL, 0) < 0 : -1;
}

/* Prints what a refused call returned: a positive errno. */
int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    program = argv[2];
    arguments = argv + 2;
    int result = run(argv[1]);
    if (result < 0)
        printf("%d\n", result < -1 ? -result : errno);
    return 0;
}
