/* Starts so many processes, one after the other, that end at once with code 7; prints the last one's pid. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    int pid = 0;

    for (long left = argc > 1 ? atol(argv[1]) : 1; left > 0; left--) {
        pid = vfork();
        if (pid == 0)
            _exit(7);
        if (pid < 0 || waitpid(pid, NULL, 0) != pid)
            return 1;
    }
    printf("%d\n", pid);
    return 0;
}
