/* A process whose threads do what its first one mostly does: `spawn PROGRAM` executes the program from
 * the first thread and from another; `last` ends by another thread, of another name, with status 3. */
#define _GNU_SOURCE
#include <pthread.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static char *program;

static void *spawn(void *word)
{
    char *argv[] = {program, word, NULL}, *environment[] = {NULL};
    pid_t pid;

    if (posix_spawn(&pid, program, NULL, NULL, argv, environment))
        exit(1);
    waitpid(pid, NULL, 0);
    return NULL;
}

static void *end(void *leader)
{
    pthread_join(*(pthread_t *)leader, NULL);
    prctl(PR_SET_NAME, "worker");
    exit(3);
}

int main(int argc, char **argv)
{
    pthread_t thread;

    if (argc == 3 && !strcmp(argv[1], "spawn")) {
        program = argv[2];
        spawn("first");
        pthread_create(&thread, NULL, spawn, "second");
        pthread_join(thread, NULL);
        return 0;
    }
    static pthread_t leader;
    leader = pthread_self();
    pthread_create(&thread, NULL, end, &leader);
    pthread_exit(NULL);
}
