/* flood: try to execute what is not there, as fast as it goes, until killed. */
#include <unistd.h>

int main(void)
{
    char *arguments[] = {"/no/such/program", "of", "the", "flood", 0}, *environment[] = {0};

    for (;;)
        execve(arguments[0], arguments, environment);
}
