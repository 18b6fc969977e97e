/* failing COUNT SUCCESSES PROGRAM ABSENT: try to execute ABSENT that often, with a number, as fast as it goes;
   in between, evenly, execute PROGRAM, with a number too. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static char number[32];
static char *environment[] = {NULL};

static void attempt(char *program, long count)
{
    char *arguments[] = {program, number, NULL};

    snprintf(number, sizeof(number), "%ld", count);
    execve(program, arguments, environment);
}

static int succeed(char *program, long count)
{
    int status;
    pid_t child = vfork();

    if (child == 0) {
        attempt(program, count);
        _exit(127);
    }
    return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}

int main(int argc, char **argv)
{
    long count = atol(argv[1]), successes = atol(argv[2]), done = 0;

    (void)argc;
    for (long i = 0; i < count; i++) {
        attempt(argv[4], i);
        if ((i + 1) * successes / count > done && !succeed(argv[3], done++))
            return 1;
    }
    return done != successes;
}
