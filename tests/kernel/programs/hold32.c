/* hold for 32-bit x86, without libc: say that it runs, then wait until its standard input ends. */
static int call(int number, int descriptor, const char *buffer)
{
    int result;

    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(descriptor), "c"(buffer), "d"(1) : "memory");
    return result;
}

void _start(void)
{
    char byte = 'R';

    call(4, 1, &byte);
    while (call(3, 0, &byte) > 0)
        ;
    call(1, 0, 0);
}
