/* Say that it runs, then wait until its standard input ends: a process to be looked at in /proc. */
#include <unistd.h>

int main(void)
{
    char byte;

    if (write(1, "R", 1) != 1)
        return 1;
    while (read(0, &byte, 1) > 0)
        ;
    return 0;
}
