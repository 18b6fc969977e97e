/* getppid COUNT: print how many nanoseconds a system call takes. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    long count = argc > 1 ? atol(argv[1]) : 1000000;
    struct timespec from, to;

    clock_gettime(CLOCK_MONOTONIC, &from);
    for (long i = 0; i < count; i++)
        syscall(SYS_getppid);
    clock_gettime(CLOCK_MONOTONIC, &to);
    printf("%.2f\n", ((to.tv_sec - from.tv_sec) * 1e9 + (to.tv_nsec - from.tv_nsec)) / count);
    return 0;
}
