/* storm COUNT FIRST PROGRAM: exec PROGRAM that often, one after the other, with a number. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    long count = atol(argv[1]), first = atol(argv[2]);
    char number[32];
    char *arguments[] = {argv[3], number, NULL}, *environment[] = {NULL};

    (void)argc;
    for (long i = 0; i < count; i++) {
        int status;
        snprintf(number, sizeof(number), "%ld", first + i);
        pid_t child = vfork();
        if (child == 0) {
            execve(argv[3], arguments, environment);
            _exit(127);
        }
        if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
            return 1;
    }
    return 0;
}
